"""Other optimizers run to their end on the offline model, and get something for the evidence they show it."""

from __future__ import annotations

import importlib.util
import random
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import dspy
import pytest

from comparisons.models import OFFLINE, connect
from comparisons.proposals import answer_proposal
from dspy_ace.testing import OfflineLM

pytestmark = pytest.mark.filterwarnings("default")
NEWER = hasattr(dspy, "lm15")
RULES = {"north": ("kayak", "paddle"), "south": ("tent", "stove"), "east": ("rope", "harness")}


class Pick(dspy.Signature):
    """Pick the desk."""

    note: str = dspy.InputField()
    desk: Literal["east", "north", "south", "west"] = dspy.OutputField()


def examples(count: int, seed: int) -> list[dspy.Example]:
    rng = random.Random(seed)
    made = []
    for n in range(count):
        desk = rng.choice(sorted(RULES))
        note = f"Hello, the {rng.choice(RULES[desk])} of customer {n} is {rng.choice(('late', 'broken', 'lost'))}."
        made.append(dspy.Example(note=note, desk=desk).with_inputs("note"))
    return made


def metric(example: dspy.Example, prediction: Any, trace: Any = None, *_: Any) -> float:
    return float(example.desk == prediction.desk)


def told(example: Any, prediction: Any, trace: Any = None, pred_name: Any = None, pred_trace: Any = None) -> Any:
    right = example.desk == prediction.desk
    return dspy.Prediction(score=float(right), feedback="Correct." if right else f"Wrong, expected: {example.desk}")


def accuracy(program: dspy.Module) -> float:
    held_out = examples(40, 9)
    return sum(metric(e, program(**e.inputs())) for e in held_out) / len(held_out)


def gepa(lm: OfflineLM) -> dspy.Module:
    optimizer = dspy.GEPA(metric=told, max_metric_calls=120, reflection_lm=lm, num_threads=1)
    return optimizer.compile(dspy.Predict(Pick), trainset=examples(12, 1), valset=examples(12, 2))


def mipro(lm: OfflineLM) -> dspy.Module:
    optimizer = dspy.MIPROv2(metric=metric, auto="light", num_threads=1, verbose=False)
    return optimizer.compile(dspy.Predict(Pick), trainset=examples(12, 1), valset=examples(12, 2))


def simba(lm: OfflineLM) -> dspy.Module:
    optimizer = dspy.SIMBA(metric=metric, bsize=6, max_steps=2, num_candidates=3, num_threads=1)
    return optimizer.compile(dspy.Predict(Pick), trainset=examples(12, 1), seed=0)


def copro(lm: OfflineLM) -> dspy.Module:
    optimizer = dspy.COPRO(metric=metric, breadth=2, depth=2, prompt_model=lm)
    settings = {"num_threads": 1, "display_progress": False}
    return optimizer.compile(dspy.Predict(Pick), trainset=examples(12, 1), eval_kwargs=settings)


def bootstrap(lm: OfflineLM) -> dspy.Module:
    optimizer = dspy.BootstrapFewShotWithRandomSearch(metric=metric, num_candidate_programs=2, num_threads=1)
    return optimizer.compile(dspy.Predict(Pick), trainset=examples(16, 1))


def infer_rules(lm: OfflineLM) -> dspy.Module:
    optimizer = dspy.InferRules(metric=metric, num_candidates=1, num_threads=1)
    return optimizer.compile(dspy.Predict(Pick), trainset=examples(16, 1))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("optimize", "gain"),
    [(gepa, 0.1), (mipro, 0.2), (simba, -0.01), (copro, -0.01), (bootstrap, 0.1), (infer_rules, 0.1)],
)
def test_optimizers_run_to_their_end(optimize: Callable[[OfflineLM], dspy.Module], gain: float) -> None:
    """Every optimizer ends with a program that is no worse, and better where its prompts hold evidence."""
    if optimize is mipro and importlib.util.find_spec("optuna") is None:
        pytest.skip("MIPROv2 needs optuna, which is not installed")
    if optimize is gepa and importlib.util.find_spec("gepa") is None:
        pytest.skip("GEPA needs the gepa package, which is not installed")
    lm = connect(OFFLINE)
    with dspy.context(lm=lm):
        bare = accuracy(dspy.Predict(Pick))
        program = optimize(lm)
        assert accuracy(program) >= bare + gain
    assert lm.calls > 0


