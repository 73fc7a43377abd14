"""ACE.compile from end to end, with the offline language model."""

from __future__ import annotations

import copy
import json
from typing import Any

import dspy
import pytest

from dspy_ace import ACE, Playbook, with_playbook
from dspy_ace.errors import JournalError, MetricError, RunError, SettingsError
from dspy_ace.playbook import PLAYBOOK_HEADER, Add, Delete, Delta
from dspy_ace.roles import Reflection
from dspy_ace.testing import OfflineLM
from tasks import Route, accuracy, desk_metric, messages

TRAIN, VAL, TEST = messages(32, 1), messages(16, 2), messages(40, 3)


def compiled(lm: Any, student: Any = None, metric: Any = desk_metric, **settings: Any) -> Any:
    """A compile on the routing task with settings that keep it short."""
    trainset, valset = settings.pop("trainset", TRAIN), settings.pop("valset", VAL)
    with dspy.context(lm=lm):
        optimizer = ACE(metric, **{"epochs": 1, "num_threads": 2, "batch_size": 8, **settings})
        return optimizer.compile(student or dspy.ChainOfThought(Route), trainset, valset=valset)


@pytest.mark.compat
def test_a_program_gets_better_and_stays_a_plain_program_of_its_class() -> None:
    """The compiled program routes held-out messages far better than the student, and carries its playbook."""
    lm = OfflineLM()
    student = dspy.ChainOfThought(Route)
    with dspy.context(lm=lm):
        before = accuracy(student, TEST)
    program = compiled(lm, student)
    with dspy.context(lm=lm):
        after = accuracy(program, TEST)
    assert before <= 0.5
    assert after >= before + 0.3
    assert type(program) is type(student)
    assert len(program.playbook) > 0
    assert program.detailed_results.best_score >= program.detailed_results.seed_score


@pytest.mark.compat
def test_no_metric_means_label_free() -> None:
    """ACE().compile(program, trainset) works as written, and no expected output reaches any prompt or reply."""
    lm = OfflineLM()
    canary = "zqxCANARYzqx"
    trainset = [dspy.Example(message=e.message, desk="Harbor", note=canary).with_inputs("message") for e in TRAIN[:8]]
    with dspy.context(lm=lm):
        program = ACE(num_threads=2).compile(dspy.ChainOfThought(Route), trainset)
    assert program.detailed_results.records[0].scores == (1.0,) * 8
    assert lm.calls > 0
    assert canary not in json.dumps([str(entry) for entry in lm.log])
    assert canary not in json.dumps(program.playbook.to_json())


def test_label_free_hands_the_metric_no_label_either() -> None:
    """labels=False with a metric that reads a label is found on the first example, not used in silence."""
    with pytest.raises(MetricError, match="desk"):
        compiled(OfflineLM(), labels=False)


