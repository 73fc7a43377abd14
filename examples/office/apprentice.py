"""`Apprentice`: an offline model that works with tools, badly, and follows the advice in its prompt.

Where `OfflineLM` reads one case at a time, an apprentice drives an agent (`dspy.ReAct`) through a task of many steps.
It takes the task sentence by sentence and calls the tool that a sentence names. It has bad habits. Only advice in its
prompt corrects a habit, and only in the situation that the advice names (`advice`):

- It takes a tool at its name, whatever the tool's description or answer says.
- It leaves out optional arguments, unless it was shown a value of that very name.
- It takes the first answer for the whole answer, and an error for the end of the matter.
- Where nobody answers, it makes the same call once more.

As a reflector it writes down, as advice, the hints in the tools' answers that it did not follow. Everything else, such
as curation, is done by `OfflineLM`. It knows no tool, no message and no task: rename them all and its advice changes
with them. It shows mechanics, and nothing about the quality of a method.
"""

from __future__ import annotations

import ast
import json
import re
from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dspy_ace.testing import OfflineLM
from dspy_ace.testing.agent import Tool, is_step, question_of, tools_in
from dspy_ace.testing.backend import REFLECTOR, TASK, role_of
from dspy_ace.testing.calculate import numbers, show
from dspy_ace.testing.noise import Dice
from dspy_ace.testing.request import Ask
from dspy_ace.testing.statements import blocks
from dspy_ace.testing.words import content_stems, normal, sentences, split_name, stem

from .advice import Advice, Hint, read_advice, read_hint, say

_DEEPEST, _MOST = 3, 60
_MARK = r"\[ ?\[ ?## %s ?## ?\] ?\]"  # also as a transcript shows it, where it is no header any more
_STEP = re.compile(
    _MARK % r"(thought|tool_name|tool_args|observation)_(\d+)"
    + r"\s*(.*?)\s*(?="
    + _MARK % r"\w+"
    + r"|\n[ \t]*→ \w+:|\nCall \d+:|\nReturned:|\Z)"
    + r"|<(thought|tool_name|tool_args|observation)_(\d+)>\s*(.*?)\s*</\4_\5>",
    re.DOTALL,
)
_SILENCE = re.compile(
    r"\b(?:no (?:answer|reply|response)|silent|silence|unanswered|tim(?:ed?|ing)[- ]?out)\b", re.IGNORECASE
)
_ERROR = re.compile(r"^\s*(?:execution )?error\b", re.IGNORECASE)
_QUOTES = re.compile(r"\"[^\"]*\"")
_QUOTED = re.compile(r"(?:(\w+)\s+)?\"([^\"]+)\"")  # and the word before it
_SHOWN = re.compile(r"(\w+)\s*=\s*(?:\"([^\"]*)\"|'([^']*)'|([^\s,;()]+))")
_TOTALS = re.compile(r"\b(?:total|sum)\b", re.IGNORECASE)
_LARGEST = re.compile(r"\b(?:largest|highest|biggest)\b", re.IGNORECASE)
_COUNTS = re.compile(r"\b(?:number of|how many|count)\b", re.IGNORECASE)
_EACH = re.compile(r"\b(?:each|every|all)\s+(?:the\s+)?(\w+)", re.IGNORECASE)
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
    call, memory = next_call(question_of(ask), tools, advice, steps_in(ask.values.get("trajectory", "")))
    values: dict[str, Any] = {
        "next_tool_name": call.tool if call else "finish",
        "next_tool_args": dict(call.arguments) if call else {},
    }
    cited = list(dict.fromkeys(said.source for said in memory.used if said.source))
    thought = memory.thought if call else "All that was asked for was done."
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


@dataclass
class Memory:
    """Rows of the current list, the last value shown for each name, and the advice that was followed."""

    rows: list[str] = field(default_factory=list)
    values: dict[str, str] = field(default_factory=dict)
    used: list[Advice] = field(default_factory=list)
    thought: str = ""

    def note(self, observation: str) -> None:
        """Keep the rows and values of a tool's answer."""
        self.rows += [line[2:].strip() for line in observation.splitlines() if line.startswith("- ")]
        self.values |= shown(observation)


def shown(text: str) -> dict[str, str]:
    """Return the pairs written as `name=value` in `text`."""
    return {m[1]: next(g for g in m.groups()[1:] if g is not None) for m in _SHOWN.finditer(text)}


