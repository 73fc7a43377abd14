"""The task model: a value for each output field, from the evidence in the request."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
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
from .words import clip, content_stems, first_group, normal, sentences

_RULES = re.compile(r"rule|polic|guide|hint|advice|playbook|note|instruction|criteri|lesson|insight", re.IGNORECASE)
_CHOICES = re.compile(r"option|choice|candidate|label|categor|classes|tags$", re.IGNORECASE)
_THINKS = re.compile(r"reason|rationale|thought|explanation|explain|thinking|analysis|justification", re.IGNORECASE)
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
_CITES = re.compile(r"bullet|playbook", re.IGNORECASE)
_DEEPEST = 6
"""Deepest nesting of a value."""


Pick = Callable[[str, Verdict], int]
"""(name of the choice, verdict on its options) → index of the option that is answered."""


class Task:
    """A task request, split into what is judged and what is said about answers.

    Attributes:
        ask: the request; of an agent's trajectory it has the answers of the tools only.
        rules: texts that speak about answers: the instructions, and inputs named `rules`, `hints` and the like.
        judged: the other inputs.
        lists: of these, the ones that are lists of options.
        text: what is judged, as one text without lists of options.
        questions: the numbered questions in it.
    """

    def __init__(self, ask: Ask) -> None:
        seen = "\n".join(observations(ask.values.get("trajectory", "")))
        if seen:
            ask = replace(ask, values={**ask.values, "trajectory": seen})
        rules = [text for name, text in ask.values.items() if _RULES.search(name)]
        self.ask = ask
        self.rules = (ask.instructions, *rules)
        self.judged = {name: text for name, text in ask.values.items() if not _RULES.search(name)} or dict(ask.values)
        named = {name: _named_list(name, text) for name, text in self.judged.items()}
        self.lists = {name: found for name, found in named.items() if found}
        texts = [listed(text).rest for name, text in self.judged.items() if name not in self.lists]
        self.text = "\n".join(texts)
        self.questions = next(filter(None, map(numbered_questions, texts)), [])

    def options_for(self, asked: Field, schema: Schema) -> tuple[Option, ...]:
        """Return the options of a field: those of its type, else those listed in the request, else those named."""
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
        """Return the answers that statements or demonstrations name for a field without listed options."""
        if _THINKS.search(asked.name):
            return ()
        shown = [d.outputs[asked.name].strip() for d in self.ask.demos if asked.name in d.outputs]
        named = [name for text in self.rules for name in _targets(text, asked.name)]
        found = {normal(v): v for v in reversed(shown + named) if 0 < len(v.split()) <= 6 and normal(v)}
        return as_options(tuple(sorted(found.values()))) if found else ()

    def lists_options(self, asked: Field) -> bool:
        """Return True if the request itself lists the options of a text field."""
        texts = (*self.judged.values(), asked.desc, *self.rules)
        found = any(listed(_above_playbook(text)).options or yes_no(text) or lettered(text) for text in texts)
        return found or bool(self.lists)

    def evidence(self, asked: Field, options: tuple[Option, ...]) -> Evidence:
        """Collect everything that the request says about `options`."""
        return gather(options, self.rules, tuple(self._shown(asked, options)))

    def _shown(self, asked: Field, options: tuple[Option, ...]) -> list[tuple[str, int]]:
        """Return the inputs of the demonstrations, each with the index of its answer."""
        index = {normal(str(option.value)): i for i, option in enumerate(options)}
        found: list[tuple[str, int]] = []
        for demo in self.ask.demos:
            text = "\n".join(listed(value).rest for value in demo.inputs.values())
            reply = demo.outputs.get(asked.name, "")
            questions, answers = numbered_questions(text), reply.split(",")
            if not questions or len(questions) != len(answers):
                questions, answers = [text], [reply]
            pairs = zip(questions, map(normal, answers), strict=True)
            found += [(question, index[answer]) for question, answer in pairs if answer in index]
        return found

    def computed(self) -> float | None:
        """Return the value of the formula or sum that the task writes down, or None."""
        value = work_out(self.text)
        return solve(self.text) if value is None else value * scale(self.text, self.rules)


def _targets(text: str, field_name: str) -> Iterator[str]:
    """Yield the answers that statements name: after a verb of answering, or as the last word of a bullet's sentence."""
    for match in _SAID.finditer(text):
        name = first_group(match).strip()
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
    """Return the items of an input field that is itself a list of options."""
    if not _CHOICES.search(name):
        return ()
    body = load_json(text) if text.lstrip().startswith("[") else None
    if isinstance(body, list):
        return tuple(str(item) for item in body)
    items = [re.sub(r"^\s*(?:[-*•]|\[?\d+[\].)])\s*", "", line).strip("«» \t") for line in re.split(r"[\n;,]", text)]
    return tuple(dict.fromkeys(item for item in items if item)) if len(items) > 1 else ()


