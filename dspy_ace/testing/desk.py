"""One task request laid out: what is to be judged, what is said about answers, which answers there are."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace

from .evidence import Evidence, Verdict, gather
from .options import Option, as_options, lettered, listed, numbered_questions, truth, yes_no
from .reader import Ask, Field, load_json, observations
from .shape import Schema
from .statements import BULLET, blocks
from .words import normal, sentences

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