def test_instruction_is_asked_for_in_a_fence() -> None:
    """A plain request for new instructions gets them in a fenced block: the old text and what the examples teach."""
    request = (
        "I provided an assistant with the following instructions:\n```\nPick the desk.\n```\n"
        "The following are examples:\n```\n# Example 1\n## Inputs\n### note\nthe kayak leaks\n\n"
        "## Generated Outputs\n### desk\neast\n\n## Feedback\nWrong, expected: north\n\n```\n"
        "Your task is to write a new instruction. Provide the new instructions within ``` blocks."
    )
    (reply,) = connect(OFFLINE)(request)
    assert reply.startswith("```\nPick the desk.\n")
    assert "kayak" in reply
    assert "answer north, not east" in reply


def test_advice_names_every_module() -> None:
    """A request that contrasts two outcomes gets advice for each module, made from their difference."""
    sign = dspy.Signature(
        "program_code, program_inputs, oracle_metadata, worse_program_outputs, better_program_outputs, module_names"
        " -> discussion, module_advice: dict[str, str]"
    )
    with dspy.context(lm=connect(OFFLINE)):
        reply = dspy.Predict(sign)(
            program_code="class P: ...",
            program_inputs='{"note": "the kayak leaks"}',
            oracle_metadata='{"desk": "north"}',
            worse_program_outputs='{"desk": "east"}',
            better_program_outputs='{"desk": "north"}',
            module_names='["first", "second"]',
        )
    assert set(reply.module_advice) == {"first", "second"}
    assert "answer north, not east" in reply.module_advice["first"]


def test_refine_and_best_of_n_run() -> None:
    """Modules that sample again and ask for advice get both."""
    with dspy.context(lm=connect(OFFLINE)):
        for kind in (dspy.Refine, dspy.BestOfN):
            module = kind(dspy.Predict(Pick), N=3, reward_fn=lambda args, pred: 0.0, threshold=1.0)
            assert module(note="the kayak leaks").desk in ("east", "north", "south", "west")


def test_a_limit_bounds_instructions() -> None:
    """A rewritten instruction has no more words than allowed."""
    examples = [
        {"Inputs": {"note": f"case {n} of rain"}, "Generated Outputs": {"desk": "north"}, "Feedback": "Expected: south"}
        for n in range(30)
    ]
    sign = dspy.Signature(
        "current_instruction: str, examples_with_feedback: list[dict[str, str]] -> new_instruction: str"
    )
    with dspy.context(lm=OfflineLM(answerers=[partial(answer_proposal, limit=30)])):
        reply = dspy.Predict(sign)(current_instruction="Pick a desk.", examples_with_feedback=examples)
    assert reply.new_instruction.startswith("Pick a desk.")
    assert len(reply.new_instruction.split()) <= 30


def test_requests_of_others_are_left_to_the_model() -> None:
    """Neither a task nor ACE's own roles are answered as a proposal."""
    lm = connect(OFFLINE)
    with dspy.context(lm=lm):
        dspy.Predict(Pick)(note="the kayak leaks")
        dspy.Predict("playbook, reviews -> operations")(playbook="", reviews="Review 1 (x)\n- new lesson")
        dspy.Predict("instruction, trajectory -> key_insights: list[str]")(instruction="Pick.", trajectory="none")
    assert [record.role for record in lm.log] == ["task", "curator", "reflector"]