@pytest.mark.compat
def test_the_student_is_untouched() -> None:
    """Instructions, demos, pinned LM and attributes of the student are what they were; the result shares them."""
    lm, pinned = OfflineLM(), OfflineLM()

    class Desk(dspy.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.route = dspy.ChainOfThought(Route)
            self.seen: list[str] = []

        def forward(self, message: str) -> Any:
            return self.route(message=message.strip())

    student = Desk()
    student.route.predict.demos = [dspy.Example(message="Lost parcel", reasoning="parcel", desk="Summit")]
    student.set_lm(pinned)
    state, demos = copy.deepcopy(student.dump_state()), list(student.route.predict.demos)
    program = compiled(lm, student, valset=None)
    assert student.dump_state() == state
    assert not hasattr(student, "playbook")
    assert student.route.predict.demos == demos
    assert program.route.predict.lm is pinned
    assert program.route.predict.demos == demos
    assert type(program).forward is Desk.forward
    assert lm.calls == 0
    assert program.route.predict.signature.instructions.startswith("Route the message to a desk.\n\n" + PLAYBOOK_HEADER)


@pytest.mark.compat
def test_the_same_seed_gives_the_same_journal_whatever_the_threads(tmp_path: Any) -> None:
    """1, 4 and 16 threads write the same bytes."""
    journals = []
    for threads in (1, 4, 16):
        noisy = OfflineLM(slips=0.2, unparsable=0.1, wrong_lessons=0.2, paraphrase=0.3, seed=5)
        folder = tmp_path / str(threads)
        compiled(noisy, num_threads=threads, max_reflection_rounds=2, log_dir=folder)
        journals.append((folder / "journal.jsonl").read_bytes())
    assert journals[0] == journals[1] == journals[2]
    assert journals[0].count(b"\n") == len(journals[0].splitlines()) > 3


def test_another_seed_gives_another_order() -> None:
    """The seed decides the order of the examples and nothing else is stored for it."""
    orders = [compiled(OfflineLM(), seed=seed).detailed_results.records[1].batch for seed in (0, 1)]
    assert orders[0] != orders[1]


def test_a_run_continues_where_it_stopped(tmp_path: Any) -> None:
    """A run cut after its second step and continued ends with the same journal and playbook as an uncut one."""
    whole = compiled(OfflineLM(), log_dir=tmp_path / "whole")
    first = compiled(OfflineLM(), log_dir=tmp_path / "cut")
    journal = tmp_path / "cut" / "journal.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[:3]) + lines[3][:20])
    lm = OfflineLM()
    resumed = compiled(lm, log_dir=tmp_path / "cut")
    assert journal.read_bytes() == (tmp_path / "whole" / "journal.jsonl").read_bytes()
    assert resumed.playbook == whole.playbook == first.playbook
    spent, all_spent = resumed.detailed_results.usage, whole.detailed_results.usage
    for role in ("task", "reflector", "curator"):
        assert spent[role].calls == all_spent[role].calls > 0
        assert spent[role].prompt_tokens == all_spent[role].prompt_tokens
    assert lm.calls < sum(usage.calls for usage in spent.values())
    assert lm.calls > 0
    lm.reset_log()
    again = compiled(lm, log_dir=tmp_path / "cut")
    assert again.playbook == whole.playbook
    assert lm.calls == 0


def with_demo() -> dspy.Module:
    """The student with one demo."""
    student = dspy.ChainOfThought(Route)
    student.predict.demos = [dspy.Example(message="Lost parcel", reasoning="A parcel.", desk="Summit")]
    return student


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("batch_size=8; now batch_size=4", {"batch_size": 4}),
        ("metric", {"metric": lambda example, prediction: example.desk == prediction.desk}),
        ("trainset", {"trainset": TRAIN[:-1]}),
        ("valset", {"valset": VAL[:-1]}),
        ("program", {"student": dspy.Predict(Route)}),
        ("program", {"student": with_demo()}),
        ("playbook", {"playbook": Playbook.from_text("## S\n[s-00001] Be brief.")}),
    ],
)
def test_a_run_folder_of_another_run_is_refused(tmp_path: Any, part: str, change: dict[str, Any]) -> None:
    """The first difference is named, and no LM call is made."""
    compiled(OfflineLM(), log_dir=tmp_path / "run")
    lm = OfflineLM()
    with pytest.raises(JournalError, match=part):
        compiled(lm, log_dir=tmp_path / "run", **change)
    assert lm.calls == 0


def test_without_a_valset_a_playbook_that_repairs_its_failures_is_returned() -> None:
    """valset=None and valset=[] mean the same; so many failures are rolled out again as show that it repairs them."""
    programs = [compiled(OfflineLM(), valset=valset, max_reflection_rounds=0) for valset in (None, [])]
    results = programs[0].detailed_results
    assert results.seed_score is None
    assert results.rollouts == len(TRAIN) + sum(len(record.again) for record in results.records)
    assert results.records[-1].again
    assert results.repairs.untried  # a quarter is enough
    assert programs[0].playbook == programs[1].playbook == results.learned_playbook
    assert len(programs[0].playbook) > 0


