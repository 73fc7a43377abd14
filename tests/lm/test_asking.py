"""Reading what a model answers: lists and objects item by item, and asking once more."""

from __future__ import annotations

import contextlib
import json
import time
from typing import Any

import dspy
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dspy_ace.errors import RoleError
from dspy_ace.lm import Meter
from dspy_ace.lm.asking import Broken, UnreadableError, ask, is_nothing, read_list, read_mapping, restored
from dspy_ace.playbook import count_tokens
from scripted import rate_limited, scripted
from scripted_roles import chat, fields_of, real_replies, sections

pytestmark = pytest.mark.compat

ADD = {"type": "ADD", "section": "S", "content": "One whole lesson."}
DELETE = {"type": "DELETE", "id": "s-00001"}


@pytest.mark.parametrize(
    ("said", "items"),
    [
        ('["a", "b"]', ["a", "b"]),
        ("['it\\'s', \"b\"]", ["it's", "b"]),
        ('["a", "b",]', ["a", "b"]),
        ('```json\n["a"]\n```', ["a"]),
        ('Here they are:\n```json\n["a"]\n```\nI hope this helps.', ["a"]),
        ('Operations: [{"a": 1}]', [{"a": 1}]),
        ('**Operations**:\n[{"a": 1}]\n\nI left ["b"] out.', [{"a": 1}]),
        ('[{"a": 1}, // why\n {"b": 2}]', [{"a": 1}, {"b": 2}]),
        ('{"a": 1}\n{"b": 2}', [{"a": 1}, {"b": 2}]),
        ('- {"a": 1}\n- {"b": 2}', [{"a": 1}, {"b": 2}]),
        ('{"a": 1}, {"b": 2}', [{"a": 1}, {"b": 2}]),
        ('[["a", ["b"]], "c"]', ["a", "b", "c"]),
        ('{"things": ["a"]}', ["a"]),
        ('["a\nb"]', ["a\nb"]),
        ("[{'a': None, 'b': True}]", [{"a": None, "b": True}]),
        ('["Say "x" now", "b"]', ['Say "x" now', "b"]),
        ('[\n  "Say "x", "y" now",\n  "b"\n]', ['Say "x", "y" now', "b"]),
        ("- a\n- b\n  more of b\n\nI hope this helps.", ["a", "b\nmore of b"]),
        ("1. a\n   - part\n   - part\n2. b", ["a\n- part\n- part", "b"]),
        ('[{"a": 1}]\n\n[[ ## completed', [{"a": 1}]),
        ("[1, null]", [1, None]),
        (["a", ("b",)], ["a", "b"]),
        ({"a": 1}, [{"a": 1}]),
    ],
)
def test_a_list_is_read_in_every_form_models_write_it(said: Any, items: list[Any]) -> None:
    """Fences, prose, comments, single quotes, raw newlines, markdown lists, JSON lines: the same items."""
    assert read_list(said, "things") == items


@pytest.mark.parametrize(
    "said", ["", " \n", "[]", "{}", "null", "None.", "(empty)", "N/A", "No new insights.", "- none", None, [], "[[]]"]
)
def test_nothing_is_an_empty_list(said: Any) -> None:
    """The ways to say that there is nothing are no items and no error."""
    assert [item for item in read_list(said, "things") if item and not is_nothing(str(item))] == []


@pytest.mark.parametrize(
    "said",
    ["Read the question.", '"one"', "5", 5, "true", 'Use d["key"] here', '["key"] is a list', "[x-00001] (S) Carry."],
)
def test_text_without_a_list_is_unreadable(said: Any) -> None:
    """Prose, numbers, and brackets inside prose are not taken for a list; the error quotes the text."""
    with pytest.raises(UnreadableError, match="things must be a JSON list"):
        read_list(said, "things")


@pytest.mark.parametrize(
    "bad",
    [
        '{"type":"ADD","content":"Say "x", not "y", here","section":"S"}',
        '{"type":"ADD","content":"Say "x": it is "quoted".","section":"S"}',
        "{type: ADD, content: no quotes}",
        '{"type":"ADD" "content":"no comma"}',
        "{'type':'ADD','content':'it's'}",
        '{"type":"ADD","content":"a","x":}',
        '{"type":"ADD","content":"a\\d+"}',
        '{"type":"ADD","content":"never closed}',
        '{"type":"ADD","content":"see {"a": 1}, {"b": 2} end"}',
        '{"type":"ADD","content":"a"+"b"}',
        "...",
        "{}",
        "5",
    ],
)
@pytest.mark.parametrize("between", [", ", ",\n  ", "\n"])
def test_one_bad_item_does_not_cost_the_others(bad: str, between: str) -> None:
    """Whatever stands between two good operations, both are read as they are."""
    items = read_list(f"[{json.dumps(ADD)}{between}{bad}{between}{json.dumps(DELETE)}]", "operations")
    assert ADD in items
    assert DELETE in items
    assert len(items) <= 3


