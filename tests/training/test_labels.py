"""Label-free means label-free: no expected output reaches a prompt, a tag, a decision or the disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dspy
import pytest

from dspy_ace import ACE, Executed, Judged, Validated
from dspy_ace.errors import MetricError
from dspy_ace.testing import OfflineLM
from modulezoo import MODULES
from scripted import scripted
from scripted_roles import chat
from tasks import Route, messages

CHEAP = [name for name in MODULES if name not in ("Predict", "syncify, wrapped")]


def marked(count: int, seed: int, mark: str = "zqx") -> list[dspy.Example]:
    """Messages whose expected outputs are like nothing else: a text of its own for each field of each example."""
    return [
        dspy.Example(
            message=example.message,
            desk=f"{mark}desk{seed}n{n}{mark}",
            ticket={"desk": f"{mark}ticket{seed}n{n}{mark}"},
            note=[f"{mark}note{seed}n{n}{mark}"],
        ).with_inputs("message")
        for n, example in enumerate(messages(count, seed))
    ]


def some_fail(inputs: Any, prediction: Any) -> str | None:
    """Looks at what was said alone, and does not like all of it: there are failures to learn from and to retry."""
    return "Harbor is closed on this day." if str(prediction.desk) == "Harbor" else None


METRICS = {"a metric on the run": lambda: Validated(some_fail), "no metric": lambda: None}


def places(lm: OfflineLM, program: Any, folder: Path) -> dict[str, str]:
    """Everything that a run writes: prompts and replies of all roles, the folder, the playbook, the account."""
    roles: dict[str, str] = {}
    for record in lm.log:
        roles[record.role] = roles.get(record.role, "") + record.request + record.reply
    files = {
        str(path.relative_to(folder)): path.read_bytes().decode("utf-8", "replace") + path.name
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    assert "journal.jsonl" in files
    instructions = "".join(p.signature.instructions for _, p in program.named_predictors())
    return {
        **roles,
        **files,
        "playbook": str(program.playbook.to_json()),
        "results": repr(program.detailed_results),
        "instructions": instructions,
    }


@pytest.mark.compat
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("metric", list(METRICS))
@pytest.mark.parametrize("name", CHEAP)
def test_no_expected_output_is_found_anywhere(name: str, metric: str, tmp_path: Path) -> None:
    """With every module type: in no prompt of any role, no reply, no file of the run, no bullet, no account."""
    lm = OfflineLM()
    with dspy.context(lm=lm):
        settings = {} if metric == "no metric" else {"labels": False}
        optimizer = ACE(METRICS[metric](), log_dir=tmp_path, num_threads=2, batch_size=4, **settings)
        program = optimizer.compile(MODULES[name][0](), marked(6, 1), valset=marked(3, 2))
    found = {place: text.count("zqx") for place, text in places(lm, program, tmp_path).items()}
    assert {"task", "reflector", "playbook", "journal.jsonl"} <= set(found)
    assert sum(found.values()) == 0, found


@pytest.mark.compat
def test_the_canary_sings_where_labels_are_allowed(tmp_path: Path) -> None:
    """The same search finds them in the prompts of the roles once labels are on: it would have found a leak."""
    lm = OfflineLM()
    with dspy.context(lm=lm):
        optimizer = ACE(Validated(some_fail), log_dir=tmp_path, num_threads=2, batch_size=4)
        program = optimizer.compile(dspy.ChainOfThought(Route), marked(6, 1))
    assert "zqx" in places(lm, program, tmp_path)["reflector"]


@pytest.mark.compat
@pytest.mark.parametrize("metric", list(METRICS))
def test_other_labels_make_the_very_same_run(metric: str, tmp_path: Path) -> None:
    """Votes, operations, retries, choices and hashes of a run do not depend on labels: journals are equal in bytes."""
    made = []
    for mark in ("zqx", "some much longer and quite different text "):
        lm, folder = OfflineLM(), tmp_path / str(len(made))
        with dspy.context(lm=lm):
            optimizer = ACE(METRICS[metric](), labels=False, log_dir=folder, num_threads=1, batch_size=4, epochs=2)
            program = optimizer.compile(dspy.ChainOfThought(Route), marked(8, 1, mark), valset=marked(4, 2, mark))
        made.append(
            (
                (folder / "journal.jsonl").read_bytes(),
                (folder / "run.json").read_bytes(),
                program.playbook,
                sorted(record.request for record in lm.log),
            )
        )
    assert made[0] == made[1]


@pytest.mark.compat
def test_examples_without_labels_make_the_same_run_as_well() -> None:
    """A trainset of inputs alone is what a label-free run makes of any other."""
    playbooks = []
    for trainset in (marked(8, 1), [example.inputs() for example in marked(8, 1)]):
        with dspy.context(lm=OfflineLM()):
            optimizer = ACE(Validated(some_fail), labels=False, num_threads=1)
            playbooks.append(optimizer.compile(dspy.ChainOfThought(Route), trainset).playbook)
    assert len(playbooks[0]) > 0
    assert playbooks[0] == playbooks[1]


@pytest.mark.compat
def test_own_roles_are_handed_no_label() -> None:
    """The trajectory that a custom reflector gets holds an example of inputs alone, at first and in a retry."""
    seen: list[Any] = []

    def reflect(playbook: Any, trajectory: Any) -> Any:
        from dspy_ace.roles import Reflection

        seen.append((dict(trajectory.example.items()), trajectory.expected))
        return Reflection(("Not Harbor.",))

    with dspy.context(lm=OfflineLM()):
        ACE(Validated(some_fail), reflect=reflect, labels=False, num_threads=2, max_reflection_rounds=2).compile(
            dspy.ChainOfThought(Route), marked(6, 1)
        )
    assert len(seen) > 6
    assert all(set(fields) == {"message"} and expected == {} for fields, expected in seen)


@pytest.mark.compat
@pytest.mark.parametrize("kind", ["Executed", "Judged"])
def test_ready_made_feedback_carries_no_label(kind: str, tmp_path: Path) -> None:
    """Neither the judge's prompt nor any other holds one, even where labels were given."""
    lm, judge = OfflineLM(), scripted(chat(reason="It is short.", score="0.5"))
    metric = Executed() if kind == "Executed" else Judged("Short answers are good.", judge)
    with dspy.context(lm=lm):
        program = ACE(metric, labels=False, log_dir=tmp_path, num_threads=2).compile(
            dspy.ChainOfThought(Route), marked(6, 1), valset=marked(3, 2)
        )
    assert not any("zqx" in text for text in places(lm, program, tmp_path).values())
    assert (len(judge.script.requests) > 0) == (kind == "Judged")
    assert "zqx" not in str(judge.script.requests)


@pytest.mark.compat
def test_a_metric_that_wants_labels_is_told_that_there_are_none() -> None:
    """`labels=False` with a judge or a metric that reads labels ends on the first examples, with the reason."""
    judge = scripted(chat(reason="r", score="1"))
    with dspy.context(lm=OfflineLM()), pytest.raises(MetricError, match=r"labels=True.*there are none"):
        ACE(Judged("Right.", judge, labels=True), labels=False).compile(dspy.ChainOfThought(Route), marked(6, 1))
    assert judge.script.requests == []
