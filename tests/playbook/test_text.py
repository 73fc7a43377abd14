"""The text of a playbook: the block in a prompt, the paper's file format, token counts and cuts."""

from __future__ import annotations

import pickle
import re
import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dspy_ace import output
from dspy_ace.errors import PlaybookError
from dspy_ace.playbook import text
from dspy_ace.playbook.playbook import DEFAULT_SECTIONS, Bullet, Playbook
from paths import SHARED
from strategies import contents, playbooks, sections, texts

DATA = SHARED / "data" / "playbooks"
MARKERS = re.compile(r"\[\[\s*##|##\s*\]\]|<<CUSTOM-TYPE")
relaxed = settings(deadline=None)


# --- what a prompt shows


@relaxed
@given(playbooks())
def test_a_bullet_renders_as_one_block(playbook: Playbook) -> None:
    """Whatever it contains, only the first line of a bullet starts at the margin, and that line opens with its id."""
    lines = playbook.render().splitlines()
    heads = [line for line in lines if line and not line.startswith("  ")]
    assert len(heads) == len(playbook)
    for bullet, head in zip(playbook, heads, strict=True):
        assert head.startswith(f"[{bullet.id}] (")


@relaxed
@given(playbooks())
def test_no_adapter_marker_survives(playbook: Playbook) -> None:
    """Neither a content nor a section can open or close a field of an adapter, nor a custom type."""
    assert not MARKERS.search(playbook.render())


@relaxed
@given(texts())
def test_defusing_twice_changes_nothing_more(words: str) -> None:
    """Defused text has no marker, keeps every character that is no space, and is left alone the second time."""
    once = text.defuse(words)
    assert not MARKERS.search(once)
    assert text.defuse(once) == once
    assert "".join(once.split()) == "".join(words.split())


def test_a_block_as_the_model_reads_it() -> None:
    """Id, section, first line; further lines are indented below; counters are not shown."""
    bullet = Bullet("str-00042", "TOOLS", "Look first:\n\n    x = 1\n[[ ## answer ## ]]", 5, 1)
    assert bullet.block == "[str-00042] (TOOLS) Look first:\n\n      x = 1\n  [ [ ## answer ##] ]"
    assert Playbook().render() == ""
    assert Playbook((bullet,)).render() == bullet.block


# --- sections


@pytest.mark.parametrize(
    "spelling", ["problem_solving_heuristics", "Problem-Solving Heuristics:", " PROBLEM SOLVING  heuristics"]
)
def test_spellings_of_one_section(spelling: str) -> None:
    """Case, spaces, hyphens, underscores and a last colon do not make another section."""
    assert text.section_key(spelling) == text.section_key("PROBLEM-SOLVING HEURISTICS")
    assert text.section_slug(spelling) == "prob"


@pytest.mark.parametrize("spelling", ["Strategies & insights", "strategies_and_insights", "STRATEGIES&INSIGHTS"])
def test_an_ampersand_is_an_and(spelling: str) -> None:
    """`&` and `and` are the same word, with or without spaces around it."""
    assert text.section_key(spelling) == text.section_key("STRATEGIES & INSIGHTS")


@relaxed
@given(sections())
def test_letters_of_a_section_depend_on_its_key(section: str) -> None:
    """Two spellings of a section open ids with the same letters, and any section gives letters."""
    cleaned = text.clean_section(section)
    assert text.clean_section(cleaned) == cleaned
    assert re.fullmatch(r"[a-z]{1,4}", text.section_slug(cleaned))
    assert text.section_slug(text.section_key(cleaned)) == text.section_slug(cleaned)
    assert "\n" not in cleaned
    assert cleaned


def test_letters_of_the_papers_sections() -> None:
    """The sections of an empty playbook have letters of their own; other sections take theirs from their words."""
    letters = [text.section_slug(name) for name in DEFAULT_SECTIONS]
    assert letters == ["str", "calc", "code", "err", "prob", "ctx", "misc"]
    slugs = [text.section_slug(name) for name in ("Unit prices", "Dates of the fiscal year", "規則", "TOOLS")]
    assert slugs == ["unit", "dfy", "misc", "tool"]