def answer(ask: Ask, pick: Pick | None = None) -> dict[str, Any]:
    """Return the values of the output fields of a task request, in the order asked for.

    Args:
        ask: the request.
        pick: decides every choice, for sampling and deliberate errors; None takes the best option.
    """
    writer = _Writer(Task(ask), pick or (lambda _, verdict: verdict.best))
    root: Schema = ask.schema or {}
    if ask.schema is not None and ask.asks_for == {"answer"}:
        body = writer.fill(Field("answer"), _Node(resolve(root, root), root))
        return body if isinstance(body, dict) else {"answer": body}
    values: dict[str, Any] = {}
    for asked in sorted(ask.outputs, key=_speaks_of_answer):  # what is said about an answer is written after it
        schema = schema_of(asked)
        node = _Node(resolve(schema, schema), schema)
        values[asked.name] = writer.explain(asked) if _speaks_of_answer(asked) else writer.fill(asked, node)
    return {asked.name: values[asked.name] for asked in ask.outputs}


def _speaks_of_answer(asked: Field) -> bool:
    return bool(_THINKS.search(asked.name) and asked.type in ("str", "Reasoning")) or _is_citation(asked)


def _is_citation(asked: Field) -> bool:
    return "list" in asked.type.lower() and bool(_CITES.search(asked.name + " " + asked.desc))


@dataclass(frozen=True)
class _Node:
    """A place in a schema: the node itself, the whole schema that its references point into, how deep it lies."""

    schema: Schema
    root: Schema
    depth: int = 0

    def below(self, part: Any) -> _Node:
        """Return the node of a property or of the items."""
        return _Node(resolve(part, self.root), self.root, self.depth + 1)