def next_call(
    task: str, tools: Mapping[str, Tool], advice: Sequence[Advice], steps: Sequence[Step]
) -> tuple[Call | None, Memory]:
    """Return the call that comes after `steps` (None: the work is done), and the memory of the work so far."""
    memory = Memory()
    work = _work(task, tools, advice, memory)
    try:
        call = next(work)
        for step in steps:
            call = work.send(step.observation)
    except StopIteration:
        return None, memory
    return call, memory


def _work(task: str, tools: Mapping[str, Tool], advice: Sequence[Advice], memory: Memory) -> Work:
    for sentence in sentences(task):
        tool = _tool(sentence, tools, advice, memory)
        if tool is not None:
            before, memory.rows = memory.rows, []
            for arguments in _calls(tool, sentence, before):
                memory.thought = f"{tool.name} fits: {sentence}"
                yield from _carry_out(Call(tool.name, arguments), tools, advice, memory)
            memory.rows = memory.rows or before


def _carry_out(call: Call, tools: Mapping[str, Tool], advice: Sequence[Advice], memory: Memory, depth: int = 0) -> Work:
    """Make a call, and whatever else advice says it needs."""
    seen: Counter[str] = Counter()
    for _ in range(_MOST):
        call = Call(call.tool, _completed(call.arguments, tools[call.tool], memory))
        observation = yield call
        memory.note(observation)
        seen[observation] += 1
        heeded = next((a for a in advice if not a.instead and a.fits(call.tool, observation)), None)
        if heeded is None and _SILENCE.search(observation) and seen[observation] == 1:
            memory.thought = "Nobody answered, so once more."
            continue
        if heeded is None or seen[observation] > 2:  # the first answer is the answer
            return
        memory.used.append(heeded)
        memory.thought = heeded.text
        if heeded.call and depth < _DEEPEST:
            given = shown(observation) or dict(call.arguments)
            known = tools[heeded.call].arguments
            first = Call(heeded.call, {name: value for name, value in given.items() if name in known})
            yield from _carry_out(first, tools, advice, memory, depth + 1)
            memory.thought = heeded.text
        if not heeded.again:
            return
        if heeded.argument:
            value = next((v for name, v in shown(observation).items() if normal(name) in heeded.cues), None)
            if value is None or heeded.argument not in tools[call.tool].arguments:
                return
            call = Call(call.tool, {**call.arguments, heeded.argument: value})


def _completed(arguments: Mapping[str, Any], tool: Tool, memory: Memory) -> dict[str, Any]:
    """Add the optional arguments whose values were shown, and give each value the type asked for."""
    optional = {name for name, schema in tool.arguments.items() if isinstance(schema, Mapping) and "default" in schema}
    filled = {**arguments, **{name: memory.values[name] for name in optional if name in memory.values}}
    return {name: _typed(value, tool.arguments[name]) for name, value in filled.items() if name in tool.arguments}


def _typed(value: Any, schema: Any) -> Any:
    kind = schema.get("type") if isinstance(schema, Mapping) else None
    if kind not in ("integer", "number") or isinstance(value, (int, float)):
        return value
    found = numbers(str(value))
    return (int(found[0]) if kind == "integer" else found[0]) if found else 0


def _tool(sentence: str, tools: Mapping[str, Tool], advice: Sequence[Advice], memory: Memory) -> Tool | None:
    """Find the tool whose name fits a sentence best, or the one that advice puts in its place."""
    words = set(content_stems(_QUOTES.sub(" ", sentence)))
    fits = {
        name: 2 * len(words & set(split_name(name))) + 0.5 * len(words & set(content_stems(tool.about)))
        for name, tool in tools.items()
    }
    best = max(fits, key=lambda name: fits[name], default="")
    if not best or fits[best] < 1:
        return None
    for said in advice:
        if said.instead and best in said.tools and said.call in tools:
            memory.used.append(said)
            return tools[said.call]
    return tools[best]


