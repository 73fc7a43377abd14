"""The loop: equal records with any number of threads, unbroken or continued, and within every limit."""

from __future__ import annotations

import inspect
import re
import threading
import time
from pathlib import Path
from typing import Any

import dspy
import pytest
from dspy.utils.callback import BaseCallback

from dspy_ace import ACE, Playbook
from dspy_ace.errors import JournalError, RoleError, RunError
from dspy_ace.playbook import Add, Delta
from dspy_ace.program import Trajectory
from dspy_ace.roles import Reflection
from dspy_ace.testing import OfflineLM
from dspy_ace.training.journal import line_of
from runs import TRAIN, billed, booked, client, serve
from runs import compiled as compiled_with
from scripted import scripted
from scripted_roles import chat
from tasks import desk_metric, messages

VAL = messages(6, 20)  # holds none of the trainset
NOISE = {"slips": 0.1, "wrong_lessons": 0.1, "paraphrase": 0.2, "unparsable": 0.1}


def compiled(lm: Any, student: Any = None, **settings: Any) -> Any:
    """A short run with that valset."""
    return compiled_with(lm, student, **{"valset": VAL, **settings})


def lines(program: Any) -> list[Any]:
    """The records, as the journal has them."""
    return [line_of(record) for record in program.detailed_results.records]


class Crowd(BaseCallback):  # type: ignore[misc]  # dspy is untyped
    """How many LM calls are under way at once, at most; each lasts a little."""

    def __init__(self) -> None:
        self.now = self.most = 0
        self._lock = threading.Lock()

    def on_lm_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        with self._lock:
            self.now += 1
            self.most = max(self.most, self.now)
        time.sleep(0.003)

    def on_lm_end(self, call_id: str, outputs: Any, exception: BaseException | None = None) -> None:
        with self._lock:
            self.now -= 1


class Breaking:
    """A metric that fails on every third message; the others it scores."""

    def __call__(self, gold: Any, pred: Any, trace: Any = None) -> Any:
        if sum(map(ord, gold.message)) % 3 == 0:
            raise KeyError("no such field")
        return desk_metric(gold, pred)


def failing_role(playbook: Any, trajectory: Any) -> Any:
    """A Reflector that fails on a few examples."""
    if int(trajectory.source) in (2, 7, 8, 12):
        raise RoleError("no reply could be read")
    return Reflection((f"Messages like {trajectory.inputs['message'][:20]} need care.",))


BROKEN: dict[str, dict[str, Any]] = {
    "nothing": {},
    "the metric": {"metric": Breaking()},
    "a role": {"reflect": failing_role},
}


@pytest.mark.compat
@pytest.mark.parametrize("broken", BROKEN)
@pytest.mark.parametrize("noise", [{}, NOISE], ids=["quiet", "noisy"])
@pytest.mark.parametrize(
    "settings", [{}, {"validate": "along", "epochs": 2, "batch_size": 5}, {"valset": []}], ids=["end", "along", "none"]
)
def test_threads_change_no_byte(settings: dict[str, Any], noise: dict[str, float], broken: str) -> None:
    """One, four and sixteen threads write equal records, also where roles or the metric fail."""
    alone, *others = (
        lines(compiled(OfflineLM(**noise), num_threads=n, **settings, **BROKEN[broken])) for n in (1, 4, 16)
    )
    assert others == [alone, alone]
    assert len(alone) >= 4


@pytest.mark.compat
def test_without_a_metric_the_same_is_asked_whatever_the_threads() -> None:
    """Label-free, every example is reflected on: a rollout that ends says little."""
    one, many = (lines(compiled(OfflineLM(), metric=None, num_threads=n)) for n in (1, 16))
    assert one == many


@pytest.mark.parametrize("limit", [{"max_lm_calls": 10_000}, {"max_metric_calls": 10_000}], ids=str)
def test_a_limit_out_of_reach_changes_no_byte(limit: dict[str, int]) -> None:
    """What is learned, and from which playbook, stays the same."""
    settings = {"batch_size": 3, "num_threads": 8}
    assert lines(compiled(OfflineLM(), **settings, **limit)) == lines(compiled(OfflineLM(), **settings))


