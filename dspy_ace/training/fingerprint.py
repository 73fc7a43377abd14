"""One canonical description of data, programs and callables: equal in every process for what is the same.

It tells if a run is continued with another program, metric or dataset, and which rows stand in two datasets. A value
is described by its content: a function by its code, constants, defaults and what it closes over; a program or callable
object by its class and attributes; other objects by what pickle would keep of them. Code of installed packages goes by
its name, an LM by its model. Their clients, connections and pools change while they are used: they are not compared.
"""

from __future__ import annotations

import copyreg
import dis
import enum
import functools
import hashlib
import logging
import platform
import re
import reprlib
import sys
import threading
import types
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from contextvars import ContextVar
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import dspy
import pydantic

from ..output import MARK, names_a_secret, redact
from ..program import own_instructions

_PLAIN = (type(None), bool, int, float, complex, str, bytes, type(...), type(NotImplemented))
# the same under the same name, or as the same type: whatever else is in them changes while they are used
_BY_NAME = (
    dspy.BaseLM,
    dspy.PythonInterpreter,
    ContextVar,
    logging.Logger,
    type(threading.Lock()),
    type(threading.RLock()),
)
_FOLLOWED = (*_PLAIN, tuple, frozenset, enum.Enum, re.Pattern, dspy.Module)  # global values that code depends on
# attributes of a program and its predictors that no call depends on, or that change with each
_NO_CONTENT = {
    "history", "callbacks", "playbook", "detailed_results", "_compiled", "stage", "traces", "train", "fields",
}  # fmt: skip
_OWN = __package__.partition(".")[0]
_TOLD = (_OWN, "dspy")  # packages whose objects are told apart by their attributes


def hashed(**parts: Any) -> dict[str, str]:
    """Return a hash a part, the same in every process for equal parts."""
    return {name: _Describer().digest(part).hex() for name, part in parts.items()}


def described(data: Mapping[str, Sequence[dspy.Example]], **parts: Any) -> tuple[dict[str, str], list[str]]:
    """Describe all that a run depends on.

    Args:
        data: the datasets by name. An object in them is described by the name of its class, elsewhere by its code.
        **parts: program, metric, roles …, by name.

    Returns:
        By name a short text for each thing that may differ, such as `metric.limit` or `trainset[3].question`: the value
        or its type, and a hash. And sentences on what shows no content: "the metric holds a value of type socket".

    Example:
        >>> described({}, metric=len)  # doctest: +SKIP
        ({'python': '3.11', 'metric': 'builtins.len #5ef2b33b1d99'}, [])
    """
    code, rows = _Describer(), _Describer(code=False)
    code.found["python"] = ".".join(platform.python_version_tuple()[:2])  # each has its own code for the same source
    for name, part in parts.items():
        code.add(name, part)
    for name, examples in data.items():
        rows.found[name] = f"{len(examples)} rows"
        for position, example in enumerate(examples):
            rows.add(f"{name}[{position}]", example)
    return {**code.found, **rows.found}, [*code.unknown, *rows.unknown]


def example_key(example: dspy.Example) -> str:
    """Return a text that is equal for examples with the same fields, values and inputs.

    An example with a value that shows no content is equal to none but itself.
    """
    describer = _Describer(code=False)
    key = describer.digest(example).hex()
    return f"{key} {id(example)}" if describer.unknown else key


def versions() -> dict[str, str]:
    """Return the versions of DSPy, this package and Python."""
    try:
        own = version("dspy-ace")
    except PackageNotFoundError:  # on the path, not installed
        own = "unknown"
    return {"dspy": dspy.__version__, "dspy_ace": own, "python": platform.python_version()}


