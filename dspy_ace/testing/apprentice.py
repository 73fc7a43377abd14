"""`Apprentice`: an offline model that learns a craft. It works with tools, badly, and follows advice that it reads.

Where `OfflineLM` is a reader of cases, an apprentice drives an agent (`dspy.ReAct`) through a task of several steps.
It has bad habits (`apprentice_steps`), and gives a habit up only where its prompt holds advice for the situation it is
in. As a reflector it looks for hints in the tools' answers that were not heeded and writes them down as advice
(`apprentice_reflect`, `apprentice_advice`); as a curator, and in everything else, it is an `OfflineLM`. It knows no
tool, no message and no task: rename them all and its advice changes with them. Like the reader it shows mechanics,
and nothing about the quality of a method.
"""

from __future__ import annotations

import re
from typing import Any

from .agent import _question, _tools, is_step
from .apprentice_advice import read_advice
from .apprentice_reflect import reflect_on_steps
from .apprentice_steps import next_call, steps_in
from .noise import Dice
from .offline import OfflineLM
from .reader import Ask
from .roles import REFLECTOR, TASK, role_of

__all__ = ["Apprentice"]

_CITES = re.compile(r"bullet|playbook", re.IGNORECASE)


class Apprentice(OfflineLM):
    """An offline language model for agents with tools: bad habits, and an ear for advice.

    Args:
        model: the name that usage is booked under.
        cache, **settings: as `OfflineLM` takes them. Of the noise, `unparsable` and the faults reach the agent's steps.

    Raises:
        ValueError: a knob outside its range.
    """

    def __init__(self, model: str = "offline/apprentice", *, cache: bool = False, **settings: Any) -> None:
        super().__init__(model, cache=cache, answerers=[answer_as_apprentice], **settings)


def answer_as_apprentice(ask: Ask, _: Dice) -> tuple[str, dict[str, Any]] | None:
    """Answer a request for an agent's step or for a reflection on such steps; None for any other request."""
    role = role_of(ask)
    values = _step(ask) if role == TASK and is_step(ask) else _reflection(ask) if role == REFLECTOR else None
    return None if values is None else (role, values)


def _step(ask: Ask) -> dict[str, Any] | None:
    """Values for an agent's next step; None for agents that are not asked for `next_tool_name`."""
    tools = {tool.name: tool for tool in _tools(ask.instructions)}
    if "next_tool_name" not in ask.asks_for or not tools:
        return None
    advice = read_advice(ask.instructions, tools)
    call, memory = next_call(_question(ask), tools, advice, steps_in(ask.values.get("trajectory", "")))
    values: dict[str, Any] = {
        "next_tool_name": call.tool if call else "finish",
        "next_tool_args": dict(call.arguments) if call else {},
    }
    cited = list(dict.fromkeys(said.source for said in memory.used if said.source))
    thought = memory.thought if call else "All that was asked for was done."
    return {f.name: values.get(f.name, cited if _CITES.search(f.name) else thought) for f in ask.outputs}


def _reflection(ask: Ask) -> dict[str, Any] | None:
    """Values for a reflection on an agent's steps; None for a reflection on anything else."""
    tools = {tool.name: tool for tool in _tools(ask.values.get("task", ""))}
    steps = steps_in(ask.values.get("trajectory", ""))
    return reflect_on_steps(ask, steps, tools) if tools and steps else None
