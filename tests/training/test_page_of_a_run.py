"""The page of a run: what it says, what it survives, and what a browser makes of it."""

from __future__ import annotations

import html
import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dspy
import pytest

from browser import Page, browser
from dspy_ace import OnlineACE, Playbook, Record, Results, Usage
from dspy_ace.errors import JournalError, SettingsError
from dspy_ace.playbook import Add, Delete, Delta, Merge, Tag, Update
from dspy_ace.testing import OfflineLM
from dspy_ace.training import facts_of
from dspy_ace.training.page import _charts, _failures, _notes, _title
from dspy_ace.training.state import FailedRollout, Rollout, State, Validation
from runs import compiled
from tasks import Route

NASTY = "</script><script>alert(1)</script> <img src=x onerror=alert(2)> \"q\" 'p' {{ 7*7 }} & \x00\x1b \ud800 \u202e"


def steps(count: int, each: int, words: str = "read the unit") -> tuple[Record, ...]:
    """So many steps, each of which adds so many bullets, edits one, votes and fails once."""
    made: list[Record] = []
    for step in range(1, count + 1):
        first = (step - 1) * each + 1
        operations = [Add("OTHERS", f"Bullet {first + n}: {words}.", None, (str(n),)) for n in range(each)]
        edits = [Update(f"misc-{first:05d}", f"Bullet {first}: changed\nin two lines."), Tag(f"misc-{first:05d}", 1)]
        made.append(
            Record(
                step, 1, (0, 1), (0.0, step / count), (FailedRollout(Rollout("1"), "program", f"ValueError: {words}"),),
                ({"examples": ["1"], "error": words},), "", Delta((*operations, *edits)),
                ({"operation": None, "reason": f"too long: {words}"},), rollouts=3,
                usage={"task": {"calls": 3, "prompt_tokens": 300, "completion_tokens": 30}},
            )
        )  # fmt: skip
    return (*made, Record(count, validation=Validation((0.5, 1.0)), baseline=Validation((0.0, 0.5)), rollouts=4))


def results(records: tuple[Record, ...], words: str = "plain", dollars: float | None = 0.5) -> Results:
    """The results of a made-up run."""
    seed = Playbook()
    state = State.of(seed)
    for record in records:
        state = state.after(record)
    about = {
        "program": f"Predict(question -> answer) {words}", "settings": {"epochs": 1, "log_dir": words},
        "versions": {"dspy": "3.4"}, "sizes": {"training examples": 2}, "prompts": {"self": f"Answer. {words}"},
        "seed": seed.to_json(),
    }  # fmt: skip
    usage = {"task": Usage(30, prompt_tokens=3000, completion_tokens=300, dollars=dollars)}
    return Results.of(state, stopped=f"the epoch is done {words}", usage=usage, rollouts=9, about=about)


def text_of(path: Path) -> str:
    """The page without its tags."""
    return html.unescape(re.sub(r"<[^>]*>", " ", path.read_text(encoding="utf-8")))


def test_it_tells_what_was_learned_when_and_from_what(tmp_path: Path) -> None:
    """Cards have content, votes, tokens, step and examples; the history has what was there before an edit."""
    records = [
        Record(
            1, 1, (0, 1), (0.0, 1.0), delta=Delta((Add("TOOLS", "Old words.", None, ("0",)), Add("TOOLS", "Same.")))
        ),
        Record(2, 1, (2,), (1.0,), delta=Delta((Update("tool-00001", "New words."), Tag("tool-00001", 2, 1)))),
        Record(3, 1, (3,), (1.0,), delta=Delta((Merge(("tool-00001", "tool-00002"), "Both."),))),
        Record(4, 1, (4,), (1.0,), delta=Delta((Add("TOOLS", "Wrong."), Delete("tool-00003", "it misled")))),
    ]
    path = results(tuple(records)).save_report(tmp_path / "run.html")
    said = " ".join(text_of(path).split())
    assert "tool-00001 Both. section TOOLS votes 2 helpful, 1 harmful" in said
    assert "written step 1 changed step 2, step 3 learned from 1 example: 0" in said
    assert "update tool-00001 (TOOLS) − Old words. + New words." in said
    assert "merge tool-00001, tool-00002 (TOOLS) − New words. − Same. + Both." in said
    assert "delete tool-00003: it misled − Wrong." in said
    assert "Step 1: score 0.50 before it was learned from, 2 added" in said


