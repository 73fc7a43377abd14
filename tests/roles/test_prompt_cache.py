"""What the benchmark of the prompt cache counts, and that a compile keeps to what a cache can serve."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comparisons.performance import cache
from comparisons.performance.prefixes import BLOCK, MINIMUM, Held, Request, Share, in_blocks, served, tokens_of, total
from comparisons.tasks import load_task
from dspy_ace import Playbook
from dspy_ace.testing.backend import PrefixCache, count_tokens


def words(count: int, last: str = "") -> str:
    """So many tokens; the last one may be another word."""
    return " ".join(["word"] * (count - bool(last)) + ([last] if last else []))


def request(part: str, rest: str, began: int, ended: int) -> Request:
    return Request("task", part, f"\n{rest}", began, ended)


@given(st.text())
def test_tokens_lose_nothing(text: str) -> None:
    """Put together, the tokens are the text; there are as many as elsewhere, white space at the end aside."""
    tokens = tokens_of(text)
    assert "".join(tokens) == text
    assert len(tokens) - count_tokens(text) == (text != "" and text[-1].isspace())


@pytest.mark.parametrize(
    ("shared", "expected"),
    [
        (0, 0),
        (MINIMUM - 1, 0),
        (MINIMUM, MINIMUM),
        (MINIMUM + BLOCK - 1, MINIMUM),
        (MINIMUM + BLOCK, MINIMUM + BLOCK),
    ],
)
def test_blocks_have_edges(shared: int, expected: int) -> None:
    """Nothing below 1,024 tokens, then whole blocks of 128."""
    assert in_blocks(shared) == expected


def test_the_longest_shared_prefix_is_found() -> None:
    """Whichever of the earlier prompts has it; a difference in white space alone ends it."""
    held = Held()
    assert held.shared(tokens_of("a b c")) == 0
    for text in ("a b c d", "a x", "b", "a b c d"):
        held.add(tokens_of(text))
    assert held.shared(tokens_of("a b c e")) == 3
    assert held.shared(tokens_of("a b")) == 2
    assert held.shared(tokens_of("a b c d e")) == 4
    assert held.shared(tokens_of("a  b c d")) == 1
    assert held.shared(tokens_of("c")) == 0


def test_what_is_served_agrees_with_the_offline_servers_cache() -> None:
    """Of prompts that come one after the other both serve the same, by blocks and token by token."""
    chance = random.Random(0)
    stem = [chance.choice("abcdefgh") * 3 for _ in range(2000)]
    texts = [
        " ".join(stem[: (cut := chance.randrange(2000))] + [chance.choice("xyz")] * (2000 - cut)) for _ in range(40)
    ]
    held, blocks, single = Held(), PrefixCache(), PrefixCache(block=1, minimum=0)
    for text in texts:
        shared = held.shared(tokens_of(text))
        assert (in_blocks(shared), shared) == (blocks.visit(text), single.visit(text))
        held.add(tokens_of(text))


def test_a_sequence_of_prompts_is_counted() -> None:
    """The first is served nothing, a longer one what it shares, one that repeats all of its part, by blocks as well."""
    sequence = [
        request(words(1100), "one", 0, 1),
        request(words(1300, "new"), "two", 2, 3),
        request(words(1300, "new"), "three", 4, 5),
        request(words(500), "four", 6, 7),
    ]
    each = served(sequence, Held())
    assert [share.tokens for share in each] == [1100, 1300, 1300, 500]
    assert [share.exact for share in each] == [0, 1100, 1300, 500]
    assert [share.blocks for share in each] == [0, 1024, 1280, 0]
    assert total(each) == Share(
        calls=4, tokens=4200, exact=2900, blocks=2304, short=1, long_tokens=3700, long_blocks=2304
    )


def test_a_prompt_serves_others_when_its_call_has_ended_or_begun() -> None:
    """Calls that overlap serve each other by the generous rule alone; one that never ends serves nobody."""
    two = [request(words(10), "one", 0, 2), request(words(10), "two", 1, 3), request(words(10), "three", 4, 5)]
    assert [share.exact for share in served(two, Held())] == [0, 0, 10]
    assert [share.exact for share in served(two, Held(), begun=True)] == [0, 10, 10]
    assert [share.exact for share in served([replace(one, ended=-1) for one in two], Held())] == [0, 0, 0]


def test_a_cache_goes_on_with_what_it_holds() -> None:
    """What one role left in it serves the next."""
    held = Held()
    served([request(words(10), "one", 0, 1)], held)
    assert served([request(words(10), "two", 2, 3)], held)[0].exact == 10


def test_the_curators_part_ends_with_the_playbook() -> None:
    """The system prompt and the playbook are looked at; what stands behind it is the rest."""
    user = "[[ ## playbook ## ]]\n[str-00001] (S) One.\n\n[[ ## sections ## ]]\nS"
    part, rest = cache.parted("curator", [("system", "Keep it."), ("user", user)])
    assert part.endswith("[str-00001] (S) One.")
    assert rest == "\n\n[[ ## sections ## ]]\nS"
    assert cache.parted("task", [("system", "Do it."), ("user", "now")]) == ("<system>\nDo it.", "\n<user>\nnow")
    with pytest.raises(ValueError, match="behind the playbook"):
        cache.parted("curator", [("system", "Keep it."), ("user", "now")])


@pytest.fixture(scope="module")
def made() -> cache.Run:
    """A compile with one thread from a playbook of 40 bullets, and 60 held-out messages through what came out."""
    return cache.run(load_task("quickstart").cut(48, 16, 60), threads=1, bullets=40)


@pytest.mark.slow
def test_a_compile_is_served_from_the_cache(made: cache.Run) -> None:
    """Nine tenths of the task's system prompts, half of the curator's part, nearly all at inference."""
    found = cache.shares(made)
    ratio = {role: share.exact / share.tokens for role, share in found.items() if share.tokens}
    assert ratio["task"] >= 0.90
    assert ratio["curator"] >= 0.50  # three calls, one a batch: the first finds nothing, an update breaks the prefix
    assert ratio["reflector"] >= 0.90
    assert ratio["inference"] >= 0.98
    assert ratio["cold"] >= 0.98
    assert found["retries"].calls > 0
    assert found["first"].calls > 1
    assert found["inference"].calls == found["cold"].calls == 60
    assert found["task"].blocks <= found["task"].exact
    assert shares_add_up(made, found)


def shares_add_up(made: cache.Run, found: dict[str, Share]) -> bool:
    """Whether every call of the run is in one role."""
    roles = ("task", "curator", "reflector", "inference")
    return sum(found[role].calls for role in roles) == len(made.requests)


@pytest.mark.slow
def test_votes_in_the_prompt_would_break_the_prefix() -> None:
    """A playbook that only grows keeps what is cached; with counters more prompts are new, and less of each is held."""
    made = cache.run(load_task("quickstart").cut(32, 8, 1), threads=1, adds_only=True, epochs=3, batch_size=8)
    formats = (made.of("task"), *(made.in_the_papers_format(counters=counters) for counters in (False, True)))
    ours, plain, counted = (cache.parts(requests, served(requests, Held()))["first"] for requests in formats)
    assert ours.calls == plain.calls < counted.calls
    assert counted.exact / counted.tokens < min(ours.exact / ours.tokens, plain.exact / plain.tokens) - 0.2
    assert any("helpful=1" in request.part for request in formats[2])
    assert not any("helpful=" in request.part for request in (*formats[0], *formats[1]))
    assert made.operations["tag"] > 0


@pytest.mark.slow
def test_a_playbook_of_no_step_is_an_error(made: cache.Run) -> None:
    """A prompt that cannot be written in the other format is not passed over in silence."""
    with pytest.raises(ValueError, match="no step made"):
        cache.rewritten(made.of("task")[-1], [Playbook()], counters=True)


@pytest.mark.slow
def test_the_benchmark_tells_each_role(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """One table under the name of the machine, a line for each role and part of one."""
    task = load_task("quickstart").cut(32, 8, 8)
    monkeypatch.setattr(cache, "load_task", lambda name: task)
    monkeypatch.setattr(cache, "CASES", {"small": {"adds_only": True}})
    cache.main(["--cases", "small", "--threads", "2", "--scale", "0"])
    lines = capsys.readouterr().out.splitlines()
    assert "cores" in lines[0]
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("|")]
    assert {len(row) for row in cells} == {12}
    roles = [row[1] for row in cells[2:]]
    assert roles[:3] == ["task", cache.TITLES["first"], cache.TITLES["retries"]]
    assert {"curator", "reflector", "inference", cache.TITLES["cold"]} <= set(roles)
    assert next(row for row in cells if row[1] == "inference")[2] == "8"