# --- the paper's format


@relaxed
@given(texts())
def test_any_text_is_read(words: str) -> None:
    """No text makes the reader fail, and what was read is written and read alike from then on."""
    playbook = Playbook.from_text(words, strict=False)
    assert Playbook.from_text(playbook.to_text()).bullets == playbook.bullets


@relaxed
@given(st.lists(st.tuples(sections(), contents()), max_size=5), st.booleans())
def test_every_bullet_of_an_official_file_is_found(lessons: list[tuple[str, str]], counters: bool) -> None:
    """A file as the official code writes it, one line a bullet, gives back every id, section, counter and content."""
    expected, lines = [], []
    for number, (named, words) in enumerate(lessons, 1):
        section, content = text.clean_section(named), " ".join(words.split())
        counted = f" helpful={number} harmful=0 ::" if counters or text._COUNTED.match(content) else ""
        lines += [f"## {section}", f"[a-{number:05d}]{counted} {content}", ""]
        expected.append((f"a-{number:05d}", section, content, number if counted else 0))
    read = Playbook.from_text("\n".join(lines), strict=False)
    assert [(b.id, b.section, b.content, b.helpful) for b in read] == expected


OFFICIAL = """
A note above everything.
[str-00001] helpful=2 harmful=1 :: Before any header.

## STRATEGIES & INSIGHTS
A comment below a header.
[str-00002] helpful=3 harmful=0 :: Check the unit.

## Common Mistakes:
[of-00003] No counters, two letters.
   [pi-00004]helpful=1   harmful=2::Odd spacing.
[ CMT-00005 ]   Brackets with room, capitals.
[str-00002] helpful=9 harmful=9 :: An id that comes twice.
[cut-00009]
[cut-00010] helpful=4 harmful=5 ::

## EMPTY ONE
##
[misc-00007] Code: {"a": [1, 2]} and `x[0]`.
and a second line

and a third.
### Deep ###
[deep-00008] Last.
"""


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_dialects_variants_and_damage_in_one_file(end: str) -> None:
    """Both dialects mixed, odd headers and spacing, comments, a repeated id and empty bullets: no lesson is lost."""
    playbook = Playbook.from_text(("\ufeff" + OFFICIAL).replace("\n", end), strict=False)
    assert playbook.sections == (*("OTHERS", "STRATEGIES & INSIGHTS", "Common Mistakes:", "EMPTY ONE", "Deep ###"),)
    assert [(b.id, b.section, b.content, b.helpful, b.harmful) for b in playbook] == [
        ("str-00001", "OTHERS", "Before any header.", 2, 1),
        ("str-00002", "STRATEGIES & INSIGHTS", "Check the unit.", 3, 0),
        ("of-00003", "Common Mistakes:", "No counters, two letters.", 0, 0),
        ("pi-00004", "Common Mistakes:", "Odd spacing.", 1, 2),
        ("CMT-00005", "Common Mistakes:", "Brackets with room, capitals.", 0, 0),
        ("misc-00007", "OTHERS", 'Code: {"a": [1, 2]} and `x[0]`.\nand a second line\nand a third.', 0, 0),
        ("deep-00008", "Deep ###", "Last.", 0, 0),
        ("str-00011", "Common Mistakes:", "An id that comes twice.", 9, 9),
    ]
    assert playbook.high_water == 11


@pytest.mark.parametrize(
    "source", ["", "  \n\n ", "Just prose.\nMore prose.", "[1] a footnote", "[a-] b\n[-1] c", "\ufeff"]
)
def test_texts_without_a_bullet(source: str) -> None:
    """Nothing, space, and prose give an empty playbook."""
    assert Playbook.from_text(source, strict=False) == Playbook()


