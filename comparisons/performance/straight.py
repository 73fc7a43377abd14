"""The straightforward version of a step, to measure against: everything is done anew for every delta.

Every text is embedded, every pair compared (by matrix products, not one by one), the playbook checked as a new one,
the prompt written and its tokens counted piece by piece. It uses the same vectors, the same guard and the same counts,
so that what differs is the work repeated.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dspy_ace import Bullet, Playbook
from dspy_ace.playbook import Add, Delta, count_tokens
from dspy_ace.playbook.text import section_slug
from dspy_ace.similarity.differences import difference
from dspy_ace.similarity.similarity import LEXICAL_THRESHOLD
from dspy_ace.similarity.vectors import lexical

BLOCK = 256  # rows at a time


def step(playbook: Playbook, delta: Delta) -> tuple[str, int]:
    """Apply additions, merge duplicates (the older stays), write the prompt, count it: (prompt, tokens)."""
    bullets = [Bullet(b.id, b.section, b.content, b.helpful, b.harmful, b.predictor, b.sources) for b in playbook]
    number = playbook.high_water
    for operation in delta.operations:
        if not isinstance(operation, Add):
            raise TypeError(f"the straightforward version only adds; got {operation.op}")
        number += 1
        name = f"{section_slug(operation.section)}-{number:05d}"
        bullets.append(Bullet(name, operation.section, operation.content, sources=operation.sources))
    gone = {later for _, later in duplicates([bullet.content for bullet in bullets])}
    grown = Playbook(tuple(bullet for at, bullet in enumerate(bullets) if at not in gone), playbook.sections, number)
    prompt = "\n".join(bullet.block for bullet in grown)
    return prompt, count_tokens(prompt)


def duplicates(texts: Sequence[str]) -> list[tuple[int, int]]:
    """All pairs of places whose texts say the same, from nothing but the texts."""
    vectors = lexical(texts)
    found = []
    for start in range(0, len(texts), BLOCK):
        cosines = (vectors @ vectors[start : start + BLOCK].T).toarray()
        for other, at in zip(*np.nonzero(cosines >= LEXICAL_THRESHOLD), strict=True):
            first, second = start + int(at), int(other)
            if first < second and difference(texts[first], texts[second]) is None:
                found.append((first, second))
    return found
