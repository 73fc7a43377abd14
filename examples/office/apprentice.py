"""`Apprentice`: an offline model that works with tools, knows no house rules, and follows the advice in its prompt.

Where `OfflineLM` reads one case at a time, an apprentice drives an agent (`dspy.ReAct`) through a task of many steps.
It takes the task sentence by sentence and calls the tool that a sentence names. It has habits that only advice in its
prompt changes (`advice`): it makes each call once, takes every answer for the last word, writes a name as it reads it,
and begins the week on Monday.

As a reflector it writes down, as advice, what the facts in the tools' answers suggest. Everything else, such as
curation, is done by `OfflineLM`. It knows no tool, no message and no task: rename them all and its advice changes with
them. It shows mechanics, and nothing about the quality of a method.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dspy_ace.testing import OfflineLM
from dspy_ace.testing.agent import Tool, is_step, question_of, tools_in
from dspy_ace.testing.backend import REFLECTOR, TASK, role_of
from dspy_ace.testing.calculate import numbers, show
from dspy_ace.testing.noise import Dice
from dspy_ace.testing.request import Ask
from dspy_ace.testing.words import content_stems, sentences, split_name, stem

from .advice import ORDER, TIMES, WEEK, WEEKDAYS, Advice, chosen, conclude, read_advice, say

_MARK = r"\[ ?\[ ?## %s ?## ?\] ?\]"  # also as a transcript shows it, where it is no header any more
_STEP = re.compile(
    _MARK % r"(thought|tool_name|tool_args|observation)_(\d+)"
    + r"\s*(.*?)\s*(?="
    + _MARK % r"\w+"
    + r"|\n[ \t]*→ \w+:|\nCall \d+:|\nReturned:|\Z)"
    + r"|<(thought|tool_name|tool_args|observation)_(\d+)>\s*(.*?)\s*</\4_\5>",
    re.DOTALL,
)
_QUOTES = re.compile(r"\"[^\"]*\"")
_QUOTED = re.compile(r"(?:(\w+)\s+)?\"([^\"]+)\"")  # and the word before it
_TOTALS = re.compile(r"\b(?:total|sum)\b", re.IGNORECASE)
_COUNTS = re.compile(r"\b(?:number of|how many|count)\b", re.IGNORECASE)
_DAY = re.compile(r"\bday (\d)\b", re.IGNORECASE)
_NAME = re.compile(r"[A-Z][\w'-]+(?: [A-Z][\w'-]+)+")
_CITES = re.compile(r"bullet|playbook", re.IGNORECASE)


class Apprentice(OfflineLM):
    """An offline language model for agents with tools.

    Args:
        model: the name in DSPy's usage and history.
        **settings: as `OfflineLM` takes them. Of its imperfections, only `unparsable` and the faults reach an agent's
            steps.

    Raises:
        ValueError: a setting outside its range.
    """

    def __init__(self, model: str = "offline/apprentice", **settings: Any) -> None:
        super().__init__(model, answerers=[answer_as_apprentice], **settings)


def answer_as_apprentice(ask: Ask, _: Dice) -> tuple[str, dict[str, Any]] | None:
    """Answer a request for an agent's step or for a reflection on such steps; None for any other request."""
    role = role_of(ask)
    values = _step(ask) if role == TASK and is_step(ask) else _reflection(ask) if role == REFLECTOR else None
    return None if values is None else (role, values)


def _step(ask: Ask) -> dict[str, Any] | None:
    """Return the values of an agent's next step; None if no `next_tool_name` is asked for."""
    tools = {tool.name: tool for tool in tools_in(ask.instructions)}
    if "next_tool_name" not in ask.asks_for or not tools:
        return None
    advice = read_advice(ask.instructions, tools)
    call, worker = next_call(question_of(ask), tools, advice, steps_in(ask.values.get("trajectory", "")))
    values: dict[str, Any] = {
        "next_tool_name": call.tool if call else "finish",
        "next_tool_args": dict(call.arguments) if call else {},
    }
    cited = list(dict.fromkeys(said.source for said in worker.used if said.source))
    thought = worker.thought if call else "All that was asked for was done."
    return {f.name: values.get(f.name, cited if _CITES.search(f.name) else thought) for f in ask.outputs}


@dataclass(frozen=True)
class Call:
    """A call of a tool."""

    tool: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True)
class Step:
    """A step of an agent as its trajectory shows it."""

    call: Call
    observation: str
    thought: str = ""


