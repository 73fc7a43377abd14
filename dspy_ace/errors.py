"""The error tree. Every message says what was expected, what came and what to do.

AceError
├── SettingsError     an argument, a program, a dataset: wrong before the first LM call  (also a ValueError)
├── PlaybookError     a bullet, a playbook or a playbook file that is not one            (also a ValueError)
├── DeltaError        an operation that does not fit the playbook it is applied to       (also a ValueError)
├── EmbedderError     an embedder that did not return one finite vector a text           (also a ValueError)
├── MetricError       a metric that raises on every example, or returns no score
├── RoleError         a reflector or curator whose reply could not be used
├── RunError          a run that cannot go on (a dead provider, a wrong key, a role that never works)
├── JournalError      a run folder that is not ours, not this run's, or cannot be written
└── StoreError        a store that is not ours, is damaged, or cannot be read or written
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Union

import pydantic
from annotated_types import Ge, Gt

from .output import redact


class AceError(Exception):
    """Root of everything this package raises on purpose. Secrets are taken out of its text (`redact`)."""

    def __init__(self, *said: object) -> None:
        super().__init__(*(redact(part) if isinstance(part, str) else part for part in said))


class SettingsError(AceError, ValueError):
    """An argument, a program or a dataset is wrong; raised before the first LM call."""


class PlaybookError(AceError, ValueError):
    """A value that cannot be a bullet or a playbook, or a file that does not hold one."""


class DeltaError(AceError, ValueError):
    """An operation does not fit the playbook: unknown id, empty content, a merge of one bullet."""


class EmbedderError(AceError, ValueError):
    """An embedder did not return an array of shape (number of texts, d) of finite numbers."""


class MetricError(AceError):
    """A metric that cannot score: it raises, or returns no number, on several examples in a row.

    `program` is as for RunError.
    """

    program: Any = None


class RoleError(AceError):
    """A role's reply could not be read, however often it was asked for."""


class RunError(AceError):
    """The run cannot go on: the LM fails on every call, or a role never works.

    Nothing learned so far is lost: `program` is the student with the best playbook so far, as `compile` would
    have returned it; None where the error did not come from `compile`.
    """

    program: Any = None


class JournalError(AceError):
    """A run folder belongs to another run, is of a newer version, or cannot be read or written."""


class StoreError(AceError):
    """A playbook store is no such store, of a newer version, damaged, or cannot be read or written."""


Count = Annotated[int, Ge(1)]
"""A whole number, 1 or more."""
Positive = Annotated[float, Gt(0), pydantic.AllowInfNan(False)]
"""A finite number above 0; whole numbers are taken."""
Finite = Annotated[float, pydantic.AllowInfNan(False)]
"""Any finite number."""


def _of_a_file(value: str | Path) -> str | Path:
    if "\0" in str(value):
        raise ValueError("Input should be a path, without a NUL character")
    return value


Location = Annotated[Union[str, Path], pydantic.AfterValidator(_of_a_file)]
"""The path of a file or folder."""


def brief(data: object) -> str:
    """Return `repr` of anything, cut to 60 characters for a message."""
    try:
        shown = repr(data)
    except (ValueError, RecursionError):  # an int beyond Python's limit of digits, a list in a list in a list …
        shown = f"a huge {type(data).__name__}"
    return shown if len(shown) <= 60 else f"{shown[:57]}..."


def checked(name: str, value: Any, kind: Any, hint: str = "") -> Any:
    """Return `value` if it is of `kind`.

    This is the one place where arguments are checked; pydantic words what was expected.

    Args:
        name: what the user calls the value, as in `"batch_size"`.
        value: as given. Nothing is converted: `"3"` is no number, `True` is no count.
        kind: a type that pydantic can check: `Count | None`, `Literal["all", "failures"]`, `Annotated[int, Ge(500)]`.
        hint: what to do about it, as a sentence of its own.

    Raises:
        SettingsError: `value` is of another kind, or out of range.

    Example:
        >>> checked("batch_size", 16, Count)
        16
    """
    try:
        return _adapter(kind).validate_python(value)
    except pydantic.ValidationError as error:
        raise expected(error, name, hint) from None


def expected(error: pydantic.ValidationError, name: str = "", hint: str = "") -> SettingsError:
    """Word the first problem that pydantic found: what was expected, what came, what to do.

    Args:
        error: from pydantic.
        name: of the value; `""`: the field that the error names.
        hint: what to do about it, as a sentence of its own.
    """
    # of `X | None` one problem is told for each side: that of X says what is expected
    problem = next((each for each in error.errors() if each["type"] != "none_required"), error.errors()[0])
    said = problem["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    for pydantics, plain in _PLAIN_WORDS:
        said = said.replace(pydantics, plain)
    named = name or (str(problem["loc"][0]) if problem["loc"] else "value")
    return SettingsError(f"{named} must be {said}; got {brief(problem['input'])}. {hint}".rstrip())


_PLAIN_WORDS = (
    ("a valid integer", "a whole number"),
    ("a valid number", "a number"),
    ("greater than or equal to", "at least"),
    ("less than or equal to", "at most"),
    ("greater than", "more than"),
)


@lru_cache(maxsize=256)
def _adapter(kind: Any) -> pydantic.TypeAdapter[Any]:
    return pydantic.TypeAdapter(kind, config=pydantic.ConfigDict(strict=True, arbitrary_types_allowed=True))
