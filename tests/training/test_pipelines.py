"""Programs of several predictors: a lesson lands at the one that erred, and nowhere else."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import dspy
import pytest

from dspy_ace import ACE, Bullet, Curator, Playbook, Reflector, with_playbook
from dspy_ace.playbook import Add, Delta
from dspy_ace.program import Call, own_instructions, rollouts, with_reflection
from dspy_ace.roles import Insight, Reflection
from dspy_ace.testing import OfflineLM
from scripted import scripted
from scripted_roles import PLAYBOOK, chat, curation_reply, fields_of, reflection_reply, trajectory
from steps import step_of
from tasks import RULES

LEVELS = {"High": ["outage", "leak"], "Medium": ["delay", "detour"], "Low": ["typo", "brochure"]}
DESK = "message -> desk: Literal['Harbor', 'Lantern', 'Maple', 'Summit']"
LEVEL = "message, desk -> level: Literal['High', 'Low', 'Medium']"
LONG: dict[str, Any] = {"count": 60, "epochs": 2}
SEEDS = (1, 4)
STAGE = {"desk": "route.predict", "level": "grade"}


def stated(field: str, rules: dict[str, list[str]]) -> str:
    """The rules of one field in words that any reader can apply."""
    return " ".join(f"Messages with {' or '.join(words)} get {field} = {value}." for value, words in rules.items())


class Pipeline(dspy.Module):
    """Routes a message, then grades it with the desk in view; the stage for `ignorant` is not told its rules."""

    def __init__(self, ignorant: str) -> None:
        super().__init__()
        route = "Choose the desk." + ("" if ignorant == "desk" else " " + stated("desk", RULES))
        grade = "Choose the level." + ("" if ignorant == "level" else " " + stated("level", LEVELS))
        self.route = dspy.ChainOfThought(dspy.Signature(DESK, route))
        self.grade = dspy.Predict(dspy.Signature(LEVEL, grade))

    def forward(self, message: str) -> dspy.Prediction:
        desk = self.route(message=message).desk
        return dspy.Prediction(desk=desk, level=self.grade(message=message, desk=desk).level)


def cases(count: int, seed: int, *labels: str) -> list[dspy.Example]:
    """Messages about two things that have nothing to do with each other, with the labels asked for."""
    rng = random.Random(f"pipeline/{seed}")
    made = []
    for _ in range(count):
        desk, level, day = rng.choice(sorted(RULES)), rng.choice(sorted(LEVELS)), rng.choice(["Monday", "Friday"])
        text = f"About my {rng.choice(RULES[desk])}: there is a {rng.choice(LEVELS[level])} since {day}."
        right = {"desk": desk, "level": level}
        made.append(dspy.Example(message=text, **{name: right[name] for name in labels}).with_inputs("message"))
    return made


def fields_metric(example: dspy.Example, prediction: Any, trace: Any = None) -> dspy.Prediction:
    """The share of labels that were met; the feedback names the right values."""
    labels = dict(example.labels().items())
    wrong = [name for name, value in labels.items() if prediction[name] != value]
    said = " ".join(f"The right {name} is {labels[name]}." for name in wrong)
    return dspy.Prediction(score=1 - len(wrong) / len(labels), feedback=said)


def share(program: dspy.Module, field: str) -> float:
    """How many of 60 unseen messages get the right value of `field`."""
    unseen = cases(60, 3, field)
    return sum(program(**e.inputs())[field] == e[field] for e in unseen) / len(unseen)


def learned(student: dspy.Module, *labels: str, count: int = 24, seed: int = 1, **settings: Any) -> Any:
    """`student` compiled on so many messages."""
    optimizer = ACE(fields_metric, **{"epochs": 1, "num_threads": 2, **settings})
    return optimizer.compile(student, cases(count, seed, *labels), valset=cases(12, 2, *labels))


def mean(values: Iterable[float]) -> float:
    """Over the trainsets of `SEEDS`."""
    return sum(values) / len(SEEDS)


def rise_of_one(field: str) -> float:
    """What the same rules bring to a program of one predictor."""
    asked = {"desk": DESK, "level": LEVEL.replace("message, desk", "message")}[field]
    alone = dspy.ChainOfThought(dspy.Signature(asked, f"Choose the {field}."))
    with dspy.context(lm=OfflineLM()):
        return mean(share(learned(alone, field, seed=seed, **LONG), field) - share(alone, field) for seed in SEEDS)


@pytest.mark.slow
@pytest.mark.parametrize("ignorant", ["desk", "level"])
def test_lessons_land_at_the_stage_that_errs_and_the_score_rises_as_for_one_predictor(ignorant: str) -> None:
    """Of two stages one is not told its rules: nine bullets of ten and more are for it, and it learns them."""
    student = Pipeline(ignorant)
    knowing = "level" if ignorant == "desk" else "desk"
    with dspy.context(lm=OfflineLM()):
        before = share(student, ignorant)
        programs = [learned(student, "desk", "level", seed=seed, **LONG) for seed in SEEDS]
        after = mean(share(program, ignorant) for program in programs)
        assert [share(program, knowing) for program in (student, *programs)] == [1.0, 1.0, 1.0]
    for program in programs:
        scopes = [bullet.predictor for bullet in program.playbook]
        assert len(scopes) >= 4
        assert scopes.count(STAGE[ignorant]) >= 0.9 * len(scopes)
    alone = rise_of_one(ignorant)
    assert alone >= 0.4
    assert after - before >= 0.8 * alone


class Forwarder(dspy.Module):
    """Two stages; the second sees what the first one made of the message, and nothing else."""

    def __init__(self, first: str, second: str, teams: Iterable[str]) -> None:
        super().__init__()
        self.route = dspy.Predict(dspy.Signature(DESK, first))
        self.send = dspy.Predict(dspy.Signature(f"desk -> team: Literal[{', '.join(map(repr, teams))}]", second))

    def forward(self, message: str) -> dspy.Prediction:
        return dspy.Prediction(team=self.send(desk=self.route(message=message).desk).team)


@pytest.mark.slow
@pytest.mark.parametrize("erring", ["route", "send"])
def test_a_wrong_end_is_followed_back_to_where_it_began(erring: str) -> None:
    """Only the end is labelled: what a later stage handed on is put down to the first; what it made up, to itself."""
    known = "Choose the desk. " + stated("desk", RULES)
    made_up = dict(zip(sorted(RULES), ["Birch", "Cedar", "Alder", "Rowan"], strict=True))
    teams = {desk: desk for desk in RULES} if erring == "route" else made_up
    first, second = ("Choose the desk.", "Hand it on.") if erring == "route" else (known, "Choose the team of a desk.")
    student = Forwarder(first, second, sorted(teams.values()))
    trainset, unseen = (
        [dspy.Example(message=e.message, team=teams[e.desk]).with_inputs("message") for e in cases(n, seed, "desk")]
        for n, seed in ((40, 1), (60, 3))
    )
    with dspy.context(lm=OfflineLM()):
        program = ACE(fields_metric, epochs=2, num_threads=2).compile(student, trainset)
        before, after = (sum(p(**e.inputs()).team == e.team for e in unseen) / 60 for p in (student, program))
    scopes = [bullet.predictor for bullet in program.playbook]
    assert len(scopes) >= 3
    assert scopes.count(erring) >= 0.9 * len(scopes)
    assert after >= before + 0.3


class Experts(dspy.Module):
    """Modules in a dict, a list and below another module; code chooses one expert a case."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = {
            "desk": dspy.ChainOfThought(dspy.Signature(DESK, "Choose the desk.")),
            "level": dspy.Predict(dspy.Signature("message -> level: Literal['High', 'Low', 'Medium']", "Choose.")),
        }
        self.steps = [dspy.Predict("message -> gist"), dspy.Predict("gist -> gist_in_short")]

    def forward(self, message: str) -> Any:
        self.steps[0](message=message)
        return self.experts["desk"](message=message)


