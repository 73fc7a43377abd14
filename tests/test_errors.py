"""Arguments are checked in one place, and messages show what came."""

from __future__ import annotations

from pathlib import Path

import dspy
import pytest

from dspy_ace import ACE
from dspy_ace.errors import Count, Location, SettingsError, brief, checked


def test_a_message_shows_the_value_shortly() -> None:
    """Values of any size are shown, cut; an int beyond what Python prints is named."""
    assert brief("x" * 100) == "'" + "x" * 56 + "..."
    assert brief(10**5000) == "a huge int"


@pytest.mark.parametrize(
    "value", [0, -(10**5000), "3", True, 1.5, None, [1] * 100], ids=lambda value: type(value).__name__
)
def test_a_wrong_argument_is_named_with_its_value(value: object) -> None:
    """Nothing is converted, and no value breaks the message."""
    with pytest.raises(SettingsError, match=r"batch_size must be .*; got .{1,60}\. Give 16\.$"):
        checked("batch_size", value, Count, "Give 16.")
    assert checked("batch_size", 3, Count) == 3


@pytest.mark.parametrize("value", ["a\0b", Path("a\0b"), 7])
def test_a_path_that_no_disk_takes_is_named(value: object) -> None:
    """Before anything is written."""
    with pytest.raises(SettingsError, match="log_dir must be "):
        ACE(log_dir=value).compile(
            dspy.Predict("question -> answer"), [dspy.Example(question="x").with_inputs("question")]
        )  # type: ignore[arg-type]
    assert checked("log_dir", Path("run"), Location) == Path("run")
