"""A small routing task with house rules that no model can know.

Customers and employees of a made-up shop for outdoor gear write to the front office. Each message goes to one of
seven desks. Two desks have telling names; the other five are called after rooms, so what they handle has to be
learned from examples. Two rules are conditional: large refunds, and equipment in the cold store.

Pure Python, no files: the same seed gives the same messages in every process.
"""

from __future__ import annotations

import random
from typing import Any, Literal, NamedTuple, get_args

import dspy

Desk = Literal["Harbor", "Maple", "Lantern", "Orchard", "Quarry", "Payroll", "Facilities"]
DESKS: tuple[str, ...] = get_args(Desk)

HOUSE_RULES = (
    "Trips go to Harbor: a flight, hotel, train ticket, rental car or visa.",
    "The entrance goes to Harbor: a visitor, badge, key card, door code, gate pass or parking permit.",
    "Computers go to Maple: a laptop, monitor, keyboard, headset or docking station.",
    "Journalists and the press go to Maple: an interview, article, photo, podcast or magazine.",
    "Bills go to Lantern: an accountant, invoice, VAT number, purchase order, billing address or credit note.",
    "Training goes to Lantern: a course, workshop, first aid class, seminar, exam or certificate.",
    "What is on its way goes to Orchard: a courier, tracking, a parcel, delivery, shipment, order or package.",
    "Signing in goes to Orchard: a locked or refused password, account, login, VPN or authenticator.",
    "Goods that arrived damaged go to Quarry: broken, cracked, scratched.",
    "A refund of 500 or less goes to Harbor.",
    "A refund above 500 goes to Quarry.",
    "Wages go to Payroll: a payslip, overtime, a salary, bonus or tax code.",
    "Repairs in the office or a meeting room go to Facilities: heating, light, tap, window, lift, door.",
    "Anything in the cold store goes to Quarry, also a repair.",
)
"""The rules behind the labels, as somebody who knows the house would write them down."""


class RouteMessage(dspy.Signature):  # type: ignore[misc]  # dspy is untyped
    """Send the message to the desk that handles it."""

    message: str = dspy.InputField()
    desk: Desk = dspy.OutputField()


class Split(NamedTuple):
    """Examples with `message` as input and `desk` as label; no message occurs twice."""

    train: list[dspy.Example]
    val: list[dspy.Example]
    test: list[dspy.Example]


class Topic(NamedTuple):
    """What messages of one kind are made of. `{thing}` and `{amount}` are filled in; `share`: how often, relatively."""

    desk: str
    things: tuple[str, ...]
    bodies: tuple[str, ...]
    amounts: tuple[int, int] = (0, 0)
    share: int = 2


_REFUNDS = (
    "I want a refund for the {thing}, I paid ${amount} for it.",
    "When will I get the refund of ${amount} for the {thing}?",
    "The {thing} does not fit, please refund the ${amount}.",
    "I sent the {thing} back and wait for a refund of ${amount}.",
)
_GOODS = ("tent", "rucksack", "sleeping bag", "stove", "kayak", "climbing rope", "rain jacket", "headlamp")
_ROOM = ("heating", "light", "tap", "window", "lift", "fire door")

