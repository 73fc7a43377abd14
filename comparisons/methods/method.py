"""A method: an optimizer under the settings of a comparison, made anew for each seed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import dspy
from dspy.teleprompt import Teleprompter

Metric = Callable[..., Any]
Compile = Callable[["Recipe", dspy.Module, list[dspy.Example], list[dspy.Example]], dspy.Module]


@dataclass(frozen=True)
class Setting:
    """The settings that all methods of a comparison share.

    Args:
        metric: of the task.
        train, val: how many examples there are to learn on and to choose by.
        stream: the test examples in order, for methods that learn while they are tested.
        budget: metric calls a compile may make; None: each optimizer's own `auto="light"`, or its defaults.
        reflection_lm: the LM of the roles that write prompts; None: the task's.
        num_threads: calls at once.
        epochs: passes over the trainset of ACE as shipped; None: its default.
        paper_epochs: the same of ACE as the paper ran it.
    """

    metric: Metric
    train: int
    val: int
    stream: Sequence[dspy.Example] = ()
    budget: int | None = None
    reflection_lm: Any = None
    num_threads: int = 8
    epochs: int | None = None
    paper_epochs: int = 5


@dataclass(frozen=True)
class Expected:
    """The calls and tokens that one run is expected to take: about, and seldom more.

    Args:
        rollouts: runs of the program while compiling.
        role_calls: LM calls that write or judge prompts.
        demos: training examples that a rollout's prompt shows, once something is learned.
        added_tokens: tokens of instructions that a rollout's prompt has besides, once something is learned.
        test_role_calls: LM calls of other roles for each test example: online methods alone.
    """

    rollouts: int
    role_calls: int = 0
    demos: int = 0
    added_tokens: int = 0
    test_role_calls: float = 0.0


@dataclass(frozen=True)
class Method:
    """A method by name.

    Args:
        name: as on the command line.
        title: as in the tables.
        source: where it comes from, for a reader to check the file against.
        make: the optimizer for a setting and a seed.
        expect: what one run of it is expected to make.
    """

    name: str
    title: str
    source: str
    make: Callable[[Setting, int], Teleprompter]
    expect: Callable[[Setting], Expected]


class Recipe(Teleprompter):  # type: ignore[misc]  # dspy is untyped
    """A function as an optimizer, so that every optimizer is called alike, whatever its `compile` takes.

    Args:
        setting: becomes the attributes `metric`, `budget`, `reflection_lm`, `num_threads` and `stream`; a comparison
            puts an observed metric in place of `metric`, on a copy.
        seed: of whatever is drawn.
        run: `(recipe, student, trainset, valset) -> program`; what it needs it finds on the recipe.
    """

    def __init__(self, setting: Setting, seed: int, run: Compile) -> None:
        self.metric = setting.metric
        self.budget = setting.budget
        self.reflection_lm = setting.reflection_lm
        self.num_threads = setting.num_threads
        self.stream = list(setting.stream)
        self.seed = seed
        self.run = run

    @property
    def role_lm(self) -> Any:
        """The LM of the roles, for optimizers that cannot do without one."""
        return self.reflection_lm or dspy.settings.lm

    def compile(
        self,
        student: dspy.Module,
        *,
        trainset: list[dspy.Example],
        valset: list[dspy.Example] | None = None,
    ) -> dspy.Module:
        """Optimize a student with the function."""
        return self.run(self, student, list(trainset), list(valset or ()))
