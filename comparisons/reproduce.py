"""Which optimizer, with real models: FiNER, Formula and the office, every method at the same dollars, several seeds.

    python -m comparisons reproduce --data DIR --model openai/gpt-4o-mini --reflection-model openai/gpt-5 --dry-run

The plan comes first. A compile of each method may cost what one of ACE with its defaults is expected to cost on that
task, or `--dollars`; its budget in metric calls is the largest that is expected to fit (`estimate.py`). For a model
without a price tokens stand in for dollars: a million prompt tokens for one, a million written tokens for four. What a
compile really cost stands in the results. A method that has learned all it can may cost less than its share.

`--out` gets a folder of raw cells and a page for each task, and `reproduction.md` with the table of all. The same
command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import dspy

from dspy_ace.comparison import Comparison

from .estimate import Estimate, estimate, prompt_tokens
from .methods import METHODS, Setting
from .models import LABEL, OFFLINE, connect
from .runner import compare_on, reports, setting_of
from .tasks import Task, load_task

MOST = 20_000  # metric calls that a plan considers
WRITTEN = 4  # a written token counts as so many prompt tokens where no price is known
REPORT = "reproduction.md"
KINDS = ("prompt_tokens", "completion_tokens")


@dataclass(frozen=True)
class Plan:
    """The plan for one task.

    Args:
        task: cut to the sizes that will be run.
        settings: of each method, with its budget.
        allowed: what a compile may cost, in dollars or millions of tokens.
        compiles: what a compile of each method is expected to cost.
        estimates: each method with its tests, all seeds.
    """

    task: Task
    settings: Mapping[str, Setting]
    allowed: float
    compiles: Mapping[str, float]
    estimates: Mapping[str, Estimate]


def reproduce(args: argparse.Namespace, argv: list[str], say: Callable[[str], None]) -> None:
    """Plan, say the plan, and run it unless `--dry-run` is given."""
    task_lm = connect(args.model, args.api_base)
    reflection_lm = connect(args.reflection_model, args.api_base) if args.reflection_model else None
    with dspy.context(lm=task_lm):
        plans = [
            plan(load_task(name, args.data, None).cut(args.train, args.val, args.test), args, task_lm, reflection_lm)
            for name in args.task
        ]
        say(plan_table(plans, len(args.seeds)))
        if args.dry_run:
            return
        results = {}
        for each in plans:
            makers = {name: partial(METHODS[name].make, setting) for name, setting in each.settings.items()}
            results[each.task.name] = result = compare_on(each.task, makers, args, argv)
            for path in reports(result, args.out / each.task.name, each.task.name):
                say(f"saved: {path}")
    offline = OFFLINE in (args.model, args.reflection_model)
    text = "\n\n".join(["# Optimizers at equal cost", *([LABEL] if offline else []), plan_table(plans, len(args.seeds)),
                        result_table(results)])  # fmt: skip
    say(f"\n{text}")
    (args.out / REPORT).write_text(text + "\n", encoding="utf-8")
    say(f"saved: {args.out / REPORT}")


def plan(task: Task, args: argparse.Namespace, lm: Any, reflection_lm: Any) -> Plan:
    """Find each method's budget."""
    shared, sizes, seeds = setting_of(task, args, reflection_lm), prompt_tokens(task), len(args.seeds)

    def compiled(name: str, setting: Setting) -> float:
        return worth(estimate(replace(task, test=()), [METHODS[name]], setting, 1, lm, sizes)[-1])

    allowed = args.dollars or compiled("ace", shared)
    settings = {name: replace(shared, budget=_budget(name, shared, compiled, allowed)) for name in args.methods}
    return Plan(
        task,
        settings,
        allowed,
        {name: compiled(name, setting) for name, setting in settings.items()},
        {name: estimate(task, [METHODS[name]], own, seeds, lm, sizes)[-1] for name, own in settings.items()},
    )


