"""One request in, one reply out: reading, role, noise. A pure function of the request, the knobs and the salt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from .agent import is_step, step
from .answer import answer
from .curate import curate
from .evidence import Verdict
from .noise import Dice, Knobs, spoil
from .propose import propose
from .reader import Ask, Request, read
from .reflect import reflect
from .roles import CURATOR, PROPOSER, REFLECTOR, role_of
from .shape import write

Answerer = Callable[[Ask, Dice], tuple[str, dict[str, Any]] | None]
"""Answers one sort of request: (request as read, dice for it) → (role for the log, output field → value).

None leaves the request to the next answerer. It depends on its two arguments alone.
"""

_OPEN = 0.3
"""Margin below which samples of one request may differ."""


@dataclass(frozen=True)
class Reply:
    """The reply text and the role it was written in."""

    text: str
    role: str


def respond(request: Request, knobs: Knobs, salt: str = "", answerers: Sequence[Answerer] = ()) -> Reply:
    """Reply to `request`: the first of `answerers` that answers it, else the offline model itself.

    Args:
        request: the chat request.
        knobs: how the model behaves; `unparsable` applies to the replies of `answerers`, too.
        salt: tells apart samples of one request (a rollout id).
        answerers: asked in their order, before the model's own roles.
    """
    ask = read(request)
    dice = Dice(f"{knobs.seed}\x1f{salt}\x1f{request.text}")
    answers = (answered for answerer in answerers for answered in (answerer(ask, dice),) if answered is not None)
    role, values = next(answers, None) or _own_answer(ask, knobs, dice, bool(salt))
    text = write(ask, values)
    if dice.happens("unparsable", knobs.unparsable):
        text = spoil(text, dice)
    return Reply(text, role)


def _own_answer(ask: Ask, knobs: Knobs, dice: Dice, sampled: bool) -> tuple[str, dict[str, Any]]:
    role = role_of(ask)
    if role == REFLECTOR:
        wording = 1 + dice.below("wording", 3) if dice.happens("paraphrase", knobs.paraphrase) else 0
        values = reflect(ask, wording, dice.happens("wrong_lessons", knobs.wrong_lessons))
    elif role == CURATOR:
        values = curate(ask, dice.happens("junk", knobs.junk))
    elif role == PROPOSER:
        values = propose(ask, dice, knobs.rewrite_limit)
    elif is_step(ask):
        values = step(ask)
    else:
        values = answer(ask, lambda name, verdict: _pick(dice, knobs, sampled, name, verdict)).values
    return role, values


def _pick(dice: Dice, knobs: Knobs, sampled: bool, name: str, verdict: Verdict) -> int:
    """The option answered: among samples of one request those that the evidence leaves open differ; then slips."""
    best = verdict.best
    if sampled and verdict.margin < _OPEN:
        ranked = sorted(range(len(verdict.scores)), key=lambda i: (-verdict.scores[i], i))
        close = [i for i in ranked if verdict.scores[i] >= (1 - _OPEN) * verdict.scores[best]] or ranked
        best = close[dice.below(f"sample {name}", len(close))]
    return dice.other(f"slip {name}", best, len(verdict.scores), knobs.slips)