def test_numbers_beyond_reason_are_text() -> None:
    """An id or a counter of thousands of digits is no id or counter; reading goes on."""
    digits = "9" * 5000
    playbook = Playbook.from_text(f"[a-{digits}] x\n[b-1] helpful={digits} harmful=0 :: y\n[c-2] z", strict=False)
    assert [(b.id, b.helpful) for b in playbook] == [("b-1", 0), ("c-2", 0)]
    assert playbook["b-1"].content == f"helpful={digits} harmful=0 :: y"


def test_a_long_bullet_and_many_sections_come_back() -> None:
    """A bullet of 40,000 lines and 4,000 sections are written and read again as they were."""
    playbook = Playbook(
        [Bullet("a-1", "S", "\n".join(map(str, range(40_000))))]
        + [Bullet(f"b-{n}", f"S{n}", "x") for n in range(2, 4_000)]
    )
    again = Playbook.from_text(playbook.to_text())
    assert again == playbook
    assert again.sections == playbook.sections
    assert again["a-1"].content.split("\n") == [str(line) for line in range(40_000)]


# --- tokens


def test_tokens_of_a_real_playbook() -> None:
    """The estimate of the trained AppWorld playbook is within 30 % of the 22,401 tokens that cl100k counts."""
    path = DATA / "appworld_offline_trained_no_gt_playbook.txt"
    if not path.exists():
        pytest.skip(f"no trained playbook at {path}")
    assert 0.7 * 22_401 < text.count_tokens(path.read_text(encoding="utf-8")) < 1.3 * 22_401


@pytest.mark.parametrize(
    ("words", "low", "high"),
    [("", 0, 0), ("word", 1, 1), ("Check the unit first.", 4, 6), ("x = foo(bar)[0]", 6, 12), ("規則" * 10, 30, 50)],
)
def test_tokens_of_small_texts(words: str, low: int, high: int) -> None:
    """Words, code and other scripts count about what tokenizers give."""
    assert low <= text.count_tokens(words) <= high


# tokens by cl100k, as tiktoken counts them
COUNTED = {
    "Route refunds of damaged parcels to accounts, and attach the order number.": 14,
    "Rückerstattungen für beschädigte Pakete gehen an die Buchhaltung.": 18,
    "Возврат за повреждённую посылку направьте в бухгалтерию.": 28,
    "Повернення коштів за пошкоджену посилку надішліть до бухгалтерії.": 41,
    "Οι επιστροφές χρημάτων για κατεστραμμένα δέματα πηγαίνουν στο λογιστήριο.": 66,
    "包裹损坏要求退款的工单请转给财务部。": 22,
    "破損した荷物の返金は経理部に回してください。": 24,
    "파손된 소포에 대한 환불은 회계팀으로 보내세요.": 28,
    "حوّل طلبات استرداد الأموال عن الطرود التالفة إلى قسم المحاسبة.": 39,
    "क्षतिग्रस्त पार्सल की धनवापसी लेखा विभाग को भेजें।": 48,
    "✅ parcels 🚚 → 📦 logistics 🙂": 12,
}


@pytest.mark.parametrize(("words", "tokens"), COUNTED.items())
def test_tokens_of_any_script(words: str, tokens: int) -> None:
    """Latin, Cyrillic, Greek, Chinese, Japanese, Korean, Arabic, Devanagari and emoji count as a tokenizer counts."""
    assert text.count_tokens(words) == tokens


@relaxed
@given(texts(), texts())
def test_tokens_grow_with_the_text(one: str, other: str) -> None:
    """A text has no more tokens than bytes, and two texts in two lines no more than both and a line end."""
    assert 0 <= text.count_tokens(one) <= len(one.encode("utf-8", "surrogatepass"))
    assert text.count_tokens(f"{one}\n{other}") <= text.count_tokens(one) + text.count_tokens(other) + 2


