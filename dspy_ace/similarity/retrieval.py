"""The bullets that matter for one case: relevance by vectors, usefulness by votes. No LM."""

from __future__ import annotations

import threading
from operator import attrgetter

from ..errors import SettingsError
from ..playbook import Bullet, Playbook
from .vectors import Vectors

VOTES = 0.1  # of cosine: what a spotless record is worth
DOUBT = 2  # votes that stand against trusting a record of few votes

_shared = Vectors()
_lock = threading.Lock()


def nearest(
    playbook: Playbook,
    text: str,
    k: int | None = None,
    *,
    tokens: int | None = None,
    predictor: str | None = None,
    vectors: Vectors | None = None,
) -> list[Bullet]:
    """The `k` bullets that matter most for a text, or as many as `tokens` hold, in the order of the playbook.

    A bullet counts by the cosine of its content with `text`, plus at most ±0.1 for its record:
    (helpful − harmful) / (helpful + harmful + 2), a tenth of it. So of bullets that fit alike the more useful one is
    taken, and where nothing fits those that helped most. Of equals the oldest.

    Args:
        playbook: any; its vectors are computed once and kept by text, so that the next version costs what is new in it.
        text: the case: the inputs of a program, say.
        k: how many, 1 or more; fewer if the playbook has fewer. None: any number.
        tokens: estimated tokens that their blocks may take together, 1 or more; those that matter most are taken as
            long as they fit. None: any number.
        predictor: only the bullets its prompt shows; None: all.
        vectors: where vectors are kept, with an embedder of your own; threads may share it. None: lexical vectors,
            kept for all calls of this process.

    Returns:
        Bullets in order of birth. The same playbook, text and k give the same bullets.

    Raises:
        SettingsError: neither k nor tokens is given, or one is no whole number of 1 or more.
        EmbedderError: see `Vectors.places`.
    """
    for name, value in (("k", k), ("tokens", tokens)):
        wrong = isinstance(value, bool) or not isinstance(value, int) or value < 1
        if wrong and (value is not None or (k is None and tokens is None)):
            raise SettingsError(f"{name} must be a whole number of 1 or more; got {value!r}.")
    bullets = playbook.bullets if predictor is None else playbook.for_predictor(predictor)
    if (k is None or len(bullets) <= k) and (tokens is None or sum(bullet.tokens for bullet in bullets) <= tokens):
        return list(bullets)
    ranked = _ranked(bullets, text, _shared if vectors is None else vectors)
    chosen, left = [], float("inf") if tokens is None else tokens
    for at in ranked[:k]:
        if bullets[at].tokens <= left:
            left -= bullets[at].tokens
            chosen.append(at)
    return [bullets[at] for at in sorted(chosen)]


def _ranked(bullets: tuple[Bullet, ...], text: str, vectors: Vectors) -> list[int]:
    """The places of bullets, those that matter most for `text` first."""
    import numpy as np  # noqa: PLC0415  (on first use only)

    contents = [bullet.content for bullet in bullets]
    wanted = vectors.embed([text])  # threads ask their embedder side by side, and look one after the other
    with _lock:
        rows = vectors.places(contents)
        if vectors.forget_all_but(contents):
            rows = vectors.places(contents)
        relevance = vectors.cosines(wanted)[rows].astype(np.float64)
    helpful = np.fromiter(map(attrgetter("helpful"), bullets), dtype=np.float64, count=len(bullets))
    harmful = np.fromiter(map(attrgetter("harmful"), bullets), dtype=np.float64, count=len(bullets))
    merit = np.round(relevance, 6) + VOTES * (helpful - harmful) / (helpful + harmful + DOUBT)
    order: list[int] = np.argsort(-merit, kind="stable").tolist()
    return order