def test_it_has_scores_failures_usage_settings_and_both_prompts(tmp_path: Path) -> None:
    """What a reader asks of a run stands in its page."""
    path = results(steps(2, 3)).save_report(tmp_path / "run.html")
    said = text_of(path)
    wanted = ["rejected", "too long", "rollout: program", "ValueError", "$0.5000", "epochs", "Score by rollouts"]
    wanted += ["Score by dollars", "the epoch is done", "Validation after step 2: 0.750 (start: 0.250) on 2 rows"]
    assert [each for each in wanted if each not in said] == []
    before, after = re.findall(r"<pre[^>]*>(.*?)</pre>", path.read_text(encoding="utf-8"), re.DOTALL)
    assert before.strip() == "Answer. plain"
    assert "[misc-00001]" in after


def test_dollars_that_are_not_known_have_no_chart(tmp_path: Path) -> None:
    """A model without a price leaves the chart over dollars out; the other one is there."""
    said = text_of(results(steps(2, 1), dollars=None).save_report(tmp_path / "run.html"))
    assert "Score by rollouts" in said
    assert "Score by dollars" not in said


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    """Markup, template syntax and control characters from models and users are shown, and run nothing."""
    path = results(steps(2, 2, NASTY.replace("\ud800", "")), NASTY).save_report(tmp_path / "run.html")
    page = path.read_text(encoding="utf-8")
    assert page.count("<script") == 1
    assert "<img" not in page
    assert "{{ 7*7 }}" in page
    assert not re.search(r"[\x00-\x08\x0b-\x1f]", page)


def test_a_run_leaves_its_page_in_its_folder_and_it_can_be_made_again(tmp_path: Path) -> None:
    """`log_dir` holds the page at the end; results loaded from the folder make the same page, byte for byte."""
    program = compiled(OfflineLM(), log_dir=tmp_path / "run")
    page = (tmp_path / "run" / "run.html").read_bytes()
    loaded = Results.load(tmp_path / "run")
    assert loaded.save_report(tmp_path / "again.html").read_bytes() == page
    assert str(loaded) == str(program.detailed_results)
    assert all(bullet.content in html.unescape(page.decode()) for bullet in program.playbook)