@pytest.mark.parametrize("limit", [7, 23, 40, 90])
@pytest.mark.parametrize("validate", ["end", "along"])
def test_a_limit_on_rollouts_is_shared_out_alike(validate: str, limit: int) -> None:
    """What is left is shared out before a batch begins: one thread and sixteen make the same rollouts."""
    settings = {"epochs": 3, "validate": validate, "max_metric_calls": limit}
    one = compiled(OfflineLM(), num_threads=1, **settings)
    assert lines(one) == lines(compiled(OfflineLM(), num_threads=16, **settings))
    assert one.detailed_results.rollouts <= limit


@pytest.mark.slow
@pytest.mark.parametrize("broken", BROKEN)
@pytest.mark.parametrize("validate", ["end", "along"])
def test_a_run_cut_after_any_record_ends_in_the_same_bytes(tmp_path: Path, validate: str, broken: str) -> None:
    """Whichever record was the last on disk, the rest is as it would have been."""
    settings = {"validate": validate, "epochs": 2, "batch_size": 5, "num_threads": 8, **BROKEN[broken]}
    compiled(OfflineLM(**NOISE), log_dir=tmp_path / "whole", **settings)
    whole = (tmp_path / "whole" / "journal.jsonl").read_bytes().splitlines(keepends=True)
    for count in range(len(whole)):
        folder = tmp_path / str(count)
        compiled(OfflineLM(**NOISE), log_dir=folder, **settings, on_step=_stop_after(count))
        assert (folder / "journal.jsonl").read_bytes().splitlines() == [line.rstrip() for line in whole[: count + 1]]
        compiled(OfflineLM(**NOISE), log_dir=folder, **settings)
        assert (folder / "journal.jsonl").read_bytes() == b"".join(whole), f"cut after record {count}"


def _stop_after(count: int) -> Any:
    seen: list[Any] = []

    def on_step(record: Any, playbook: Any) -> None:
        seen.append(record)
        if len(seen) > count:
            raise KeyboardInterrupt

    return on_step


@pytest.mark.compat
def test_threads_are_a_bound_on_all_roles_together() -> None:
    """Rollouts, validation, reflections, retries and curations: never more calls at once than threads."""
    crowd = Crowd()
    with dspy.context(callbacks=[crowd]):
        compiled(OfflineLM(), num_threads=3)
    assert crowd.most == 3


def test_a_dead_role_costs_a_few_calls() -> None:
    """When the Reflector turns out to be dead, one batch was rolled out and nothing else was called."""

    def dead(playbook: Any, trajectory: Any) -> Any:
        raise RoleError("no reply could be read")

    lm = OfflineLM()
    with pytest.raises(RunError, match="Reflector failed 3 times") as caught:
        compiled(lm, reflect=dead, batch_size=16, num_threads=8)
    assert lm.calls == 16
    assert caught.value.program is not None


def test_what_a_step_learned_is_on_disk_before_its_validation(tmp_path: Path) -> None:
    """A run stopped in the middle of a validation keeps the step that it is about."""
    seen: list[int] = []

    def metric(gold: Any, pred: Any, trace: Any = None) -> Any:
        if gold.message in {example.message for example in VAL}:
            seen.append(1)
            if len(seen) > len(VAL):  # the seed's validation is over
                raise KeyboardInterrupt
        return desk_metric(gold, pred)

    program = compiled(
        OfflineLM(), metric=metric, validate="along", batch_size=8, epochs=2, num_threads=1, log_dir=tmp_path
    )
    assert program.detailed_results.stopped == "interrupted by the user"
    assert [record.step for record in program.detailed_results.records] == [0, 1]
    assert len(program.playbook) > 0


@pytest.mark.compat
def test_every_call_is_counted_once_and_with_its_own_record() -> None:
    """The usage equals the server's log, and the records' usage adds up to it."""
    with serve() as server:
        program = compiled(client(server), num_threads=8, epochs=2)
    assert booked(program) == billed(server)
    total: dict[str, int] = {}
    for record in program.detailed_results.records:
        for role, usage in record.usage.items():
            total[role] = total.get(role, 0) + usage["calls"]
    assert total == {role: usage.calls for role, usage in booked(program).items()}
    assert sum(record.rollouts for record in program.detailed_results.records) == program.detailed_results.rollouts


