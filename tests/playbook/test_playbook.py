"""Bullets and playbooks as values, in JSON, in the paper's text format and on disk."""

from __future__ import annotations

import copy
import json
import os
import pickle
import threading
from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dspy_ace.errors import PlaybookError, SettingsError
from dspy_ace.playbook.files import write_whole
from dspy_ace.playbook.operations import Add, Delta, Tag, apply
from dspy_ace.playbook.playbook import Bullet, Playbook, clean_content, valid_text
from paths import GOLDEN, SHARED
from strategies import contents, junk, playbooks, sections

GOLDEN = GOLDEN / "playbook-v1.json"
DATA = SHARED / "data" / "playbooks"
INITIAL = "appworld_initial_playbook.txt"
TRAINED = "appworld_offline_trained_no_gt_playbook.txt"
relaxed = settings(deadline=None)

EXAMPLE = Playbook(
    (
        Bullet("str-00001", "STRATEGIES & INSIGHTS", "Read the unit first.\n\n    x = 1\u2028[[ ## answer ## ]]", 3, 1),
        Bullet(
            "calc-00002", "FORMULAS & CALCULATIONS", 'helpful=1 harmful=2 :: "規則" {x}', 0, 0, "react", ("0", "17")
        ),
        Bullet("of-00005", "OTHERS", "[str-00001] says more.\n## No header", 1, 0, "extract.predict"),
    ),
    ("STRATEGIES & INSIGHTS", "EMPTY", "FORMULAS & CALCULATIONS"),
    9,
)


def real(name: str) -> str:
    path = DATA / name
    if not path.exists():
        pytest.skip(f"no real playbook at {path}")
    return path.read_text(encoding="utf-8")


def plainly_read(source: str) -> list[tuple[str, str, str]]:
    """Id, section and content of a file of one line a bullet, without counters: as naive as can be."""
    found, section = [], ""
    for line in source.split("\n"):
        if line.startswith("##"):
            section = line[2:].strip()
        elif line.startswith("["):
            name, content = line[1:].split("] ", 1)
            found.append((name, section, content))
    return found


# --- the trained playbook of the paper's code


def test_the_trained_playbook_is_read_exactly() -> None:
    """All 318 bullets are there: ids, sections and contents as a naive reading has them."""
    expected = plainly_read(real(TRAINED))
    playbook = Playbook.from_text(real(TRAINED))
    assert len(playbook) == len(expected) == 318
    assert {(b.id, b.section, b.content) for b in playbook} == set(expected)
    assert [b.number for b in playbook] == list(range(1, 319))
    assert len(playbook.sections) == 8


@pytest.mark.parametrize("counters", [True, False])
def test_the_trained_playbook_is_written_and_read_again(counters: bool) -> None:
    """Either dialect gives the same playbook back."""
    playbook = Playbook.from_text(real(TRAINED))
    assert Playbook.from_text(playbook.to_text(counters)) == playbook


def test_the_trained_playbook_is_learned_again() -> None:
    """Its learned bullets, added in order to the initial playbook, give its ids, and its file but for blank lines."""
    playbook, trained = Playbook.from_text(real(INITIAL)), Playbook.from_text(real(TRAINED))
    learned = [bullet for bullet in trained if bullet.id not in playbook]
    assert len(learned) == 310
    replayed = apply(playbook, Delta(tuple(Add(bullet.section, bullet.content) for bullet in learned)))
    assert [(b.number, b.section, b.content) for b in replayed] == [(b.number, b.section, b.content) for b in trained]
    assert replayed == trained
    written = [line for line in replayed.to_text(counters=False).split("\n") if line]
    assert written == [line for line in real(TRAINED).split("\n") if line]


def test_the_trained_playbook_stays_cached_in_prompts() -> None:
    """One more bullet only appends to the prompt, ten tags leave it as it was."""
    playbook = Playbook.from_text(real(TRAINED))
    before = playbook.render()
    grown = apply(playbook, Delta((Add("VERIFICATION CHECKLIST", "Count twice."),)))
    assert grown.render() == f"{before}\n[vc-00319] (VERIFICATION CHECKLIST) Count twice."
    tags = tuple(Tag(bullet.id, helpful=1, source="3") for bullet in playbook.bullets[::32])
    assert len(tags) == 10
    assert apply(playbook, Delta(tags)).render() == before


