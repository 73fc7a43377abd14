"""One request in, one reply out: reading, role, noise. A pure function of the request, the knobs and the salt."""

from __future__ import annotations

from dataclasses import dataclass

from .agent import is_step, step
from .answer import answer
from .curate import curate
from .evidence import Verdict
from .noise import Dice, Knobs, spoil
from .propose import propose
from .reader import Request, read
from .reflect import reflect
from .roles import CURATOR, PROPOSER, REFLECTOR, role_of
from .shape import write

_OPEN = 0.3
"""Margin below which samples of one request may differ."""


@dataclass(frozen=True)
class Reply:
    """The reply text and the role it was written in."""

    text: str
    role: str


def respond(request: Request, knobs: Knobs, salt: str = "") -> Reply:
    """The reply to `request`. `salt`: tells apart samples of one request (a rollout id)."""
    ask = read(request)
    role = role_of(ask)
    dice = Dice(f"{knobs.seed}\x1f{salt}\x1f{request.text}")
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
        values = answer(ask, lambda name, verdict: _pick(dice, knobs, bool(salt), name, verdict)).values
    text = write(ask, values)
    if dice.happens("unparsable", knobs.unparsable):
        text = spoil(text, dice)
    return Reply(text, role)


def _pick(dice: Dice, knobs: Knobs, sampled: bool, name: str, verdict: Verdict) -> int:
    """The option answered: among samples of one request those that the evidence leaves open differ; then slips."""
    best = verdict.best
    if sampled and verdict.margin < _OPEN:
        ranked = sorted(range(len(verdict.scores)), key=lambda i: (-verdict.scores[i], i))
        close = [i for i in ranked if verdict.scores[i] >= (1 - _OPEN) * verdict.scores[best]] or ranked
        best = close[dice.below(f"sample {name}", len(close))]
    return dice.other(f"slip {name}", best, len(verdict.scores), knobs.slips)