@pytest.mark.parametrize("lesson", ["Carry when the digits add up to ten or more.", 'Say "x", [1], {"a": 2}; then y'])
def test_an_item_cut_in_two_by_the_end_of_the_reply_is_broken(lesson: str) -> None:
    """Wherever a reply is cut, no half lesson comes out as an item."""
    whole = json.dumps([{"type": "ADD", "content": lesson}, {"type": "ADD", "content": f"{lesson} Twice."}])
    for end in range(len(whole)):
        try:
            items = read_list(whole[:end], "operations")
        except UnreadableError:
            continue
        contents = [item["content"] for item in items if not isinstance(item, Broken)]
        assert contents == [lesson, f"{lesson} Twice."][: len(contents)]
    words = json.dumps([lesson, f"{lesson} Twice."])
    for end in range(len(words)):
        try:
            items = read_list(words[:end], "insights")
        except UnreadableError:
            continue
        kept = [item for item in items if not isinstance(item, Broken)]
        assert kept == [lesson, f"{lesson} Twice."][: len(kept)]


def test_a_reply_that_holds_half_an_item_only_is_unreadable() -> None:
    """There is nothing to keep, so it is asked for once more, with the cut as the reason."""
    with pytest.raises(UnreadableError, match="ends in the middle"):
        read_list('[{"type": "ADD", "content": "Carry wh', "operations")


@pytest.mark.parametrize(
    ("said", "entries"),
    [
        ('{"a-1": "helpful"}', {"a-1": "helpful"}),
        ("{'a-1': 'helpful',}", {"a-1": "helpful"}),
        (
            '[{"id": "a-1", "tag": "helpful"}, {"bullet_id": "b-2", "vote": "harmful"}]',
            {"a-1": "helpful", "b-2": "harmful"},
        ),
        ('[{"a-1": "helpful"}, {"b-2": "harmful"}]', {"a-1": "helpful", "b-2": "harmful"}),
        ("a-1: helpful\n- [b-2] → harmful", {"a-1": "helpful", "b-2": "harmful"}),
        ('{"tags": {"a-1": "helpful"}}', {"a-1": "helpful"}),
        ('{"a-1": "helpful", "b-2": "harm', {"a-1": "helpful", "b-2": "harm"}),
        ({"a-1": "helpful"}, {"a-1": "helpful"}),
        ("[]", {}),
        ("(empty)", {}),
        ("No bullets were cited.", {}),
        (None, {}),
    ],
)
def test_an_object_is_read_in_every_form_models_write_it(said: Any, entries: dict[str, Any]) -> None:
    """JSON, Python, pairs in a list, one pair a line: the same entries."""
    assert read_mapping(said, "tags") == entries


@pytest.mark.parametrize("said", ['["a-1"]', "[1]", "a-1 was of help.", "5", 5, '"x"'])
def test_text_without_an_object_is_unreadable(said: Any) -> None:
    """A list of ids, a number, prose: the error says what was expected."""
    with pytest.raises(UnreadableError, match="tags must be a JSON object"):
        read_mapping(said, "tags")


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=15,
)
_PIECES = st.sampled_from(
    ['{"', '"}', "[", "]", "{", "}", '"', "'", ",", ":", "\\", "\n", "```", "```json\n", "- ", "1. ", "//", "#", "/*",
     "*/", "[[ ## operations ## ]]", "\ud800", "é", "数", " ", "a", "None", "null", "[x-00001]", "type", "::", "\x00"]
)  # fmt: skip
_TEXT = st.text(max_size=200) | st.lists(_PIECES, max_size=40).map("".join) | _JSON.map(json.dumps) | _JSON.map(repr)


@given(_TEXT | _JSON | st.binary(max_size=5))
@example('{"```json0```')  # fails an assertion within json_repair
@settings(max_examples=600, deadline=None)
def test_reading_never_raises_anything_else(said: Any) -> None:
    """Any text and any data is read or is an UnreadableError whose message is valid Unicode once it is printable."""
    for read in (read_list, read_mapping):
        try:
            read(said, "field")
        except UnreadableError as error:
            restored(str(error)).encode()


@given(st.lists(st.text(min_size=1) | st.dictionaries(st.text(min_size=1), st.text()), max_size=5))
def test_valid_json_is_read_as_it_stands(items: list[Any]) -> None:
    """What is right needs no repair."""
    assert read_list(json.dumps(items), "no such key") == items


TORN = "ends in the middle of it"
NO_LIST, NO_OBJECT = "must be a JSON list", "must be a JSON object"


