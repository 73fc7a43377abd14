"""The cost of a comparison, estimated before it: calls, tokens and dollars of each method, without an LM call.

Calls follow from each method's arithmetic (its `expect`). Tokens are a guess: prompts are formatted and counted at
4 characters a token, replies are taken to have the lengths below, and no prompt cache is reckoned with. Dollars are
LiteLLM's prices for these tokens; "unknown" for a model that has none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import dspy

from dspy_ace.lm import price_of

from .methods import Expected, Method, Setting
from .methods.icl import MAX_TOKENS
from .tasks import Task

CHARACTERS_PER_TOKEN = 4
TASK_REPLY, ROLE_REPLY, ROLE_FRAME = 150, 600, 1500  # tokens: an answer; a role's answer; a role's instructions


@dataclass(frozen=True)
class Estimate:
    """One method, all seeds together. Calls of the task model and of the roles; tokens; dollars or None: unknown."""

    name: str
    rollouts: int
    task_calls: int
    role_calls: int
    prompt_tokens: int
    completion_tokens: int
    dollars: float | None


def estimate(
    task: Task, methods: Sequence[Method], setting: Setting, seeds: int, lm: Any, sizes: tuple[int, int] | None = None
) -> list[Estimate]:
    """The student's row, and one for each method.

    Args:
        task: cut to the sizes that will be run.
        methods: what will be run.
        setting: as the methods will get it.
        seeds: how many.
        lm: of the task; the roles' is `setting.reflection_lm`, or the same.
        sizes: what `prompt_tokens` returned for the task; None: it is asked.
    """
    sizes = sizes or prompt_tokens(task)
    expected = {"student": Expected(0)} | {method.name: method.expect(setting) for method in methods}
    return [_one(task, name, expects, setting, seeds=seeds, lm=lm, sizes=sizes) for name, expects in expected.items()]


def _one(
    task: Task, name: str, expected: Expected, setting: Setting, *, seeds: int, lm: Any, sizes: tuple[int, int]
) -> Estimate:
    calls = task.calls or len(task.program.predictors())
    bare, demo = sizes
    learned = bare + expected.added_tokens + min(expected.demos * demo, MAX_TOKENS)
    rollouts, tested = expected.rollouts * seeds, len(task.test) * seeds
    role_calls = int(expected.role_calls * seeds + expected.test_role_calls * tested)
    task_tokens = (rollouts * (bare + learned) // 2 + tested * learned) * calls
    role_tokens = role_calls * (ROLE_FRAME + learned + 2 * TASK_REPLY)
    task_calls = (rollouts + tested) * calls
    dollars = [
        price(lm, task_tokens, task_calls * TASK_REPLY),
        price(setting.reflection_lm or lm, role_tokens, role_calls * ROLE_REPLY),
    ]
    known = None if None in dollars else sum(part for part in dollars if part is not None)
    return Estimate(
        name,
        rollouts,
        task_calls,
        role_calls,
        task_tokens + role_tokens,
        task_calls * TASK_REPLY + role_calls * ROLE_REPLY,
        known,
    )


def prompt_tokens(task: Task) -> tuple[int, int]:
    """Tokens of a predictor's prompt without demonstrations, and of one demonstration; means over some examples."""
    adapter = dspy.settings.adapter or dspy.ChatAdapter()
    shown = list(task.train[:20])
    signatures = [predictor.signature for predictor in task.program.predictors()]
    prompts = [
        adapter.format(signature, demos=[], inputs=example.inputs().toDict())
        for signature in signatures
        for example in shown
    ]
    bare = sum(len(str(message["content"])) for prompt in prompts for message in prompt) // len(prompts)
    demo = sum(len(str(example.toDict())) for example in shown) // len(shown)
    return bare // CHARACTERS_PER_TOKEN, demo // CHARACTERS_PER_TOKEN


def price(lm: Any, prompt: int, completion: int) -> float | None:
    """Dollars for so many tokens of many calls of an LM, at the price of short prompts; None: it has no price."""
    found = price_of(lm.model, lm.kwargs.get("service_tier"))
    if found is None:
        return None
    rates = [found.rate(f"{kind}_cost_per_token") or 0.0 for kind in ("input", "output")]
    return prompt * rates[0] + completion * rates[1]


def table(task: Task, estimates: Sequence[Estimate]) -> str:
    """The estimates, in Markdown."""
    sizes = f"{len(task.train)} training, {len(task.val)} validation, {len(task.test)} test examples"
    lines = [
        f"Estimate for {task.name} ({sizes}), before any call:",
        "",
        "| method | rollouts while compiling | task calls | role calls | prompt tokens | completion tokens | dollars |",
        "|---" * 7 + "|",
    ]
    total = [row.dollars for row in estimates]
    lines += [
        f"| {row.name} | {row.rollouts:,} | {row.task_calls:,} | {row.role_calls:,} | {row.prompt_tokens:,} "
        f"| {row.completion_tokens:,} | {_dollars(row.dollars)} |"
        for row in estimates
    ]
    known = None if None in total else sum(part for part in total if part is not None)
    lines += ["", f"All together: {_dollars(known)} dollars. Guesses, without prompt caches; a real run may differ."]
    return "\n".join(lines)


def _dollars(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.2f}"
