"""Replies of the two LM roles in the chat layout, trajectories for them, and the fields of their prompts."""

from __future__ import annotations

import json
import re
from typing import Any

import dspy
import pytest

from dspy_ace import Playbook
from dspy_ace.lm.asking import RoleAdapter
from dspy_ace.playbook import count_tokens
from dspy_ace.program import Call, Feedback, Trajectory
from dspy_ace.roles import Reflection
from paths import SHARED


def chat(**fields: Any) -> str:
    """A reply with these fields in the chat layout; what is no text is written as JSON."""
    said = {name: value if isinstance(value, str) else json.dumps(value) for name, value in fields.items()}
    return "\n\n".join([*(f"[[ ## {name} ## ]]\n{value}" for name, value in said.items()), "[[ ## completed ## ]]"])


def reflection_reply(insights: Any = (), tags: Any = None) -> str:
    """A whole reply of a reflector."""
    return chat(
        diagnosis="The sum was wrong.",
        key_insights=insights if isinstance(insights, str) else list(insights),
        bullet_tags=tags if tags is not None else {},
    )


def curation_reply(*operations: Any) -> str:
    """A whole reply of a curator."""
    return chat(reasoning="These are new.", operations=list(operations))


def fields_of(messages: list[dict[str, str]]) -> dict[str, str]:
    """The input fields of the last message, by name."""
    parts = re.split(r"^\[\[ ## (\w+) ## \]\]\n", messages[-1]["content"], flags=re.MULTILINE)
    found = dict(zip(parts[1::2], parts[2::2], strict=True))
    *_, last = found
    found[last] = found[last].partition("\n\nRespond with the corresponding output fields")[0]
    return {name: value.strip("\n") for name, value in found.items()}


def prompt_tokens(signature: Any) -> int:
    """The tokens of a role's prompt whose input fields are empty."""
    messages = RoleAdapter().format(signature, [], dict.fromkeys(signature.input_fields, ""))
    return sum(count_tokens(message["content"]) for message in messages)


def trajectory(source: str = "7", *, score: float = 0.0, answer: str = "eleven", **fields: Any) -> Trajectory:
    """A rollout of `question -> answer`; a failure unless said otherwise."""
    example = fields.pop("example", None) or dspy.Example(
        question=f"How many are {source} and 5?", answer="twelve (12)"
    ).with_inputs("question")
    call = Call("answer", {"question": f"How many are {source} and 5?"}, {"answer": answer})
    settings: dict[str, Any] = {
        "trace": (call,),
        "feedback": Feedback(score, "Off by one."),
        "task": {"answer": "Add the numbers."},
        "success": score >= 1,
        **fields,
    }
    return Trajectory(example, dspy.Prediction(answer=answer), source=source, **settings)


def reviewed(*insights: str, source: str = "7", **fields: Any) -> Reflection:
    """A reflection with its trajectory, as a curator gets it."""
    return Reflection(insights, trajectory=trajectory(source, **fields))


def real_replies(name: str) -> list[dict[str, Any]]:
    """Replies of real models, one dict each with `role` and `completion`; skips where they are not at hand."""
    path = SHARED / "data" / "llm_outputs" / name
    if not path.exists():
        pytest.skip(f"the optional data folder has no {name}")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def sections(completion: str) -> dict[str, str]:
    """The fields of a reply in the chat layout, by name."""
    parts = re.split(r"^\[\[ ## (\w+) ## \]\][ \t]*\n?", completion, flags=re.MULTILINE)
    return {name: text.strip() for name, text in zip(parts[1::2], parts[2::2], strict=True)}


PLAYBOOK = Playbook.from_text(
    "## STRATEGIES & INSIGHTS\n[str-00001] helpful=3 harmful=1 :: When two numbers are added, carry.\n"
    "[str-00002] Write the unit.\n\n## COMMON MISTAKES TO AVOID\n[cmt-00012] Do not round before the end."
)