def _calls(tool: Tool, sentence: str, rows: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield the arguments of each call that a sentence asks for: one a row if it speaks of each row of a list."""
    each = _EACH.search(_QUOTES.sub(" ", sentence))
    slot = next((name for name in _required(tool) if each and stem(name) == stem(each[1])), "")
    for row in rows if slot else [""]:
        yield _arguments(tool, sentence, rows, {slot: row.partition(" | ")[0]} if slot else {})


def _required(tool: Tool) -> list[str]:
    return [n for n, schema in tool.arguments.items() if not (isinstance(schema, Mapping) and "default" in schema)]


def _arguments(tool: Tool, sentence: str, rows: Sequence[str], filled: dict[str, Any]) -> dict[str, Any]:
    """Find values for the required arguments: quoted beside their names, then quoted in order, then figures."""
    quoted = [(m[1] or "", m[2]) for m in _QUOTED.finditer(sentence)]
    wanted = [name for name in _required(tool) if name not in filled]
    for name in wanted:
        beside = next((pair for pair in quoted if pair[0] and stem(pair[0]) == stem(name)), None)
        if beside:
            filled[name] = beside[1]
            quoted.remove(beside)
    figure = _figure(_QUOTES.sub(" ", sentence), rows)
    for name in wanted:
        schema = tool.arguments[name]
        if name not in filled:
            number = isinstance(schema, Mapping) and schema.get("type") in ("integer", "number")
            filled[name] = quoted.pop(0)[1] if quoted and not number else figure
    return filled


def _figure(sentence: str, rows: Sequence[str]) -> str:
    """Work out the figure of a sentence: a total, maximum or count of the rows shown, or a number it names."""
    figures = [found[-1] for found in map(numbers, rows) if found]
    if _TOTALS.search(sentence):
        return show(sum(figures))
    if _LARGEST.search(sentence):
        return show(max(figures, default=0))
    if _COUNTS.search(sentence):
        return str(len(rows))
    named = numbers(sentence)
    return show(named[0]) if named else " ".join(sentence.split())


def _reflection(ask: Ask) -> dict[str, Any] | None:
    """Return the values of a reflection on an agent's steps; None for a reflection on anything else."""
    tools = {tool.name: tool for tool in tools_in(ask.values.get("task", ""))}
    steps = steps_in(ask.values.get("trajectory", ""))
    return reflect_on_steps(ask, steps, tools) if tools and steps else None


def missed_hints(steps: Sequence[Step], tools: Mapping[str, Tool]) -> list[Hint]:
    """Return the hints in the tools' answers that the next step did not follow, each once, in order."""
    found: dict[Hint, None] = {}
    for position, step in enumerate(steps):
        tool = tools.get(step.call.tool)
        hint = tool and read_hint(tool, step.call.arguments.values(), step.observation, tools)
        if hint and not _heeded(hint, steps[position + 1 : position + 2]):
            found[hint] = None
    return list(found)


def _heeded(hint: Hint, following: Sequence[Step]) -> bool:
    return any(
        step.call.tool == (hint.call or hint.tool) and (not hint.argument or hint.argument in step.call.arguments)
        for step in following
    )


def reflect_on_steps(ask: Ask, steps: Sequence[Step], tools: Mapping[str, Tool]) -> dict[str, Any]:
    """Return the values of a reflection request that shows an agent's steps."""
    failed = not re.match(r"\s*succe", ask.values.get("outcome", ""), re.IGNORECASE)
    hints = missed_hints(steps, tools) if failed else []
    insights = list(dict.fromkeys(say(hint) for hint in hints))
    first = hints[0] if hints else None
    values: dict[str, Any] = {
        "error_identification": f'What {first.tool} answered ("{first.cue}") was not acted on.' if first
        else "No answer of a tool asked for anything that was not done.",
        "root_cause": f"The answer of {first.tool} was taken for the end of the matter." if first
        else "The steps do not show a cause." if failed else "Nothing was missing.",
        "correct_approach": insights[0] if insights else "Go on in the same way.",
        "key_insights": insights,
        "bullet_tags": _tags(ask.values.get("bullets", ""), failed),
    }  # fmt: skip
    return {f.name: _as_field(values.get(f.name, values["error_identification"]), f.type) for f in ask.outputs}


def _tags(bullets: str, failed: bool) -> dict[str, str]:
    """Tag the cited bullets: helpful if the task was done, else neutral, as nothing shows which one misled."""
    cited = bullets.partition("Shown, not cited:")[0]
    return {source: "neutral" if failed else "helpful" for source, _ in blocks(cited) if source}


def _as_field(value: Any, kind: str) -> Any:
    return json.dumps(value, ensure_ascii=False) if kind == "str" and not isinstance(value, str) else value