def test_a_reflection_is_few_frames_away() -> None:
    """From `compile` to the Reflector a reader passes at most nine frames in five files."""
    deepest: list[list[str]] = []

    def reflect(playbook: Any, trajectory: Any) -> Any:
        deepest.append(
            [f.filename for f in inspect.stack(0) if "/dspy_ace/" in f.filename and "testing" not in f.filename]
        )
        raise RoleError("seen")

    with dspy.context(lm=OfflineLM()), pytest.raises(RunError):
        ACE(desk_metric, reflect=reflect, num_threads=1).compile(dspy.Predict("message -> desk"), TRAIN)
    frames = deepest[0]
    assert len(frames) <= 9, frames
    assert len(set(frames)) <= 5, set(frames)


def test_damaged_journals_are_not_continued(tmp_path: Path) -> None:
    """A doubled, swapped or missing line is named; nothing is called."""
    compiled(OfflineLM(), log_dir=tmp_path, valset=[])
    path = tmp_path / "journal.jsonl"
    whole = path.read_bytes().splitlines(keepends=True)
    for damaged in ([*whole[:2], whole[1], *whole[2:]], [whole[1], whole[0], *whole[2:]], [whole[0], *whole[2:]]):
        path.write_bytes(b"".join(damaged))
        lm = OfflineLM()
        with pytest.raises(JournalError, match=r"missing, doubled or swapped|does not follow"):
            compiled(lm, log_dir=tmp_path, valset=[])
        assert lm.calls == 0


@pytest.mark.parametrize("limit", [6, 12, 20, 33])
@pytest.mark.parametrize("threads", [1, 8])
def test_a_limit_in_the_middle_of_a_step_still_teaches(limit: int, threads: int) -> None:
    """The calls that are left go to rollouts, their reflections and one curation: nothing reflected on is lost."""
    lm = OfflineLM()
    program = compiled(lm, max_lm_calls=limit, num_threads=threads, trainset=messages(40, 1), batch_size=16)
    assert lm.calls <= limit
    assert len(program.playbook) > 0
    assert "max_lm_calls" in program.detailed_results.stopped


def test_what_a_run_has_spent_counts_when_it_is_continued(tmp_path: Path) -> None:
    """LM calls are limited for the run, not for the process: a continued run has what is left."""
    first, second = OfflineLM(), OfflineLM()
    compiled(first, log_dir=tmp_path, max_lm_calls=20)
    compiled(second, log_dir=tmp_path, max_lm_calls=30)
    assert first.calls <= 20
    assert first.calls + second.calls <= 30
    assert second.calls > 0


def test_a_failure_that_was_solved_before_is_told_with_the_bullets_that_are_new_since() -> None:
    """A lesson from a hard question misleads on easy ones: in the second epoch their reflections are told so."""

    def said(prompt: list[dict[str, str]]) -> str:
        bullet = re.search(r"\[([\w&-]+)\] \([^()]*\) Say no\.", prompt[0]["content"])
        if bullet or "hard" in prompt[-1]["content"]:
            return chat(answer="no", cited_bullets=[bullet[1]] if bullet else [])
        return chat(answer="yes", cited_bullets=[])

    seen: list[tuple[str, int, Any]] = []

    def reflect(playbook: Playbook, trajectory: Trajectory) -> Reflection:
        seen.append((trajectory.example.question, len(playbook), trajectory.solved_before))
        return Reflection(() if len(playbook) else ("Say no.",))

    def curate(playbook: Playbook, reflections: Any) -> Any:
        return Delta((Add("S", "Say no.", None, ("0",)),)), ()

    rows = [dspy.Example(question=q, answer="yes").with_inputs("question") for q in ("easy", "hard", "plain")]
    with dspy.context(lm=scripted(said)):
        ACE(
            lambda gold, pred, trace=None: gold.answer == pred.answer, reflect=reflect, curate=curate,
            reflect_on="failures", epochs=2, max_reflection_rounds=0, batch_size=3,
        ).compile(dspy.Predict("question -> answer"), rows)  # fmt: skip
    assert sorted(seen, key=lambda each: each[:2]) == [
        ("easy", 1, ("s-00001",)), ("hard", 0, None), ("hard", 1, None), ("plain", 1, ("s-00001",)),
    ]  # fmt: skip