@pytest.mark.compat
def test_predictors_that_never_ran_are_left_alone() -> None:
    """Without a call of theirs, instructions of predictors in dicts and lists are what they were, byte for byte."""
    student = Experts()
    with dspy.context(lm=OfflineLM()):
        program = learned(student, "desk")
    own = own_instructions(student)
    assert set(own) == {"experts['desk'].predict", "experts['level']", "steps[0]", "steps[1]"}
    assert {bullet.predictor for bullet in program.playbook} == {"experts['desk'].predict"}
    for name, predictor in program.named_predictors():
        assert (predictor.signature.instructions == own[name]) == (name != "experts['desk'].predict")


@pytest.mark.compat
def test_a_program_of_parts_is_saved_and_loaded(tmp_path: Path) -> None:
    """Bullets for predictors in containers stand in their own prompts, and are there again in a fresh instance."""
    book = Playbook(
        (
            Bullet("str-00001", "S", "common lesson"),
            Bullet("str-00002", "S", "desk lesson", predictor="experts['desk'].predict"),
            Bullet("str-00003", "S", "step lesson", predictor="steps[1]"),
        )
    )
    program = with_playbook(Experts(), book)
    program.save(tmp_path / "program.json")
    fresh = Experts()
    fresh.load(tmp_path / "program.json")
    shown = {
        name: [word for word in ("common", "desk", "step") if f"{word} lesson" in predictor.signature.instructions]
        for name, predictor in fresh.named_predictors()
    }
    assert shown == {
        "experts['desk'].predict": ["common", "desk"],
        "experts['level']": ["common"],
        "steps[0]": ["common"],
        "steps[1]": ["common", "step"],
    }
    book.save(tmp_path / "playbook.json")
    assert Playbook.load(tmp_path / "playbook.json") == book