def test_long_texts_are_counted_and_not_kept() -> None:
    """Whole prompts are counted as short texts are, but do not fill the memory."""
    long = "word " * 2_000
    before = text._remembered.cache_info().currsize
    assert 2_000 <= text.count_tokens(long) <= 2_010
    assert text._remembered.cache_info().currsize == before


# --- cuts


@relaxed
@given(st.one_of(texts(), st.text(st.characters(exclude_categories=["Cs"]), max_size=300)), st.integers(0, 60))
def test_a_cut_keeps_its_bound(words: str, bound: int) -> None:
    """What fits is untouched; what does not is cut to the bound, with a visible mark wherever there is room for one."""
    cut = text.cut_middle(words, bound)
    assert text.count_tokens(cut) <= bound
    if text.count_tokens(words) <= bound:
        assert cut == words
    elif bound:
        assert "…" in cut


def test_a_cut_keeps_head_and_tail() -> None:
    """The middle goes, and the text says how many characters went."""
    words = " ".join(f"w{n}" for n in range(2_000))
    cut = text.cut_middle(words, 200)
    head, mark, tail = re.fullmatch(r"(.*)\n\[… (\d+) characters cut …\]\n(.*)", cut, re.DOTALL).groups()
    assert words.startswith(head)
    assert words.endswith(tail)
    assert len(head) + int(mark) + len(tail) == len(words)
    assert 150 < text.count_tokens(cut) <= 200
    assert text.cut_middle(words, 0) == text.cut_middle(words, -5) == ""
    assert text.cut_middle(words, 1) == "…"


def test_a_cut_where_the_tokens_stand_at_the_ends() -> None:
    """A text whose middle costs nothing is cut to its bound as well, and most of the bound is used."""
    words = "+ ! " * 20_000 + " " * 1_000_000 + "+ ! " * 20_000
    cut = text.cut_middle(words, 500)
    head, mark, tail = re.fullmatch(r"(.*)\n\[… (\d+) characters cut …\]\n(.*)", cut, re.DOTALL).groups()
    assert 400 < text.count_tokens(cut) <= 500
    assert len(head) + int(mark) + len(tail) == len(words)
    assert (words.startswith(head), words.endswith(tail)) == (True, True)


@relaxed
@given(st.dictionaries(st.sampled_from("abcdef"), texts(), max_size=6), st.integers(0, 80))
def test_parts_fit_together(parts: dict[str, str], bound: int) -> None:
    """All parts are there, in their order, within the bound together; a part within its even share is whole."""
    fitted = text.fit(parts, bound)
    assert list(fitted) == list(parts)
    assert sum(map(text.count_tokens, fitted.values())) <= bound
    for name, part in parts.items():
        if text.count_tokens(part) <= bound // len(parts):
            assert fitted[name] == part


def test_no_parts_fit_any_bound() -> None:
    """Nothing to fit is nothing, whatever the bound."""
    assert text.fit({}, 100) == text.fit({}, 0) == {}


def test_short_parts_leave_their_room_to_the_long_ones() -> None:
    """One long part among short ones gets nearly all of the bound."""
    fitted = text.fit({"long": "word " * 5_000, "short": "a few words", "none": ""}, 1_000)
    assert fitted["short"] == "a few words"
    assert text.count_tokens(fitted["long"]) > 900


# --- exact repeats