def test_the_seed_is_returned_only_where_it_is_strictly_better() -> None:
    """A curator that only does harm leaves the student as it was: the seed was scored too, and the verdict says so."""
    good = Playbook.from_text(
        "## S\n[s-00001] Messages about a refund or chargeback go to Harbor.\n"
        "[s-00002] Messages about a password or login go to Maple.\n"
        "[s-00003] Messages about a parcel or delivery go to Summit."
    )

    def harm(playbook: Playbook, reflections: Any) -> tuple[Delta, tuple[()]]:
        return Delta(tuple(Delete(bullet.id) for bullet in playbook)), ()

    program = compiled(
        OfflineLM(), playbook=good, curate=harm, reflect=lambda playbook, t: Reflection(("x",)), max_reflection_rounds=0
    )
    results = program.detailed_results
    last = [record.validation for record in results.records if record.validation][-1]
    assert last.mean < results.seed_score == results.best_score
    assert (results.best_step, program.playbook.render()) == (0, good.render())
    assert results.verdict.word != "better"


def test_a_tie_goes_to_the_seed_where_no_failure_is_repaired(caplog: Any) -> None:
    """The student's prompt comes back; a warning names both figures, and the other playbook is in the results."""

    def shrug(playbook: Playbook, reflections: Any) -> tuple[Delta, tuple[()]]:
        return Delta((Add("S", f"Stay calm, number {len(playbook)}."),)), ()

    program = compiled(
        OfflineLM(), metric=lambda example, prediction: 0.5, curate=shrug,
        reflect=lambda playbook, trajectory: Reflection(("stay calm",)), max_reflection_rounds=0,
    )  # fmt: skip
    results = program.detailed_results
    assert len(program.playbook) == 0 < len(results.learned_playbook)
    assert results.best_score == results.seed_score == 0.5
    assert "not shown to be better: +0.000" in caplog.text
    assert f"about {results.learned_playbook.tokens()} tokens with the learned playbook" in caplog.text


def test_among_learned_playbooks_a_tie_goes_to_the_latest() -> None:
    """Of several learned playbooks that a blind valset scores alike, the one that learned from all batches returns."""
    valset = {example.message for example in VAL}

    def blind(example: Any, prediction: Any, trace: Any = None) -> float:
        return 1.0 if example.message in valset else desk_metric(example, prediction)

    program = compiled(OfflineLM(), metric=blind, validate="along", batch_size=16, epochs=2)
    results = program.detailed_results
    looks = [record.step for record in results.records[1:] if record.validation is not None]
    assert len(looks) > 1
    assert results.best_step == looks[-1]
    assert program.playbook == results.learned_playbook


def test_auto_light_takes_batches_of_25_and_the_default_of_16(tmp_path: Any) -> None:
    """`auto` decides the batch size where none is given."""
    for auto, size in (("light", 25), (None, 16)):
        records = compiled(
            OfflineLM(), auto=auto, epochs=None, batch_size=None, trainset=messages(30, 1), valset=None
        ).detailed_results.records  # fmt: skip
        assert [len(record.batch) for record in records if record.batch] == [size, 30 - size]


def test_a_run_with_nothing_left_to_learn_ends() -> None:
    """An epoch without a failure or a new lesson is the last one."""
    program = compiled(
        OfflineLM(),
        metric=lambda example, prediction: True,
        reflect=lambda playbook, trajectory: Reflection(),
        epochs=5,
    )
    assert len([r for r in program.detailed_results.records if r.batch]) == len(TRAIN) // 8
    assert "nothing left to learn" in program.detailed_results.stopped


def test_a_failing_role_is_recorded_and_the_run_goes_on() -> None:
    """A reflector that raises on some examples loses these alone; each is in the journal with its reason."""

    def shaky(playbook: Playbook, trajectory: Any) -> Reflection:
        if int(trajectory.source) in (2, 7, 8, 12, 20):
            raise ValueError("no idea")
        return Reflection((f"Messages like {trajectory.inputs['message'][:20]} go to {trajectory.expected['desk']}.",))

    program = compiled(OfflineLM(), reflect=shaky, max_reflection_rounds=0)
    errors = [r["error"] for record in program.detailed_results.records for r in record.reflections if "error" in r]
    assert errors == ["ValueError: no idea"] * len(errors)
    assert len(errors) > 2
    assert len(program.detailed_results.learned_playbook) > 0