TASK = {"route": "Route.", "grade": "Grade.", "check": "Check."}


@pytest.mark.compat
@pytest.mark.parametrize(
    ("ran", "named", "lands"),
    [
        (["route", "grade"], "grade", "grade"),
        (["route", "grade"], "check", None),
        (["route", "grade"], None, None),
        (["route"], "check", "route"),
        (["route"], None, "route"),
    ],
)
def test_no_lesson_lands_at_a_predictor_that_did_not_run(ran: list[str], named: str | None, lands: str | None) -> None:
    """An insight with such an address is kept: for the only predictor that ran, or else for all."""
    calls = tuple(Call(name, {"message": "m"}, {"answer": "a"}) for name in ran)
    said = {"insight": "Look twice.", **({"predictor": named} if named else {})}
    lm = scripted(reflection_reply([said]))
    assert Reflector(lm)(PLAYBOOK, trajectory(task=TASK, trace=calls)).insights == (Insight("Look twice.", lands),)


@pytest.mark.compat
def test_the_curators_operation_carries_the_predictor() -> None:
    """The curator is told whom an insight is for, and its ADD makes a bullet for that predictor alone."""
    calls = tuple(Call(name, {"message": "m"}, {"answer": "a"}) for name in ("route", "grade"))
    reflection = Reflection((Insight("Look twice.", "grade"),), trajectory=trajectory(task=TASK, trace=calls))
    lm = scripted(curation_reply({"type": "ADD", "section": "S", "content": "Look twice.", "predictor": "grade"}))
    delta, rejected = Curator(lm)(PLAYBOOK, [reflection])
    assert "- Look twice. (for predictor grade)" in fields_of(lm.script.requests[0])["reviews"]
    assert delta.operations == (Add("S", "Look twice.", "grade", ("7",)),)
    assert rejected == ()


@pytest.mark.compat
def test_a_retry_shows_an_insight_to_its_predictor_alone() -> None:
    """Insights for all stand in every prompt; a predictor without one is as it was."""
    student = Pipeline("desk")
    insights = [Insight("for the router", "route.predict"), "for everyone"]
    retried = dict(with_reflection(student, Playbook(), insights).named_predictors())
    assert "- for the router\n- for everyone" in retried["route.predict"].signature.instructions
    assert "for the router" not in retried["grade"].signature.instructions
    assert "- for everyone" in retried["grade"].signature.instructions
    alone = dict(with_reflection(student, Playbook(), insights[:1]).named_predictors())
    assert alone["grade"].signature.instructions == student.grade.signature.instructions


@pytest.mark.compat
def test_the_reflector_sees_which_predictor_gave_no_answer() -> None:
    """A reply that cannot be read: the call is in the trajectory with its inputs, and the lesson may be for it."""

    def answer(messages: list[dict[str, str]]) -> str:
        routing = "`desk` (Literal" in messages[0]["content"].split("output fields")[1]
        return chat(reasoning="r", desk="Maple") if routing else "I would rather not say."

    with dspy.context(lm=scripted(answer), adapter=dspy.ChatAdapter()):
        made = rollouts(Pipeline("desk"), cases(1, 1, "desk", "level"), fields_metric)[0]
    assert made.error is not None
    assert made.error.kind == "format"
    assert [(call.predictor, sorted(call.outputs)) for call in made.trace] == [
        ("route.predict", ["desk", "reasoning"]),
        ("grade", []),
    ]
    lm = scripted(reflection_reply([{"insight": "Answer in form.", "predictor": "grade"}]))
    reflection = Reflector(lm)(PLAYBOOK, made)
    assert "Call 2: grade\n  desk: Maple\n  (it gave no answer)" in fields_of(lm.script.requests[0])["trajectory"]
    assert reflection.insights == (Insight("Answer in form.", "grade"),)


