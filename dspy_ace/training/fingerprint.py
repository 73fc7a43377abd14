"""Short hashes of all that a run depends on: a journal made with anything else is refused."""

from __future__ import annotations

import hashlib
import inspect
import json
import platform
import re
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import dspy
import pydantic

from ..program import ReadyMade, own_instructions

_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


def hashed(**parts: Any) -> dict[str, str]:
    """Return a hash a part, the same in every process for equal parts."""
    return {
        name: hashlib.sha256(_plain(part).encode("utf-8", "replace")).hexdigest()[:16] for name, part in parts.items()
    }


def describe_program(program: dspy.Module) -> dict[str, Any]:
    """Return the class of a program and, by predictor, its class, instructions, fields and demos."""
    own = own_instructions(program)
    predictors = {
        name: [
            type(predictor).__name__,
            own[name],
            str(predictor.signature.fields),
            [dict(demo) for demo in predictor.demos],
        ]
        for name, predictor in program.named_predictors()
    }
    return {"class": type(program).__qualname__, "predictors": predictors}


def describe_data(examples: Sequence[dspy.Example]) -> list[Any]:
    """Return the examples as plain data, inputs apart."""
    return [[sorted(example.inputs().keys()), dict(example.items())] for example in examples]


def example_key(example: dspy.Example) -> str:
    """Return a text that is equal for examples with the same fields, values and inputs."""
    return hashed(example=describe_data([example]))["example"]


def versions() -> dict[str, str]:
    """Return the versions of DSPy, this package and Python."""
    try:
        own = version("dspy-ace")
    except PackageNotFoundError:  # on the path, not installed
        own = "unknown"
    return {"dspy": dspy.__version__, "dspy_ace": own, "python": platform.python_version()}


def describe_callable(function: Any) -> Any:
    """Return the source of a function, or of an object's class; its name where there is no source."""
    if function is None:
        return None
    if isinstance(function, ReadyMade):  # its class is ours, what it does is in its settings
        settings = {name: describe_callable(v) if callable(v) else v for name, v in function.settings.items()}
        return [type(function).__qualname__, settings]
    target = function if inspect.isroutine(function) or inspect.isclass(function) else type(function)
    try:
        return inspect.getsource(target)
    except (OSError, TypeError):
        return getattr(target, "__qualname__", repr(target))


def _plain(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=True, default=_words)


def _words(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, pydantic.BaseModel):  # the repr of an image holds no more of its data than the length
        return {"type": type(value).__qualname__, **{name: getattr(value, name) for name in type(value).model_fields}}
    return _ADDRESS.sub("", repr(value))
