"""One task request laid out: what is to be judged, what is said about answers, which answers there are.

The task model: one value for every field asked for, each from the evidence in the request.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from .calculate import numbers, scale, show, solve, work_out
from .evidence import Evidence, Verdict, gather, passage
from .reply import Schema, resolve, schema_of
from .request import Ask, Field, load_json, observations
from .statements import (
    BULLET,
    Option,
    Statement,
    as_options,
    blocks,
    lettered,
    listed,
    numbered_questions,
    truth,
    yes_no,
)
from .words import clip, content_stems, normal, sentences

_RULES = re.compile(r"rule|polic|guide|hint|advice|playbook|note|instruction|criteri|lesson|insight", re.IGNORECASE)
_CHOICES = re.compile(r"option|choice|candidate|label|categor|classes|tags$", re.IGNORECASE)
THINKS = re.compile(r"reason|rationale|thought|explanation|explain|thinking|analysis|justification", re.IGNORECASE)
_NAMED = r"(?:\"([^\"]+)\"|“([^”]+)”|`([^`]+)`|'([^']+)'|([^\s\"“`'.,;][^\"“”`.,;\n]{0,60}?))"
_SAID = re.compile(
    r"(?:\banswer(?:s|ed)?(?: is| with| must be| should be)?|→|->|=>|\breply(?: with)?|\brespond with|\boutput|"
    r"\breturn|\blabel it|\bgoe?s? to|\bbelongs? to|\bclassify (?:it )?as)\s*:?\s*"
    + _NAMED
    + r"(?=\s*(?:,|;|\.(?:\s|$)|\bnot\b|\binstead\b|\brather\b|\bwhen\b|\bif\b|\bfor\b|$))",
    re.IGNORECASE | re.MULTILINE,
)
_CLOSES = re.compile(
    r"(?:\b(?:is|are|be|means?|deserves?|to|as|for)|:)\s+([A-Za-z][\w-]*)(?:,?\s+not\s+[^,.;]+)?\.?$", re.MULTILINE
)


Pick = Callable[[str, Verdict], int]
"""(name of the choice, verdict on its options) → index of the option that is answered."""


class Desk:
    """One request on the desk: its texts, split into what is judged and what is said about answers."""

    def __init__(self, ask: Ask, pick: Pick | None = None) -> None:
        self._pick = pick
        seen = "\n".join(observations(ask.values.get("trajectory", "")))
        if seen:
            ask = replace(ask, values={**ask.values, "trajectory": seen})
        rules = [text for name, text in ask.values.items() if _RULES.search(name)]
        self.ask = ask
        self.rules = (ask.instructions, *rules)
        self.judged = {name: text for name, text in ask.values.items() if not _RULES.search(name)} or dict(ask.values)
        self.lists = {
            name: found for name, text in self.judged.items() for found in (_named_list(name, text),) if found
        }
        texts = [listed(text).rest for name, text in self.judged.items() if name not in self.lists]
        self.text = "\n".join(texts)
        self.questions = next((q for text in texts for q in (numbered_questions(text),) if q), [])

    def options_for(self, asked: Field, schema: Schema) -> tuple[Option, ...]:
        """The closed choice behind a field, in order of authority: its type, lists in the request, demonstrations."""
        if schema.get("enum"):
            return as_options(tuple(schema["enum"]))
        if schema.get("type") == "boolean":
            return truth(asked.name)
        if schema.get("type") not in ("string", None):
            return ()
        for found in self.lists.values():
            return as_options(found)
        sources = (*self.judged.values(), asked.desc, *self.rules)
        for text in sources:
            letters = lettered(text)
            if letters and text not in self.rules:
                return as_options(tuple(letters), tuple(letters.values()))
        for text in sources:
            choices = listed(_above_playbook(text)).options or yes_no(_above_playbook(text))
            if choices:
                return as_options(choices)
        return self.open_options(asked)

    def open_options(self, asked: Field) -> tuple[Option, ...]:
        """Answers that the statements or demonstrations name, for a field whose choices are nowhere listed."""
        if THINKS.search(asked.name):
            return ()
        shown = [d.outputs[asked.name].strip() for d in self.ask.demos if asked.name in d.outputs]
        named = [name for text in self.rules for name in _targets(text, asked.name)]
        found = {normal(v): v for v in reversed(shown + named) if 0 < len(v.split()) <= 6 and normal(v)}
        return as_options(tuple(sorted(found.values()))) if found else ()

    def pick(self, name: str, verdict: Verdict) -> int:
        """The option that is answered: the best one, unless the caller decides otherwise."""
        return self._pick(name, verdict) if self._pick else verdict.best

    def lists_options(self, asked: Field) -> bool:
        """Whether the request itself lists the choices of a text field."""
        texts = (*self.judged.values(), asked.desc, *self.rules)
        found = any(listed(_above_playbook(text)).options or yes_no(text) or lettered(text) for text in texts)
        return found or bool(self.lists)

    def evidence(self, asked: Field, options: tuple[Option, ...]) -> Evidence:
        """Everything the request says about `options`."""
        return gather(options, self.rules, tuple(self._shown(asked, options)))

    def _shown(self, asked: Field, options: tuple[Option, ...]) -> list[tuple[str, int]]:
        index = {normal(str(option.value)): i for i, option in enumerate(options)}
        found: list[tuple[str, int]] = []
        for demo in self.ask.demos:
            text = "\n".join(listed(value).rest for value in demo.inputs.values())
            reply = demo.outputs.get(asked.name, "")
            questions = numbered_questions(text)
            parts = [part.strip() for part in reply.split(",")]
            pairs = (
                zip(questions, parts, strict=True) if questions and len(questions) == len(parts) else ((text, reply),)
            )
            found += [(q, index[normal(part)]) for q, part in pairs if normal(part) in index]
        return found


def _targets(text: str, field_name: str) -> Iterator[str]:
    """Answers that statements name: after a verb of answering, or (in playbook bullets) as a closing single word."""
    for match in _SAID.finditer(text):
        name = next(group for group in match.groups() if group).strip()
        to, equals, value = name.partition(" = ")
        if not equals or to == field_name:
            yield value.strip() if equals else name
    for source, body in blocks(text):
        for sentence in sentences(body) if source else ():
            yield from _CLOSES.findall(sentence)


def _above_playbook(text: str) -> str:
    match = BULLET.search(text)
    return text[: match.start()] if match else text


def _named_list(name: str, text: str) -> tuple[str, ...]:
    """The items of an input field that is itself a list of choices."""
    if not _CHOICES.search(name):
        return ()
    body = load_json(text) if text.lstrip().startswith("[") else None
    if isinstance(body, list):
        return tuple(str(item) for item in body)
    items = [re.sub(r"^\s*(?:[-*•]|\[?\d+[\].)])\s*", "", line).strip("«» \t") for line in re.split(r"[\n;,]", text)]
    return tuple(dict.fromkeys(item for item in items if item)) if len(items) > 1 else ()


_CITES = re.compile(r"bullet|playbook", re.IGNORECASE)


@dataclass
class Answer:
    """Values so far and the statements behind them."""

    values: dict[str, Any] = field(default_factory=dict)
    used: list[Statement] = field(default_factory=list)
    chosen: list[str] = field(default_factory=list)


_DEEPEST = 6


@dataclass(frozen=True)
class Node:
    """A place in a schema: the node itself, the whole schema that its references point into, how deep it lies."""

    schema: Schema
    root: Schema
    depth: int = 0

    def below(self, part: Any) -> Node:
        """The node of a property or of the items."""
        return Node(resolve(part, self.root), self.root, self.depth + 1)


def answer(ask: Ask, pick: Pick | None = None) -> Answer:
    """Values for all output fields of a task request, in the order asked for. `pick`: has the last word on
    every choice (for sampling and deliberate errors).
    """
    desk, done = Desk(ask, pick), Answer()
    root: Schema = ask.schema or {}
    if ask.schema is not None and not (len(ask.outputs) > 1 or "answer" not in ask.asks_for):
        body = _fill(desk, done, Field("answer"), Node(resolve(root, root), root))
        done.values = body if isinstance(body, dict) else {"answer": body}
        return done
    for asked in ask.outputs:
        if not _later(asked):
            schema = schema_of(asked)
            done.values[asked.name] = _fill(desk, done, asked, Node(resolve(schema, schema), schema))
    for asked in ask.outputs:
        if _later(asked):
            done.values[asked.name] = _told(asked, done, desk)
    done.values = {asked.name: done.values[asked.name] for asked in ask.outputs}
    return done


def _later(asked: Field) -> bool:
    """Fields that speak about the answer are written after it, wherever they stand."""
    return bool(THINKS.search(asked.name) and asked.type in ("str", "Reasoning")) or _is_citation(asked)


def _is_citation(asked: Field) -> bool:
    return "list" in asked.type.lower() and bool(_CITES.search(asked.name + " " + asked.desc))


def _told(asked: Field, done: Answer, desk: Desk) -> Any:
    ids = list(dict.fromkeys(said.source for said in done.used if said.source))
    if _is_citation(asked):
        return ids
    chosen = ", ".join(dict.fromkeys(done.chosen)) or "an answer"
    cited = "; ".join(f"[{i}]" for i in ids[:6])
    words = ", ".join(list(dict.fromkeys(content_stems(desk.text)))[:6])
    if done.used:
        cues = ", ".join(f"'{c}'" for c in (done.used[0].phrases or done.used[0].cues)[:3])
        return clip(f"What is said about {cues} speaks for {chosen}" + (f", by {cited}." if cited else "."), 60)
    return clip(f"Judging by the words {words or 'given'}, the best reading is {chosen}.", 60)


def _fill(desk: Desk, done: Answer, asked: Field, node: Node) -> Any:
    """A value for one (possibly nested) schema node."""
    schema, kind = node.schema, node.schema.get("type")
    if schema.get("enum") or kind not in ("object", "array", "integer", "number", "null"):
        return _choose(desk, done, asked, schema)
    if kind == "array":
        return _list(desk, done, asked, node)
    if kind in ("integer", "number"):
        value = _number(desk, done, asked, schema)
        return int(value) if kind == "integer" else value
    if kind == "null" or node.depth >= _DEEPEST:
        return None if kind == "null" else {}
    return {
        str(name): _fill(desk, done, Field(str(name), desc=_described(part)), node.below(part))
        for name, part in (schema.get("properties") or {}).items()
    }


def _described(part: Any) -> str:
    return str(part.get("description", "")) if isinstance(part, Mapping) else ""


def _choose(desk: Desk, done: Answer, asked: Field, schema: Schema) -> Any:
    options = desk.options_for(asked, schema)
    if not options:
        return _free(desk, done, asked)
    evidence = desk.evidence(asked, options)
    if desk.questions and not schema.get("enum") and schema.get("type") != "boolean":
        verdicts = [evidence.judge(passage(question)) for question in desk.questions]
        picks = [desk.pick(f"{asked.name} {i}", v) for i, v in enumerate(verdicts)]
        _note(done, verdicts, [options[p].value for p in picks])
        return ",".join(str(options[p].value) for p in picks)
    verdict = evidence.judge(passage(desk.text))
    if not desk.lists_options(asked) and _computed(desk) is not None and not schema.get("enum"):
        return _free(desk, done, asked) if schema.get("type") != "boolean" else options[verdict.best].value
    closed = bool(schema.get("enum")) or schema.get("type") == "boolean"
    if max(verdict.scores) <= 0 and not closed and not desk.lists_options(asked):
        return _free(desk, done, asked)
    chosen = options[desk.pick(asked.name, verdict)].value
    _note(done, [verdict], [chosen])
    return chosen


def _note(done: Answer, verdicts: Sequence[Verdict], chosen: Sequence[Any]) -> None:
    for verdict in verdicts:
        done.used += verdict.used
    done.chosen += [str(value) for value in chosen]


def _list(desk: Desk, done: Answer, asked: Field, node: Node) -> list[Any]:
    below = node.below(node.schema.get("items") or {})
    items = below.schema
    if node.depth >= _DEEPEST:
        return []
    if items.get("enum"):
        options = as_options(tuple(items["enum"]))
        verdict = desk.evidence(asked, options).judge(passage(desk.text))
        top = max(verdict.scores)
        chosen = [o.value for o, s in zip(options, verdict.scores, strict=True) if s > 0 and s >= 0.6 * top]
        _note(done, [verdict], chosen)
        return chosen
    if items.get("type") == "object":
        return [_fill(desk, done, asked, below)]
    if items.get("type") in ("integer", "number"):
        found = numbers(desk.text)
        return [int(n) if items["type"] == "integer" else n for n in found[:20]]
    if items.get("type") == "boolean":
        return [_choose(desk, done, asked, items)]
    names = re.findall(r"(?<![.!?]\s)(?<!^)\b[A-Z][\w-]+(?:\s+[A-Z][\w-]+)*", desk.text)
    return list(dict.fromkeys(names))[:8] or list(dict.fromkeys(content_stems(desk.text)))[:3]


def _number(desk: Desk, done: Answer, asked: Field, schema: Schema) -> float:
    said = [v for v in desk.open_options(asked) if re.fullmatch(r"-?\d+(?:\.\d+)?", str(v.value))]
    if said:
        verdict = desk.evidence(asked, tuple(said)).judge(passage(desk.text))
        if max(verdict.scores) > 0:
            chosen = said[desk.pick(asked.name, verdict)].value
            _note(done, [verdict], [chosen])
            return float(str(chosen))
    value = _computed(desk)
    if value is None:
        value = next(iter(numbers(desk.text)), 0.0)
    low, high = schema.get("minimum"), schema.get("maximum")
    value = max(value, float(low)) if isinstance(low, int | float) else value
    return min(value, float(high)) if isinstance(high, int | float) else value


def _computed(desk: Desk) -> float | None:
    value = work_out(desk.text)
    if value is not None:
        return value * scale(desk.text, desk.rules)
    return solve(desk.text)


def _free(desk: Desk, done: Answer, asked: Field) -> str:
    """An open answer: an arithmetic result, the nearest demonstration's answer, or the most telling sentence."""
    value = _computed(desk)
    if value is not None:
        rounded = re.search(r"\b2 decimal|\btwo decimal", desk.text, re.IGNORECASE)
        done.chosen.append(f"{value:.2f}" if rounded else show(value))
        return done.chosen[-1]
    here = set(content_stems(desk.text))
    best, score = "", 0.35
    for demo in desk.ask.demos:
        words = set(content_stems("\n".join(demo.inputs.values())))
        overlap = len(here & words) / (len(here | words) or 1)
        if overlap > score and demo.outputs.get(asked.name):
            best, score = demo.outputs[asked.name], overlap
    text = best or _telling(desk)
    done.chosen.append(clip(text, 8))
    return text


def _telling(desk: Desk) -> str:
    """The most telling sentence of what was observed, or else of the longest input."""
    texts = sorted(desk.judged.values(), key=len)
    if not texts:
        return "There is nothing to answer."
    return telling(" ".join(texts[:-1]), texts[-1])


def telling(question: str, text: str) -> str:
    """The sentence of `text` that shares most words with `question` (the first one among equals)."""
    asked = set(content_stems(question))
    pieces = sentences(text) or ["There is nothing to answer."]
    best = max(range(len(pieces)), key=lambda i: (len(asked & set(content_stems(pieces[i]))), -i))
    return clip(pieces[best], 40)