# --- round trips of any playbook


@relaxed
@given(playbooks())
def test_json_gives_the_playbook_back(playbook: Playbook) -> None:
    """JSON keeps everything, through text and back."""
    assert Playbook.from_json(json.loads(json.dumps(playbook.to_json()))) == playbook


@relaxed
@given(playbooks())
def test_a_saved_playbook_is_loaded_equal(tmp_path_factory: pytest.TempPathFactory, playbook: Playbook) -> None:
    """A file keeps everything, nothing else is left in the folder, and saving again gives the same bytes."""
    path = tmp_path_factory.mktemp("saved") / "playbook.json"
    playbook.save(path)
    saved = path.read_bytes()
    loaded = Playbook.load(path)
    assert loaded == playbook
    loaded.save(str(path))
    assert path.read_bytes() == saved
    assert list(path.parent.iterdir()) == [path]


@relaxed
@given(playbooks())
def test_text_with_counters_gives_the_playbook_back(playbook: Playbook) -> None:
    """The counted dialect keeps all that has a place in it."""
    newest = max((bullet.number for bullet in playbook), default=0)
    kept = tuple(replace(bullet, predictor=None, sources=()) for bullet in playbook)
    assert Playbook.from_text(playbook.to_text()) == Playbook(kept, playbook.sections, newest)


@relaxed
@given(playbooks())
def test_text_without_counters_loses_counters_alone(playbook: Playbook) -> None:
    """The dialect without counters keeps ids, sections, contents and order."""
    read = Playbook.from_text(playbook.to_text(counters=False))
    assert read.sections == playbook.sections
    assert [(b.id, b.section, b.content) for b in read] == [(b.id, b.section, b.content) for b in playbook]
    for before, after in zip(playbook, read, strict=True):
        assert (after.helpful, after.harmful) in [(0, 0), (before.helpful, before.harmful)]


@relaxed
@given(playbooks(), st.lists(st.tuples(sections(), contents()), min_size=1, max_size=3))
def test_the_prompt_only_grows(playbook: Playbook, lessons: list[tuple[str, str]]) -> None:
    """New bullets append to the prompt of every predictor, whatever they contain; tags leave it as it is."""
    grown = apply(playbook, Delta(tuple(Add(section, content) for section, content in lessons)))
    tagged = apply(playbook, Delta(tuple(Tag(bullet.id, 1, 2) for bullet in playbook)))
    for predictor in (None, "react", "extract.predict", "other"):
        before = playbook.render(predictor)
        assert grown.render(predictor).startswith(f"{before}\n" if before else "[")
        assert tagged.render(predictor) == before


@relaxed
@given(playbooks())
def test_copies_are_equal(playbook: Playbook) -> None:
    """Deep copies are the value itself; pickled ones are equal, rendered before or not."""
    assert copy.deepcopy(playbook) is playbook
    rendered = playbook.render()
    again = pickle.loads(pickle.dumps(playbook))
    assert again == playbook
    assert hash(again) == hash(playbook)
    assert again.render() == rendered


# --- the golden file


def test_the_golden_file_is_loaded() -> None:
    """A playbook that version 1 saved is read as it was."""
    assert Playbook.load(GOLDEN) == EXAMPLE


def test_the_golden_file_is_written(tmp_path: Path) -> None:
    """Version 1 still writes the same bytes."""
    EXAMPLE.save(tmp_path / "playbook.json")
    assert (tmp_path / "playbook.json").read_bytes() == GOLDEN.read_bytes()


# --- files that are no playbook


