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
    "Trips go to Harbor: a flight, hotel, train ticket, rental car, visa.",
    "A badge, key card, door code, gate pass or parking permit goes to Harbor.",
    "Computers go to Maple: a laptop, monitor, keyboard, headset, docking station.",
    "Journalists and the press go to Maple: an interview, article, photo, magazine, podcast.",
    "Invoices go to Lantern: an invoice, VAT number, purchase order, billing address, credit note.",
    "Training goes to Lantern: a course, workshop, certificate, first aid, seminar, enrolment.",
    "Parcels that are late or missing go to Orchard: a delivery, courier, tracking, parcel, shipment.",
    "Passwords and logins go to Orchard: an account, password, login, VPN, authenticator.",
    "Goods that arrived damaged go to Quarry: broken, torn, cracked, bent, scratched.",
    "A refund goes to Harbor when its amount is 500 or less.",
    "A refund goes to Quarry when its amount is above 500, such as a four-digit one.",
    "Wages go to Payroll: a payslip, overtime, salary, bonus, tax code.",
    "The building goes to Facilities: heating, lights, a tap, toilet, window, lift, carpet.",
    "Anything in the cold store goes to Quarry, also heating, lights or a door.",
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
    """What messages of one kind are made of. `{thing}` and `{amount}` are filled in."""

    desk: str
    things: tuple[str, ...]
    bodies: tuple[str, ...]
    amounts: tuple[int, int] = (0, 0)


_REFUNDS = (
    "I want a refund for the {thing}, I paid ${amount} for it.",
    "When will I get my refund of ${amount} for the {thing}?",
    "The {thing} does not fit, please refund the ${amount}.",
    "I sent the {thing} back and wait for a refund of ${amount}.",
)
_GOODS = ("tent", "rucksack", "sleeping bag", "stove", "kayak", "climbing rope", "rain jacket", "pair of boots")
_ROOM = ("heating", "lights", "tap", "window", "lift", "toilet", "carpet", "ceiling")

TOPICS = (
    Topic("Harbor", ("flight", "hotel", "train ticket", "rental car", "visa"), (
        "I need a {thing} for the sales trip to Oslo.",
        "Can somebody book a {thing} for my trip to the fair?",
        "My trip was moved, so the {thing} has to be changed.",
        "Please cancel the {thing} for the trip to the supplier.",
    )),
    Topic("Harbor", ("badge", "key card", "door code", "gate pass", "parking permit"), (
        "My {thing} does not let me in at the entrance any more.",
        "I lost my {thing} and cannot get past the entrance.",
        "Our visitor needs a {thing} for the entrance.",
        "The {thing} of my colleague has expired.",
    )),
    Topic("Maple", ("laptop", "monitor", "keyboard", "headset", "docking station"), (
        "My {thing} is not recognised by the computer.",
        "The {thing} stays black when I start the computer.",
        "I would like to swap my {thing} for a newer model.",
        "Is there a spare {thing} for the computer of our trainee?",
    )),
    Topic("Maple", ("interview", "article", "photo", "podcast", "magazine"), (
        "A journalist asks about the {thing} with our founder.",
        "A reporter wants to use our logo in the {thing}.",
        "The local press sent a draft of the {thing} about the shop.",
        "Who may speak to a journalist for the {thing}?",
    )),
    Topic("Lantern", ("invoice", "VAT number", "purchase order", "billing address", "credit note"), (
        "The {thing} on the bill from March is wrong.",
        "Our accountant is missing the {thing} for the bill.",
        "Please correct the {thing} before we pay the bill.",
        "Why is there no {thing} on the document we got from accounts?",
    )),
    Topic("Lantern", ("course", "workshop", "certificate", "seminar", "first aid class"), (
        "Where do I sign up for the {thing} in rope safety training?",
        "I could not attend the {thing}, is there another training date?",
        "Is the {thing} part of the training plan for new guides?",
        "My {thing} from the last training is about to run out.",
    )),
    Topic("Orchard", ("parcel", "delivery", "shipment", "order", "package"), (
        "My {thing} should have been here last week and the courier knows nothing.",
        "The tracking page says nothing about my {thing}.",
        "The courier left my {thing} with a stranger.",
        "Your {thing} has still not arrived and tracking stands still.",
    )),
    Topic("Orchard", ("password", "account", "login", "VPN", "authenticator"), (
        "My {thing} is locked after three attempts.",
        "I cannot sign in, the {thing} is refused.",
        "Please reset the {thing}, I am locked out.",
        "Since the update the {thing} asks me to sign in every hour.",
    )),
    Topic("Quarry", _GOODS, (
        "The {thing} came out of the box torn.",
        "The {thing} was broken when I opened the box.",
        "There is a scratched and bent part on the new {thing}.",
        "The {thing} arrived damaged, one side is cracked.",
    )),
    Topic("Harbor", _GOODS, _REFUNDS, (15, 500)),
    Topic("Quarry", _GOODS, _REFUNDS, (501, 2400)),
    Topic("Payroll", ("payslip", "overtime", "salary", "bonus", "tax code"), (
        "The {thing} for last month looks too low.",
        "I have a question about the {thing} in my wages.",
        "The payroll run left out my {thing}.",
        "When is the {thing} paid out with the wages?",
    )),
    Topic("Facilities", _ROOM, (
        "The {thing} in the office on the second floor needs a repair.",
        "Something is wrong with the {thing} in the meeting room.",
        "Can the facilities people look at the {thing} in the office?",
        "The {thing} in the meeting room has been leaking or rattling for days.",
    )),
    Topic("Quarry", _ROOM, (
        "The {thing} in the cold store needs a repair.",
        "Something is wrong with the {thing} in the cold store.",
        "Can somebody look at the {thing} next to the cold store gate?",
        "The {thing} of the cold store has failed again.",
    )),
)  # fmt: skip

_OPENINGS = ("", "", "", "Hi, ", "Hello, ")
_CLOSINGS = ("", "", "", " Thanks!", " Please let me know.", " Best, Noor.")


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
    if wanted > len(TOPICS) * min(map(len, decks)):
        raise ValueError(f"at most {len(TOPICS) * min(map(len, decks))} messages can be made, not {wanted}")
    examples = []
    for number in range(wanted):
        topic, deck = TOPICS[number % len(TOPICS)], decks[number % len(TOPICS)]
        message = _polite(rng, deck.pop())
        examples.append(dspy.Example(message=message, desk=topic.desk).with_inputs("message"))
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
