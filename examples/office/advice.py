"""Advice as an apprentice reads it in a prompt, applies it to a call, and concludes it from a fact.

Advice is a sentence in plain English. Which tools and arguments there are is told by the request; what the tools
answer, by the trajectory. No tool, message or rule is known here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dspy_ace.testing.agent import Tool
from dspy_ace.testing.calculate import numbers
from dspy_ace.testing.statements import blocks
from dspy_ace.testing.words import STOP_WORDS, split_name, stem

WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_WEEKDAY = "|".join(WEEKDAYS)
_SENTENCE = re.compile(r"(?<=[.!?])\s+")
_ONLY = re.compile(
    r"^\W*(?:for|with|where|if)\s+(?:(?:it|this) is\s+)?(?:an?\s+|the\s+)?[\"`]?([a-z]+)[\"`]?\s*,", re.IGNORECASE
)
_NOT = re.compile(r"\b(?:not|never|no|without|don['’]t)\b", re.IGNORECASE)
_OVER = re.compile(r"\b(?:over|above|more than)\s+([\d,.]*\d)", re.IGNORECASE)
_BEFORE = re.compile(r"\bbefore\b", re.IGNORECASE)
_REVERSED = re.compile(r"\b(?:(?:last|family) (?:name|word)|surname) (?:first|before)\b", re.IGNORECASE)
_AS_IT_STANDS = re.compile(r"\bas (?:it stands|they stand|given|written)\b", re.IGNORECASE)
_START = re.compile(
    rf"\b(?:day 1|the first day|the week)\b.*?\b(?:is|begins? on|starts? on)\s+({_WEEKDAY})\b", re.IGNORECASE
)
_TWICE, _ONCE = (
    re.compile(r"\b(?:twice|two times)\b", re.IGNORECASE),
    re.compile(r"\b(?:once|one time)\b", re.IGNORECASE),
)
_POSITION = re.compile(rf"\b({_WEEKDAY}) is day (\d)\b")
TIMES, ORDER, WEEK = "times", "order", "week"
_LOWER = re.compile(r"\b[a-z]{3,}\b")


@dataclass(frozen=True)
class Advice:
    """What to do with a call.

    Args:
        topic: `times` (how often to make it), `order` (of the words of a name), `week` (its first day), or the name
            of another tool, which is to be called before.
        value: the number of times; True for the last word first; a weekday; True to call the other tool.
        tool: the tool whose call it is; `""`: any.
        word: only where the task has this word; `""`: everywhere.
        over: only for an argument with a number above this one.
        source: id of the bullet that says so.
        text: the sentence.
    """

    topic: str
    value: Any
    tool: str = ""
    word: str = ""
    over: float | None = None
    source: str = ""
    text: str = ""

    def fits(self, tool: str, sentence: str, arguments: Mapping[str, Any]) -> bool:
        """Return True if this is about the call of `tool` that `sentence` asks for."""
        large = self.over is None or any(
            isinstance(value, (int, float)) and value > self.over for value in arguments.values()
        )
        said = not self.word or stem(self.word) in {stem(word) for word in _LOWER.findall(sentence)}
        return large and said and self.tool in ("", tool)


def chosen(
    advice: Sequence[Advice], topic: str, tool: str, sentence: str, arguments: Mapping[str, Any]
) -> Advice | None:
    """Return the advice on a topic that counts for a call: what names a case goes before what holds everywhere."""
    fitting = [a for a in advice if a.topic == topic and a.fits(tool, sentence, arguments)]
    return max(fitting, key=lambda a: bool(a.word), default=None)


def say(advice: Advice) -> str:
    """Word advice for other cases."""
    only = f'For "{advice.word}", ' if advice.word else ""
    if advice.topic == ORDER:
        said = "write a name " + ("with the last word first" if advice.value else "as it stands")
    elif advice.topic == WEEK:
        said = f"in `{advice.tool}` the week begins on {advice.value}"
    elif advice.topic == TIMES:
        said = f"call `{advice.tool}` " + ("twice and take the last answer" if advice.value == 2 else "once")
    else:
        over = f" with an amount over {advice.over:g}" if advice.over is not None else ""
        said = f"before `{advice.tool}`{over} {'' if advice.value else 'do not '}call `{advice.topic}`"
    return (only + said)[:1].upper() + (only + said)[1:] + "."


def read_advice(text: str, tools: Mapping[str, Tool]) -> list[Advice]:
    """Find advice on `tools` in the bullets and lines of a prompt; what describes a tool is none."""
    found: list[Advice] = []
    for source, body in blocks(text):
        lines = [line for line in ([body] if source else body.splitlines()) if "<desc>" not in line]
        sentences = [sentence for line in lines for sentence in _SENTENCE.split(line)]
        found += [advice for sentence in sentences if (advice := _advice(source, sentence, tools))]
    return found


def _advice(source: str, sentence: str, tools: Mapping[str, Tool]) -> Advice | None:
    only, over, named = _ONLY.search(sentence), _OVER.search(sentence), _named(sentence, tools)
    word, tool = only[1].lower() if only else "", named[0] if named else ""
    made = {"word": word, "source": source, "text": sentence}
    if start := _START.search(sentence):
        return Advice(WEEK, start[1].capitalize(), tool, **made)
    if _REVERSED.search(sentence) or _AS_IT_STANDS.search(sentence):
        return Advice(ORDER, bool(_REVERSED.search(sentence)), tool, **made)
    before = _BEFORE.search(sentence)
    if before and len(named) == 2:
        after = _named(sentence[before.end() :], tools)[:1]
        other = next(name for name in named if [name] != after)
        limit = numbers(over[1])[0] if over else None
        return Advice(other, not _NOT.search(sentence), (after or named)[0], over=limit, **made)
    if tool and (_TWICE.search(sentence) or _ONCE.search(sentence)):
        return Advice(TIMES, 2 if _TWICE.search(sentence) else 1, tool, **made)
    return None


def _named(text: str, tools: Mapping[str, Tool]) -> list[str]:
    return list(dict.fromkeys(name for name in re.findall(r"`(\w+)`", text) if name in tools))


# --- what a fact teaches ---


def conclude(
    tool: str, given: Mapping[str, Any], fact: str, *, task: str, before: Sequence[str], tools: Mapping[str, Tool]
) -> Iterator[Advice]:
    """Yield the advice that the answer of a call suggests.

    Args:
        tool: the tool that was called.
        given: its arguments.
        fact: what it answered.
        task: the whole task; a word of it that the fact names is taken for an exception.
        before: tools that were called before.
        tools: all tools.
    """
    word = _shared(fact, task, tools)
    for value in map(str, given.values()):
        turned = " ".join(reversed(value.split()))
        if turned != value and re.search(rf"\b{re.escape(turned)}\b", fact):
            yield Advice(ORDER, value in task, word=word)
    if position := _POSITION.search(fact):
        start = WEEKDAYS[(WEEKDAYS.index(position[1]) - int(position[2]) + 1) % 7]
        yield Advice(WEEK, start, tool, word)
    if _ONCE.search(fact) or _TWICE.search(fact):
        yield Advice(TIMES, 2 if _ONCE.search(fact) else 1, tool, word)
    for other in tools:
        said = [m for part in split_name(other) if (m := re.search(rf"\b{re.escape(part)}\w*", fact, re.IGNORECASE))]
        if not said or other == tool:
            continue
        missing = bool(re.search(rf"\b(?:no|without|lacks)\s+(?:an?\s+)?{re.escape(said[0][0])}", fact, re.IGNORECASE))
        over = _OVER.search(fact)
        if missing or (other in before and word):
            yield Advice(other, missing, tool, word, numbers(over[1])[0] if over and missing else None)


def _shared(fact: str, task: str, tools: Mapping[str, Tool]) -> str:
    """Return the last word that a fact shares with the task and with no tool or argument; `""` if there is none."""
    plain = {part for tool in tools.values() for name in (tool.name, *tool.arguments) for part in split_name(name)}
    asked = {stem(word) for word in _LOWER.findall(task)} - plain
    words = [word for word in _LOWER.findall(fact) if word not in STOP_WORDS and stem(word) in asked]
    return words[-1] if words else ""