class _Describer:
    """Describes values; each object once.

    Args:
        code: True: classes are described by their code; False: by their name.

    Attributes:
        found: what `add` described, by name.
        unknown: what shows no content.
    """

    def __init__(self, code: bool = True) -> None:
        self.code = code
        self.found: dict[str, str] = {}
        self.unknown: dict[str, None] = {}
        self._part = ""
        self._done: dict[int, tuple[Any, bytes]] = {}  # with the value: the id of one that is gone is given anew
        self._open: dict[int, int] = {}  # id → depth of the values that the current one is part of

    def add(self, name: str, value: Any) -> None:
        """Describe a value, and by name what it is made of; programs down to their predictors."""
        self._part = self._part if name.startswith(f"{self._part}.") else name
        label, ordered, named = self._parts(value)
        self.found[name] = f"{_shown(value, label)} #{self._node(label, ordered, ()).hex()[:12]}"
        for key, part in named:
            if isinstance(part, dspy.Module):
                self.add(f"{name}.{key}", part)
            else:
                secret = isinstance(part, str) and names_a_secret(str(key))
                words = MARK if secret else _shown(part, type(part).__qualname__)
                self.found[f"{name}.{key}"] = f"{words} #{self.digest(part).hex()[:12]}"

    def digest(self, value: Any) -> bytes:
        """Return a hash of a value's whole content."""
        if type(value) in _PLAIN:
            text = f"{value:x}" if type(value) is int else repr(value)  # Python refuses to print long decimals
            return _hash(type(value).__name__, text.encode("utf-8", "surrogatepass"))
        key = id(value)
        if key in self._done:
            return self._done[key][1]
        if key in self._open:  # it holds itself
            return b"%d levels up" % (len(self._open) - self._open[key])
        self._open[key] = len(self._open)
        try:
            made = self._node(*self._parts(value))
        except RecursionError:
            made = self._node(*self._cannot_compare(value))
        del self._open[key]
        self._done[key] = (value, made)
        return made

    def _node(self, label: str, ordered: Iterable[Any], unordered: Iterable[Any]) -> bytes:
        return _hash(label, *map(self.digest, ordered), b"|", *sorted(map(self.digest, unordered)))

    def _parts(self, value: Any) -> tuple[str, Iterable[Any], Iterable[Any]]:
        """Return a label, the parts whose order counts, and those whose order does not: items, or (name, value)."""
        name = type(value).__qualname__
        if type(value) in _PLAIN:
            return name, [value], ()
        if isinstance(value, _BY_NAME):
            return str(getattr(value, "model", None) or getattr(value, "name", name)), (), ()
        if isinstance(value, functools.partial):
            return name, [value.func, *value.args], value.keywords.items()
        if isinstance(value, types.ModuleType):
            return value.__name__, (), ()
        if isinstance(value, type):
            return self._class(value)
        if isinstance(value, types.FunctionType):
            return "function", [value.__code__, value.__defaults__, value.__kwdefaults__], _outside(value)
        if isinstance(value, types.CodeType):
            return "code", [value.co_code, value.co_names, value.co_varnames, *value.co_consts], ()
        if isinstance(value, types.MethodType):
            return "method", [value.__func__, value.__self__], ()
        if isinstance(value, (staticmethod, classmethod)):
            return name, [value.__func__], ()
        if isinstance(value, property):
            return name, [value.fget, value.fset], ()
        if isinstance(value, enum.Enum):
            return f"{name}.{value.name}", [value.value], ()
        return self._content(value, name)

    def _content(self, value: Any, name: str) -> tuple[str, Iterable[Any], Iterable[Any]]:
        """The same for data, programs and other objects."""
        np = sys.modules.get("numpy")  # imported by whoever made an array
        if np is not None and (type(value) is np.ndarray or isinstance(value, np.generic)):
            content = value.tolist() if value.dtype.hasobject else value.tobytes()
            return f"{name} {value.dtype} {value.shape}", [content], ()
        if isinstance(value, dspy.Example):
            inputs = vars(value).get("_input_keys")
            return name, [None if inputs is None else sorted(inputs)], value.items()
        if isinstance(value, dspy.Module):
            parts = {key: each for key, each in vars(value).items() if key not in _NO_CONTENT | _kept(type(value))}
            if isinstance(value, dspy.Predict):
                parts |= {"instructions": own_instructions(value)["self"], "lm": value.lm or dspy.settings.lm}
                parts["signature"] = [*value.signature.fields.items()]
            return name, [type(value)], parts.items()
        if isinstance(value, pydantic.BaseModel):
            return name, [], {**dict(value), **(value.model_extra or {})}.items()
        if isinstance(value, pydantic.fields.FieldInfo):
            return name, [value.annotation, value.default, value.json_schema_extra, value.metadata], ()
        if isinstance(value, Mapping):
            return name, [], value.items()
        if isinstance(value, (Set, list, tuple, deque)):
            return name, *(([], value) if isinstance(value, Set) else (value, []))
        return self._as_pickled(value, name)

    def _as_pickled(self, value: Any, name: str) -> tuple[str, Iterable[Any], Iterable[Any]]:
        """The same by what pickle would keep of an object: what makes it, and its state."""
        try:
            reducer = copyreg.dispatch_table.get(type(value))
            reduced = reducer(value) if reducer else value.__reduce_ex__(4)
        except Exception:  # noqa: BLE001 - others' code; such an object cannot be pickled
            reduced = (type(value), (), getattr(value, "__dict__", None) or None)
            if reduced[2] is None:
                return self._cannot_compare(value)
        if isinstance(reduced, str):  # a name to import
            return f"{getattr(value, '__module__', '')}.{reduced}", [getattr(value, "__wrapped__", None)], ()
        maker, made_of, state, *items = [*reduced, None, None, None][:5]
        if self.code and maker is not getattr and _changes(type(value)):
            return self._cannot_compare(value)
        listed, keyed = (list(each or ()) for each in items)
        if not (self.code or state or listed or keyed or [each for each in made_of if each is not type(value)]):
            return self._cannot_compare(value)
        ordered = [getattr(maker, "__qualname__", ""), type(value), *made_of, *listed]
        if isinstance(state, dict):
            kept = _kept(type(value)) if self.code else ()
            return name, ordered, [*((key, each) for key, each in state.items() if key not in kept), *keyed]
        return name, [*ordered, state], keyed

    def _class(self, value: type) -> tuple[str, Iterable[Any], Iterable[Any]]:
        fields = [*value.model_fields.items()] if issubclass(value, pydantic.BaseModel) else []
        if not self.code or _installed(value.__module__):
            return value.__qualname__, fields, ()
        code = (types.FunctionType, staticmethod, classmethod, property)
        own = {
            name: each
            for name, each in vars(value).items()
            if name == "__doc__" or isinstance(each, code) or not name.startswith(("__", "_abc_"))
        }
        return value.__qualname__, [value.__bases__, fields], own.items()

    def _cannot_compare(self, value: Any) -> tuple[str, Iterable[Any], Iterable[Any]]:
        name = type(value).__qualname__
        self.unknown[f"the {self._part.partition('[')[0]} holds a value of type {name}"] = None
        return f"unknown {name}", (), ()


