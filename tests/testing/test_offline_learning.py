"""The offline model learns what its prompts say, and nothing else: tasks made up here, with rules it cannot know."""

from __future__ import annotations

import json
import random
from typing import Any, Literal

import dspy
import pytest

from dspy_ace import Curator, Playbook
from dspy_ace.program import Feedback, Trajectory
from dspy_ace.roles import Reflection
from dspy_ace.testing import OfflineLM
from paths import SHARED

DEPARTMENTS = {
    "finance": ("the invoice shows a wrong vat", "a direct debit bounced", "the credit note is missing"),
    "facilities": ("the lift is stuck", "the radiator leaks again", "mould on the ceiling"),
    "people": ("my parental leave is not approved", "the payslip misses overtime", "a sick note for three days"),
    "security": ("a phishing mail came in", "somebody tried my password", "an unknown usb stick was found"),
    "engineering": ("the nightly build crashes", "the webhook payload is malformed", "a database migration hangs"),
    "legal": ("we got a subpoena", "a trademark clash with a rival", "the nda draft of the supplier"),
}
BULLETS = (
    "Invoices, VAT, debits and credit notes go to finance, not to legal.",
    "A lift, a radiator or mould belongs to facilities.",
    "Parental leave, payslips, overtime and sick notes → people.",
    'If the ticket mentions "phishing", "password" or "usb stick", answer security, not engineering.',
    "Builds, webhooks and database migrations are for engineering.",
    "legal handles subpoenas, trademarks and any NDA.",
)
OPENINGS = ("Hello,", "Good morning,", "As discussed yesterday,", "Quick note from Lyon:")
CLOSINGS = ("Can you help?", "Thanks in advance.", "It has been like this since Monday.", "Regards, Tom")
INSTRUCTION = "Route the ticket to a department."


class Route(dspy.Signature):
    """Route the ticket to a department."""

    ticket: str = dspy.InputField()
    department: Literal["engineering", "facilities", "finance", "legal", "people", "security"] = dspy.OutputField()


class Reflect(dspy.Signature):
    """Say what should be remembered of this attempt."""

    task: str = dspy.InputField()
    task_inputs: str = dspy.InputField()
    trajectory: str = dspy.InputField()
    outcome: str = dspy.InputField()
    feedback: str = dspy.InputField()
    expected_outputs: str = dspy.InputField()
    bullets: str = dspy.InputField()
    earlier_reflection: str = dspy.InputField()
    error_identification: str = dspy.OutputField()
    root_cause: str = dspy.OutputField()
    correct_approach: str = dspy.OutputField()
    key_insights: str = dspy.OutputField()
    bullet_tags: str = dspy.OutputField()


class Curate(dspy.Signature):
    """Keep the playbook."""

    playbook: str = dspy.InputField()
    evidence: str = dspy.InputField()
    reviews: str = dspy.InputField()
    budget: str = dspy.InputField()
    reasoning: str = dspy.OutputField()
    operations: str = dspy.OutputField()


def tickets(count: int, seed: int) -> list[tuple[str, str]]:
    rng = random.Random(seed)
    made = []
    for _ in range(count):
        department = rng.choice(sorted(DEPARTMENTS))
        body = rng.choice(DEPARTMENTS[department])
        made.append((f"{rng.choice(OPENINGS)} {body}. {rng.choice(CLOSINGS)}", department))
    return made


def render(book: dict[str, str]) -> str:
    return "\n".join(f"[{name}] (RULES) {content}" for name, content in book.items())


def program(signature: Any, book: str) -> dspy.Predict:
    own = signature.instructions
    return dspy.Predict(signature.with_instructions(f"{own}\n\n{book}" if book else own))


def accuracy(predict: dspy.Module, cases: list[tuple[str, str]]) -> float:
    return sum(predict(ticket=text).department == right for text, right in cases) / len(cases)


def apply(book: dict[str, str], operations: list[dict[str, Any]]) -> None:
    for operation in operations:
        if operation["type"] == "ADD":
            book[f"rul-{len(book) + 1:05d}"] = operation["content"]
        elif operation["type"] == "UPDATE":
            book[operation["id"]] = operation["content"]
        elif operation["type"] == "MERGE":
            book[operation["ids"][0]] = operation["content"]