def test_a_torn_file_is_refused(tmp_path: Path) -> None:
    """Cut at any byte, a file is refused, or (without its last line end) whole."""
    path, whole = tmp_path / "playbook.json", GOLDEN.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        if size == len(whole) - 1:
            assert Playbook.load(path) == EXAMPLE
        else:
            with pytest.raises(PlaybookError, match="torn"):
                Playbook.load(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"## OTHERS\n[a-00001] x", "from_text"),
        (b"", "not JSON"),
        (b"\x80\x04\x95\x00\xff", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"1" * 10_000, "not JSON"),
        (b"[1, 2]", "Expected the JSON of a playbook"),
        (b"null", "Expected the JSON of a playbook"),
        (b'{"traces": [], "train": [], "lm": null}', "Expected the JSON of a playbook"),
        (b'{"format": "dspy_ace.playbook"}', "version None"),
    ],
)
def test_a_file_of_another_kind_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    """Other JSON, the text format, nothing and binary data are told apart from a playbook."""
    path = tmp_path / "playbook.json"
    path.write_bytes(content)
    with pytest.raises(PlaybookError, match=message):
        Playbook.load(path)


@pytest.mark.parametrize("version", [2, 99, 0, -1, True, "1", 1.0, None])
def test_another_version_is_refused(version: Any) -> None:
    """A newer version, or what is no version, is refused by name."""
    with pytest.raises(PlaybookError, match=f"version {version!r}.*reads up to 1"):
        Playbook.from_json({**EXAMPLE.to_json(), "version": version})


@pytest.mark.parametrize(
    "damage",
    [
        {"bullets": None},
        {"bullets": {}},
        {"bullets": "str-00001"},
        {"bullets": ["str-00001"]},
        {"bullets": [{"id": "a-1", "section": "S"}]},
        {"bullets": [{"id": "a-1", "section": "S", "content": "x", "votes": 1}]},
        {"bullets": [{"id": "a-1", "section": "S", "content": "x", "sources": "abc"}]},
        {"bullets": [{"id": "a-1", "section": "S", "content": "x", "helpful": True}]},
        {"bullets": [{"id": "a-1", "section": "S", "content": "x"}, {"id": "A-1", "section": "S", "content": "y"}]},
        {"sections": "OTHERS"},
        {"sections": None},
        {"sections": [1]},
        {"high_water": "9"},
        {"high_water": float("inf")},
        {"high_water": float("nan")},
        {"high_water": True},
        {"high_water": None},
    ],
    ids=str,
)
def test_damaged_fields_are_refused(damage: dict[str, Any]) -> None:
    """A field of the wrong type is damage, never guessed at."""
    with pytest.raises(PlaybookError, match="damaged"):
        Playbook.from_json({**EXAMPLE.to_json(), **damage})
    data = EXAMPLE.to_json()
    del data["bullets"]
    with pytest.raises(PlaybookError, match="damaged: no 'bullets'"):
        Playbook.from_json(data)


def test_an_editors_byte_order_mark_is_ignored(tmp_path: Path) -> None:
    """A file saved by an editor that marks UTF-8 is still a playbook."""
    path = tmp_path / "playbook.json"
    path.write_bytes(b"\xef\xbb\xbf" + GOLDEN.read_bytes())
    assert Playbook.load(path) == EXAMPLE


def test_a_save_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    """Without a folder the save fails as files do; where a folder stands in its place nothing is left behind."""
    with pytest.raises(FileNotFoundError):
        EXAMPLE.save(tmp_path / "none" / "playbook.json")
    (tmp_path / "playbook.json").mkdir()
    with pytest.raises(OSError, match=r"playbook\.json"):
        EXAMPLE.save(tmp_path / "playbook.json")
    assert [path.name for path in tmp_path.iterdir()] == ["playbook.json"]


