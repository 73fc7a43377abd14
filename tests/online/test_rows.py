"""Rows of a log that OnlineACE is told: the forms they come in, the columns, and what a bad row is answered."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dspy
import pytest

from dspy_ace import OnlineACE, PlaybookStore
from dspy_ace.errors import MetricError, SettingsError
from dspy_ace.testing import OfflineLM
from online_helpers import Notebook, noted, online
from tasks import Route

PLAIN = [
    {"message": "Where is my refund?", "desk": "Maple", "said": "It is Harbor.", "user": "u1"},
    {"message": "No parcel yet", "desk": "Summit", "said": True, "user": "u2"},
    {"message": "A chargeback", "desk": "Maple", "said": 0.0, "user": "u1"},
]
MESSAGES = [row["message"] for row in PLAIN]


class PandasLike:
    """What is used of a pandas frame."""

    columns = tuple(PLAIN[0])

    def to_dict(self, orient: str) -> list[dict[str, Any]]:
        return [dict(row) for row in PLAIN] if orient == "records" else []


class PolarsLike:
    """What is used of a polars frame."""

    def to_dicts(self) -> list[dict[str, Any]]:
        return [dict(row) for row in PLAIN]


def generated() -> Iterator[dict[str, Any]]:
    """Rows that come one by one."""
    yield from PLAIN


def told(program: OnlineACE, notebook: Notebook) -> list[tuple[Any, ...]]:
    """What the reflector is given of what was told."""
    program.learn()
    return [(t.source, t.inputs["message"], t.prediction.desk, t.success, t.feedback.text) for t in notebook.seen]


@pytest.mark.parametrize("form", ["list", "generator", "pandas", "polars", "lines", "array", "csv"])
def test_rows_of_every_form_are_told(offline: OfflineLM, tmp_path: Path, form: str) -> None:
    """Lists, generators, frames, JSON lines, a JSON array and CSV rows give the same trajectories, without an LM."""
    lines, array, table = tmp_path / "log.jsonl", tmp_path / "log.json", tmp_path / "log.csv"
    lines.write_text("\ufeff" + "\n\n".join(json.dumps(row) for row in PLAIN) + "\n", encoding="utf-8")
    array.write_text(json.dumps(PLAIN, indent=1), encoding="utf-8")
    with table.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(PLAIN[0]))
        writer.writeheader()
        writer.writerows(PLAIN)
    with table.open(newline="", encoding="utf-8") as file:
        rows: Any = {
            "list": PLAIN, "generator": generated(), "pandas": PandasLike(), "polars": PolarsLike(),
            "lines": str(lines), "array": array, "csv": csv.DictReader(file),
        }[form]  # fmt: skip
        notebook = Notebook()
        with noted(notebook, program=dspy.Predict(Route), batch_size=4) as program:
            names = program.tell_rows(rows, inputs="message", outputs=["desk"], feedback="said")
            assert names == ["tell-1", "tell-2", "tell-3"]
            assert told(program, notebook) == [
                ("tell-1", MESSAGES[0], "Maple", False, "It is Harbor."),
                ("tell-2", MESSAGES[1], "Summit", True, ""),
                ("tell-3", MESSAGES[2], "Maple", False, ""),
            ]
    assert offline.calls == 0


def test_columns_are_found_where_tools_put_them(offline: OfflineLM) -> None:
    """Objects, JSON texts, lists and names with dots; scores and comments; traces of MLflow and Langfuse look so."""
    mlflow = {
        "trace_id": "tr-1",
        "request": json.dumps({"args": [], "kwargs": {"message": "one"}}),
        "response": '{"desk": "Maple"}',
        "assessments": [{"name": "right", "feedback": {"value": False}, "rationale": "It is Harbor."}],
        "tags": {"mlflow.user": "u1"},
    }
    langfuse = {
        "id": "2", "input": {"kwargs": {"message": "two"}}, "output": {"desk": "Maple"}, "userId": "u2",
        "scores": [{"value": 1, "comment": None}], "expectedOutput": {"desk": "Maple"},
    }  # fmt: skip
    notebook = Notebook()
    with noted(notebook, program=dspy.Predict(Route)) as program:
        names = program.tell_rows(
            [mlflow],
            inputs="request.kwargs",
            outputs="response",
            feedback={"score": "assessments.0.feedback.value", "feedback": "assessments.0.rationale"},
            key="trace_id",
            source="tags.mlflow.user",
        )
        names += program.tell_rows(
            [langfuse],
            inputs={"message": "input.kwargs.message"},
            outputs=["output.desk"],
            feedback="scores.0.value",
            expected="expectedOutput",
            key="id",
            source="userId",
        )
        assert names == ["u1", "u2"]
        assert told(program, notebook) == [
            ("u1", "one", "Maple", False, "It is Harbor."), ("u2", "two", "Maple", True, "")
        ]  # fmt: skip
        assert notebook.seen[1].expected == {"desk": "Maple"}


def test_rows_without_a_lesson_are_left_out(
    offline: OfflineLM, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """No output, no feedback (also as frames write it), or told before: the row is left out, and how many is said."""

    class NAType:
        pass

    rows = [{**PLAIN[0], "trace": n} for n in range(6)]
    rows[1]["desk"], rows[2]["said"], rows[3]["said"], rows[4]["said"] = None, None, float("nan"), NAType()
    columns: Any = {"inputs": "message", "outputs": "desk", "feedback": "said", "key": "trace"}
    with PlaybookStore(tmp_path / "memory.db") as store, noted(Notebook(), store=store) as program:
        assert program.tell_rows(rows, **columns) == ["tell-1", None, None, None, None, "tell-2"]
        assert "4 of 6 rows were left out" in caplog.text
        assert program.tell_rows([*rows, rows[0]], **columns) == [None] * 7
        assert program.tell_rows([{**PLAIN[0], "trace": 9}] * 2, **columns) == ["tell-3", None]
        assert program.pending == 3


def test_one_bad_row_and_none_is_told(offline: OfflineLM, tmp_path: Path) -> None:
    """A row that is no row, a column that is not there, a value that is no feedback: named, and nothing was told."""
    columns: dict[str, Any] = {"inputs": "message", "outputs": "desk", "feedback": "said"}
    broken, latin = tmp_path / "broken.jsonl", tmp_path / "latin.jsonl"
    broken.write_text('{"message": "x"}\n{"message": \n')
    latin.write_bytes('{"message": "für"}'.encode("latin-1"))
    with noted(Notebook(), program=dspy.Predict(Route)) as program:
        for rows, changed, words in (
            ([*PLAIN, "text"], {}, "Row 3 must be a mapping .* got 'text'"),
            (7, {}, "rows must be .* got 7"),
            (PLAIN[0], {}, "rows must be"),
            ([*PLAIN, {**PLAIN[0], "message": None}], {}, "Row 3 has no inputs"),
            (PLAIN, {"inputs": "mesage"}, "inputs: no row has a value in 'mesage'.*'message', 'desk'"),
            (PLAIN, {"feedback": {"score": "said", "feedback": "words"}}, "feedback: no row has a value in 'words'"),
            (PLAIN, {"outputs": {"dsk": "desk"}}, "Row 0: outputs must hold fields of the program"),
            ([*PLAIN, {**PLAIN[0], "said": [1]}], {}, "Row 3: feedback is a bool"),
            (PLAIN, {"inputs": 5}, "inputs must be"),
            (broken, {}, "broken.jsonl, line 2, is no JSON"),
            (latin, {}, "latin.jsonl cannot be read"),
            (tmp_path / "none.jsonl", {}, "none.jsonl cannot be read"),
        ):
            with pytest.raises(SettingsError, match=words):
                program.tell_rows(rows, **{**columns, **changed})
        assert program.pending == 0
    with online(lambda gold, pred: gold.missing) as program:
        with pytest.raises(MetricError, match="Row 0: The metric cannot score"):
            program.tell_rows(PLAIN, inputs="message", outputs="desk", expected={"desk": "desk"})
        assert program.pending == 0


def test_a_log_makes_a_program_better(offline: OfflineLM) -> None:
    """What is learned from a log alone, without running the program, makes its answers right."""
    rules = {"refund": "accounts", "password": "helpdesk", "parcel": "logistics"}
    rows = [
        {"ticket": f"{word} question {n}", "answer": "accounts", "right": team}
        for word, team in rules.items() for n in range(4)
    ]  # fmt: skip
    program = dspy.Predict("ticket -> team: Literal['accounts', 'helpdesk', 'logistics']")
    with OnlineACE(program, learn="manual") as learner:
        learner.tell_rows(rows, inputs="ticket", outputs={"team": "answer"}, expected={"team": "right"})
        assert offline.calls == 0
        while learner.learn() is not None:
            pass
        assert learner.results.rollouts == 0
        better = learner.program
    asked = {word: program(ticket=f"A {word} matter").team for word in rules}
    assert asked != rules
    assert {word: better(ticket=f"A {word} matter").team for word in rules} == rules


def test_an_empty_cell_is_no_feedback_and_no_label(offline: OfflineLM) -> None:
    """In a CSV file each row has all columns: an empty score, comment or label says nothing."""
    rows = [
        {"message": "a", "desk": "Maple", "score": "1", "words": "", "right": ""},
        {"message": "b", "desk": "Maple", "score": "", "words": " ", "right": ""},
        {"message": "c", "desk": "Maple", "score": "", "words": "", "right": "Maple"},
    ]
    notebook = Notebook()
    with noted(notebook, program=dspy.Predict(Route), batch_size=4) as program:
        said: Any = {"score": "score", "feedback": "words"}
        names = program.tell_rows(rows, inputs="message", outputs="desk", feedback=said, expected={"desk": "right"})
        assert names == ["tell-1", None, "tell-2"]
        program.learn()
    assert [(seen.success, seen.expected) for seen in notebook.seen] == [(True, {}), (True, {"desk": "Maple"})]
