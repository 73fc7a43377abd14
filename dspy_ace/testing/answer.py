"""The task model: one value for every field asked for, each from the evidence in the request."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from . import arithmetic
from .desk import THINKS, Desk, Pick
from .evidence import Verdict
from .formula import scale, work_out
from .options import as_options
from .passage import passage
from .reader import Ask, Field
from .shape import Schema, resolve, schema_of
from .statements import Statement
from .words import clip, content_stems, sentences

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
        found = arithmetic.numbers(desk.text)
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
        value = next(iter(arithmetic.numbers(desk.text)), 0.0)
    low, high = schema.get("minimum"), schema.get("maximum")
    value = max(value, float(low)) if isinstance(low, int | float) else value
    return min(value, float(high)) if isinstance(high, int | float) else value


def _computed(desk: Desk) -> float | None:
    value = work_out(desk.text)
    if value is not None:
        return value * scale(desk.text, desk.rules)
    return arithmetic.solve(desk.text)


def _free(desk: Desk, done: Answer, asked: Field) -> str:
    """An open answer: an arithmetic result, the nearest demonstration's answer, or the most telling sentence."""
    value = _computed(desk)
    if value is not None:
        rounded = re.search(r"\b2 decimal|\btwo decimal", desk.text, re.IGNORECASE)
        done.chosen.append(f"{value:.2f}" if rounded else arithmetic.show(value))
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
