"""Situations that real models were seen in, made offline: the quickstart's messages, with other labels or another model.

| situation | the model and its task | what it can show |
|---|---|---|
| `plain` | the quickstart as it is | |
| `conventions` | training messages to three desks say where they went, others do not | which messages belong there is seen in right answers alone: who reflects on failures alone loses |
| `known` | the model knows every other rule, which no prompt holds | bullets on these cost tokens and nothing else |
| `lessons` | 30 % of the reflections call the wrong answer right | whether a retry confirmed a lesson matters |
| `labels` | 10 % of the labels to learn on and to choose by are wrong | a lesson that one example shows may be none |
"""  # noqa: E501 - a table

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import dspy

from dspy_ace import Playbook
from dspy_ace.testing import OfflineLM
from dspy_ace.testing.answer import answer
from dspy_ace.testing.backend import TASK, Answerer, role_of
from dspy_ace.testing.curate import read_point
from dspy_ace.testing.noise import Dice
from dspy_ace.testing.request import Ask
from dspy_ace.testing.words import normal

from .quickstart import split_of
from .task import Task  # first: it makes the examples importable

from routing_task import DESKS, HOUSE_RULES  # type: ignore[import-not-found]  # isort: skip


MARKED = ("Maple", "Lantern", "Orchard")


@dataclass(frozen=True)
class Situation:
    """A task and a model for it.

    Args:
        task: a seed → the task, drawn anew for each seed.
        knows: rules that the task model knows although no prompt holds them.
        noise: settings of the model in the place of those that are common to all situations.
    """

    task: Callable[[int], Task]
    knows: Sequence[str] = ()
    noise: Mapping[str, float] = field(default_factory=dict)

    def model(self, noise: Mapping[str, float], seed: int = 0) -> OfflineLM:
        """Return the model. `noise`: fields of `Knobs`; none: it makes no slips."""
        own = {**noise, **self.noise} if noise else {}
        answerers = [knowing(self.knows, own.get("slips", 0.0))] if self.knows else []
        return OfflineLM(**own, seed=seed, answerers=answerers)


def knowing(rules: Sequence[str], slips: float) -> Answerer:
    """Return an answerer for the task model that reads `rules` beside the prompt. `slips`: see `Knobs`."""

    def answerer(ask: Ask, dice: Dice) -> tuple[str, dict[str, Any]] | None:
        if role_of(ask) != TASK:
            return None
        informed = replace(ask, instructions="\n".join((ask.instructions, *rules)))
        return TASK, answer(informed, lambda name, verdict: dice.other(name, verdict.best, len(verdict.scores), slips))

    return answerer


def marked(seed: int) -> Task:
    """The quickstart's task, where training messages to three of the seven desks say where they went.

    So the student is right about them, and only a right answer shows which messages belong there. All other messages
    say nothing, in training as in the test.
    """
    task = split_of(seed)
    train = [
        dspy.Example(message=f"{example.message} (Passed on to {example.desk}.)", desk=example.desk).with_inputs(
            "message"
        )
        if example.desk in MARKED
        else example
        for example in task.train
    ]
    return replace(task, train=train)


def mislabelled(seed: int, share: float = 0.1) -> Task:
    """The quickstart's task with another desk as label of this share of the messages to learn on and choose by."""
    task, draw = split_of(seed), random.Random(seed)  # noqa: S311 - seeded labels, no secret

    def spoiled(examples: Sequence[dspy.Example]) -> list[dspy.Example]:
        wrong = set(draw.sample(range(len(examples)), round(share * len(examples))))
        return [
            dspy.Example(
                message=example.message, desk=draw.choice([desk for desk in DESKS if desk != example.desk])
            ).with_inputs("message")
            if at in wrong
            else example
            for at, example in enumerate(examples)
        ]

    return replace(task, train=spoiled(task.train), val=spoiled(task.val))


SITUATIONS = {
    "plain": Situation(split_of),
    "conventions": Situation(marked),
    "known": Situation(split_of, HOUSE_RULES[::2]),
    "lessons": Situation(split_of, noise={"wrong_lessons": 0.3}),
    "labels": Situation(mislabelled),
}


def misleading(playbook: Playbook) -> int:
    """Count the bullets that name a desk for cues of which none belongs mostly to it."""
    split = split_of(0)
    messages = [(f" {normal(e.message)} ", normal(e.desk)) for e in (*split.train, *split.val, *split.test)]

    def share(cue: str, desk: str) -> float:
        desks = [right for text, right in messages if f" {normal(cue)} " in text]
        return desks.count(desk) / len(desks) if desks else 0.0

    points = [read_point(bullet.content) for bullet in playbook if " is not " not in bullet.content]
    named = [point for point in points if point.answer]
    return sum(max((share(cue, point.answer) for cue in point.cues), default=0.0) < 0.5 for point in named)