class _Writer:
    """Fills the output fields of one task, and remembers what it chose and by which statements."""

    def __init__(self, task: Task, pick: Pick) -> None:
        self.task = task
        self.pick = pick
        self.used: list[Statement] = []
        self.chosen: list[str] = []

    def explain(self, asked: Field) -> Any:
        """Return the ids of the bullets used, for a list of citations; else a sentence on what was chosen."""
        ids = list(dict.fromkeys(said.source for said in self.used if said.source))
        if _is_citation(asked):
            return ids
        chosen = ", ".join(dict.fromkeys(self.chosen)) or "an answer"
        cited = "; ".join(f"[{i}]" for i in ids[:6])
        words = ", ".join(list(dict.fromkeys(content_stems(self.task.text)))[:6])
        if self.used:
            cues = ", ".join(f"'{c}'" for c in (self.used[0].phrases or self.used[0].cues)[:3])
            return clip(f"What is said about {cues} speaks for {chosen}" + (f", by {cited}." if cited else "."), 60)
        return clip(f"Judging by the words {words or 'given'}, the best reading is {chosen}.", 60)

    def fill(self, asked: Field, node: _Node) -> Any:
        """Return a value for a schema node, nested ones included."""
        schema, kind = node.schema, node.schema.get("type")
        if schema.get("enum") or kind not in ("object", "array", "integer", "number", "null"):
            return self._choose(asked, schema)
        if kind == "array":
            return self._list(asked, node)
        if kind in ("integer", "number"):
            value = self._number(asked, schema)
            return int(value) if kind == "integer" else value
        if kind == "null" or node.depth >= _DEEPEST:
            return None if kind == "null" else {}
        return {
            str(name): self.fill(Field(str(name), desc=_described(part)), node.below(part))
            for name, part in (schema.get("properties") or {}).items()
        }

    def _decide(self, name: str, options: Sequence[Option], verdict: Verdict) -> Any:
        self.used += verdict.used
        value = options[self.pick(name, verdict)].value
        self.chosen.append(str(value))
        return value

    def _choose(self, asked: Field, schema: Schema) -> Any:
        task, is_truth = self.task, schema.get("type") == "boolean"
        closed = bool(schema.get("enum")) or is_truth
        options = task.options_for(asked, schema)
        if not options:
            return self._free(asked)
        evidence = task.evidence(asked, options)
        if task.questions and not closed:
            verdicts = [evidence.judge(passage(question)) for question in task.questions]
            return ",".join(str(self._decide(f"{asked.name} {i}", options, v)) for i, v in enumerate(verdicts))
        verdict = evidence.judge(passage(task.text))
        if not task.lists_options(asked) and not schema.get("enum"):
            if task.computed() is not None:
                return options[verdict.best].value if is_truth else self._free(asked)
            if max(verdict.scores) <= 0 and not is_truth:
                return self._free(asked)
        return self._decide(asked.name, options, verdict)

    def _list(self, asked: Field, node: _Node) -> list[Any]:
        text, below = self.task.text, node.below(node.schema.get("items") or {})
        items = below.schema
        if node.depth >= _DEEPEST:
            return []
        if items.get("enum"):
            options = as_options(tuple(items["enum"]))
            verdict = self.task.evidence(asked, options).judge(passage(text))
            least = 0.6 * max(verdict.scores)
            chosen = [o.value for o, s in zip(options, verdict.scores, strict=True) if s > 0 and s >= least]
            self.used += verdict.used
            self.chosen += map(str, chosen)
            return chosen
        if items.get("type") == "object":
            return [self.fill(asked, below)]
        if items.get("type") in ("integer", "number"):
            return [int(n) if items["type"] == "integer" else n for n in numbers(text)[:20]]
        if items.get("type") == "boolean":
            return [self._choose(asked, items)]
        names = re.findall(r"(?<![.!?]\s)(?<!^)\b[A-Z][\w-]+(?:\s+[A-Z][\w-]+)*", text)
        return list(dict.fromkeys(names))[:8] or list(dict.fromkeys(content_stems(text)))[:3]

    def _number(self, asked: Field, schema: Schema) -> float:
        options = tuple(o for o in self.task.open_options(asked) if re.fullmatch(r"-?\d+(?:\.\d+)?", str(o.value)))
        if options:
            verdict = self.task.evidence(asked, options).judge(passage(self.task.text))
            if max(verdict.scores) > 0:
                return float(str(self._decide(asked.name, options, verdict)))
        value = self.task.computed()
        if value is None:
            value = next(iter(numbers(self.task.text)), 0.0)
        low, high = schema.get("minimum"), schema.get("maximum")
        value = max(value, float(low)) if isinstance(low, int | float) else value
        return min(value, float(high)) if isinstance(high, int | float) else value

    def _free(self, asked: Field) -> str:
        """Return an open answer: a computed one, that of the nearest demonstration, or a sentence of the inputs."""
        text, value = self.task.text, self.task.computed()
        if value is not None:
            rounded = re.search(r"\b2 decimal|\btwo decimal", text, re.IGNORECASE)
            self.chosen.append(f"{value:.2f}" if rounded else show(value))
            return self.chosen[-1]
        here = set(content_stems(text))
        best, score = "", 0.35
        for demo in self.task.ask.demos:
            words = set(content_stems("\n".join(demo.inputs.values())))
            overlap = len(here & words) / (len(here | words) or 1)
            if overlap > score and demo.outputs.get(asked.name):
                best, score = demo.outputs[asked.name], overlap
        *others, longest = sorted(self.task.judged.values(), key=len) or [""]
        said = best or telling(" ".join(others), longest)
        self.chosen.append(clip(said, 8))
        return said


def _described(part: Any) -> str:
    return str(part.get("description", "")) if isinstance(part, Mapping) else ""


def telling(question: str, text: str) -> str:
    """Return the sentence of `text` that shares most words with `question`; among equals the first."""
    asked = set(content_stems(question))
    pieces = sentences(text) or ["There is nothing to answer."]
    best = max(pieces, key=lambda piece: len(asked & set(content_stems(piece))))
    return clip(best, 40)