def test_ctrl_c_returns_the_best_program_so_far(tmp_path: Any) -> None:
    """What was learned before the interruption is returned and on disk; continuing goes on from there."""

    def press(record: Any, playbook: Playbook) -> None:
        if record.step == 2:
            raise KeyboardInterrupt

    program = compiled(OfflineLM(), log_dir=tmp_path, on_step=press)
    assert program.detailed_results.stopped == "interrupted by the user"
    assert [record.step for record in program.detailed_results.records] == [1, 2]
    assert len(program.playbook) > 0
    assert Playbook.load(tmp_path / "playbook.json").render() == program.playbook.render()
    assert len((tmp_path / "journal.jsonl").read_bytes().splitlines()) == 2


def test_the_run_folder_holds_the_best_program_as_plain_dspy_state(tmp_path: Any) -> None:
    """playbook.json and program.json are those of the program that is returned, also for a pinned LM."""
    student = dspy.ChainOfThought(Route)
    student.set_lm(OfflineLM())
    program = compiled(OfflineLM(), student, log_dir=tmp_path)
    loaded = dspy.ChainOfThought(Route)
    loaded.load(str(tmp_path / "program.json"))
    assert loaded.predict.signature.instructions == program.predict.signature.instructions
    assert Playbook.load(tmp_path / "playbook.json").render() == program.playbook.render()
    run = json.loads((tmp_path / "run.json").read_text())
    assert run["settings"]["max_playbook_tokens"] == 10_000
    assert (run["settings"]["validate"], run["settings"]["batch_size"]) == ("end", 8)
    assert set(run["versions"]) == {"dspy", "dspy_ace", "python"}


def test_a_perfect_validation_score_ends_the_run() -> None:
    """There is nothing left that a later step could show."""
    results = compiled(OfflineLM(), trainset=TRAIN + messages(32, 4), epochs=4, validate="along").detailed_results
    assert results.best_score == 1.0
    assert results.stopped == "a perfect validation score"
    assert results.records[-1].validation.mean == 1.0


def test_a_perfect_student_costs_one_epoch() -> None:
    """Each training example is rolled out once; nobody is asked what went right, and nothing is validated."""
    rules = "\n".join(
        f"[s-{n:05d}] Messages about {words} go to {desk}."
        for n, (desk, words) in enumerate(
            [("Harbor", "a refund or chargeback"), ("Maple", "a password or login"),
             ("Summit", "a parcel or delivery"), ("Lantern", "an invoice or receipt")], 1)
    )  # fmt: skip
    lm = OfflineLM()
    program = compiled(lm, playbook=Playbook.from_text(f"## S\n{rules}"), epochs=5)
    results = program.detailed_results
    assert results.seed_score is None
    assert lm.calls == results.rollouts == len(TRAIN)
    assert "reflector" not in results.usage
    assert len(program.playbook) == 4


def test_a_metric_that_never_scores_stops_within_three_calls() -> None:
    """A metric without a score costs three rollouts, not a run: one example alone may be the exception."""
    lm = OfflineLM()
    with pytest.raises(MetricError, match="None"):
        compiled(lm, metric=lambda example, prediction: None)
    assert lm.calls == 3


def test_a_dead_provider_stops_at_the_first_example() -> None:
    """An LM that refuses every call ends the run with its own words."""
    lm = OfflineLM(faults={"auth": 1.0})
    with pytest.raises(RunError, match="LM failed") as caught:
        compiled(lm)
    assert lm.calls <= 3
    assert caught.value.program.detailed_results.rollouts <= 3


@pytest.mark.parametrize("settings", [{"unparsable": 1.0}, {"faults": {"auth": 1.0}}])
def test_a_dead_reflection_lm_stops_after_one_batch(settings: dict[str, Any]) -> None:
    """Prose for JSON for ever, or a wrong key: the error names the role and the reply, and little was paid."""
    task, coach = OfflineLM(), OfflineLM(**settings)
    with pytest.raises(RunError, match="Reflector"):
        compiled(task, reflection_lm=coach, valset=None)
    assert task.calls == 8
    assert coach.calls in (3, 6)


