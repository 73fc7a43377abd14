"""The tour, as a notebook: every cell runs, and a reader sees what the words beside it promise."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from paths import ROOT

TOUR = ROOT / "examples" / "tour.ipynb"


def shown(cell: Any) -> str:
    """All that a cell shows, as text and as HTML."""
    return "\n".join(str(o.get("text", "")) + "".join(map(str, o.get("data", {}).values())) for o in cell.outputs)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # those of Jupyter's own parts
def test_the_tour_runs_and_shows_what_it_promises(tmp_path: Path) -> None:
    """Wrong before, right after; a bar, tables and a page; an edit in the prompt; learned online and forgotten."""
    nbformat = pytest.importorskip("nbformat")
    client = pytest.importorskip("nbclient").NotebookClient
    notebook = nbformat.read(TOUR, as_version=4)
    kept = os.environ.get("PYTHONPATH", "")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(ROOT), kept])))
        client(notebook, timeout=120, resources={"metadata": {"path": str(tmp_path)}}).execute()
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    by_start = {cell.source.strip().splitlines()[-1]: shown(cell) for cell in code}
    assert by_start['student(message="The parcel is late").desk'] == "'accounts'"
    compiled = by_start['program(message="The parcel is late").desk']
    assert "'logistics'" in compiled
    assert "ACE" in compiled  # the bar
    assert "<table" in by_start["program.playbook"]
    assert "score after" in by_start["program.detailed_results"]
    assert "Verdict: better" in by_start["program.detailed_results.verdict"]
    assert "Say so politely." in by_start["print(edited.predictors()[0].signature.instructions)"]
    assert "few-shot" in by_start[")"]
    assert "printer" in by_start['online(message="My printer does not print").desk']
    assert by_start['"printer" in left.render()'].endswith("False")
    assert (tmp_path / "run.html").is_file()


def test_the_stored_tour_has_outputs_and_no_paths() -> None:
    """A reader on the web sees results, of no machine in particular, and no error."""
    text = TOUR.read_text(encoding="utf-8")
    assert "Verdict: better" in text
    assert "Traceback" not in text
    assert not [place for place in ("home", "tmp", "root", "Users") if f"/{place}/" in text]