@pytest.mark.compat
@pytest.mark.parametrize("described", [True, False])
def test_the_stand_in_addresses_a_lesson_only_where_the_request_describes_how(described: bool) -> None:
    """OfflineLM reads: without words on predictors in the field's description its insights are plain texts."""
    form = 'a JSON list; {"insight": "…", "predictor": "name"} for one of several' if described else "a JSON list"
    signature = (
        dspy.Signature("task, task_inputs, trajectory, outcome, expected_outputs -> key_insights")
        .with_updated_fields("key_insights", desc=form)
        .with_instructions("Reflect.")
    )
    calls = "Call 1: route\n  → desk: Maple\nCall 2: grade\n  desk: Maple\n  → level: High"
    with dspy.context(lm=OfflineLM()):
        said = dspy.Predict(signature)(
            task="[route]\nRoute.\n\n[grade]\nGrade.",
            task_inputs="message: Where is the parcel with the brochure?",
            trajectory=calls,
            outcome="FAILED: score 0.5, where 1 is full marks.",
            expected_outputs="desk: Maple\nlevel: Low",
        ).key_insights
    (insight,) = json.loads(said)
    text = insight["insight"] if described else insight
    assert "level = Low, not High" in text
    assert not described or insight["predictor"] == "grade"


@pytest.mark.compat
def test_every_predictor_keeps_the_lm_that_is_pinned_to_it() -> None:
    """Two pinned LMs and a third one for the roles: each gets its own calls, and the program keeps the objects."""
    student, first, second, coach = Pipeline("desk"), OfflineLM(), OfflineLM(), OfflineLM()
    student.route.predict.lm, student.grade.lm = first, second
    with dspy.context(lm=None):
        program = learned(student, "desk", "level", reflection_lm=coach)
    assert program.route.predict.lm is first
    assert program.grade.lm is second
    assert first.calls > 0
    assert {record.role for record in coach.log} == {"reflector", "curator"}
    for lm, mine, other in ((first, "Choose the desk.", "Choose the level."), (second, "Choose the level.", "desk.")):
        assert all(mine in record.request for record in lm.log)
        assert not any(f"Choose the {other}" in record.request for record in lm.log)
    totals = program.detailed_results.usage
    assert totals["task"].calls == first.calls + second.calls
    assert totals["reflector"].calls + totals["curator"].calls == coach.calls


@pytest.mark.compat
def test_the_journal_keeps_whom_a_lesson_is_for(tmp_path: Path) -> None:
    """The operations on disk carry the predictor; a run continued from them has the same playbook."""
    with dspy.context(lm=OfflineLM()):
        first = learned(Pipeline("desk"), "desk", "level", log_dir=tmp_path)
        again = learned(Pipeline("desk"), "desk", "level", log_dir=tmp_path)
    assert again.playbook == first.playbook
    lines = [json.loads(line) for line in (tmp_path / "journal.jsonl").read_text().splitlines()]
    adds = [op for line in lines for op in line.get("delta", []) if op["op"] == "add"]
    assert adds
    assert {op["predictor"] for op in adds} == {"route.predict"}


@pytest.mark.compat
@pytest.mark.parametrize(("sources", "lands"), [(("0",), None), (("1",), "check"), ((), "check"), (("9",), "check")])
def test_no_operation_lands_at_a_predictor_that_did_not_run(sources: tuple[str, ...], lands: str | None) -> None:
    """An ADD of any curator whose predictor ran in none of its examples is for all; its lesson is kept."""
    traces = [tuple(Call(name, {}, {"answer": "a"}) for name in names) for names in (("route",), ("route", "check"))]
    made = [trajectory(str(n), task=TASK, trace=trace) for n, trace in enumerate(traces)]
    add = Add("S", "Look twice.", "check", sources)
    step = step_of(Playbook(), made, lambda _, t: Reflection(("x",)), lambda *_: (Delta((add,)), ()))
    assert [(bullet.content, bullet.predictor) for bullet in step.playbook] == [("Look twice.", lands)]
    assert step.rejected == ()
