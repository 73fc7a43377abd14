"""What is begun before its turn: faster, and the same records; nothing is begun that may not be needed."""

from __future__ import annotations

import itertools
import json
import threading
import time
from pathlib import Path
from typing import Any

import dspy
import pytest
from dspy.utils.callback import BaseCallback

from dspy_ace import ACE
from dspy_ace.errors import RoleError, RunError, SettingsError
from dspy_ace.testing import OfflineLM
from dspy_ace.training.journal import line_of
from runs import TRAIN, billed, booked, client, serve
from runs import compiled as compiled_with
from tasks import Route, desk_metric, messages

VAL = messages(6, 20)  # holds none of the trainset: a look lends no rollout to a batch, and is made beside it
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


@pytest.mark.compat
@pytest.mark.parametrize("noise", [{}, NOISE], ids=["quiet", "noisy"])
@pytest.mark.parametrize("settings", [{}, {"overlap": 1}, {"overlap": 1, "epochs": 2, "batch_size": 5}], ids=str)
def test_what_is_begun_early_changes_no_byte(settings: dict[str, Any], noise: dict[str, float]) -> None:
    """One thread makes one thing after the other, sixteen make what they can beside each other: equal records."""
    alone, *others = (lines(compiled(OfflineLM(**noise), num_threads=n, **settings)) for n in (1, 4, 16))
    assert others == [alone, alone]
    assert len(alone) > 4


@pytest.mark.compat
def test_without_a_metric_the_same_is_asked_whatever_the_threads() -> None:
    """A label-free look is perfect unless something breaks: that says nothing of the student, beside a step or not."""
    one, many = (lines(compiled(OfflineLM(), metric=None, num_threads=n)) for n in (1, 16))
    assert one == many
    assert any(record["reflections"] for record in map(json.loads, one))


@pytest.mark.parametrize("limit", [{"max_lm_calls": 10_000}, {"max_metric_calls": 10_000}], ids=str)
def test_a_limit_out_of_reach_changes_no_byte(limit: dict[str, int]) -> None:
    """Where calls are limited nothing is begun early; what is learned, and from which playbook, stays the same."""
    settings = {"overlap": 1, "batch_size": 3, "num_threads": 8}
    assert lines(compiled(OfflineLM(), **settings, **limit)) == lines(compiled(OfflineLM(), **settings))


@pytest.mark.parametrize("overlap", [0, 1])
def test_a_limit_that_bites_is_shared_out_alike(overlap: int) -> None:
    """Where rollouts are limited one thing is made after the other: nothing under way takes what another was given."""
    settings = {"overlap": overlap, "epochs": 3, "validate_every": 1, "max_metric_calls": 90}
    crowd = Crowd()
    one = lines(compiled(OfflineLM(), num_threads=1, **settings))
    with dspy.context(callbacks=[crowd]):
        many = lines(compiled(OfflineLM(), num_threads=16, **settings))
    assert one == many
    assert crowd.most <= len(VAL)  # a look of six, or a batch of four: never both