def _budget(name: str, shared: Setting, compiled: Callable[[str, Setting], float], allowed: float) -> int:
    """Return the most metric calls that are expected to cost what is allowed or less; at least what it needs."""

    def runs(budget: int) -> bool:
        try:
            METHODS[name].expect(replace(shared, budget=budget))
        except ValueError:  # too small for the method
            return False
        return True

    def costs_more(budget: int) -> bool:
        return compiled(name, replace(shared, budget=budget)) > allowed

    least = bisect_left(range(1, MOST), True, key=runs) + 1
    return max(least, least - 1 + bisect_left(range(least, MOST), True, key=costs_more))


def worth(expected: Estimate) -> float:
    """Return dollars or, for a model without a price, tokens in millions."""
    tokens = (expected.prompt_tokens + WRITTEN * expected.completion_tokens) / 1e6
    return tokens if expected.dollars is None else expected.dollars


def plan_table(plans: Sequence[Plan], seeds: int) -> str:
    """The plan, in Markdown."""
    priced = all(row.dollars is not None for each in plans for row in each.estimates.values())
    unit = "dollars" if priced else "million tokens"
    head = ("task", "method", "metric calls a compile", f"{unit} a compile", "LM calls, all", f"{unit}, all")
    lines = [
        *(
            f"{each.task.name}: {len(each.task.train)} training, {len(each.task.val)} validation and "
            f"{len(each.task.test)} test examples; a compile may cost {each.allowed:.2f} {unit}."
            for each in plans
        ),
        "",
        f"| {' | '.join(head)} |",
        "|---" * len(head) + "|",
    ]
    for each in plans:
        for name, expected in each.estimates.items():
            calls = expected.task_calls + expected.role_calls
            lines.append(
                f"| {each.task.name} | {name} | {expected.rollouts // seeds:,} | {each.compiles[name]:.2f} "
                f"| {calls:,} | {worth(expected):.2f} |"
            )
    total = sum(worth(expected) for each in plans for expected in each.estimates.values())
    end = f"All: {seeds} seeds with tests, together about {total:.2f} {unit} (no prompt cache is reckoned with)."
    return "\n".join([*lines, "", end])


def result_table(results: Mapping[str, Comparison]) -> str:
    """The scores and real costs of all tasks, in Markdown."""
    head = ("task", "method", "test score", "vs student", "metric calls", "LM calls", "dollars", "million tokens",
            "tokens a test example", "seeds")  # fmt: skip
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    lines += [f"| {task} {_cells(row)}" for task, result in results.items() for row in result.rows]
    end = (
        "Test scores and differences with 95 % intervals; calls, dollars and tokens: the mean of a compile, in which a "
        f"written token counts as {WRITTEN} prompt tokens."
    )
    return "\n".join([*lines, "", end])


def _cells(row: Any) -> str:
    score = "failed" if row.score is None else f"{row.score:.3f} [{row.low:.3f}, {row.high:.3f}]"
    apart = "–" if row.vs_student is None else "{:+.3f} [{:+.3f}, {:+.3f}]".format(*row.vs_student)
    spent, tested = ({kind: _sum(usage, kind) for kind in KINDS} for usage in (row.usage, row.test_usage))
    tokens = spent["prompt_tokens"] + WRITTEN * spent["completion_tokens"]
    per_example = (tested["prompt_tokens"] + tested["completion_tokens"]) / max(1, row.test_size)
    known = row.usage and row.dollars is not None
    costs = [f"{row.metric_calls:,.0f}", f"{row.lm_calls:,.0f}", f"{row.dollars:.2f}" if known else "–",
             f"{tokens / 1e6:.2f}"] if row.usage else ["–"] * 4  # fmt: skip
    return f"| {row.name} | {score} | {apart} | {' | '.join(costs)} | {per_example:,.0f} | {row.seeds_ok} |"


def _sum(usage: Mapping[str, Mapping[str, float | None]], kind: str) -> float:
    return sum(counts.get(kind) or 0.0 for counts in usage.values())
