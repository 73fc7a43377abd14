"""A copy of a program that shares everything with it but its module tree, and a program's state on disk."""

from __future__ import annotations

import copy
import functools
import types
from pathlib import Path
from typing import Any, TypeVar

import dspy

Program = TypeVar("Program", bound=dspy.Module)


def copy_program(program: Program) -> Program:
    """A copy of the module tree; everything that is not a module or a container is shared, not copied.

    Methods of the tree's own modules (a `forward` set on an instance, a tool) are those of the copy.
    `Module.deepcopy` would clone pinned LMs, tools bound to an object and retrievers, and drop callbacks.
    """
    copied: Program = _Copier(program)(program)
    return copied


def _tree(program: dspy.Module) -> set[int]:
    """The ids of the program's modules, found through attributes and containers; not in DSPy's record of calls."""
    modules, seen, left = set(), set(), [program]
    while left:
        value = left.pop()
        if id(value) in seen or not isinstance(value, (dspy.Module, list, tuple, dict)):
            continue
        seen.add(id(value))
        if isinstance(value, dspy.Module):
            modules.add(id(value))
            left.extend(item for name, item in vars(value).items() if name != "history")
        else:
            left.extend(value.values() if isinstance(value, dict) else value)
    return modules


class _Copier:
    """Copies one module tree; what stands in it twice or in a cycle stands so in the copy."""

    def __init__(self, program: dspy.Module) -> None:
        self.tree = _tree(program)
        self.seen: dict[int, Any] = {}

    def __call__(self, value: Any) -> Any:
        if isinstance(value, (str, int, float, types.NoneType)):
            return value
        if id(value) in self.seen:
            return self.seen[id(value)]
        if isinstance(value, dspy.Module):
            if id(value) not in self.tree:  # a tool's or a partial's own module
                return value
            self.seen[id(value)] = clone = object.__new__(type(value))
            clone.__dict__.update({name: self(item) for name, item in vars(value).items() if name != "history"})
            clone.history = []
            return clone
        if isinstance(value, (list, dict)):
            return self._container(value)
        if isinstance(value, tuple):
            items = [self(item) for item in value]
            if all(new is old for new, old in zip(items, value, strict=True)):
                return value
            return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
        return self._bound(value)

    def _container(self, value: Any) -> Any:
        plain = type(value) in (list, dict)
        inside = list(value.values()) if isinstance(value, dict) else list(value)
        if not plain and not any(isinstance(item, dspy.Module) for item in inside):
            return value
        self.seen[id(value)] = clone = copy.copy(value)
        keys = list(value) if isinstance(value, dict) else range(len(inside))
        for key, item in zip(keys, inside, strict=True):
            new = self(item)
            if new is not item:
                clone[key] = new
        return clone

    def _bound(self, value: Any) -> Any:
        """A method, or a tool made of one, follows its module into the copy."""
        if isinstance(value, types.MethodType) and id(value.__self__) in self.tree:
            return types.MethodType(value.__func__, self(value.__self__))
        if isinstance(value, functools.partial) and (new := self(value.func)) is not value.func:
            return functools.partial(new, *value.args, **value.keywords)
        if isinstance(value, dspy.Tool) and (new := self(value.func)) is not value.func:
            return value.model_copy(update={"func": new})
        return value


def save_state(program: dspy.Module, path: Path) -> None:
    """Write the program's plain DSPy state to `path` (`….json`), without its pinned LMs: some cannot be saved."""
    plain = copy_program(program)
    for _, predictor in plain.named_predictors():
        predictor.lm = None
    plain.save(str(path))