@pytest.mark.parametrize(
    ("said", "items", "entries"),
    [
        ("[" * 50_000, TORN, NO_OBJECT),
        ("[{" * 20_000, TORN, NO_OBJECT),
        ('{"a":' * 20_000, TORN, NO_OBJECT),
        ('["a"' + " " * 50_000, ["a"], NO_OBJECT),
        ('{"a": 1}' + " " * 50_000 + "x", [{"a": 1}], {"a": 1}),
        ("{a}," * 12_000, NO_LIST, NO_OBJECT),
        ("[" + "{a}," * 12_000, TORN, NO_OBJECT),
        ('["a" b, ' * 6_000, TORN, NO_OBJECT),
        ("-" + " " * 50_000, [], {}),
        ("```\n" + "\n" * 50_000, [], {}),
        ('[{"content": "' + "x" * 50_000, TORN, NO_OBJECT),
        ("\n" * 50_000, [], {}),
        ('"' * 50_000, NO_LIST, NO_OBJECT),
        ("}" * 50_000, NO_LIST, NO_OBJECT),
        (("[{'a': " + "'b' c'}, ") * 3_000, TORN, NO_OBJECT),
    ],
    ids=lambda value: f"{value[:8]!r}" if isinstance(value, str) else "",
)
def test_fifty_thousand_characters_that_make_no_sense(said: str, items: Any, entries: Any) -> None:
    """However deep, long or torn a text is: what can be read of it is, and the rest is refused in a short message."""
    for read, expected in ((read_list, items), (read_mapping, entries)):
        if isinstance(expected, str):
            with pytest.raises(UnreadableError, match=expected) as caught:
                read(said, "field")
            assert len(str(caught.value)) < 500
        else:
            assert read(said, "field") == expected


def test_what_a_model_meant_by_its_escapes_is_restored() -> None:
    """A backslash that JSON took for a control character comes back; lone surrogates are replaced, pairs joined."""
    assert restored(json.loads(r'"\frac{1}{2} \beta"')) == r"\frac{1}{2} \beta"
    assert restored("a\ud83d\ude00b\ud800c") == "a\U0001f600b�c"


def test_all_lists_and_objects_of_real_role_replies_are_read() -> None:
    """30 replies of a strong model: every insight, tag and operation is read, item by item."""
    rows = real_replies("formula_roles.jsonl")
    items = 0
    for row in rows:
        said = sections(row["completion"])
        if row["role"] == "reflector":
            assert read_list(said["insights"], "insights") == json.loads(said["insights"])
            assert read_mapping(said["bullet_tags"], "bullet_tags") == json.loads(said["bullet_tags"])
            items += len(json.loads(said["insights"]))
        else:
            assert read_list(said["operations"], "operations") == json.loads(said["operations"])
            items += len(json.loads(said["operations"]))
    assert (len(rows), items) == (30, 19)


def test_junk_of_a_weak_model_is_never_taken_for_a_list() -> None:
    """Playbook echoes and prose are unreadable or nothing; tags one a line, and empty ones, are read."""
    for row in real_replies("finer_gpt-4o-mini.jsonl"):
        for name, text in sections(row["completion"]).items():
            if name in ("additions", "lessons"):
                with pytest.raises(UnreadableError):
                    read_list(text, name)
            elif name == "bullet_tags":
                assert all(word in ("helpful", "harmful") for word in read_mapping(text, name).values())


class Sum(dspy.Signature):  # type: ignore[misc]  # dspy is untyped
    """Write what is asked for."""

    context: str = dspy.InputField()
    note: str = dspy.OutputField()
    items: str = dspy.OutputField()


def ask_sum(lm: Any, parts: dict[str, str] | None = None, max_tokens: int = 1000) -> list[Any]:
    """The items of a reply."""

    def read(fields: Any) -> list[Any]:
        return read_list(fields["items"], "items")

    return ask(dspy.Predict(Sum), parts or {"context": "c"}, ("items",), read, lm, max_tokens=max_tokens)


def test_an_unreadable_reply_is_asked_for_once_more_with_the_error() -> None:
    """Exactly two calls, both counted; the second one shows what was wrong with the first."""
    lm, meter = scripted([chat(note="n", items="prose"), chat(note="n", items=["a"])]), Meter()
    with meter.measure("curator"):
        assert ask_sum(lm) == ["a"]
    assert meter.totals()["curator"].calls == len(lm.script.requests) == 2
    assert "problem_with_last_reply" not in fields_of(lm.script.requests[0])
    assert fields_of(lm.script.requests[1])["problem_with_last_reply"] == "items must be a JSON list; got 'prose'"


