"""Advice as an apprentice reads it in a prompt and writes it after a failure.

Advice is a sentence in plain English that names tools and quotes what a tool answered. Which tools there are is told
by the request; what they answer, by the trajectory. No tool, message or argument is known here.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from dspy_ace.testing.agent import Tool
from dspy_ace.testing.statements import blocks
from dspy_ace.testing.words import normal

_CUE = re.compile(r"\"([^\"\n]+)\"|“([^”\n]+)”")
_MARKED = re.compile(r"`(\w+)`")
_AGAIN = re.compile(r"\b(?:repeat|retry|again|once more)\b", re.IGNORECASE)
_NOT_AGAIN = re.compile(
    r"\b(?:not|never|don['’]t|without|before|instead of)\s+(?:\w+\s+){0,3}?(?:repeat|retry|again|once more)",
    re.IGNORECASE,
)
_CALLS = re.compile(r"\b(?:call|use|try|run)\s+`?(\w+)", re.IGNORECASE)
_NOT_CALLS = re.compile(r"\b(?:not|never|don['’]t|instead of)\s+(?:(?:call|use|try|run)\s+)?`?(\w+)", re.IGNORECASE)
_SENTENCE = re.compile(r"(?<=[.!?])\s+")
_INSTEAD = re.compile(r"\binstead\b|\brather than\b|\bnot\b", re.IGNORECASE)


@dataclass(frozen=True)
class Advice:
    """A situation and what to do in it.

    Args:
        source: id of the bullet that says so; `""` for other text.
        text: the sentence.
        cues: folded texts; an observation that has one of them calls for the advice.
        tools: tools it is about; empty: any.
        call: the tool to call, or `""`.
        again: True if the call that got the observation is to be repeated.
        argument: the argument of that call which takes the value shown beside the cue, or `""`.
        instead: True if `call` takes the place of `tools` from the start, before anything was observed.
    """

    source: str
    text: str
    cues: tuple[str, ...] = ()
    tools: frozenset[str] = frozenset()
    call: str = ""
    again: bool = False
    argument: str = ""
    instead: bool = False

    def fits(self, tool: str, observation: str) -> bool:
        """Return True if this advice is for what `tool` answered."""
        seen = f" {normal(observation)} "
        return (not self.tools or tool in self.tools) and any(f" {cue} " in seen for cue in self.cues)


def read_advice(text: str, tools: Mapping[str, Tool]) -> list[Advice]:
    """Find advice on `tools` in the bullets and lines of a prompt.

    Each sentence is read by itself. If no sentence of a block is advice, the block is read as one sentence.
    """
    known = {name for tool in tools.values() for name in tool.arguments}
    found: list[Advice] = []
    for source, body in blocks(text):
        lines = [line for line in ([body] if source else body.splitlines()) if "<desc>" not in line]
        for line in lines:  # a tool's description is no advice
            said = [_advice(source, sentence, tools, known) for sentence in _SENTENCE.split(line)]
            if not any(said):
                said = [_advice(source, line, tools, known)]
            found += [advice for advice in said if advice]
    return found


def _advice(source: str, sentence: str, tools: Collection[str], arguments: Collection[str]) -> Advice | None:
    unquoted = _CUE.sub(" ", sentence)
    cues = tuple(normal(next(group for group in match.groups() if group)) for match in _CUE.finditer(sentence))
    named = [name for name in re.findall(r"\w+", unquoted) if name in tools]
    refused = {match[1] for match in _NOT_CALLS.finditer(unquoted)} & set(tools)
    call = next((m[1] for m in _CALLS.finditer(unquoted) if m[1] in tools and m[1] not in refused), "")
    others = frozenset(named) - {call}
    if call and others and _INSTEAD.search(unquoted) and not _AGAIN.search(unquoted):
        return Advice(source, sentence, cues, others, call, instead=True)
    argument = next((m[1] for m in _MARKED.finditer(unquoted) if m[1] in arguments and m[1] not in tools), "")
    again = bool(_AGAIN.search(unquoted)) and not _NOT_AGAIN.search(unquoted)
    if not cues or not (call or again):
        return None
    return Advice(source, sentence, cues, others, call, again, argument if again else "")


@dataclass(frozen=True)
class Hint:
    """A tool's own words on what to do next.

    Args:
        cue: the words it is known by, without the values of the case.
        tool: the tool that answered.
        call: the tool to call, or `""`.
        again: True if the call is to be repeated (after `call`, if there is one).
        argument: the argument that takes the value shown beside the cue, or `""`.
        instead: True if `call` does what `tool` did not do.
    """

    cue: str
    tool: str
    call: str = ""
    again: bool = False
    argument: str = ""
    instead: bool = False


def read_hint(tool: Tool, given: Iterable[object], observation: str, tools: Mapping[str, Tool]) -> Hint | None:
    """Find a hint in what `tool` answered when it was `given` these values; None if there is none."""
    pieces = re.split(r"(?<=[.!?:;])\s+|\n+", observation)
    for position, piece in enumerate(pieces):
        call = next((name for name in re.findall(r"\w+", piece) if name in tools and name != tool.name), "")
        if call:
            values = {*map(str, given), *re.findall(r"=\s*[\"']?([^\"',()]+)", piece)}
            cue = _cue(pieces[position - 1] if position else "", values) or _cue(piece.partition(call)[0], values)
            asked, refused = bool(_AGAIN.search(piece)), bool(_NOT_AGAIN.search(piece))
            return Hint(cue, tool.name, call, asked and not refused, instead=not asked) if cue else None
        for name in re.findall(r"(\w+)\s*=\s*\S", piece):
            argument = next((a for a in tool.arguments if a != name and a in name), "")
            if argument:
                return Hint(name, tool.name, again=True, argument=argument)
    return None


def _cue(piece: str, values: Collection[str]) -> str:
    """Return the longest stretch of `piece` without values, numbers and quotations, if it has two words or more."""
    bare = piece
    for value in sorted(values, key=len, reverse=True):
        bare = re.sub(rf"(?<!\w){re.escape(value)}(?!\w)", "|", bare) if value.strip() else bare
    stretches = [part.strip(" .,:;!?-") for part in re.split(r"[|\"“”`()\[\]=]|(?<!\w)\S*\d\S*", bare)]
    best = max(stretches, key=lambda part: len(part.split()), default="")
    return best if len(best.split()) >= 2 else ""


def say(hint: Hint) -> str:
    """Word a hint as advice for other cases."""
    if hint.instead:
        return f'Where `{hint.tool}` seems to fit, call `{hint.call}` instead: `{hint.tool}` only says "{hint.cue}".'
    if hint.argument:
        return (
            f'When a tool answers with "{hint.cue}", repeat the call with `{hint.argument}` set to the value beside '
            "it, until it comes no more."
        )
    then = "then repeat the call" if hint.again else "do not repeat the call"
    return f'When a tool answers "{hint.cue}", call `{hint.call}` and {then}.'
