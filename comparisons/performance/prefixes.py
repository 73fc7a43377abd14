"""A provider's prompt cache, simulated: what of each prompt was served by those before it."""

from __future__ import annotations

import re
import sys
from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import astuple, dataclass
from functools import lru_cache

BLOCK, MINIMUM = 128, 1024  # tokens, as OpenAI documents its prompt cache

_TOKEN = re.compile(r"\s*(?:[^\W\d_]{1,8}|\d{1,3}|[^\w\s]|_)|\s+")


@lru_cache(maxsize=1024)
def tokens_of(text: str) -> tuple[str, ...]:
    """The tokens of a text; put together they are the text."""
    return tuple(map(sys.intern, _TOKEN.findall(text)))


@dataclass(frozen=True)
class Request:
    """One LM call.

    Args:
        role: whose it is; `inference` once the program is compiled.
        part: the start of the prompt, up to the end of what is looked at.
        rest: what follows.
        began, ended: moments, counted from 0 over all calls; -1: it has not ended.
        version: steps that were done when it began.
    """

    role: str
    part: str
    rest: str
    began: int
    ended: int = -1
    version: int = 0


class Held:
    """The prompts that a cache holds, sorted: what shares the longest prefix with a new one would stand beside it."""

    def __init__(self) -> None:
        self._prompts: list[tuple[str, ...]] = []

    def shared(self, prompt: tuple[str, ...]) -> int:
        """Tokens that `prompt` shares from its start with one of them, at most."""
        at = bisect_left(self._prompts, prompt)
        return max((_common(prompt, near) for near in self._prompts[max(0, at - 1) : at + 1]), default=0)

    def add(self, prompt: tuple[str, ...]) -> None:
        """Hold one more."""
        at = bisect_left(self._prompts, prompt)
        if self._prompts[at : at + 1] != [prompt]:
            self._prompts.insert(at, prompt)


def _common(first: tuple[str, ...], second: tuple[str, ...]) -> int:
    """Tokens that two prompts share from their start."""
    pairs = zip(first, second, strict=False)
    return next((at for at, (a, b) in enumerate(pairs) if a != b), min(len(first), len(second)))


def in_blocks(shared: int) -> int:
    """Return the tokens of a shared prefix that are served in whole blocks, from the least length on."""
    return shared - shared % BLOCK if shared >= MINIMUM else 0


@dataclass(frozen=True)
class Share:
    """The tokens served, added up over requests. Two add up.

    Args:
        calls: requests.
        tokens: of the parts looked at.
        exact, blocks: of these, served by either rule.
        short: requests whose part is too short to be served whole by blocks.
        long_tokens, long_blocks: `tokens` and `blocks` of the others.
    """

    calls: int = 0
    tokens: int = 0
    exact: int = 0
    blocks: int = 0
    short: int = 0
    long_tokens: int = 0
    long_blocks: int = 0

    def __add__(self, other: Share) -> Share:
        return Share(*map(sum, zip(astuple(self), astuple(other), strict=True)))


def share_of(part: int, shared: int) -> Share:
    """One request: the tokens of its part, and those that its prompt shares with an earlier one."""
    exact, blocks, long = min(part, shared), min(part, in_blocks(shared)), part >= MINIMUM
    return Share(1, part, exact, blocks, int(not long), part * long, blocks * long)


def served(requests: Iterable[Request], held: Held, *, begun: bool = False) -> list[Share]:
    """Return what a cache serves of each request, in the order they began.

    Args:
        requests: all of one model.
        held: what the cache holds already; it goes on with these.
        begun: a prompt serves others as soon as its call has begun; else when it has ended.
    """
    ordered = sorted(requests, key=lambda request: request.began)
    moments = [(request.began, False, request) for request in ordered]
    moments += [(request.began if begun else request.ended, True, request) for request in ordered if request.ended >= 0]
    shares = []
    for _, known, request in sorted(moments, key=lambda moment: moment[:2]):
        part = tokens_of(request.part)
        prompt = part + tokens_of(request.rest)
        if known:
            held.add(prompt)
        else:
            shares.append(share_of(len(part), held.shared(prompt)))
    return shares


def total(each: Iterable[Share]) -> Share:
    """All added up."""
    return sum(each, Share())