def test_a_provider_that_dies_in_the_middle_keeps_what_was_learned() -> None:
    """The error carries the best program so far; the batch that met the dead provider is no step of it."""
    lm = OfflineLM()
    scored = 0

    class Desk(dspy.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.route = dspy.ChainOfThought(Route)

        def forward(self, message: str) -> Any:
            with dspy.context(lm=OfflineLM(faults={"auth": 1.0}) if scored >= 16 else lm):
                return self.route(message=message)

    def metric(example: Any, prediction: Any) -> float:
        nonlocal scored
        scored += 1
        return float(example.desk == prediction.desk)

    with pytest.raises(RunError, match="8 examples in a row") as caught:
        compiled(lm, Desk(), metric, valset=None, max_reflection_rounds=0)
    results = caught.value.program.detailed_results
    assert [record.step for record in results.records] == [1, 2]
    assert len(caught.value.program.playbook) > 0


@pytest.mark.compat
def test_a_playbook_to_start_from_is_kept_and_compiled_again_not_doubled() -> None:
    """Compiling a compiled program goes on with its playbook: each bullet stands once in the prompt."""
    first = compiled(OfflineLM())
    second = compiled(OfflineLM(), first, trainset=TRAIN[:8])
    instructions = second.predict.signature.instructions
    assert instructions.count(PLAYBOOK_HEADER) == 1
    kept = {bullet.id for bullet in first.playbook}
    assert kept & {bullet.id for bullet in second.playbook}
    assert with_playbook(second, Playbook()).predict.signature.instructions == "Route the message to a desk."


@pytest.mark.compat
@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"trainset": []}, "empty"),
        ({"trainset": [dspy.Example(message="x")]}, "with_inputs"),
        ({"trainset": ["text"]}, "dspy.Example"),
        ({"trainset": "text"}, "list of dspy.Example"),
        ({"valset": [dspy.Example(message="x")]}, "valset"),
        ({"student": dspy.Predict}, "instance"),
        ({"student": "question -> answer"}, "dspy.Module"),
        ({"metric": lambda only: 1.0}, "metric must take"),
        ({"metric": "accuracy"}, "metric"),
        ({"epochs": 0}, "epochs"),
        ({"batch_size": 2.5}, "batch_size"),
        ({"num_threads": 0}, "num_threads"),
        ({"reflect_on": "some"}, "reflect_on"),
        ({"validate": "never"}, "end"),
        ({"auto": "tiny"}, "light"),
        ({"playbook": "## S\n[s-1] x"}, "Playbook"),
        ({"reflection_lm": "openai/gpt-4o"}, "dspy.LM"),
        ({"curate": "curator"}, "callable"),
        ({"perfect_score": "1"}, "perfect_score"),
    ],
)
def test_a_mistake_is_found_before_the_first_call(settings: dict[str, Any], words: str) -> None:
    """Each mistake of a user is answered by an error that says what was expected, and costs no LM call."""
    lm = OfflineLM()
    with pytest.raises(SettingsError, match=words):
        compiled(lm, **settings)
    assert lm.calls == 0


@pytest.mark.compat
def test_no_lm_anywhere_is_said_before_anything_runs() -> None:
    """Without an LM the message says how to set one."""
    with dspy.context(lm=None), pytest.raises(SettingsError, match=r"dspy\.configure"):
        ACE(desk_metric).compile(dspy.ChainOfThought(Route), TRAIN)


def test_a_student_without_predictors_is_refused() -> None:
    """A module that calls no predictor has nothing to hold a playbook."""

    class Plain(dspy.Module):  # type: ignore[misc]
        def forward(self, message: str) -> Any:
            return dspy.Prediction(desk="Harbor")

    with pytest.raises(SettingsError, match="no predictor"):
        compiled(OfflineLM(), Plain())


def test_get_params_and_arguments_are_plain() -> None:
    """The constructor stores what it is given, unchanged."""
    optimizer = ACE(desk_metric, batch_size=3)
    assert optimizer.get_params()["batch_size"] == 3
    assert optimizer.get_params()["metric"] is desk_metric


def test_the_result_prints_as_a_table() -> None:
    """print(compiled.detailed_results) names the reason, the scores and the calls by role."""
    program = compiled(OfflineLM())
    text = str(program.detailed_results)
    for word in ("stopped", "validation", "task", "reflector", "curator", "bullets"):
        assert word in text