@pytest.mark.compat
def test_with_overlap_a_batch_meets_the_playbook_of_one_step_ago() -> None:
    """The second batch meets the seed as the first does, the first of an epoch the latest; the records say so."""
    settings = {"overlap": 1, "epochs": 2, "batch_size": 4, "valset": None}
    shown: dict[int, tuple[str, ...]] = {}
    made: dict[int, tuple[str, ...]] = {}

    def note(record: Any, playbook: Any) -> None:
        made[record.step] = tuple(bullet.id for bullet in playbook)

    class Noted(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.route = dspy.ChainOfThought(Route)

        def forward(self, message: str) -> Any:
            text = self.route.predict.signature.instructions
            step = len(made)  # one thread: the step under way
            shown[step] = tuple(name for name in made.get(step - 1, ()) if f"[{name}]" in text)
            return self.route(message=message)

    program = compiled(OfflineLM(), Noted(), num_threads=1, on_step=note, **settings)
    steps = [record for record in program.detailed_results.records if record.batch]
    assert [record.stale for record in steps] == [0, 1, 1, 1, 0, 1, 1, 1]
    assert made[1]
    assert not shown[1]
    assert not shown[2]  # the first step taught something, and the second batch did not see it
    for record in steps[1:]:
        assert shown[record.step] == made[max(0, record.step - 1 - record.stale)]


@pytest.mark.compat
def test_what_the_second_batch_shows_of_the_seed_is_evidence_of_the_seed() -> None:
    """With overlap the batch behind the first lesson met the seed: the verdict counts it there."""
    program = compiled(OfflineLM(), overlap=1, valset=None)
    first, second, *_ = (record for record in program.detailed_results.records if record.batch)
    assert first.learned
    progressive = program.detailed_results.verdict.progressive
    assert progressive.examples_before == len(first.batch) + len(second.batch)


@pytest.mark.slow
@pytest.mark.parametrize("overlap", [0, 1])
def test_a_run_cut_after_any_record_ends_in_the_same_bytes(tmp_path: Path, overlap: int) -> None:
    """Looks and steps are lines of their own; whichever was the last on disk, the rest is as it would have been."""
    settings = {"overlap": overlap, "epochs": 2, "batch_size": 5, "num_threads": 8}
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
@pytest.mark.parametrize("overlap", [0, 1])
def test_threads_are_a_bound_on_all_roles_together(overlap: int) -> None:
    """Rollouts, looks, reflections, retries and curations, of two steps as well: never more calls than threads."""
    crowd = Crowd()
    with dspy.context(callbacks=[crowd]):
        compiled(OfflineLM(), num_threads=3, overlap=overlap)
    assert crowd.most == 3


def test_nothing_is_begun_that_a_perfect_look_makes_needless() -> None:
    """The look that ends a run costs its own calls alone: sixteen threads call the models as often as one."""

    def calls(threads: int) -> tuple[int, str]:
        lm = OfflineLM()
        train = messages(12, 1)
        program = compiled(lm, trainset=train, valset=train[:4], epochs=4, batch_size=6, num_threads=threads)
        return lm.calls, program.detailed_results.stopped

    assert calls(16) == calls(1)
    assert calls(1)[1] == "a perfect validation score"


def test_patience_is_waited_for() -> None:
    """A look that may end the run whatever it shows is made before the next step begins."""

    def calls(threads: int) -> tuple[int, str]:
        lm = OfflineLM(wrong_lessons=1.0)
        program = compiled(lm, epochs=3, validate_every=1, patience=1, num_threads=threads)
        return lm.calls, program.detailed_results.stopped

    assert calls(16) == calls(1)
    assert "no better validation score" in calls(1)[1]


def test_what_failed_in_the_look_before_is_rolled_out_first() -> None:
    """A first fault, which lets the next step begin, is likeliest there; the scores stand in the valset's order."""
    looks: dict[int, list[tuple[str, float]]] = {}
    records: list[Any] = []
    own = {example.message for example in VAL}

    def metric(gold: Any, pred: Any, trace: Any = None) -> Any:
        verdict = desk_metric(gold, pred)
        if gold.message in own:
            looks.setdefault(len(records), []).append((gold.message, float(verdict.score)))
        return verdict

    settings = {"metric": metric, "validate_every": 1, "epochs": 2, "on_step": lambda record, _: records.append(record)}
    compiled(OfflineLM(), num_threads=1, **settings)
    assert len(looks) > 2
    for before, after in itertools.pairwise(looks.values()):
        known = dict(before)
        assert [known[message] for message, _ in after] == sorted(known.values())
    for made, look in zip((record for record in records if record.validation), looks.values(), strict=True):
        assert made.validation.scores == tuple(dict(look)[example.message] for example in VAL)


def test_a_dead_role_ends_the_look_beside_it() -> None:
    """When the reflector turns out to be dead, the rest of the valset is not rolled out for nothing."""

    def dead(playbook: Any, trajectory: Any) -> Any:
        raise RoleError("no reply could be read")

    lm = OfflineLM()
    known = {example.message for example in TRAIN}
    fresh = [example for example in messages(400, 20) if example.message not in known]
    assert len(fresh) > 100
    with pytest.raises(RunError, match="reflector failed 2 times") as caught:
        compiled(lm, reflect=dead, valset=fresh[:120], num_threads=2)
    assert lm.calls < 40
    assert caught.value.program is not None


def test_what_a_step_learned_is_on_disk_before_its_look(tmp_path: Path) -> None:
    """A run stopped in the middle of a look keeps the step that the look is about."""
    seen: list[int] = []

    def metric(gold: Any, pred: Any, trace: Any = None) -> Any:
        if gold.message in {example.message for example in VAL}:
            seen.append(1)
            if len(seen) > len(VAL):  # the seed's look is over
                raise KeyboardInterrupt
        return desk_metric(gold, pred)

    program = compiled(OfflineLM(), metric=metric, validate_every=1, num_threads=1, log_dir=tmp_path)
    assert program.detailed_results.stopped == "interrupted by the user"
    assert [record.step for record in program.detailed_results.records] == [0, 1]
    assert len(program.playbook) > 0


@pytest.mark.compat
def test_every_call_is_booked_once_and_with_its_own_record() -> None:
    """The account equals the server's log, and the records' usage adds up to it, whatever ran beside what."""
    with serve() as server:
        program = compiled(client(server), overlap=1, num_threads=8, epochs=2)
    assert booked(program) == billed(server)
    total: dict[str, int] = {}
    for record in program.detailed_results.records:
        for role, usage in record.usage.items():
            total[role] = total.get(role, 0) + usage["calls"]
    assert total == {role: usage.calls for role, usage in booked(program).items()}
    assert sum(record.rollouts for record in program.detailed_results.records) == program.detailed_results.rollouts


@pytest.mark.parametrize("value", [2, -1, 0.5, True, None])
def test_an_overlap_that_is_none_is_refused(value: Any) -> None:
    """It is 0 or 1."""
    with dspy.context(lm=OfflineLM()), pytest.raises(SettingsError, match="overlap must be a whole number"):
        ACE(desk_metric, overlap=value).compile(dspy.ChainOfThought(Route), TRAIN)