SAME = [
    ("Round  late.\n", "Round late"),
    ("Round only the final result.", "ROUND ONLY THE FINAL RESULT!"),
    ("First check, then book: always; in that order.", "first check then book always in that order"),
    ("Round to 2.", "Round to 2"),
    ("Call show_transactions() first.", "Call show_transactions first."),
    ("Use the “total” column – it’s net.", 'Use the "total" column - it\'s net'),
    ("Ｒｏｕｎｄ ｌａｔｅ．", "Round late."),
    ("the oﬃce ﬁle", "The office file"),
    ("Runde erst am Ende!", "runde erst am ende."),
    ("Größe zuerst prüfen, dann buchen.", "größe ZUERST prüfen dann buchen"),
    ("Redondea solo al final; después, suma.", "redondea solo al final después suma"),
    ("Vérifie d’abord l’unité…", "vérifie d'abord l'unité"),
    ("先检查单位，再计算。", "先检查单位, 再计算"),
    ("先に単位を確認！次に計算。", "先に単位を確認。次に計算"),
    ("먼저 단위를 확인하세요.", "먼저  단위를 확인하세요"),
    ("تحقق من الوحدة، ثم احسب.", "تحقق من الوحدة ثم احسب"),
    ("e\u0301tape", "étape"),
    ("zero\u200bwidth", "zerowidth"),
]
DIFFERENT = [
    ("Retry if x > 3.", "Retry if x < 3."),
    ("Retry if x >= 3.", "Retry if x > 3."),
    ("Use a == b.", "Use a = b."),
    ("a <= b", "a => b"),
    ("Multiply by 5.0", "Multiply by 50"),
    ("Round to 1,000", "Round to 1000"),
    ("Shift by -3", "Shift by 3"),
    ("Shift by −3", "Shift by 3"),
    ("a-b", "ab"),
    ("a - b", "a b"),
    ("10 %", "10"),
    ("+1", "1"),
    ("C++", "C"),
    ("C#", "C"),
    ("1.5", "15"),
    ("10:30", "1030"),
    ("1/2", "12"),
    ("10²", "102"),
    ("2½", "21/2"),
    ("x₁", "x1"),
    ("n! ways", "n ways"),
    ("计算 5！", "计算 5"),
    ("(a + b) * c", "a + b * c"),
    ("f(x)", "fx"),
    ("data[0]", "data 0"),
    ("Use `a.b`.", "Use `ab`."),
    ("Pass `None`.", "Pass `none`."),
    ("Return True", "Return true"),
    ("Set `x = [1, 2]`", "Set `x = [1 2]`"),
    ('Pass "5"', "Pass 5"),
    ("Read userId", "Read userid"),
    ("user_id", "userid"),
    ("the US rule", "the us rule"),
    ("10 MB", "10 Mb"),
    ("10 mW", "10 MW"),
    ("Round to 2 digits", "Round to 3 digits"),
    ("Do it", "Do not"),
    ("don't", "dont"),
    ("Is it net?", "Is it net"),
    ("In Maßen essen", "In Massen essen"),
    ("schön", "schon"),
    ("año", "ano"),
    ("一，二", "一二"),
    ("1，000", "1 000"),
    ("这是净额？", "这是净额。"),
    ("ビル", "ヒル"),
    ("if a:\n    b()\nc()", "if a:\n    b()\n    c()"),
    ("../data", "/data"),
    ("cd ..", "cd ."),
    ("~/x", "/x"),
    ("$x", "x"),
    ("@x", "x"),
    ("*args", "args"),
    ("a|b", "ab"),
    ("a & b", "a b"),
    ("Name the key 'Total'.", "Name the key 'total'."),
]


@pytest.mark.parametrize(("one", "other"), SAME, ids=lambda text: ascii(text)[:30])
def test_exact_repeats_are_found(one: str, other: str) -> None:
    """Case, space, marks at the end of words, quotes, dashes and forms of letters do not make another text."""
    assert text.folded(one) == text.folded(other)


@pytest.mark.parametrize(("one", "other"), DIFFERENT, ids=lambda text: ascii(text)[:30])
def test_what_may_mean_something_else_is_no_repeat(one: str, other: str) -> None:
    """Numbers, signs, code, units, names and marks that carry meaning are kept."""
    assert text.folded(one) != text.folded(other)