def reflect(text: str, field: str, given: str, right: str, bullets: str = "", **fields: str) -> Any:
    shown = {
        "task": "",
        "outcome": "SUCCEEDED: score 1" if given == right else "FAILED: score 0, where 1 is full marks.",
        "feedback": "",
        "expected_outputs": f"{field}: {right}",
        "earlier_reflection": "(none)",
    }
    shown["trajectory"] = f"Call 1: self\n  → {field}: {given}"
    return dspy.Predict(Reflect)(task_inputs=text, bullets=bullets, **{**shown, **fields})


def curate(book: str, reviews: list[list[str]], evidence: str = "", budget: str = "8000 tokens in all") -> list[Any]:
    text = "\n\n".join(
        f"Review {n} (failure; not retried)\nCase: …\nRoot cause: unknown\nInsights:\n"
        + "\n".join(f"- {i}" for i in items)
        for n, items in enumerate(reviews, 1)
    )
    reply = dspy.Predict(Curate)(playbook=book or "(empty)", evidence=evidence, reviews=text, budget=budget)
    return list(json.loads(reply.operations))


def test_bare_instruction_does_not_solve_a_task_with_house_rules() -> None:
    """Without rules in the prompt there is nothing to go by, and the score shows it."""
    with dspy.context(lm=OfflineLM()):
        assert accuracy(program(Route, ""), tickets(100, 2)) <= 0.45


@pytest.mark.parametrize("module", [dspy.Predict, dspy.ChainOfThought])
def test_bullets_written_by_a_person_are_followed(module: Any) -> None:
    """Six bullets in plain English, worded in six ways, solve the task."""
    book = "\n".join(f"[rul-{n:05d}] (RULES) {b}" for n, b in enumerate(BULLETS, 1))
    with dspy.context(lm=OfflineLM()):
        predict = module(Route.with_instructions(f"{INSTRUCTION}\n\n{book}"))
        assert accuracy(predict, tickets(60, 3)) >= 0.85


def test_reflecting_and_curating_over_training_examples_is_learned_from() -> None:
    """The loop of reflection, curation and appending lifts unseen tickets far above the bare student."""
    book: dict[str, str] = {}
    training = tickets(60, 1)
    with dspy.context(lm=OfflineLM()):
        for start in range(0, len(training), 8):
            predict, reviews = program(Route, render(book)), []
            for text, right in training[start : start + 8]:
                given = predict(ticket=text).department
                reply = reflect(f"ticket: {text}", "department", given, right, render(book))
                reviews.append(json.loads(reply.key_insights))
            apply(book, curate(render(book), reviews))
        assert accuracy(program(Route, render(book)), tickets(100, 2)) >= 0.80
        assert all(len(content.split()) <= 60 for content in book.values())


def test_option_named_after_not_counts_against_it() -> None:
    """`X, not Y` speaks for X and against Y, wherever the words stand."""
    sign = dspy.Signature("note -> desk: Literal['north', 'south']", "Pick the desk.")
    with dspy.context(lm=OfflineLM()):
        for rule in ("Kayak rentals go to south, not to north.", "Not north but south is right for kayak rentals."):
            assert dspy.Predict(sign.with_instructions(rule))(note="A kayak rental for two").desk == "south"


def test_more_specific_statement_beats_a_general_one() -> None:
    """A bullet whose cues all occur wins over one of which a single word occurs."""
    rules = (
        "Repairs of doors, taps, windows and lifts go to north. Anything in the cold store goes to south, also repairs."
    )
    sign = dspy.Signature("note -> desk: Literal['north', 'south']", rules)
    with dspy.context(lm=OfflineLM()):
        assert dspy.Predict(sign)(note="The tap in the cold store needs repairs.").desk == "south"
        assert dspy.Predict(sign)(note="The tap in the hall needs repairs.").desk == "north"


