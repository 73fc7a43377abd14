"""Adapters, replies as models write them for each, and models that cite."""

from __future__ import annotations

import json
import re
from typing import Any

import dspy

from dspy_ace import Playbook, with_playbook
from dspy_ace.program import Trajectory, rollouts
from dspy_ace.program.citation import FIELD
from scripted import Messages, scripted

ADAPTERS = {"chat": dspy.ChatAdapter, "json": dspy.JSONAdapter, "xml": dspy.XMLAdapter}
KINDS = list(ADAPTERS)
VALUES: dict[str, Any] = {
    "answer": "Paris",
    "reasoning": "It is known.",
    "next_thought": "Done.",
    "next_tool_name": "finish",
    "next_tool_args": {},
    FIELD: ["cmt-00002"],
}
ASKED = dspy.Example(question="Capital of France?", answer="Paris").with_inputs("question")


def reply(kind: str, values: dict[str, Any]) -> str:
    """The values as a model writes them for an adapter."""
    if kind == "json":
        return json.dumps(values)
    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in values.items()}
    if kind == "xml":
        return "\n".join(f"<{name}>{text}</{name}>" for name, text in texts.items())
    return "\n\n".join(f"[[ ## {name} ## ]]\n{text}" for name, text in texts.items()) + "\n\n[[ ## completed ## ]]"


def asked_for(messages: Messages) -> list[str]:
    """The output fields that the system message names."""
    described = messages[0]["content"].split("Your output fields are:\n")[1]
    return re.findall(r"^\d+\. `(\w+)`", described.split("\nAll interactions")[0], re.MULTILINE)


def model(kind: str, **values: Any) -> Any:
    """A model that fills every field it is asked for."""
    return scripted(lambda messages: reply(kind, {n: {**VALUES, **values}[n] for n in asked_for(messages)}))


def says(kind: str, text: str, playbook: Playbook, signature: Any = "question -> answer") -> tuple[Trajectory, Any]:
    """A rollout of a Predict whose model says just `text`."""
    lm = scripted(text)
    with dspy.context(lm=lm, adapter=ADAPTERS[kind]()):
        program = with_playbook(dspy.Predict(signature), playbook, cite=True)
        return rollouts(program, [ASKED], lambda e, p: p.answer == e.answer)[0], lm