def test_repeats_of_the_trained_playbook() -> None:
    """The trained AppWorld playbook holds nine repeats, three of them not word for word."""
    path = DATA / "appworld_offline_trained_no_gt_playbook.txt"
    if not path.exists():
        pytest.skip(f"no trained playbook at {path}")
    playbook = Playbook.from_text(path.read_text(encoding="utf-8"))
    said = {text.folded(bullet.content) for bullet in playbook}
    assert (len(playbook) - len(said), len(playbook) - len({bullet.content for bullet in playbook})) == (9, 6)


@relaxed
@given(st.one_of(texts(), st.text(st.characters())))
def test_any_text_is_folded(words: str) -> None:
    """Any text is taken, lone surrogates as well; space around it does not matter."""
    once = text.folded(words)
    assert text.folded(f" {words} ") == once
    assert once == once.strip()
    assert text.folded(words) == once


@relaxed
@given(st.text(st.characters(codec="utf-8", exclude_characters="`"), max_size=30))
def test_numbers_and_signs_survive_folding(words: str) -> None:
    """Each digit and each sign of comparison or arithmetic in the text is in its folded form."""
    once = text.folded(words)
    for sign in "0123456789<>=+-%*/^|&~@#$?_":
        assert once.count(sign) >= words.count(sign)


@relaxed
@given(st.text(st.characters(), max_size=20), st.text(st.characters(), max_size=20))
def test_code_in_backticks_is_kept_as_it_stands(one: str, other: str) -> None:
    """Two spans of code are the same only if each character is."""
    one, other = one.replace("`", ""), other.replace("`", "")
    assert (text.folded(f"Use `{one}` here") == text.folded(f"use `{other}` here")) == (one == other)


# --- hostile text


@pytest.mark.parametrize("piece", ["- a\n", "[x-{}] a\n", "## S{}\n- a\n"], ids=["new bullets", "ids", "sections"])
def test_a_text_of_many_bullets_takes_little_work_for_each(piece: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """So many calls of functions a bullet, however many there are: a text of 1 MB may hold 250,000 of them."""
    monkeypatch.setattr(output, "_secrets", [])  # each that other tests made known is looked for in each bullet

    def calls(bullets: int) -> float:
        source, made = "".join(piece.format(number) for number in range(bullets)), 0

        def count(_: Any, event: str, __: Any) -> None:
            nonlocal made
            made += event in ("call", "c_call")

        before = sys.getprofile()
        sys.setprofile(count)
        try:
            playbook = Playbook.from_text(source)
        finally:
            sys.setprofile(before)
        assert len(playbook) == bullets
        return made / bullets

    few, many = calls(200), calls(1600)
    assert many < 1.05 * few
    assert many < 72  # 30 to 67; it was 80 to 110 when each bullet was checked anew


def test_what_is_read_fast_is_what_is_made_with_checks() -> None:
    """Line ends, secrets, sections and counters; also a last number that leaves none for a new bullet."""
    key = "sk-" + "a" * 24
    source = f"## Keys {key}\n[a-7] helpful=2 harmful=1 :: Use {key}.  \r\n    | On\t\r- New\n[A-7] Again"
    read = Playbook.from_text(source)
    section = "Keys [redacted]"
    made = Playbook(
        (
            Bullet("a-7", section, f"Use {key}.  \nOn\t", 2, 1),
            Bullet("keys-00008", section, "New"),
            Bullet("A-00009", section, "Again"),
        )
    )
    assert read.sections == made.sections == (section,)
    assert read == made
    assert Playbook.from_json(read.to_json()) == read
    assert pickle.loads(pickle.dumps(read)) == read
    with pytest.raises(PlaybookError, match="is left for a new bullet"):
        Playbook.from_text(f"[a-{'9' * 18}] Last.\n- One more.")


def test_a_playbook_holds_no_secret_in_the_name_of_a_section() -> None:
    """Also of one without bullets."""
    key = "sk-" + "b" * 24
    assert key not in str(Playbook((), (f"KEYS {key}",)).to_json())
    assert key not in Playbook.from_text(f"## KEYS {key}").to_text()
