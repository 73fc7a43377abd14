"""The plan of a run's spending: told before the first call, and held against what was spent at the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import dspy

from ..lm import Usage, price_of
from ..playbook import count_tokens
from ..program import render_fields
from .choice import SAMPLE
from .settings import Settings
from .state import Record

EXAMPLES = 20  # whose length is looked at
PLAYBOOK, REPLY = 1_000, 200  # tokens of a usual playbook and of a usual answer of a program
ROLE_PROMPT, ROLE_REPLY = 2_500, 600  # tokens of a usual role call, besides the case


@dataclass(frozen=True)
class Plan:
    """The most that a run may spend.

    Args:
        learning: rollouts of the batches, retries included.
        validation: rollouts on the valset.
        again: rollouts of failures, which decide a tie.
        reflections, curations: role calls; a reply that cannot be read is asked for again.
        dollars: about what all of it costs; None: a price is not known.
        limits: those set by the user, by the argument's name.
    """

    learning: int
    validation: int
    again: int
    reflections: int
    curations: int
    dollars: float | None
    limits: Mapping[str, float]

    @classmethod
    def of(
        cls,
        settings: Settings,
        student: dspy.Module,
        trainset: Sequence[dspy.Example],
        valset: Sequence[dspy.Example],
    ) -> Plan:
        """Return the plan of `ACE.compile` with these settings.

        Dollars are estimated with prompts as long as they are, one call a predictor, and replies of usual length.
        LM calls of the metric are not in it.
        """
        seen, rounds = len(trainset) * settings.epochs, settings.max_reflection_rounds
        times = 2 + (0 if settings.validate_when == "end" else (seen - 1) // max(1, len(valset)))
        names = ("max_metric_calls", "max_lm_calls", "max_cost", "max_seconds")
        plan = cls(
            learning=seen * (1 + rounds),
            validation=times * len(valset),
            again=0 if settings.metric is None else min(SAMPLE, len(trainset)),
            reflections=seen * max(1, rounds),
            curations=settings.epochs * -(-len(trainset) // settings.batch_size),
            dollars=None,
            limits={name: limit for name in names if (limit := getattr(settings, name)) is not None},
        )
        return cls(**{**vars(plan), "dollars": plan._price(settings, student, trainset)})

    @property
    def rollouts(self) -> int:
        """All rollouts together."""
        return min(self.learning + self.validation + self.again, int(self.limits.get("max_metric_calls", 10**12)))

    def _price(self, settings: Settings, student: dspy.Module, trainset: Sequence[dspy.Example]) -> float | None:
        sample = trainset[:EXAMPLES]
        case = sum(count_tokens(render_fields(dict(each.items()))) for each in sample) // len(sample)
        own, dollars = 0, 0.0
        asked = [predictor.lm or dspy.settings.lm for predictor in student.predictors()]
        for predictor, lm in zip(student.predictors(), asked, strict=True):
            own += (words := count_tokens(str(predictor.signature.instructions)))
            price = price_of(lm.model)
            if price is None:
                return None
            dollars += self.rollouts * price.of(words + case + PLAYBOOK, 0, REPLY)
        price = price_of((settings.reflection_lm or asked[0]).model)
        if price is None:
            return None
        roles = self.reflections + self.curations
        return dollars + roles * price.of(own + 2 * case + ROLE_PROMPT, 0, ROLE_REPLY)

    def __str__(self) -> str:
        costs = "its price is not known" if self.dollars is None else f"about ${self.dollars:.2f}"
        limits = "".join(f", {name}={limit:g}" for name, limit in self.limits.items())
        parts = f"{self.learning} to learn, {self.validation} to validate, {self.again} of failures again"
        roles = f"{self.reflections} reflections and {self.curations} curations"
        return f"at most {self.rollouts} rollouts ({parts}), {roles}: {costs}{limits}"

    def against(self, records: Sequence[Record], rollouts: int, usage: Mapping[str, Usage]) -> str:
        """Say what was planned and what was used."""
        reflections = sum(len(record.reflections) for record in records)
        curations = sum(record.curation is not None for record in records)
        dollars = sum(usage.values(), Usage()).dollars
        costs = "" if dollars is None or self.dollars is None else f", ${dollars:.2f}"
        return f"planned {self}; used {rollouts} rollouts, {reflections} reflections and {curations} curations{costs}"