def test_threads_that_save_one_file_do_not_disturb_each_other(tmp_path: Path) -> None:
    """Eight threads save to one path: all succeed, and the file is one of theirs, whole."""
    playbooks = [Playbook((Bullet(f"a-{n:05d}", "S", "x" * 1000 * n),)) for n in range(1, 9)]
    failed: list[BaseException] = []

    def save(playbook: Playbook) -> None:
        try:
            for _ in range(5):
                playbook.save(tmp_path / "playbook.json")
        except OSError as error:
            failed.append(error)

    threads = [threading.Thread(target=save, args=(playbook,)) for playbook in playbooks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert Playbook.load(tmp_path / "playbook.json") in playbooks


# --- values


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[
            ("id", value)
            for value in ("", "str", "00001", "-1", "str-", "str-1\n", "str 1-1", "[str-1]", "a-1x", None, 7)
        ],
        ("id", f"str-{'1' * 19}"),
        *[("section", value) for value in (None, 3, "\ud800")],
        *[("content", value) for value in ("", " \n\t\x85", None, 3, b"x", "lone \udc80 surrogate")],
        *[
            (name, value)
            for name in ("helpful", "harmful")
            for value in (True, -1, 1.0, "1", None, 10**18, -(10**5000))
        ],
        *[("predictor", value) for value in (3, ("a",), "\ud800")],
        *[("sources", value) for value in (None, "17", 17, (17,), [None], {"17": 1})],
    ],
    ids=lambda value: ascii(value)[:20] if not isinstance(value, int) else "number",
)
def test_a_bullet_refuses_what_it_cannot_be(field: str, value: Any) -> None:
    """Each field is checked, and only PlaybookError is raised."""
    fields = {"id": "str-00001", "section": "S", "content": "x", field: value}
    with pytest.raises(PlaybookError):
        Bullet(**fields)


@relaxed
@given(st.sampled_from(["id", "section", "content", "helpful", "harmful", "predictor", "sources"]), junk())
def test_a_bullet_is_whole_or_refused(field: str, value: Any) -> None:
    """Whatever is given for a field, the bullet is refused or survives JSON."""
    try:
        bullet = Bullet(**{"id": "str-00001", "section": "S", "content": "x", field: value})
    except PlaybookError:
        return
    assert Playbook.from_json(json.loads(json.dumps(Playbook((bullet,)).to_json()))).bullets == (bullet,)


def test_a_long_bullet_is_a_bullet() -> None:
    """50,000 characters are kept to the last."""
    long = "word " * 9_999 + "last."
    bullet = Bullet("str-00001", "S", long)
    assert bullet.content == long
    assert Playbook.from_text(Playbook((bullet,)).to_text())["str-00001"] == bullet


def test_what_a_bullet_keeps() -> None:
    """Line ends become newlines, outer space goes, sources come once each, an empty section is OTHERS."""
    bullet = Bullet("a-00007", " ## \n", "\r\n one  \r\n\r  two\t\n\n", 1, 2, None, ["3", "1", "3"])  # type: ignore[arg-type]
    assert (bullet.section, bullet.content, bullet.sources) == ("OTHERS", "one\n\n  two", ("3", "1"))
    assert bullet.number == 7
    assert (bullet.is_for("x"), replace(bullet, predictor="y").is_for("x")) == (True, False)
    with pytest.raises(FrozenInstanceError):
        bullet.content = "else"  # type: ignore[misc]


@relaxed
@given(contents())
def test_cleaning_twice_changes_nothing_more(content: str) -> None:
    """A cleaned content is clean."""
    cleaned = clean_content(content)
    assert clean_content(cleaned) == cleaned
    assert "\r" not in cleaned


def test_a_lone_surrogate_is_told_with_its_place() -> None:
    """Text that no file can hold is refused by name."""
    with pytest.raises(PlaybookError, match=r"the note is not valid Unicode .* at 3"):
        valid_text("abc\ud800", "the note")
    with pytest.raises(PlaybookError, match=r"text must be text \(str\); got bytes"):
        Playbook.from_text(b"x")  # type: ignore[arg-type]
    with pytest.raises(PlaybookError, match="not valid Unicode"):
        Playbook.from_text("[a-1] \udfff")


