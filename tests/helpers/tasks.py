"""A small routing task whose house rules no model can know: made up here, the same in every process."""

from __future__ import annotations

import random
from typing import Any, Literal

import dspy

RULES = {
    "Harbor": ["refund", "chargeback"],
    "Maple": ["password", "login"],
    "Summit": ["parcel", "delivery"],
    "Lantern": ["invoice", "receipt"],
}
TEMPLATES = [
    "Hello, I have a question about my {word}.",
    "The {word} has not been right since {day}, please help.",
    "Where can I find the {word} of last {day}?",
    "Urgent: there is a {word} problem again on {day}.",
]


class Route(dspy.Signature):  # type: ignore[misc]  # dspy is untyped
    """Route the message to a desk."""

    message: str = dspy.InputField()
    desk: Literal["Harbor", "Maple", "Summit", "Lantern"] = dspy.OutputField()


def messages(count: int, seed: int) -> list[dspy.Example]:
    """So many examples; the same for the same seed."""
    rng = random.Random(f"messages/{seed}")
    made = []
    for _ in range(count):
        desk = rng.choice(sorted(RULES))
        text = rng.choice(TEMPLATES).format(word=rng.choice(RULES[desk]), day=rng.choice(["Monday", "Friday"]))
        made.append(dspy.Example(message=text, desk=desk).with_inputs("message"))
    return made


def desk_metric(example: dspy.Example, prediction: Any, trace: Any = None) -> dspy.Prediction:
    """1 for the right desk, with words for the reflector; takes what MIPROv2 and GEPA's evaluation give."""
    right = example.desk == prediction.desk
    return dspy.Prediction(score=float(right), feedback="" if right else f"The right desk is {example.desk}.")


def accuracy(program: dspy.Module, examples: list[dspy.Example]) -> float:
    """The share of right desks."""
    return sum(program(**e.inputs()).desk == e.desk for e in examples) / len(examples)