Work = Generator[Call, str, None]
"""Yields a call, is sent what it answered."""


def steps_in(text: str) -> list[Step]:
    """Read the steps of a trajectory, in order. A step that is shown several times counts once."""
    parts: dict[int, dict[str, str]] = {}
    for match in _STEP.finditer(text):
        name, number, body = (match[1], match[2], match[3]) if match[1] else (match[4], match[5], match[6])
        parts.setdefault(int(number), {})[name] = body
    return [
        Step(
            Call(part["tool_name"].strip(), _given(part.get("tool_args", ""))),
            part["observation"],
            part.get("thought", ""),
        )
        for _, part in sorted(parts.items())
        if "tool_name" in part and "observation" in part
    ]


def _given(text: str) -> dict[str, Any]:
    for read in (json.loads, ast.literal_eval):
        try:
            body = read(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
        return body if isinstance(body, dict) else {}
    return {}


def next_call(
    task: str, tools: Mapping[str, Tool], advice: Sequence[Advice], steps: Sequence[Step]
) -> tuple[Call | None, Worker]:
    """Return the call that comes after `steps` (None: the work is done), and who has worked so far."""
    worker = Worker(tools, advice)
    work = worker.work(task)
    try:
        call = next(work)
        for step in steps:
            call = work.send(step.observation)
    except StopIteration:
        return None, worker
    return call, worker


class Worker:
    """Somebody at work, who remembers the rows of the last list, the advice followed, and the latest thought."""

    def __init__(self, tools: Mapping[str, Tool], advice: Sequence[Advice]) -> None:
        self.tools = tools
        self.advice = advice
        self.rows: list[str] = []
        self.used: list[Advice] = []
        self.thought = ""

    def work(self, task: str) -> Work:
        """Do a task sentence by sentence."""
        for sentence in sentences(task):
            tool = _tool(sentence, self.tools)
            if tool is not None:
                arguments = self.arguments(tool, sentence)
                self.thought = f"{tool.name} fits: {sentence}"
                for other in self.tools:
                    first = self.heed(other, tool.name, sentence, arguments)
                    if first is not None and first.value:
                        given = {name: arguments[name] for name in self.tools[other].arguments if name in arguments}
                        yield from self.carry_out(self.tools[other], sentence, given)
                yield from self.carry_out(tool, sentence, arguments)

    def carry_out(self, tool: Tool, sentence: str, arguments: dict[str, Any]) -> Work:
        """Make a call as often as advice says."""
        given = {**dict.fromkeys(_required(tool), self.thought), **arguments}
        often = self.heed(TIMES, tool.name, sentence, arguments)
        for _ in range(often.value if often else 1):
            observation = yield Call(tool.name, given)
            rows = [line[2:].strip() for line in observation.splitlines() if line.startswith("- ")]
            self.rows = rows or self.rows

    def heed(self, topic: str, tool: str, sentence: str, arguments: Mapping[str, Any]) -> Advice | None:
        """Return the advice on a topic, and remember that it was followed."""
        said = chosen(self.advice, topic, tool, sentence, arguments)
        if said is not None:
            self.used.append(said)
        return said

    def arguments(self, tool: Tool, sentence: str) -> dict[str, Any]:
        """Find values for the required arguments: quoted beside their names, then quoted in order, then figures."""
        quoted = [(m[1] or "", m[2]) for m in _QUOTED.finditer(sentence)]
        filled: dict[str, Any] = {}
        for name in _required(tool):
            beside = next((pair for pair in quoted if pair[0] and stem(pair[0]) == stem(name)), None)
            if beside:
                filled[name] = self.name(beside[1], tool.name, sentence)
                quoted.remove(beside)
        for name in [name for name in _required(tool) if name not in filled]:
            number = dict(tool.arguments[name] or {}).get("type") in ("integer", "number")
            day = _DAY.search(_QUOTES.sub(" ", sentence)) if "day" in name else None
            if day:
                filled[name] = self.weekday(int(day[1]), tool.name, sentence)
            elif quoted and not number:
                filled[name] = self.name(quoted.pop(0)[1], tool.name, sentence)
            else:
                said = _figure(_QUOTES.sub(" ", sentence), self.rows)
                filled[name] = next(iter(numbers(said)), 0) if number else said
        return filled

    def name(self, text: str, tool: str, sentence: str) -> str:
        """Return a quoted text, and a name with its words in the order that advice asks for."""
        said = self.heed(ORDER, tool, sentence, {}) if _NAME.fullmatch(text) else None
        return " ".join(reversed(text.split())) if said is not None and said.value else text

    def weekday(self, number: int, tool: str, sentence: str) -> str:
        """Return the weekday of a day of the week, which begins on Monday unless advice says otherwise."""
        said = self.heed(WEEK, tool, sentence, {})
        return WEEKDAYS[(WEEKDAYS.index(said.value if said else WEEKDAYS[0]) + number - 1) % 7]


def _tool(sentence: str, tools: Mapping[str, Tool]) -> Tool | None:
    """Find the tool whose name fits a sentence best."""
    words = set(content_stems(_QUOTES.sub(" ", sentence)))
    fits = {
        name: 2 * len(words & set(split_name(name))) + 0.5 * len(words & set(content_stems(tool.about)))
        for name, tool in tools.items()
    }
    best = max(fits, key=lambda name: fits[name], default="")
    return tools[best] if best and fits[best] >= 1 else None


def _required(tool: Tool) -> list[str]:
    return [n for n, schema in tool.arguments.items() if not (isinstance(schema, Mapping) and "default" in schema)]


def _figure(sentence: str, rows: Sequence[str]) -> str:
    """Work out the figure of a sentence: a total or count of the rows shown, or a number it names."""
    if _TOTALS.search(sentence):
        return show(sum(found[-1] for found in map(numbers, rows) if found))
    if _COUNTS.search(sentence):
        return str(len(rows))
    named = numbers(sentence)
    return show(named[0]) if named else " ".join(sentence.split())


def _reflection(ask: Ask) -> dict[str, Any] | None:
    """Return the values of a reflection on an agent's steps; None for a reflection on anything else."""
    tools = {tool.name: tool for tool in tools_in(ask.values.get("task", ""))}
    steps = steps_in(ask.values.get("trajectory", ""))
    return reflect_on_steps(ask, steps, tools) if tools and steps else None


def lessons(steps: Sequence[Step], task: str, tools: Mapping[str, Tool]) -> list[Advice]:
    """Return the advice that the answers in an episode suggest, each once, in order."""
    found: dict[Advice, None] = {}
    for position, step in enumerate(steps):
        if step.call.tool in tools:
            before = [earlier.call.tool for earlier in steps[:position]]
            again = position + 1 < len(steps) and steps[position + 1].call == step.call
            fact = "\n".join(line for line in step.observation.splitlines() if not line.startswith("- "))
            concluded = conclude(step.call.tool, step.call.arguments, fact, task=task, before=before, tools=tools)
            found |= dict.fromkeys(a for a in concluded if not (again and a.topic == TIMES))
    return list(found)


def reflect_on_steps(ask: Ask, steps: Sequence[Step], tools: Mapping[str, Tool]) -> dict[str, Any]:
    """Return the values of a reflection request that shows an agent's steps."""
    failed = bool(re.match(r"\s*fail", ask.values.get("outcome", ""), re.IGNORECASE))
    task = ask.values.get("task_inputs", "")
    known = {say(a) for a in read_advice(ask.values.get("bullets", ""), tools)}
    insights = [said for a in (lessons(steps, task, tools) if failed else []) if (said := say(a)) not in known]
    values: dict[str, Any] = {
        "error_identification": "An answer told something that the call did not reckon with." if insights
        else "The answers tell nothing new.",
        "root_cause": "A rule of the place was not known." if insights
        else "The steps do not show a cause." if failed else "Nothing was missing.",
        "correct_approach": insights[0] if insights else "Go on in the same way.",
        "key_insights": insights,
        "bullet_tags": _tags(ask.values.get("outcome", ""), failed),
    }  # fmt: skip
    return {f.name: _as_field(values.get(f.name, values["error_identification"]), f.type) for f in ask.outputs}


def _tags(outcome: str, failed: bool) -> dict[str, str]:
    """Tag the cited bullets: helpful if the task was done, else neutral, as nothing shows which one misled."""
    cited = re.findall(r"\[([^\]\s]+)\]", outcome.partition("It cited ")[2])
    return dict.fromkeys(cited, "neutral" if failed else "helpful")


def _as_field(value: Any, kind: str) -> Any:
    return json.dumps(value, ensure_ascii=False) if kind == "str" and not isinstance(value, str) else value
