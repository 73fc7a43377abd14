"""ACE beside DSPy's other optimizers: the same objects, in one script, and inside BetterTogether."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import dspy
import pytest

from dspy_ace import ACE
from dspy_ace.playbook import PLAYBOOK_HEADER
from dspy_ace.testing import OfflineLM
from dspy_ace.training.journal import line_of
from paths import HELPERS, ROOT
from tasks import Route, accuracy, desk_metric, messages

TRAIN, VAL, TEST = messages(24, 1), messages(12, 2), messages(30, 3)


def gepa_metric(
    gold: dspy.Example, pred: Any, trace: Any = None, pred_name: Any = None, pred_trace: Any = None
) -> dspy.Prediction:
    """The five arguments that GEPA asks for; MIPROv2 and ACE take the same object."""
    return desk_metric(gold, pred)


def optimizers(lm: Any) -> dict[str, Any]:
    """Each as a user would write it, with the same metric object."""
    return {
        "ACE": ACE(gepa_metric, reflection_lm=lm, epochs=1, num_threads=2),
        "GEPA": dspy.GEPA(gepa_metric, max_metric_calls=60, reflection_lm=lm, num_threads=2),
        "MIPROv2": dspy.MIPROv2(gepa_metric, auto="light", num_threads=2),
        "Bootstrap": dspy.BootstrapFewShotWithRandomSearch(gepa_metric, num_candidate_programs=2, num_threads=2),
    }


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # the other optimizers and their libraries warn
@pytest.mark.parametrize("name", ["ACE", "GEPA", "MIPROv2", "Bootstrap"])
def test_each_optimizer_runs_to_the_end_in_the_same_script(name: str) -> None:
    """The same metric object, sets and student; only the optimizer's name differs."""
    if name == "MIPROv2":
        pytest.importorskip("optuna", reason="MIPROv2 needs optuna")
    lm = OfflineLM()
    with dspy.context(lm=lm):
        extra = {} if name == "Bootstrap" else {"valset": VAL}
        program = optimizers(lm)[name].compile(dspy.ChainOfThought(Route), trainset=TRAIN, **extra)
        assert 0 <= accuracy(program, TEST) <= 1
    assert lm.calls > 0


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("order", ["ace -> shots", "shots -> ace"])
def test_better_together_runs_ace_before_and_after_another(order: str) -> None:
    """BetterTogether hands over what it hands to all; demos and playbook stand together in the result."""
    lm = OfflineLM()
    shots = dspy.LabeledFewShot(k=2)
    with dspy.context(lm=lm):
        student = dspy.ChainOfThought(Route)
        student.set_lm(lm)
        together = dspy.BetterTogether(metric=gepa_metric, ace=ACE(gepa_metric, epochs=1, num_threads=2), shots=shots)
        # without a seed BetterTogether shuffles the trainset anew each time, and ACE may end with the student as it was
        program = together.compile(student, trainset=TRAIN, valset=VAL, strategy=order, seed=1)
    candidates = getattr(program, "candidate_programs", None) or [{"program": program}]
    instructions = [c["program"].predict.signature.instructions for c in candidates]
    assert any(PLAYBOOK_HEADER in text for text in instructions)
    assert all(text.count(PLAYBOOK_HEADER) <= 1 for text in instructions)


def test_ace_keeps_the_instructions_and_demos_of_another_optimizer() -> None:
    """On a program that was optimized before, ACE only appends."""
    student = dspy.ChainOfThought(Route)
    student.predict.signature = student.predict.signature.with_instructions(
        "An instruction found by a search.\n\nTwo parts."
    )
    student.predict.demos = [dspy.Example(message="Lost parcel", reasoning="A parcel.", desk="Summit", augmented=True)]
    with dspy.context(lm=OfflineLM()):
        program = ACE(gepa_metric, epochs=1, num_threads=2).compile(student, TRAIN)
    text = program.predict.signature.instructions
    assert text.startswith(f"An instruction found by a search.\n\nTwo parts.\n\n{PLAYBOOK_HEADER}\n\n[")
    assert program.predict.demos == student.predict.demos


def _journal_digest() -> str:
    noisy = OfflineLM(slips=0.2, unparsable=0.1, wrong_lessons=0.1, paraphrase=0.3, seed=1)
    with dspy.context(lm=noisy):
        program = ACE(desk_metric, epochs=1, num_threads=4).compile(dspy.ChainOfThought(Route), TRAIN, valset=VAL)
    return hashlib.sha256(b"".join(map(line_of, program.detailed_results.records))).hexdigest()


@pytest.mark.compat
def test_another_process_with_another_hash_seed_writes_the_same_journal() -> None:
    """Nothing depends on the process, on the order of sets or on the hash seed."""
    code = "import test_composition as t; print(t._journal_digest())"
    path = os.pathsep.join([str(HELPERS), str(ROOT), str(ROOT / "tests" / "training")])
    here = hash("a text")
    seed = "77" if os.environ.get("PYTHONHASHSEED") != "77" else "1"
    other = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", f"{code}; print(hash('a text'))"],
        env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert other[0] == _journal_digest()
    assert int(other[1]) != here


@pytest.mark.compat
def test_a_saved_program_loads_without_dspy_ace_and_sends_the_same_prompts(tmp_path: Path) -> None:
    """program.save → a process where dspy_ace cannot be imported → load → predict: the same messages, byte for byte."""
    with dspy.context(lm=OfflineLM()):
        program = ACE(desk_metric, epochs=1, num_threads=2).compile(dspy.ChainOfThought(Route), TRAIN)
    program.save(str(tmp_path / "program.json"))
    assert "cited" not in (tmp_path / "program.json").read_text()
    example = TEST[0].message
    predictor = program.predict
    here = dspy.ChatAdapter().format(predictor.signature, predictor.demos, {"message": example})
    code = f"""
import sys, json
sys.modules["dspy_ace"] = None
import dspy
from typing import Literal
class Route(dspy.Signature):
    message: str = dspy.InputField()
    desk: Literal["Harbor", "Maple", "Summit", "Lantern"] = dspy.OutputField()
program = dspy.ChainOfThought(Route)
program.load({str(tmp_path / "program.json")!r})
p = program.predict
print(json.dumps(dspy.ChatAdapter().format(p.signature, p.demos, {{"message": {example!r}}})))
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert json.loads(done.stdout.splitlines()[-1]) == here
    assert PLAYBOOK_HEADER.splitlines()[0] in here[0]["content"]