def test_exceptions_and_limits_in_statements_are_respected() -> None:
    """`unless …` takes a statement back; `above 500` holds for numbers above 500 only."""
    rules = "Returned tents go to north unless the zip is torn. Torn zips go to south."
    money = "A refund above 500 goes to south. A refund of 500 or less goes to north."
    with dspy.context(lm=OfflineLM()):
        first = dspy.Predict(dspy.Signature("note -> desk: Literal['north', 'south']", rules))
        assert first(note="A returned tent").desk == "north"
        assert first(note="A returned tent whose zip is torn").desk == "south"
        second = dspy.Predict(dspy.Signature("note -> desk: Literal['north', 'south']", money))
        assert [second(note=f"a refund of ${n}").desk for n in ("1,200", "500", "45")] == ["south", "north", "north"]


def test_plain_string_answers_are_named_by_statements_or_demonstrations() -> None:
    """Without a list of options the answers are those that bullets or demonstrations name."""
    sign = dspy.Signature(
        "note -> desk", 'Name the desk.\n\n[rul-00001] (R) If the note mentions "kayak", answer Quarry.'
    )
    with dspy.context(lm=OfflineLM()):
        assert dspy.Predict(sign)(note="my kayak is lost").desk == "Quarry"
        shown = dspy.Predict("note -> desk")
        shown.demos = [
            dspy.Example(note="a torn tent", desk="Maple"),
            dspy.Example(note="a late train", desk="Harbor"),
        ]
        assert shown(note="this tent is torn").desk == "Maple"


def test_cited_bullets_are_those_that_bore_on_the_answer() -> None:
    """Ids of deciding statements are returned; without any, the list is empty."""
    sign = Route.with_instructions(f"{INSTRUCTION}\n\n" + render({"rul-00007": BULLETS[1], "rul-00009": BULLETS[2]}))
    sign = sign.append("cited_bullets", dspy.OutputField(desc="ids of playbook bullets relied on"), list[str])
    with dspy.context(lm=OfflineLM()):
        assert dspy.Predict(sign)(ticket="the radiator leaks").cited_bullets == ["rul-00007"]
        assert dspy.Predict(sign)(ticket="zzz qqq").cited_bullets == []
        reasoning = dspy.ChainOfThought(sign)(ticket="the radiator leaks").reasoning
    assert "[rul-00007]" in reasoning


def test_reflection_states_cues_and_the_right_answer() -> None:
    """A failure with a label gives one short lesson: cues of the input, the right answer, not the wrong one."""
    with dspy.context(lm=OfflineLM()):
        reply = reflect("ticket: The forklift damaged the dock gate.", "desk", "north", "south")
    (insight,) = json.loads(reply.key_insights)
    assert "forklift" in insight
    assert "answer south, not north" in insight
    assert len(insight.split()) <= 40


def test_reflection_takes_the_answer_from_feedback() -> None:
    """Without expected outputs the feedback's own words name the right answer."""
    for words in ("Wrong. Expected: south", "The answer should have been south.", "The correct answer is 'south'."):
        with dspy.context(lm=OfflineLM()):
            reply = reflect(
                "ticket: The forklift is broken.", "desk", "north", "?", feedback=words, expected_outputs=""
            )
        assert "answer south, not north" in json.loads(reply.key_insights)[0]


def test_reflection_without_labels_says_only_what_is_seen() -> None:
    """A bare failure rules the given answer out; a bare success confirms it; no verdict teaches nothing."""
    with dspy.context(lm=OfflineLM()):
        bad = reflect("ticket: The forklift is broken.", "desk", "north", "x", expected_outputs="")
        good = reflect("ticket: The forklift is broken.", "desk", "x", "x", expected_outputs="")
        none = reflect("ticket: The forklift is broken.", "desk", "north", "x", expected_outputs="", outcome="finished")
    assert "not north" in json.loads(bad.key_insights)[0]
    assert "answer x" in json.loads(good.key_insights)[0]
    assert json.loads(none.key_insights) == []


