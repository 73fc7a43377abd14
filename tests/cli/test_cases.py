"""Files of cases: columns found or named, and every way in which a file can be wrong."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import dspy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dspy_ace.cli.cases import Compared, cases_of, last_number, read_rows, usual_metric
from dspy_ace.errors import SettingsError

PAIRS = [(f"What is {n} + {n}?", str(2 * n)) for n in range(6)]


def written(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.write_bytes(text.encode(encoding))
    return path


def csv_of(names: str, rows: list[tuple[str, ...]], delimiter: str = ",") -> str:
    lines = [delimiter.join(f'"{cell}"' for cell in row) for row in rows]
    return "\r\n".join([names, *lines]) + "\r\n"


@pytest.mark.parametrize(
    ("names", "delimiter", "encoding", "inputs", "expected"),
    [
        ("question,answer", ",", "utf-8", ("question",), "answer"),
        ("Answer;Question", ";", "utf-8-sig", ("Question",), "Answer"),
        ("text\tlabel", "\t", "utf-16", ("text",), "label"),
        ("Customer message,Team", ",", "utf-8", ("Customer_message",), "Team"),
        ("items,class", ",", "utf-8", ("items_",), "class_"),
        ("質問,answer", ",", "utf-8", ("質問",), "answer"),
    ],
)
def test_columns_are_found_by_their_names(
    tmp_path: Path, names: str, delimiter: str, encoding: str, inputs: tuple[str, ...], expected: str
) -> None:
    """Delimiter, encoding and columns of usual files need no word from the user."""
    rows = [pair if expected != "Answer" else pair[::-1] for pair in PAIRS]
    path = written(tmp_path / "cases.csv", csv_of(names, rows, delimiter), encoding)
    cases = cases_of(read_rows(path))
    assert (cases.inputs, cases.expected) == (inputs, expected)
    assert [(e[inputs[0]], e[expected]) for e in cases.examples] == PAIRS
    assert list(cases.examples[0].inputs().keys()) == list(inputs)
    dspy.Signature(f"{', '.join(cases.inputs)} -> {cases.expected}")  # names that DSPy takes


def test_json_lines_with_several_inputs_and_other_values(tmp_path: Path) -> None:
    """Known inputs are taken and the number of a row is not; numbers, lists and missing values become text."""
    lines = [{"id": n, "question": q, "context": ["a", n], "answer": float(a)} for n, (q, a) in enumerate(PAIRS)]
    lines[2]["context"] = None
    path = written(tmp_path / "cases.jsonl", "\n".join(map(json.dumps, lines)) + "\n\n")
    cases = cases_of(read_rows(path))
    assert cases.inputs == ("question", "context")
    assert [e["context"] for e in cases.examples[:3]] == ['["a", 0]', '["a", 1]', ""]
    assert cases.examples[1].answer == "2.0"
    assert cases_of(read_rows(written(tmp_path / "list.json", json.dumps(lines)))).examples == cases.examples


def test_objects_inside_objects_become_columns_with_dotted_names(tmp_path: Path) -> None:
    """Inputs and outputs in objects of their own are found; what is not used is said; a name with dots can be given."""
    lines = [
        {"id": n, "inputs": {"ticket": q, "lang": "en"}, "outputs": {"team": a}, "meta": {"at": {"day": n}}}
        for n, (q, a) in enumerate(PAIRS)
    ]
    rows = read_rows(written(tmp_path / "cases.jsonl", "\n".join(map(json.dumps, lines))))
    cases = cases_of(rows)
    assert (cases.inputs, cases.expected) == (("inputs_ticket", "inputs_lang"), "outputs_team")
    assert [e.outputs_team for e in cases.examples] == [a for _, a in PAIRS]
    assert "Not used: id, meta.at.day." in cases.notes[0]
    assert cases_of(rows, ["inputs.ticket"], "outputs.team").inputs == ("inputs_ticket",)


def test_a_chat_becomes_a_message_and_its_answer(tmp_path: Path) -> None:
    """The last answer is expected; earlier turns stay in the message; a chat without an answer is left out."""
    chats = [[("system", "Be short."), ("user", q), ("assistant", a)] for q, a in PAIRS]
    chats[1][1:1] = [("user", "Hello"), ("assistant", "Hi")]
    chats.append([("user", "Nobody answered")])
    lines: list[dict[str, object]] = [
        {"messages": [{"role": role, "content": text} for role, text in chat]} for chat in chats
    ]
    lines += [{"messages": odd} for odd in ("words", None, 3, ["a", "b"], [{"role": "assistant"}], {"a": 1})]
    cases = cases_of(read_rows(written(tmp_path / "chats.jsonl", "\n".join(map(json.dumps, lines)))))
    assert [e.answer for e in cases.examples] == [a for _, a in PAIRS]
    assert cases.examples[0].message == PAIRS[0][0]
    assert cases.examples[1].message == f"user: Hello\nassistant: Hi\nuser: {PAIRS[1][0]}"
    assert f"7 of {len(lines)} rows have an empty cell" in " ".join(cases.notes)


@pytest.mark.parametrize(
    ("names", "row", "expected"),
    [
        ("v1,v2", lambda q, n: ("spam" if n % 2 else "ham", q), "v1"),
        ("Date,Team,Note", lambda q, n: (f"day {n}", "IT" if n % 2 else "HR", q), "Team"),
        ("Ticket ID,Depot,Request", lambda q, n: (f"T{n}", "B" if n % 2 else "A", q), "Depot"),
        ("Class Index,Title,Description", lambda q, n: (str(n % 2), q, f"More of {q}"), "Class_Index"),
        ("v1,v2,,,", lambda q, n: ("spam" if n % 2 else "ham", q, "", "", ""), "v1"),
    ],
)
def test_a_column_of_labels_is_found_without_a_usual_name(
    tmp_path: Path, names: str, row: Callable[[str, int], tuple[str, ...]], expected: str
) -> None:
    """The only column whose values repeat is the expected answer, wherever it stands; a number of a row is not."""
    rows = [row(q, n) for n, (q, _) in enumerate(PAIRS)]
    cases = cases_of(read_rows(written(tmp_path / "a.csv", csv_of(names, rows))))
    assert cases.expected == expected
    assert "Ticket_ID" not in cases.inputs
    assert "Description" not in names or cases.inputs == ("Title", "Description")


def test_the_answer_may_be_a_list_of_one(tmp_path: Path) -> None:
    """Answers with their places, as in SQuAD: the question which column it is names the text, and its text is taken."""
    lines = [{"id": f"s{n}", "question": q, "answers": {"text": [a], "start": [n]}} for n, (q, a) in enumerate(PAIRS)]
    rows = read_rows(written(tmp_path / "a.jsonl", "\n".join(map(json.dumps, lines))))
    with pytest.raises(SettingsError, match=r"as in --expected answers\.text;"):
        cases_of(rows)
    cases = cases_of(rows, (), "answers.text")
    assert cases.inputs == ("question",)
    assert [e.answers_text for e in cases.examples] == [a for _, a in PAIRS]


def test_columns_can_be_named(tmp_path: Path) -> None:
    """What the user names goes before what would be found, in any case of letters."""
    path = written(tmp_path / "cases.csv", csv_of("text,answer,b", [(q, a, f"b{a}") for q, a in PAIRS]))
    cases = cases_of(read_rows(path), ["B", "text"], "answer")
    assert cases.inputs == ("b", "text")


def test_rows_with_empty_cells_are_left_out_and_counted(tmp_path: Path) -> None:
    """A row without an answer or without any input teaches nothing; the notes say how many there were."""
    rows = [*PAIRS, ("a question", " "), ("", "an answer"), ("", "")]
    cases = cases_of(read_rows(written(tmp_path / "cases.csv", csv_of("question,answer", rows))))
    assert len(cases.examples) == len(PAIRS)
    assert "2 of 8 rows" in " ".join(cases.notes)


@pytest.mark.parametrize(
    ("name", "text", "encoding", "message"),
    [
        ("a.csv", csv_of("input", [(q,) for q, _ in PAIRS]), "utf-8", "one column, 'input'"),
        ("a.csv", csv_of("What is 9?,9", PAIRS), "utf-8", "first line looks like a case"),
        ("a.csv", csv_of("good movie,positive", [("bad movie", "positive")] * 5), "utf-8", "first line looks like"),
        ("a.csv", csv_of("question,answer", [("Größe?", "1")] * 5), "cp1252", "not utf-8 .* --encoding cp1252"),
        ("a.csv", csv_of("question,answer", PAIRS[:3]), "utf-8", "At least 4 different rows .* 3"),
        ("a.csv", csv_of("question,answer", PAIRS[:3] * 9), "utf-8", "At least 4 different rows .* 3"),
        ("a.csv", csv_of("a,b,c", [(q, a, a) for q, a in PAIRS]), "utf-8", "--expected c; columns are a, b, c"),
        ("a.csv", csv_of("question,answer", [*PAIRS, ("a", "b", "c")]), "utf-8", "line 8 has 3 cells"),
        ("a.csv", "question,question\n1,2\n", "utf-8", "two columns have one name"),
        ("a.csv", ",,\n1,2,3\n", "utf-8", "the first line names no column"),
        ("a.csv", "", "utf-8", "no cases"),
        ("a.csv", "question,answer\n", "utf-8", "no cases"),
        ("a.jsonl", '{"input": "a", "expected": "b"}\n{"input": \n', "utf-8", "line 2 is not JSON"),
        ("a.jsonl", '{"input": "a", "expected": "b"}\n[["x"]]\n', "utf-8", "line 2: expected an object"),
        ("a.jsonl", "oops\n", "utf-8", "line 1 is not JSON"),
    ],
)
def test_a_file_that_is_wrong_is_refused_in_one_sentence(
    tmp_path: Path, name: str, text: str, encoding: str, message: str
) -> None:
    """The message says what came, where, and what to do."""
    path = written(tmp_path / name, text, encoding)
    with pytest.raises(SettingsError, match=message):
        cases_of(read_rows(path))


def test_a_named_encoding_is_used_and_an_unknown_one_refused(tmp_path: Path) -> None:
    """`--encoding` reads what UTF-8 cannot."""
    path = written(tmp_path / "a.csv", csv_of("question,answer", [("Größe?", "1")] * 5), "cp1252")
    assert read_rows(path, "cp1252")[0]["question"] == "Größe?"
    with pytest.raises(SettingsError, match="no encoding 'cp99'"):
        read_rows(path, "cp99")


def test_a_column_that_is_not_there_is_named_with_those_that_are(tmp_path: Path) -> None:
    """A wrong name, or one column for both, is found before any call."""
    rows = read_rows(written(tmp_path / "a.csv", csv_of("question,answer", PAIRS)))
    with pytest.raises(SettingsError, match="no column 'reply'; columns are question, answer"):
        cases_of(rows, (), "reply")
    with pytest.raises(SettingsError, match="cannot be input and expected"):
        cases_of(rows, ["answer"], "answer")


@pytest.mark.parametrize(
    ("how", "given", "expected", "score"),
    [
        ("exact", " The  Desk ", "the desk", 1), ("exact", "-5", "5", 0), ("exact", "3.5", "35", 0),
        ("contains", "It is the Desk.", "desk", 1), ("contains", "It is", "desk", 0),
        ("number", "In total $1,250.00", "1250", 1), ("number", "-5", "5", 0), ("number", "none", "0", 0),
        ("number", "1e3", "1000", 1), ("f1", "a red car", "the red car", 1), ("f1", "red bike", "red car", 0.5),
    ],
)  # fmt: skip
def test_metrics_compare_texts(how: str, given: str, expected: str, score: float) -> None:
    """Each metric scores from 0 to 1; what was expected is said where the score is not full."""
    example = dspy.Example(q="q", a=expected).with_inputs("q")
    found = Compared(how, "a")(example, dspy.Prediction(a=given))
    assert found.score == pytest.approx(score)
    assert (expected in found.feedback) == (score < 1)


def test_the_usual_metric_fits_the_answers() -> None:
    """Numbers are compared as numbers, a few words exactly, long texts by their words."""

    def usual(*answers: str) -> str:
        return usual_metric(cases_of([{"question": f"q{n}", "answer": a} for n, a in enumerate(answers * 4)]))

    assert usual("1", "$2,000", "3 %") == "number"
    assert usual("accounts", "2") == "exact"
    assert usual("a long answer of many words that nobody would write twice") == "f1"


@pytest.mark.parametrize(("text", "number"), [("1,234.5 or so", 1234.5), ("x", None), ("1e999", None), ("-.5", -0.5)])
def test_the_last_number_of_a_text(text: str, number: float | None) -> None:
    """Signs, commas and exponents are read; what is no finite number is none."""
    assert last_number(text) == number


CELLS = st.text(st.sampled_from("ab1,;\t\"'\n\r \\{}[]:é\x00\ud83d"), max_size=8)


@given(st.one_of(st.binary(max_size=200), st.lists(CELLS, max_size=30).map("".join)), st.sampled_from(["csv", "jsonl"]))
def test_any_file_gives_cases_or_one_sentence(content: bytes | str, suffix: str) -> None:
    """Whatever stands in a file, it is read or refused; nothing else is raised."""
    data = content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"cases.{suffix}"
        path.write_bytes(data)
        with contextlib.suppress(SettingsError):
            assert len(cases_of(read_rows(path)).examples) >= 4