TOPICS = (
    Topic("Harbor", ("flight", "hotel", "train ticket", "rental car", "visa"), (
        "I need a {thing} for the trip to Oslo.",
        "Can somebody book a {thing} for my trip to the fair?",
        "My trip was moved, so the {thing} has to be changed.",
        "Please cancel the {thing} for the trip to our supplier.",
    )),
    Topic("Harbor", ("badge", "key card", "door code", "gate pass", "parking permit"), (
        "My {thing} does not let me in at the entrance.",
        "I lost my {thing} and cannot get past the entrance.",
        "Our visitor needs a {thing} for the main entrance.",
        "The {thing} of our visitor has expired.",
    )),
    Topic("Maple", ("laptop", "monitor", "keyboard", "headset", "docking station"), (
        "My {thing} is not recognised by the computer.",
        "The {thing} stays dead when I start the computer.",
        "I need a new {thing} for my computer.",
        "Is there a spare {thing} for the computer of our trainee?",
    )),
    Topic("Maple", ("interview", "article", "photo", "podcast", "magazine"), (
        "A journalist asks about the {thing} with our founder.",
        "A journalist wants to use our logo in the {thing}.",
        "The press sent a draft of the {thing} about the shop.",
        "Who may speak to the press for the {thing}?",
    )),
    Topic("Lantern", ("invoice", "VAT number", "purchase order", "billing address", "credit note"), (
        "The {thing} for the bill from March is wrong.",
        "Our accountant misses the {thing} for the bill.",
        "Please correct the {thing} before we pay the bill.",
        "Why did our accountant get no {thing}?",
    )),
    Topic("Lantern", ("course", "workshop", "first aid class", "seminar", "exam"), (
        "How do I sign up for the {thing} in safety training?",
        "I missed the {thing}, is there another training date?",
        "Is the {thing} part of the training for new guides?",
        "My training certificate says nothing of the {thing}.",
    )),
    Topic("Orchard", ("parcel", "delivery", "shipment", "order", "package"), (
        "My {thing} is late and the courier does not answer.",
        "The tracking page shows nothing about my {thing}.",
        "The courier left my {thing} with a stranger.",
        "My {thing} is late, and the tracking number does not work.",
    )),
    Topic("Orchard", ("password", "account", "login", "VPN", "authenticator"), (
        "My {thing} is locked after three attempts.",
        "I cannot sign in, the {thing} is refused.",
        "Please reset the {thing}, it is locked.",
        "Since the update I cannot sign in with my {thing}.",
    )),
    Topic("Quarry", _GOODS, (
        "The {thing} came out of the box damaged.",
        "The {thing} was broken when I opened the box.",
        "My new {thing} is damaged, a part is cracked.",
        "The {thing} arrived broken and scratched.",
    )),
    Topic("Harbor", _GOODS, _REFUNDS, (15, 500), 1),
    Topic("Quarry", _GOODS, _REFUNDS, (501, 2400), 1),
    Topic("Payroll", ("payslip", "overtime", "salary", "bonus", "tax code"), (
        "The {thing} in my wages for last month is wrong.",
        "I have a question about the {thing} in my wages.",
        "The payroll run left out my {thing}.",
        "When is the {thing} due in the payroll run?",
    )),
    Topic("Facilities", _ROOM, (
        "The {thing} in the office on the second floor needs a repair.",
        "Something is wrong with the {thing} in the meeting room.",
        "Can the facilities people look at the {thing} in the office?",
        "The {thing} in the meeting room rattles.",
    )),
    Topic("Quarry", _ROOM, (
        "The {thing} in the cold store needs a repair.",
        "Something is wrong with the {thing} in the cold store.",
        "Can somebody look at the {thing} of the cold store?",
        "The {thing} in the cold store rattles.",
    )),
)  # fmt: skip

_OPENINGS = ("", "", "Hi, ")
_CLOSINGS = ("", "", " Can you help?", " What should I do?", " Who can help me with this?")


def make_split(seed: int = 0, train: int = 100, val: int = 40, test: int = 80) -> Split:
    """Messages for training, selection and test, every topic equally often (as far as it divides).

    No two messages share their main sentence: what the test asks was not in training under another greeting.

    Args:
        seed: of the draw; another seed draws other messages under the same rules.
        train, val, test: number of examples each.

    Raises:
        ValueError: more messages are asked for than there are sentences.
    """
    rng = random.Random(seed)
    wanted = train + val + test
    decks = [_sentences(rng, topic) for topic in TOPICS]
    turns = [number for number, topic in enumerate(TOPICS) for _ in range(topic.share)]
    most = len(turns) * min(len(deck) // topic.share for deck, topic in zip(decks, TOPICS, strict=True))
    if wanted > most:
        raise ValueError(f"at most {most} messages can be made, not {wanted}")
    rng.shuffle(turns)
    examples = []
    for turn in range(wanted):
        number = turns[turn % len(turns)]
        message = _polite(rng, decks[number].pop())
        examples.append(dspy.Example(message=message, desk=TOPICS[number].desk).with_inputs("message"))
    rng.shuffle(examples)
    return Split(examples[:train], examples[train : train + val], examples[train + val :])


def _sentences(rng: random.Random, topic: Topic) -> list[str]:
    """Every sentence of a topic once, shuffled."""
    sentences = [
        body.format(thing=thing, amount=f"{rng.randint(*topic.amounts):,}")
        for body in topic.bodies
        for thing in topic.things
    ]
    rng.shuffle(sentences)
    return sentences


def _polite(rng: random.Random, sentence: str) -> str:
    """The sentence with a greeting before it and a word after it, or without."""
    opening = rng.choice(_OPENINGS)
    if opening and not sentence.startswith("I "):
        sentence = sentence[0].lower() + sentence[1:]
    return opening + sentence + rng.choice(_CLOSINGS)


def metric(
    example: dspy.Example,
    prediction: Any,
    trace: Any = None,
    pred_name: str | None = None,
    pred_trace: Any = None,  # noqa: ARG001 - GEPA passes it
) -> Any:
    """1.0 for the right desk, else 0.0, with feedback in words. Works as it is for ACE, GEPA and MIPROv2.

    Returns:
        `dspy.Prediction(score, feedback)`; a bool while MIPROv2 gathers demonstrations (a trace, no predictor named),
        because there any `Prediction` would count as a success.
    """
    given, right = str(getattr(prediction, "desk", "")), example.desk
    correct = given == right
    if trace is not None and pred_name is None:
        return correct
    feedback = f"Correct: {right}." if correct else f"Wrong: the correct desk is {right}, not {given or 'empty'}."
    return dspy.Prediction(score=float(correct), feedback=feedback)