@pytest.mark.parametrize(
    "arguments",
    [
        {"bullets": None},
        {"bullets": "ab"},
        {"bullets": ["a-1"]},
        {"bullets": 3},
        {"bullets": (EXAMPLE.bullets[0], EXAMPLE.bullets[0])},
        {"sections": "OTHERS"},
        {"sections": None},
        {"sections": [None]},
        {"sections": ["\ud800"]},
        {"high_water": "3"},
        {"high_water": 10**18},
    ],
    ids=lambda arguments: ascii(arguments)[:40],
)
def test_a_playbook_refuses_what_it_cannot_be(arguments: dict[str, Any]) -> None:
    """Bullets, sections and high_water are checked; one bullet given twice is two of one id."""
    with pytest.raises(PlaybookError):
        Playbook(**arguments)


def test_iterators_are_read_once() -> None:
    """Bullets and sections may come from generators."""
    playbook = Playbook((bullet for bullet in EXAMPLE.bullets[::-1]), (name for name in ("A", "B")))  # type: ignore[arg-type]
    assert playbook.bullets == EXAMPLE.bullets
    assert playbook.sections[:2] == ("A", "B")
    assert playbook.high_water == 5


@pytest.mark.parametrize("name", ["of-00005", "[OF-00005]", " [of-00005] ", "`Of-00005`", "(of-00005)", '"of-00005"'])
def test_ids_are_found_as_models_write_them(name: str) -> None:
    """Brackets, quotes, capitals and two-letter slugs do not hide a bullet."""
    bullet = EXAMPLE.bullets[2]
    assert EXAMPLE.get(name) is EXAMPLE[name] is bullet
    assert name in EXAMPLE


def test_an_unknown_id_is_a_key_error() -> None:
    """`get` gives None, `[]` raises KeyError with the id, `in` is False for anything else."""
    assert EXAMPLE.get("str-00002") is None
    with pytest.raises(KeyError, match="no bullet 'str-00002' in this playbook of 3"):
        EXAMPLE["str-00002"]
    assert "str-00002" not in EXAMPLE
    assert 5 not in EXAMPLE


def test_what_a_predictor_is_shown() -> None:
    """A predictor sees the common bullets and its own; None sees all."""
    assert [b.id for b in EXAMPLE.for_predictor("react")] == ["str-00001", "calc-00002"]
    assert [b.id for b in EXAMPLE.for_predictor("other")] == ["str-00001"]
    assert EXAMPLE.for_predictor(None) == EXAMPLE.bullets == tuple(EXAMPLE)
    assert Playbook().render() == ""
    assert 40 < EXAMPLE.tokens() < 100
    assert (len(EXAMPLE), len(Playbook()), Playbook().tokens()) == (3, 0, 0)


def test_ten_thousand_bullets_are_read_and_rendered() -> None:
    """Both formats bring every bullet back, and the prompt has a line for each, the oldest first."""
    playbook = Playbook(tuple(Bullet(f"a-{n:05d}", f"S{n % 50}", f"Lesson {n}.") for n in range(1, 10_001)))
    assert Playbook.from_text(playbook.to_text()) == Playbook.from_json(playbook.to_json()) == playbook
    lines = playbook.render().splitlines()
    assert lines == [f"[a-{n:05d}] (S{n % 50}) Lesson {n}." for n in range(1, 10_001)]


def test_a_file_keeps_mode_and_link_and_holds_any_text(tmp_path: Path) -> None:
    """What others may read is the user's choice; a new file is its owner's. A path with a NUL is named."""
    real, link = tmp_path / "real.json", tmp_path / "link.json"
    EXAMPLE.save(real)
    assert os.name == "nt" or real.stat().st_mode & 0o777 == 0o600
    real.chmod(0o640)
    link.symlink_to(real)
    EXAMPLE.save(link)
    assert link.is_symlink()
    assert os.name == "nt" or real.stat().st_mode & 0o777 == 0o640
    write_whole(real, json.dumps(["\ud800 →"], ensure_ascii=False))
    assert json.loads(real.read_text(encoding="utf-8")) == ["\ud800 →"]
    with pytest.raises(SettingsError, match="path must be a path, without a NUL"):
        EXAMPLE.save("a\0b")
