"""ACE online: predict, then learn, over the stream of test examples (arXiv 2510.04618, §4: online adaptation).

One epoch over the stream in batches of 16. Each example is answered with the playbook as it stood before its batch
was learned from, and this answer is the one that counts: what was answered is past, so nothing is tried again. The
label is revealed after the answer, as feedback, as in the paper's rows "online, labels"; failures are reflected on.
Nothing is learned beforehand (cold start). `OnlineACE.run` does the same over a stream that is not known at the start.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import dspy

from dspy_ace import ACE

from .method import Expected, Method, Metric, Recipe, Setting


class OnlineStream(dspy.Module):  # type: ignore[misc]  # dspy is untyped
    """Answers the examples of a stream. The first call works the stream through, the others hand out its answers.

    Args:
        student: the program.
        stream: the examples that will be asked for, with labels.
        ace: makes the optimizer for a metric.
        metric: scores an answer once it was given.
    """

    online = True

    def __init__(self, student: dspy.Module, stream: Sequence[dspy.Example], ace: Any, metric: Metric) -> None:
        super().__init__()
        self.student = student
        self.stream = list(stream)
        self.ace = ace
        self.metric = metric
        self.answers: dict[str, Any] | None = None

    def forward(self, **inputs: Any) -> Any:
        """The answer that was given before this example was learned from.

        Raises:
            KeyError: the inputs are not of the stream.
            RuntimeError: the program failed on them.
        """
        if self.answers is None:
            self._work_through()
        answer = (self.answers or {})[_key(inputs)]
        if answer is None:
            raise RuntimeError("the program failed on this example of the stream")
        return answer

    def _work_through(self) -> None:
        answers: dict[str, Any] = {_key(example.inputs().toDict()): None for example in self.stream}
        answered: set[str] = set()

        def first_answers(
            example: dspy.Example, prediction: Any, trace: Any = None, pred_name: Any = None, pred_trace: Any = None
        ) -> Any:
            key = _key(example.inputs().toDict())
            if key not in answered:  # a retry of a failure comes later, and does not count
                answered.add(key)
                answers[key] = prediction
            return self.metric(example, prediction, trace, pred_name, pred_trace)

        learned = self.ace(first_answers).compile(self.student, self.stream)
        self.playbook, self.detailed_results = learned.playbook, learned.detailed_results
        self.answers = answers


def _key(inputs: dict[str, Any]) -> str:
    return json.dumps(inputs, sort_keys=True, default=str)


def run(recipe: Recipe, student: dspy.Module, trainset: list[dspy.Example], valset: list[dspy.Example]) -> dspy.Module:
    """One epoch of ACE over the stream, without a valset and without retries."""

    def ace(metric: Metric) -> ACE:
        return ACE(
            metric,
            epochs=1,
            max_reflection_rounds=0,
            reflect_on="failures",
            batch_size=16,
            reflection_lm=recipe.reflection_lm,
            num_threads=recipe.num_threads,
            seed=recipe.seed,
            progress=False,
        )

    return OnlineStream(student, recipe.stream, ace, recipe.metric)


def make(setting: Setting, seed: int) -> Recipe:
    """The recipe for a setting and a seed."""
    return Recipe(setting, seed, run)


def expect(setting: Setting) -> Expected:
    """No compile; for each test example a reflection in the worst case, and an eighth of a curation."""
    return Expected(0, added_tokens=2000, test_role_calls=1.125)


METHOD = Method("ace-online", "ACE online", "arXiv 2510.04618, §4; dspy_ace.ACE over the stream", make, expect)