def _hash(label: str, *parts: bytes) -> bytes:
    made = hashlib.blake2b(label.encode("utf-8", "surrogatepass"), digest_size=16)
    for part in parts:
        made.update(b"%d:" % len(part))
        made.update(part)
    return made.digest()


def _outside(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    """Return what a function uses from outside, by name: what it closes over, its attributes, and global values.

    A name that the function itself sets is bookkeeping and left out; so are global values that may change in place.
    """
    read, written = _names(function.__code__)
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        if name not in written:
            try:
                yield name, cell.cell_contents
            except ValueError:  # not set yet
                yield name, None
    yield from vars(function).items()
    for name in sorted(read - written):
        value = function.__globals__.get(name, dis)  # a builtin, or not set: as a module
        code = isinstance(value, (types.FunctionType, type)) and not _installed(value.__module__)
        if code or isinstance(value, _FOLLOWED):
            yield name, value


def _kept(kind: type) -> set[str]:
    """Return the attributes that a callable object or program sets when it is called: bookkeeping, not settings."""
    calls = [getattr(kind, name, None) for name in ("__call__", "forward", "aforward")]
    steps = [dis.get_instructions(call) for call in calls if isinstance(call, types.FunctionType)]
    return {step.argval for code in steps for step in code if step.opname == "STORE_ATTR"}


def _changes(kind: Any) -> bool:
    """Return True for the class of a client, a connection, a pool …: another's, and its objects are never equal."""
    return kind.__eq__ is object.__eq__ and _installed(kind.__module__) and not kind.__module__.startswith(_TOLD)


def _names(code: types.CodeType) -> tuple[set[str], set[str]]:
    """Return the global names that code reads, and the outer names that it sets; functions within it included."""
    read, written = set(), set()
    for step in dis.get_instructions(code):
        if step.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            read.add(step.argval)
        elif step.opname in ("STORE_GLOBAL", "STORE_DEREF"):
            written.add(step.argval)
    within = [_names(inner) for inner in code.co_consts if isinstance(inner, types.CodeType)]
    return read.union(*(names for names, _ in within)), written.union(*(names for _, names in within))


@functools.lru_cache(maxsize=1024)
def _installed(module: str) -> bool:
    """Return True for a module of Python or of an installed package, also of this one."""
    root = str(module).partition(".")[0]
    file = getattr(sys.modules.get(root), "__file__", None) or ""
    return root in sys.stdlib_module_names or root == _OWN or "site-packages" in file or "dist-packages" in file


class _Short(reprlib.Repr):
    """Shows plain values, without secrets; of others the type, since their words may differ between processes."""

    def repr_str(self, x: str, level: int) -> str:  # noqa: ARG002 - reprlib's
        """Show how a text begins."""
        text = redact(x[:120])
        return repr(text if len(text) <= 60 else f"{text[:59]}…")

    def repr_int(self, x: int, level: int) -> str:  # noqa: ARG002 - reprlib's
        """Show a number; Python refuses to print a huge one."""
        return repr(x) if abs(x) < 10**40 else "a huge number"

    def repr_instance(self, x: Any, level: int) -> str:  # noqa: ARG002 - reprlib's
        """Show anything else."""
        return repr(x) if x is None or type(x) in (bool, float, complex) else type(x).__qualname__

    repr_set = repr_frozenset = repr_instance


_SHORT = _Short()


def _shown(value: Any, otherwise: str) -> str:
    return _SHORT.repr(value) if type(value) in (*_PLAIN, list, tuple, dict) else otherwise