@pytest.mark.parametrize("said", ["no field at all", "[[ ## note ## ]]\nn\n\n[[ ## completed ## ]]", ""])
def test_two_unreadable_replies_are_a_role_error(said: str) -> None:
    """There is no third call, and ChatAdapter's own fallback to JSON makes none either."""
    lm = scripted(said)
    with pytest.raises(RoleError, match="in 2 attempts"):
        ask_sum(lm)
    assert len(lm.script.requests) == 2
    assert "note, items" in fields_of(lm.script.requests[1])["problem_with_last_reply"]


def test_a_partly_parsed_reply_is_used() -> None:
    """The required field is there: nothing is paid again for the other."""
    lm = scripted(chat(items=["a"]))
    assert ask_sum(lm) == ["a"]
    assert len(lm.script.requests) == 1


@pytest.mark.parametrize(
    "said",
    [
        '{"note": "n", "items": ["a & b"]}',
        '```json\n{"items": ["a & b"]}\n```',
    ],
)
def test_a_reply_in_another_layout_than_asked_for_is_salvaged(said: str) -> None:
    """A JSON object with the required fields is read without a second call."""
    lm = scripted(said)
    assert ask_sum(lm) == ["a & b"]
    assert len(lm.script.requests) == 1


@pytest.mark.parametrize("adapter", [dspy.JSONAdapter(), dspy.XMLAdapter(), dspy.ChatAdapter(), None])
def test_a_role_is_asked_through_a_chat_adapter_whatever_the_user_configured(adapter: Any) -> None:
    """The program's adapter, made for other texts, does not reach the roles; it is left as it is."""
    lm, before = scripted(chat(note="n", items=["it's", "b"])), dict(vars(adapter or object))
    with dspy.context(adapter=adapter):
        assert ask_sum(lm) == ["it's", "b"]
    assert dict(vars(adapter or object)) == before
    assert len(lm.script.requests) == 1
    system, question = (message["content"] for message in lm.script.requests[0])
    assert "headers [[ ## name ## ]], with [[ ## completed ## ]] last." in system
    assert question.startswith("[[ ## ")


def test_an_error_of_the_language_model_passes_through() -> None:
    """A refused call is no unreadable reply: it is not asked again here."""
    lm = scripted(rate_limited())
    with pytest.raises(dspy.utils.exceptions.LMError):
        ask_sum(lm)
    assert len(lm.script.requests) == 1


def test_the_language_model_given_is_asked_and_leaves_no_trace() -> None:
    """It goes before the one in force; the caller's trace stays empty."""
    mine, other = scripted(chat(note="n", items=["a"])), scripted("x")
    with dspy.context(lm=other, trace=[]):
        assert ask_sum(mine) == ["a"]
        assert dspy.settings.trace == []
    assert other.script.requests == []


@given(st.lists(_PIECES | st.text(max_size=30), max_size=60).map("".join), st.integers(1, 60), st.integers(60, 400))
@settings(max_examples=60, deadline=None)
def test_a_prompt_is_bounded_and_safe_whatever_is_in_it(piece: str, times: int, bound: int) -> None:
    """Size as promised; no marker of an adapter and no lone surrogate reaches the model."""
    lm = scripted(chat(note="n", items=["a"]))
    ask_sum(lm, {"context": piece * times}, bound)
    sent = lm.script.requests[0][-1]["content"]
    sent.encode()
    assert count_tokens(sent) <= bound + 200
    assert "[[ ## operations" not in sent


def test_the_error_in_a_second_prompt_is_bounded_and_safe() -> None:
    """A huge reply full of markers is quoted briefly and defused."""
    lm = scripted([chat(note="n", items="数[[ ## note ## ]] " * 5000), chat(note="n", items=["a"])])
    assert ask_sum(lm) == ["a"]
    problem = fields_of(lm.script.requests[1])["problem_with_last_reply"]
    assert count_tokens(problem) <= 200
    assert "[[ ##" not in problem


@pytest.mark.parametrize(
    "piece",
    [
        "[",
        "[{",
        '{"a":',
        "{a},",
        '["',
        '["a" b, ',
        '["a", {"b": "say "x", y"},',
        '{"a": 1 "b" 2}\n',
        "- a\n",
        "a: [\n",
        '"',
    ],
)
def test_a_megabyte_of_hostile_text_is_read_in_a_second(piece: str) -> None:
    """Whatever it is made of, it is read or refused at once, in time that grows with its length at most."""
    text = piece * (1_000_000 // len(piece))
    for read in (read_list, read_mapping):
        started = time.process_time()
        with contextlib.suppress(UnreadableError):
            read(text, "field")
        assert time.process_time() - started < 1.0


def test_a_runaway_list_is_cut() -> None:
    """Of five thousand operations two hundred are read, and the rest is named."""
    items = read_list(json.dumps([ADD] * 5_000), "operations")
    assert items[:200] == [ADD] * 200
    assert [item.reason for item in items[200:]] == ["more than 200 items"]
