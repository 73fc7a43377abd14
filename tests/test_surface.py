"""The public surface: the names that users import, and that none of them hides a module."""

from __future__ import annotations

import ast
import importlib
import pkgutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import dspy_ace
from paths import HELPERS, TESTS

NAMES = {
    "ACE", "AceError", "Bullet", "Curator", "Executed", "GrowAndRefine", "Judged", "OnlineACE", "Playbook",
    "PlaybookStore", "Record", "Reflector", "Results", "Usage", "Validated", "compare", "merge", "prompt_of",
    "with_playbook",
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


def imported(path: Path) -> Iterator[tuple[str, str]]:
    """Yield the modules of `dspy_ace` that a test file imports from, and the names."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("dspy_ace."):
            yield from ((str(node.module), alias.name) for alias in node.names)


def test_modules_inside_a_package_are_imported_by_the_tests_of_that_package_alone() -> None:
    """Other tests use what the package exports, so that its files can move; helpers do where the name is exported.

    `dspy_ace.testing` is for users: its modules are imported by their names.
    """
    wrong = []
    for path in TESTS.rglob("*.py"):
        own = path.relative_to(TESTS).parts[0]
        for module, name in imported(path):
            _, package, *inside = module.split(".")
            if not inside or package in (own, "testing"):
                continue
            exported = name in importlib.import_module(f"dspy_ace.{package}").__all__
            if exported or not path.is_relative_to(HELPERS):
                wrong.append(f"{path.relative_to(TESTS)}: {module}.{name}")
    assert wrong == []