def test_reflection_tags_bullets_by_what_they_spoke_for() -> None:
    """A bullet for the right answer is helpful, one for the wrong answer harmful, any other left out."""
    bullets = (
        "[a-00001] (R) Forklifts go to south.\n[a-00002] (R) Forklifts go to north.\n[a-00003] (R) Tea goes to east."
    )
    with dspy.context(lm=OfflineLM()):
        reply = reflect("ticket: The forklift is broken.", "desk", "north", "south", bullets)
    assert json.loads(reply.bullet_tags) == {"a-00001": "helpful", "a-00002": "harmful"}


def test_reflection_on_several_questions_gives_a_lesson_for_each_wrong_one() -> None:
    """Comma-separated answers to numbered questions are compared one by one."""
    context = (
        "Options: Apples, Pears, Plums. Answer the following 2 questions separated by comma.\n"
        '1. What fits "4" in: "They sold 4 crates of the red harvest"\n'
        '2. What fits "9" in: "They lost 9 crates in the storm"\n'
    )
    with dspy.context(lm=OfflineLM()):
        reply = reflect(
            f"context: {context}", "answer", "Apples,Apples", "Apples,Plums", "[a-00001] (R) crates → Apples"
        )
    insights = json.loads(reply.key_insights)
    assert any("Plums, not Apples" in insight and "lost" in insight for insight in insights)


def test_curator_adds_what_is_new_once() -> None:
    """A lesson stated in two reviews becomes one ADD that names both; one that is known becomes nothing."""
    lesson = 'For "forklift", "dock gate" answer south, not north.'
    with dspy.context(lm=OfflineLM()):
        (add,) = curate("", [[lesson], [], [lesson]])
        assert (add["type"], add["content"], add["reviews"]) == ("ADD", lesson, [1, 3])
        assert curate(f"[a-00001] (R) {lesson}", [[lesson]]) == []


def test_curator_leaves_out_what_its_own_cases_contradict() -> None:
    """An answer that was neither expected nor given by the successes; a way to go on has no answer to compare."""
    wrong, right, way = 'For "tea" answer east.', 'For "tea" answer west.', "Read the label twice."
    asked = dspy.Example(cup="tea").with_inputs("cup")
    failed = Trajectory(
        dspy.Example(asked, side="west").with_inputs("cup"), dspy.Prediction(side="east"), (), Feedback(0.0)
    )
    solved = Trajectory(asked, dspy.Prediction(side="west"), (), Feedback(1.0), success=True)
    for trajectory in (failed, solved):
        with dspy.context(lm=OfflineLM()):
            delta, _ = Curator()(Playbook(), [Reflection((wrong, right, way), trajectory=trajectory)])
        assert [operation.content for operation in delta.operations] == [right, way]


def test_curator_extends_a_close_bullet_and_deletes_a_harmful_one() -> None:
    """New cues for a known answer go into its bullet; a bullet that the counters condemn is removed."""
    book = '[a-00001] (R) For "forklift", "dock gate" answer south.\n[a-00002] (R) For "tea" answer east.'
    with dspy.context(lm=OfflineLM()):
        operations = curate(book, [['For "forklift", "ramp" answer south.']], evidence="a-00001 +3 -0; a-00002 +0 -4")
    assert {"type": "DELETE", "id": "a-00002"} in operations
    (update,) = [o for o in operations if o["type"] == "UPDATE"]
    assert update["id"] == "a-00001"
    assert '"ramp"' in update["content"]
    assert '"dock gate"' in update["content"]


def test_curator_merges_two_bullets_that_say_the_same() -> None:
    """Two bullets with one answer and the same cues become one."""
    book = '[a-00001] (R) For "forklift", "dock" answer south.\n[a-00002] (R) For "dock", "forklift" answer south.'
    with dspy.context(lm=OfflineLM()):
        (merge,) = curate(book, [[]])
    assert (merge["type"], merge["ids"]) == ("MERGE", ["a-00001", "a-00002"])


def test_curator_judges_the_look_alikes_it_is_shown() -> None:
    """Of pairs that look alike it merges those that say the same and leaves those that differ."""
    same = 'For "forklift", "dock" answer south.'
    playbook = Playbook.from_text(
        f'## R\n[a-00001] {same}\n[a-00002] For "dock", "forklift" answer south.\n'
        '[a-00003] For "forklift", "dock" answer north.'
    )
    with dspy.context(lm=OfflineLM()):
        delta, rejected = Curator()(playbook, [Reflection((same,))])
    assert [operation.ids for operation in delta.operations] == [("a-00001", "a-00002")]
    assert rejected == ()


