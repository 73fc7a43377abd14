"""The offline model as comparisons use it: it answers what other optimizers ask for as well."""

from __future__ import annotations

from collections.abc import Iterator

import dspy
import pytest

from comparisons.models import OFFLINE, connect
from dspy_ace.testing import OfflineLM


@pytest.fixture
def offline() -> Iterator[OfflineLM]:
    """The offline language model, in force while the test runs."""
    lm = connect(OFFLINE)
    with dspy.context(lm=lm):
        yield lm
