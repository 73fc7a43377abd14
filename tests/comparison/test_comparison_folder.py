"""A comparison on disk: what is appended stays, what is torn is cut, and another comparison is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dspy_ace.comparison.folder import Cells
from dspy_ace.errors import JournalError

pytestmark = pytest.mark.compat


def header(**changes: Any) -> dict[str, Any]:
    made = {"version": 1, "fingerprint": {"program": "p", "metric": "m"}, "methods": ["student", "A"], "seeds": [0]}
    return {**made, "notes": ["one"], "models": {"task": "t"}, "started": "then", **changes}


def cell(method: str = "A", seed: int = 0, status: str = "ok", **more: Any) -> dict[str, Any]:
    return {"version": 1, "method": method, "seed": seed, "status": status, "test_scores": [1.0], **more}


def test_cells_are_found_again(tmp_path: Path) -> None:
    """What was added is there when the folder is opened again, in the order of methods and seeds."""
    with Cells.open(tmp_path / "new" / "folder", header(seeds=[0, 1])) as cells:
        for method, seed in (("A", 1), ("A", 0), ("student", 0)):
            cells.add(cell(method, seed))
        found = cells.cells
    assert [(c["method"], c["seed"]) for c in found] == [("student", 0), ("A", 0), ("A", 1)]
    with Cells.open(tmp_path / "new" / "folder", header(seeds=[0, 1])) as again:
        assert again.cells == found
        assert again.get("A", 1) == cell("A", 1)
        assert again.get("B", 1) is None
    assert Cells.read(tmp_path / "new" / "folder").cells == found


def test_memory_needs_no_folder() -> None:
    """Without a folder the cells are kept just so."""
    with Cells.open(None, header()) as cells:
        cells.add(cell())
    assert cells.cells == (cell(),)


def test_a_torn_tail_is_cut(tmp_path: Path) -> None:
    """Half a line, as a crash leaves it, is cut on open; a reader leaves it out and changes nothing."""
    with Cells.open(tmp_path, header()) as cells:
        cells.add(cell())
    path = tmp_path / "cells.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + whole[: len(whole) // 2])
    assert Cells.read(tmp_path).cells == (cell(),)
    assert path.read_bytes() != whole
    with Cells.open(tmp_path, header()) as cells:
        assert cells.cells == (cell(),)
        cells.add(cell("student"))
    assert path.read_bytes().startswith(whole)
    assert len(Cells.read(tmp_path).cells) == 2


def test_the_later_line_holds(tmp_path: Path) -> None:
    """A cell that was run once more is the later one; the earlier line stays in the file."""
    with Cells.open(tmp_path, header()) as cells:
        cells.add(cell(status="failed", reason="compile: …"))
        cells.add(cell())
        assert cells.cells == (cell(),)
    assert len((tmp_path / "cells.jsonl").read_bytes().splitlines()) == 2


def test_methods_and_seeds_may_join(tmp_path: Path) -> None:
    """A comparison goes on with more methods and seeds; those before, and their notes, stay."""
    with Cells.open(tmp_path, header()) as cells:
        cells.add(cell())
    more = header(
        methods=["student", "B"], seeds=[1], notes=["two"], models={"B.lm": "b"}, started="now",
        fingerprint={"program": "p", "metric": "m", "optimizer B": "b"},
    )  # fmt: skip
    with Cells.open(tmp_path, more) as cells:
        assert cells.header["methods"] == ["student", "A", "B"]
        assert cells.header["seeds"] == [0, 1]
        assert cells.header["notes"] == ["one", "two"]
        assert cells.header["models"] == {"task": "t", "B.lm": "b"}
        assert cells.header["started"] == "then"
        assert cells.cells == (cell(),)
    assert json.loads((tmp_path / "comparison.json").read_text(encoding="utf-8")) == cells.header


def test_another_comparison_is_refused_with_the_difference_named(tmp_path: Path) -> None:
    """Every part that differs is in the message; the folder is left as it was, and free for the right one."""
    with Cells.open(tmp_path, header()):
        pass
    before = (tmp_path / "comparison.json").read_bytes()
    with pytest.raises(JournalError, match="another program, another metric") as caught:
        Cells.open(tmp_path, header(fingerprint={"program": "q", "metric": "n"}))
    assert (tmp_path / "comparison.json").read_bytes() == before
    with Cells.open(tmp_path, header()):  # while the error, and with it the failed call's variables, is at hand
        assert caught.value


def test_two_at_once_are_refused(tmp_path: Path) -> None:
    """One comparison at a time in a folder; afterwards it is free."""
    with Cells.open(tmp_path, header()), pytest.raises(JournalError, match="in use"):
        Cells.open(tmp_path, header())
    with Cells.open(tmp_path, header()):
        pass


def test_what_is_not_ours_is_refused(tmp_path: Path) -> None:
    """Other files, damaged files, a newer version, and a folder that is none."""
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(JournalError, match=r"notes\.txt"):
        Cells.open(tmp_path, header())
    (tmp_path / "comparison.json").write_text("{", encoding="utf-8")
    with pytest.raises(JournalError, match="damaged"):
        Cells.open(tmp_path, header())
    (tmp_path / "comparison.json").write_text(json.dumps(header(version=2)), encoding="utf-8")
    with pytest.raises(JournalError, match="version 2"):
        Cells.read(tmp_path)
    (tmp_path / "comparison.json").write_text(json.dumps(header()), encoding="utf-8")
    (tmp_path / "cells.jsonl").write_text('{"version":1}\n', encoding="utf-8")
    with pytest.raises(JournalError, match="line 1"):
        Cells.open(tmp_path, header())
    with pytest.raises(JournalError, match="cannot be used"):
        Cells.open(tmp_path / "notes.txt", header())
    with pytest.raises(JournalError, match="no comparison"):
        Cells.read(tmp_path / "nowhere")


def test_a_disk_that_refuses_is_an_error(tmp_path: Path) -> None:
    """A cell that cannot be written is not kept either."""
    with Cells.open(tmp_path, header()) as cells:
        (tmp_path / "cells.jsonl").mkdir()
        with pytest.raises(JournalError, match="cannot be written"):
            cells.add(cell())
        assert cells.cells == ()


def test_only_json_numbers_are_written(tmp_path: Path) -> None:
    """NaN is no JSON: a cell that holds one is refused, not written."""
    with Cells.open(tmp_path, header()) as cells, pytest.raises(ValueError, match="JSON"):
        cells.add(cell(test_scores=[float("nan")]))
    assert not (tmp_path / "cells.jsonl").exists()