FINER = SHARED / "data" / "finer"


@pytest.mark.slow
@pytest.mark.skipif(not FINER.is_dir(), reason="needs the FiNER data in ../shared/data/finer")
def test_real_financial_tags_are_learned() -> None:
    """On real FiNER questions a playbook of the mini loop is worth clearly more than five points."""

    def load(name: str) -> list[dict[str, str]]:
        return [json.loads(line) for line in (FINER / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]

    def share(given: str, right: str) -> float:
        pairs = zip(given.split(","), right.split(","), strict=False)
        return sum(a.strip().casefold() == b.strip().casefold() for a, b in pairs) / len(right.split(","))

    sign = dspy.Signature("context -> answer")
    held_out = load("val")[150:]

    def score(book: dict[str, str]) -> float:
        predict = program(sign, render(book))
        return sum(share(predict(context=e["context"]).answer, e["target"]) for e in held_out) / len(held_out)

    book: dict[str, str] = {}
    training = load("train")[:120]
    with dspy.context(lm=OfflineLM()):
        bare = score(book)
        for start in range(0, len(training), 8):
            predict, reviews = program(sign, render(book)), []
            for e in training[start : start + 8]:
                given = predict(context=e["context"]).answer
                reply = reflect(f"context: {e['context']}", "answer", given, e["target"])
                reviews.append(json.loads(reply.key_insights))
            apply(book, curate(render(book), reviews, budget="15000 tokens in all"))
        assert score(book) >= bare + 0.08


def test_policy_in_an_input_decides_a_truth_value() -> None:
    """What a rule says of the field's own name is said of True, and its denial of False."""
    policy = (
        "Travel by train is allowed. Business class flights are not allowed. Alcohol is never allowed. "
        "Hotels above 200 euro are not allowed. Hotels of 200 euro or less are allowed."
    )
    wanted = {
        "a train to Lyon": True,
        "a business class flight": False,
        "a hotel for 150 euro": True,
        "a hotel for 450 euro": False,
    }
    with dspy.context(lm=OfflineLM()):
        predict = dspy.Predict("policy, request -> allowed: bool")
        assert {text: predict(policy=policy, request=text).allowed for text in wanted} == wanted


def test_written_formulas_are_worked_out_and_scaled_by_lessons() -> None:
    """A formula in the request is computed with the numbers of its question; a lesson may set the scale."""
    question = (
        "Answer with 2 decimal places. Formula: Margin = Profit / Revenue, Explanation: Profit: what is left, "
        'Revenue: total sales. Question: "Sales (revenue) were $2 million and the profit was $500,000. The margin?"'
    )
    sign = dspy.Signature("question -> answer")
    with dspy.context(lm=OfflineLM()):
        assert dspy.Predict(sign)(question=question).answer == "0.25"
        reply = reflect(f"question: {question}", "answer", "0.25", "25.00")
        (lesson,) = json.loads(reply.key_insights)
        assert program(sign, render({"rul-00001": lesson}))(question=question).answer == "25.00"


def test_two_outputs_are_learned_apart() -> None:
    """Lessons name the field they are for when there are several."""
    with dspy.context(lm=OfflineLM()):
        reply = reflect(
            "note: the kayak leaks, it is desperate", "desk", "north", "south",
            expected_outputs="desk: south\nurgent: True", trajectory="  → desk: north\n  → urgent: False",
        )  # fmt: skip
        first, second = json.loads(reply.key_insights)
        rules = f"[a-00001] (R) {first}\n[a-00002] (R) {second}"
        sign = dspy.Signature("note -> desk: Literal['north', 'south'], urgent: bool", rules)
        told = dspy.Predict(sign)(note="a desperate kayak")
    assert "desk = south" in first
    assert "urgent = True" in second
    assert (told.desk, told.urgent) == ("south", True)
