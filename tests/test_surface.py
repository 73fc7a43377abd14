"""The public surface: the names that users import, and that none of them hides a module."""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType

import pytest

import dspy_ace

NAMES = {
    "ACE", "AceError", "Bullet", "Curator", "Executed", "GrowAndRefine", "Judged", "OnlineACE", "Playbook",
    "PlaybookStore", "Record", "Reflector", "Results", "Usage", "Validated", "compare", "merge", "with_playbook",
}  # fmt: skip
PACKAGES = ["dspy_ace", *(f"dspy_ace.{m.name}" for m in pkgutil.iter_modules(dspy_ace.__path__) if m.ispkg)]


def test_the_package_exports_these_names() -> None:
    """A name that comes or goes is a change that users see: it is made here as well, and in the CHANGELOG."""
    assert set(dspy_ace.__all__) == NAMES
    assert len(dspy_ace.__all__) == len(NAMES)


@pytest.mark.parametrize("name", PACKAGES)
def test_every_exported_name_is_there(name: str) -> None:
    """`__all__` of each package names what the package has, and `import *` gives just that."""
    package = importlib.import_module(name)
    star: dict[str, object] = {}
    exec(f"from {name} import *", star)
    assert star.keys() - {"__builtins__"} == set(package.__all__)


@pytest.mark.parametrize("name", PACKAGES)
def test_no_exported_name_hides_a_module(name: str) -> None:
    """A function with the name of a module of its package would take the module's place: `import a.b` gives `a.b`."""
    package = importlib.import_module(name)
    modules = {module.name for module in pkgutil.iter_modules(package.__path__)}
    hidden = {n for n in modules & set(package.__all__) if not isinstance(getattr(package, n), ModuleType)}
    assert not hidden