def test_a_run_that_has_not_ended_has_a_page(tmp_path: Path) -> None:
    """Of a run that was killed the page shows what is on record, and says that it is not finished."""
    compiled(OfflineLM(), log_dir=tmp_path / "run", max_metric_calls=12)
    (tmp_path / "run" / "results.json").unlink()
    lines = (tmp_path / "run" / "journal.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "run" / "journal.jsonl").write_bytes(lines[0] + lines[1][:20])
    found = Results.load(tmp_path / "run")
    assert (found.stopped, len(found.records), found.usage["task"].dollars) == ("not finished", 1, None)
    assert found.usage["task"].calls > 0
    assert "not finished" in text_of(found.save_report(tmp_path / "page.html"))
    assert (tmp_path / "run" / "journal.jsonl").read_bytes() == lines[0] + lines[1][:20]  # another process may write


@pytest.mark.parametrize(
    ("file", "spoil"),
    [
        ("run.json", lambda about: about.pop("settings")),
        ("run.json", lambda about: about["settings"].pop("failure_score")),
        ("run.json", lambda about: about["settings"].update(failure_score="a")),
        ("run.json", lambda about: about.update(version=2)),
        ("run.json", lambda about: about.update(format="other")),
        ("run.json", lambda about: about.update(seed=[])),
        ("results.json", lambda ended: ended.pop("usage")),
        ("results.json", lambda ended: ended["usage"]["task"].update(unknown=1)),
    ],
)
def test_a_damaged_folder_is_told_as_one(tmp_path: Path, file: str, spoil: Callable[[Any], Any]) -> None:
    """Whatever is missing or of another kind: one sentence, no raw error, and nothing that is read half."""
    compiled(OfflineLM(), log_dir=tmp_path, max_metric_calls=12)
    found = json.loads((tmp_path / file).read_text(encoding="utf-8"))
    spoil(found)
    (tmp_path / file).write_text(json.dumps(found), encoding="utf-8")
    with pytest.raises(JournalError):
        Results.load(tmp_path)


def test_a_run_that_went_on_after_its_end_has_not_ended(tmp_path: Path) -> None:
    """How an earlier process ended is not taken for the end of a run that has more records since."""
    compiled(OfflineLM(), log_dir=tmp_path / "run", max_metric_calls=12)
    ended = (tmp_path / "run" / "results.json").read_bytes()
    compiled(OfflineLM(), log_dir=tmp_path / "run")
    assert "not finished" not in str(Results.load(tmp_path / "run"))
    (tmp_path / "run" / "results.json").write_bytes(ended)
    assert Results.load(tmp_path / "run").stopped == "not finished"


def test_a_validation_in_parts_is_shown_with_all_rows_so_far(tmp_path: Path) -> None:
    """Scores of a few rows jump; each part shows the mean of all rows until then."""
    parts = [Record(1, validation=Validation((1.0,)), baseline=Validation((0.0,))) for _ in range(2)]
    parts.append(Record(1, validation=Validation((0.0, 0.0)), baseline=Validation((0.0, 0.0))))
    said = text_of(results((*steps(1, 1)[:1], *parts)).save_report(tmp_path / "run.html"))
    assert "Validation after step 1: 1.000 (start: 0.000) on 2 rows" in said
    assert "Validation after step 1: 0.500 (start: 0.000) on 4 rows" in said


@pytest.mark.parametrize("content", [None, "{}", "[1]", "{", '{"format": "dspy_ace.run"}'])
def test_a_folder_that_is_no_run_is_refused(content: str | None, tmp_path: Path) -> None:
    """One sentence names the folder."""
    if content is not None:
        (tmp_path / "run.json").write_text(content)
    with pytest.raises(JournalError, match=str(tmp_path)):
        Results.load(tmp_path)


def test_online_results_have_no_page(offline: OfflineLM, tmp_path: Path) -> None:
    """Learning online has no start and no end to show: that is said, and nothing is written."""
    with OnlineACE(dspy.Predict("question -> answer"), learn="manual") as online:
        found = online.results
    with pytest.raises(SettingsError, match="online"):
        found.save_report(tmp_path / "page.html")
    assert not list(tmp_path.iterdir())


def test_a_page_that_cannot_be_written_does_not_cost_the_program(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The program is returned, and a warning says why there is no page."""
    (tmp_path / "run").mkdir()
    settings = {"log_dir": tmp_path / "run"}
    compiled(OfflineLM(), **settings)
    (tmp_path / "run" / "run.html").unlink()
    (tmp_path / "run" / "run.html").mkdir()
    assert len(compiled(OfflineLM(), **settings).playbook)
    assert "run.html" in caplog.text


def test_a_page_that_cannot_be_made_does_not_cost_the_program(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fault in a page is a warning with its trace; the program comes back."""

    def broken(results: Results) -> str:
        raise ZeroDivisionError(len(results.records))

    monkeypatch.setattr("dspy_ace.training.results.page_of", broken)
    assert len(compiled(OfflineLM(), log_dir=tmp_path / "run").playbook)
    assert "could not be made" in caplog.text
    assert "ZeroDivisionError" in caplog.text


def test_results_show_themselves_in_a_notebook() -> None:
    """A notebook shows a table, with everything escaped."""
    shown = results(steps(1, 1), NASTY)._repr_html_()
    assert "<table>" in shown
    assert "<script" not in shown
    assert json.dumps(shown)
    assert "score after" in shown
    assert "mathjax_ignore" in shown


CUT_OFF = """[...document.querySelectorAll('figure svg text')].filter(text => {
  const [inner, outer] = [text, text.ownerSVGElement].map(each => each.getBoundingClientRect());
  return inner.left < outer.left || inner.right > outer.right || inner.bottom > outer.bottom;
}).map(text => text.textContent)"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.mark.slow
def test_a_browser_shows_it_to_everybody(page: Page, tmp_path: Path) -> None:
    """At phone and desk width, light and dark: no request, no complaint, nothing that axe-core finds serious."""
    path = results(steps(6, 3, NASTY.replace("\ud800", ""))).save_report(tmp_path / "run.html")
    for width in (390, 1280):
        for dark in (False, True):
            page.open(path, width, dark)
            page.run("document.querySelectorAll('details').forEach(each => each.open = true)")
            assert page.requests in ([path.resolve().as_uri()], [path.resolve().as_uri(), "data:,"])
            assert page.complaints == []
            assert page.run("document.documentElement.scrollWidth") == width
            assert page.complaints_of_axe() == []
            assert page.run(CUT_OFF) == []


@pytest.mark.slow
def test_a_large_run_opens_in_a_second(page: Page, tmp_path: Path) -> None:
    """500 bullets and 200 steps are written and open fast; the difference of the prompts is shown."""
    votes = [Record(n, 1, (0,), (1.0,), delta=Delta((Tag("misc-00001", 1),))) for n in range(101, 201)]
    large = results((*steps(100, 5), *votes))
    started = time.perf_counter()
    path = large.save_report(tmp_path / "run.html")
    written = time.perf_counter() - started
    opened = []
    for _ in range(3):  # the best of three: the machine may be busy
        page.open(path)
        opened.append(page.run("performance.getEntriesByType('navigation')[0].loadEventEnd"))
    assert min(opened) < 1000
    assert written < 3
    assert page.run("document.querySelectorAll('.card').length") == 500
    assert page.run("document.querySelectorAll('#history details').length") == 201
    assert page.run("document.querySelectorAll('#difference .added').length") > 500


def test_the_figures_are_those_of_the_results() -> None:
    """Score after, and dollars over all records: the last point stands where all is spent."""
    found = results(steps(2, 1), dollars=0.5)
    facts = dict(facts_of(found))
    assert (facts["score before"][:5], facts["score after"][:5]) == ("0.250", "0.750")
    dollars = next(chart for chart in _charts(found, found.records) if chart.money)
    assert [at for line in dollars.lines[:1] for at, _ in line.points] == pytest.approx([0.25, 0.5])


def test_what_stayed_a_failure_is_said_and_the_most_frequent_kind_is_first() -> None:
    """A reader sees what the retries could not solve, and where to look first."""
    failed = [FailedRollout(Rollout(str(n)), "program", "ValueError: x") for n in range(2)]
    record = Record(
        1, 1, (0, 1), (0.0, 0.0), tuple(failed),
        ({"examples": ["0"], "insights": 1, "verified": False}, {"examples": ["1"], "error": "unreadable"}),
    )  # fmt: skip
    assert "Example 0 stayed a failure: its retries failed." in list(_notes(record))
    assert [row[0] for row in _failures([record])[1:]] == ["rollout: program", "reflection"]


def test_redact_holds_for_the_page_of_a_run(tmp_path: Path) -> None:
    """A name in the student's own instructions is in no file of the folder but the program's state."""
    student = dspy.ChainOfThought(Route.with_instructions(f"{Route.instructions} Ask Zerlina if in doubt."))
    program = compiled(OfflineLM(), student=student, log_dir=tmp_path, redact=lambda text: text.replace("Zerlina", "…"))
    program.detailed_results.save_report(tmp_path / "again.html")
    named = {path.name for path in tmp_path.iterdir() if b"Zerlina" in path.read_bytes()}
    assert named == {"program.json"}


def test_votes_of_a_step_are_counted_by_bullet() -> None:
    """Several examples vote on one bullet: the history names it once, with the sum, and counts bullets, not votes."""
    tags = (Tag("misc-00001", 1, source="0"), Tag("misc-00002", 1, source="0"), Tag("misc-00001", 1, 1, source="1"))
    record = Record(1, 1, (0, 1), (1.0, 1.0), delta=Delta(tags))
    assert "2 voted on" in _title(record)
    assert "Votes: misc-00001 2 helpful, 1 harmful; misc-00002 1 helpful, 0 harmful." in list(_notes(record))
