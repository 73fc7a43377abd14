"""The prompts of a program: as text to read and compare, as a number of tokens, and as a key that tells two apart."""

from __future__ import annotations

import hashlib
from typing import Any

import dspy

from ..playbook import count_tokens


def prompt_texts(program: dspy.Module) -> dict[str, str]:
    """By predictor its instructions, and its demos as text below them."""
    return {name: _text(predictor) for name, predictor in program.named_predictors()}


def prompt_key(program: dspy.Module) -> str:
    """A short hash of instructions, fields and demos: equal for programs that say the same to their LM."""
    parts = [
        (
            name,
            predictor.signature.instructions,
            [(key, repr(field.json_schema_extra)) for key, field in predictor.signature.fields.items()],
            [repr(dict(demo)) for demo in predictor.demos],
        )
        for name, predictor in program.named_predictors()
    ]
    return hashlib.sha256(repr(parts).encode("utf-8", "replace")).hexdigest()[:16]


def prompt_tokens(program: dspy.Module) -> int:
    """Estimated tokens of what is sent with every input: system part and demos, all predictors together."""
    return sum(_tokens(predictor) for _, predictor in program.named_predictors())


def _tokens(predictor: Any) -> int:
    adapter = dspy.settings.get("adapter") or dspy.ChatAdapter()
    try:
        with dspy.context(callbacks=[]):
            inputs = dict.fromkeys(predictor.signature.input_fields, "")
            messages = adapter.format(predictor.signature, predictor.demos, inputs)
        return sum(count_tokens(_words(message["content"])) for message in messages[:-1])
    except Exception:  # noqa: BLE001 - an adapter or a field type that takes no empty input: the text alone is counted
        return count_tokens(_text(predictor))


def _words(content: Any) -> str:
    if isinstance(content, str):
        return content
    return "\n".join(str(part.get("text", "")) for part in content if isinstance(part, dict))


def _text(predictor: Any) -> str:
    demos = ["\n".join(f"{key}: {value}" for key, value in dict(demo).items()) for demo in predictor.demos]
    return "\n\n".join([predictor.signature.instructions, *(f"## Demo {n}\n{text}" for n, text in enumerate(demos, 1))])
