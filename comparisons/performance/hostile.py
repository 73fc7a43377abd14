"""The growth of time with the size of hostile text: `python -m comparisons.performance.hostile`.

What a model or a file may hold at its worst: brackets without end, items cut in two, space where nothing is expected,
lessons that differ in a number only. Each input is made at size n, 2n and 4n and read in one run; `growth` is the time
over that at half the size, from n to 2n and from 2n to 4n: 2 is linear, 4 is quadratic. A growth of more than 3 that
ends in more than a hundredth of a second is marked `✗`; what tells all lessons apart pair by pair is quadratic by
nature, and says so.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import dspy

from dspy_ace import Bullet, GrowAndRefine, OnlineACE, Playbook
from dspy_ace.lm import UnreadableError, read_list, read_mapping
from dspy_ace.playbook import count_tokens, cut_middle
from dspy_ace.similarity import agree
from dspy_ace.testing import OfflineLM
from dspy_ace.testing.backend import Served

from .timing import machine, timed

LONG, VERY_LONG = 0.2, 2.0  # seconds; what takes longer is repeated once, or not at all
STEEP, WORTH = 3.0, 0.01  # growth that is marked, of times of so many seconds or more


@dataclass(frozen=True)
class Input:
    """One kind of hostile input.

    Args:
        what: it is, in words.
        make: size → the input; of a text the size is its length in characters, about.
        work: what is timed: done to the input.
    """

    what: str
    make: Callable[[int], Any]
    work: Callable[[Any], Any]


def read(said: str) -> None:
    """Read a reply as a list and as an object."""
    for reader in (read_list, read_mapping):
        with suppress(UnreadableError):
            reader(said, "field")


def repeated(piece: str, before: str = "", after: str = "") -> Callable[[int], str]:
    """Size → `piece` as often as makes so many characters, between `before` and `after`."""
    return lambda size: before + piece * (size // len(piece)) + after


REPLIES: tuple[tuple[str, Callable[[int], str]], ...] = (
    ("lists in lists without end", repeated("[")),
    ("objects in lists without end", repeated("[{")),
    ("objects in objects without end", repeated('{"a":')),
    ("a list that ends in space", repeated(" ", '["a"')),
    ("an object, space, a word", repeated(" ", '{"a": 1}', "x")),
    ("a list, space, a word", repeated(" ", "[1]", "x")),
    ("sets of a bare word", repeated("{a},")),
    ("a list of sets of a bare word", repeated("{a},", "[")),
    ("a list in which each item opens another", repeated('["a" b, ')),
    ("the same with objects", repeated("[{'a': 'b' c'}, ")),
    ("a list of objects with a stray word", repeated('{"a": "b" c}, ', "[", "]")),
    ("lines of objects with a stray number", repeated('{"a": 1 2}\n')),
    ("lines of torn lists", repeated('["a" b\n')),
    ("lines that promise a list", repeated("- a: [x\n")),
    ("quotes within a quoted item", repeated("' b ", "['a")),
    ("a string that never ends", repeated("x", '[{"content": "')),
    ("backslashes that never end", repeated("\\", '["')),
    ("comments that never end", repeated(" /*", '["a" x')),
    ("a mark of a list, then space", repeated(" ", "-")),
    ("a word, space, a word", repeated(" ", "a", "b")),
    ("a fence around empty lines", repeated("\n", "```\n")),
    ("quotes alone", repeated('"')),
    ("closing braces alone", repeated("}")),
    ("items of which each has lines below it", repeated("- a\n  b\n\n")),
)


def _headers(size: int) -> str:
    return "\n".join(f"## S{at}\n[b-{at}] x" for at in range(1, size // 15))


def _look_alikes(size: int) -> Playbook:
    """A lesson of some 60 characters as often as makes the size, each time with a number of its own."""
    lesson = "Retry a failed upload {} times before you tell the user of it."
    return Playbook(tuple(Bullet(f"a-{at}", "S", lesson.format(at)) for at in range(1, 1 + size // 60)))


def _two_long(size: int) -> Playbook:
    """Two lessons of half the size that are the same but for the first word."""
    rest = " ".join(f"word{at} step" for at in range(size // 28))
    return Playbook((Bullet("a-1", "S", f"Always {rest}"), Bullet("a-2", "S", f"Never {rest}")))


def _refined(playbook: Playbook) -> Any:
    return GrowAndRefine()(playbook)


_numbers = itertools.count()


def _new(text: str) -> str:
    """The text as no text was before: what is found of short texts is remembered."""
    return f"{next(_numbers)} {text}"


def _told_apart(text: str) -> Any:
    """What the guard of near-duplicates says of two lessons that differ in their last word."""
    lesson = _new(text)
    return agree(f"{lesson} end", f"{lesson} stop")


def _answered(reply: str) -> Any:
    """A call of a program that is asked for citations, by a model that gives this reply and takes no time for it."""
    lm, said = OfflineLM(), Served(reply, "task", 10, 0, 10, False, 0.0)
    lm.backend.serve = lambda *_: said  # type: ignore[method-assign]  # as a hostile model
    playbook = Playbook((Bullet("a-1", "S", "Say yes."),))
    with dspy.context(lm=lm), OnlineACE(dspy.Predict("message -> answer"), playbook=playbook, learn="manual") as online:
        return online(message="Hello")


def _there_and_back(playbook: Playbook) -> None:
    """A playbook through the text format, and as a prompt."""
    if Playbook.from_text(playbook.to_text()) != playbook:
        raise RuntimeError("the text format lost something of the playbook")
    playbook.render()


INPUTS = (
    *(Input(f"reply: {what}", make, read) for what, make in REPLIES),
    Input(
        "playbook: one bullet of many lines",
        lambda size: Playbook((Bullet("a-1", "S", "\n".join("line" for _ in range(size // 5))),)),
        _there_and_back,
    ),
    Input("playbook: many sections of one bullet", _headers, partial(Playbook.from_text, strict=False)),
    Input("playbook: new bullets of one letter", repeated("- a\n"), Playbook.from_text),
    Input("playbook: an id that never ends", repeated("-1", "[a", " x"), partial(Playbook.from_text, strict=False)),
    Input("playbook: brackets that open no bullet", repeated("[a] x\n"), partial(Playbook.from_text, strict=False)),
    Input(
        "prompt: markers of fields, and space behind them",
        lambda size: Bullet("a-1", "S", "x " + "[[ ## a ## ]] " * (size // 28) + "[[" + " " * (size // 2) + "x"),
        lambda bullet: Playbook((bullet,)).render(),
    ),
    Input("tokens: space alone", repeated(" "), lambda text: count_tokens(_new(text))),
    Input("tokens: signs and letters in turns", repeated("a+"), lambda text: count_tokens(_new(text))),
    Input(
        "cut: all tokens at the two ends",
        lambda size: "+ ! " * (size // 40) + " " * (size * 4 // 5) + "+ ! " * (size // 40),
        lambda text: cut_middle(_new(text), 50),
    ),
    Input(
        "call: empty lines behind the citations",
        repeated("\n", "[[ ## answer ## ]]\nyes\n\n[[ ## cited_bullets ## ]]\nx", "y"),
        _answered,
    ),
    Input(
        "call: a reply of headers",
        repeated("[[ ## cited_bullets ## ]]\n", "[[ ## answer ## ]]\nyes\n\n"),
        _answered,
    ),
    Input("guard: empty lines", repeated("\n", "x", "y"), _told_apart),
    Input("guard: bold that never ends", repeated("**a "), _told_apart),
    Input("guard: quotes that never end", repeated("'a "), _told_apart),
    Input("guard: brackets that never end", repeated("("), _told_apart),
    Input("guard: words in a chain of hyphens", repeated("-a"), _told_apart),
    Input("guard: dots alone", repeated("."), _told_apart),
    Input("guard: one word", repeated("a"), _told_apart),
    Input("refine: two long lessons, one word apart", _two_long, _refined),
    Input("refine: lessons that differ in a number only", _look_alikes, _refined),
)


def lowest(case: Input, size: int, repetitions: int) -> float:
    """Seconds of the fastest of so many times and one, each on an input made anew; fewer if it takes long."""
    made: list[Any] = []
    first = timed(lambda: case.work(made.pop()), 1, lambda: made.append(case.make(size)))
    slow = first.wall[0] > LONG, first.wall[0] > VERY_LONG
    again = timed(lambda: case.work(made.pop()), (repetitions, 1, 0)[sum(slow)], lambda: made.append(case.make(size)))
    return min(first.wall + again.wall)


def line(case: Input, size: int, repetitions: int) -> str:
    """The row of one input: milliseconds at size, 2 · size and 4 · size, and how they grow."""
    seconds = [lowest(case, size * factor, repetitions) for factor in (1, 2, 4)]
    growth = [after / before for before, after in itertools.pairwise(seconds)]
    steep = min(growth) > STEEP and seconds[-1] > WORTH
    mark = " ✗" if steep else ""
    times = " | ".join(f"{second * 1e3:.3g}" for second in seconds)
    return f"| {case.what} | {times} | {growth[0]:.1f}, {growth[1]:.1f}{mark} |"


def table(size: int, repetitions: int) -> Iterator[str]:
    """The lines of the table, each as soon as it is measured."""
    yield f"| input | n = {size:,}: ms | 2n | 4n | growth |"
    yield "|---|---|---|---|---|"
    for case in INPUTS:
        yield line(case, size, repetitions)


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--size", type=int, default=10_000, help="n, in characters (default: 10000)")
    parser.add_argument("--repetitions", type=int, default=5, help="the fastest counts (default: 5)")
    args = parser.parse_args(argv)
    dspy.disable_logging()
    _refined(_look_alikes(200))  # imports and word tables are no part of it
    print(f"{machine()}; n characters, the fastest of {args.repetitions + 1}.\n")
    for row in table(args.size, args.repetitions):
        print(row, flush=True)


if __name__ == "__main__":
    main()
