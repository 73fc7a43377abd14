"""Token counts and a provider-like prompt cache, both deterministic.

A token is a run of up to eight letters, of up to three digits, or one other visible character. The count is close
to what common tokenizers give for English prose, needs no vocabulary, and is the same on every machine.


Which role a request wants filled, told by the shape of the request alone.

One request in, one reply out: reading, role, noise. A pure function of the request, the knobs and the salt.

The offline provider without DSPy: one request in, one reply with usage out, everything logged.
"""

from __future__ import annotations

import asyncio
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from .agent import is_step, step
from .answer import answer
from .curate import curate
from .evidence import Verdict
from .noise import FAULTS, Dice, Knobs, spoil
from .propose import asks_for_text, propose
from .reflect import reflect
from .reply import write
from .request import Ask, Request, read

_TOKEN = re.compile(r"[^\W\d_]{1,8}|\d{1,3}|[^\w\s]|_")


def count_tokens(text: str) -> int:
    """Number of tokens in `text`."""
    return len(_TOKEN.findall(text))


class PrefixCache:
    """Remembers prompt prefixes in whole blocks, as provider prompt caches do. Thread-safe.

    Args:
        block: tokens per block; only whole blocks are shared.
        minimum: shared prefixes shorter than this many tokens count as nothing.
    """

    def __init__(self, block: int = 128, minimum: int = 1024) -> None:
        self.block = max(1, block)
        self.minimum = max(0, minimum)
        self._seen: set[int] = set()
        self._lock = threading.Lock()

    def visit(self, text: str) -> int:
        """Tokens of the longest known prefix of `text` (0 below `minimum`); `text` is known from now on."""
        pieces = _TOKEN.findall(text)
        keys: list[int] = []
        key = 0
        for start in range(0, len(pieces) - self.block + 1, self.block):
            key = hash((key, tuple(pieces[start : start + self.block])))
            keys.append(key)
        with self._lock:
            known = next((i for i, key in enumerate(keys) if key not in self._seen), len(keys))
            self._seen.update(keys)
        shared = known * self.block
        return shared if shared >= self.minimum else 0

    def clear(self) -> None:
        """Forget every prefix."""
        with self._lock:
            self._seen.clear()


def clip_tokens(text: str, limit: int | None) -> tuple[str, bool]:
    """The first `limit` tokens of `text`, and whether something was cut."""
    if limit is None:
        return text, False
    for number, match in enumerate(_TOKEN.finditer(text)):
        if number >= limit:
            return text[: match.start()].rstrip(), True
    return text, False


TASK, REFLECTOR, CURATOR, PROPOSER = "task", "reflector", "curator", "proposer"


def role_of(ask: Ask) -> str:
    """`task`, `reflector`, `curator` or `proposer`."""
    names, given = ask.asks_for, set(ask.values) | {f.name for f in ask.inputs}
    if "operations" in names and any("playbook" in name or "review" in name for name in given):
        return CURATOR
    if any("insight" in name for name in names) or "bullet_tags" in names:
        return REFLECTOR
    return PROPOSER if asks_for_text(ask) else TASK


Answerer = Callable[[Ask, Dice], tuple[str, dict[str, Any]] | None]
"""Answers one sort of request: (request as read, dice for it) → (role for the log, output field → value).

None leaves the request to the next answerer. It depends on its two arguments alone.
"""

_OPEN = 0.3
"""Margin below which samples of one request may differ."""


@dataclass(frozen=True)
class Reply:
    """The reply text and the role it was written in."""

    text: str
    role: str


def respond(request: Request, knobs: Knobs, salt: str = "", answerers: Sequence[Answerer] = ()) -> Reply:
    """Reply to `request`: the first of `answerers` that answers it, else the offline model itself.

    Args:
        request: the chat request.
        knobs: how the model behaves; `unparsable` applies to the replies of `answerers`, too.
        salt: tells apart samples of one request (a rollout id).
        answerers: asked in their order, before the model's own roles.
    """
    ask = read(request)
    dice = Dice(f"{knobs.seed}\x1f{salt}\x1f{request.text}")
    answers = (answered for answerer in answerers for answered in (answerer(ask, dice),) if answered is not None)
    role, values = next(answers, None) or _own_answer(ask, knobs, dice, bool(salt))
    text = write(ask, values)
    if dice.happens("unparsable", knobs.unparsable):
        text = spoil(text, dice)
    return Reply(text, role)


def _own_answer(ask: Ask, knobs: Knobs, dice: Dice, sampled: bool) -> tuple[str, dict[str, Any]]:
    role = role_of(ask)
    if role == REFLECTOR:
        wording = 1 + dice.below("wording", 3) if dice.happens("paraphrase", knobs.paraphrase) else 0
        values = reflect(ask, wording, dice.happens("wrong_lessons", knobs.wrong_lessons))
    elif role == CURATOR:
        values = curate(ask, dice.happens("junk", knobs.junk))
    elif role == PROPOSER:
        values = propose(ask, dice, knobs.rewrite_limit)
    elif is_step(ask):
        values = step(ask)
    else:
        values = answer(ask, lambda name, verdict: _pick(dice, knobs, sampled, name, verdict)).values
    return role, values


def _pick(dice: Dice, knobs: Knobs, sampled: bool, name: str, verdict: Verdict) -> int:
    """The option answered: among samples of one request those that the evidence leaves open differ; then slips."""
    best = verdict.best
    if sampled and verdict.margin < _OPEN:
        ranked = sorted(range(len(verdict.scores)), key=lambda i: (-verdict.scores[i], i))
        close = [i for i in ranked if verdict.scores[i] >= (1 - _OPEN) * verdict.scores[best]] or ranked
        best = close[dice.below(f"sample {name}", len(close))]
    return dice.other(f"slip {name}", best, len(verdict.scores), knobs.slips)


_FAULTS = {
    "rate_limit": (429, "offline: rate limit reached"),
    "server_error": (503, "offline: the server is overloaded"),
    "timeout": (408, "offline: the request timed out"),
    "context_overflow": (400, "offline: This model's maximum context length is exceeded"),
    "auth": (401, "offline: Incorrect API key provided"),
}


class FaultError(Exception):
    """A provider fault that was asked for. `kind`: one of `FAULTS`; `status`: the HTTP status it stands for."""

    def __init__(self, kind: str, detail: str = "") -> None:
        self.kind = kind
        self.status, message = _FAULTS[kind]
        super().__init__(message + (f" ({detail})" if detail else ""))


@dataclass(frozen=True)
class Record:
    """One request received. Tokens are counted by `count_tokens`; `cached` of the prompt tokens came from the prefix
    cache; `fault` is the name of the fault that was raised instead of a reply, or None.
    """

    role: str
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    fault: str | None
    request: str
    reply: str


@dataclass(frozen=True)
class Served:
    """A reply with its usage in tokens. `truncated`: it was cut at `max_tokens`."""

    text: str
    role: str
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    truncated: bool
    seconds: float


class Log:
    """Records of all requests, in the order they were finished. Thread-safe; shared by copies of a model."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._records: list[Record] = []

    def add(self, record: Record) -> int:
        """Append a record; returns its number, from 1."""
        with self._lock:
            self._records.append(record)
            return len(self._records)

    def records(self) -> list[Record]:
        """A copy of the records so far."""
        with self._lock:
            return list(self._records)

    def clear(self) -> None:
        """Forget all records."""
        with self._lock:
            self._records.clear()

    def __len__(self) -> int:
        with self._lock:
            return len(self._records)


class Backend:
    """Serves requests under some knobs. Copies (deep ones too) are the same machine: one log, one prefix cache."""

    def __init__(
        self,
        knobs: Knobs,
        answerers: Sequence[Answerer] = (),
        log: Log | None = None,
        cache: PrefixCache | None = None,
    ) -> None:
        self.knobs = knobs
        self.answerers = tuple(answerers)
        self.log = Log() if log is None else log
        self.cache = PrefixCache(knobs.cache_block, knobs.cache_minimum) if cache is None else cache
        self._attempts: Counter[int] = Counter()
        self._lock = threading.Lock()

    def __deepcopy__(self, memo: dict[int, Any]) -> Backend:
        return self

    def __copy__(self) -> Backend:
        return self

    def with_knobs(self, **changes: Any) -> Backend:
        """A machine with other knobs that writes to the same log."""
        return Backend(replace(self.knobs, **changes), self.answerers, self.log, self.cache)

    def serve(self, request: Request, salt: str = "", max_tokens: int | None = None) -> Served:
        """Answer after the latency that the knobs ask for.

        Raises:
            FaultError: a fault that the knobs ask for, after the fixed latency.
        """
        served, fault = self._work(request, salt, max_tokens)
        time.sleep(served.seconds)
        if fault:
            raise fault
        return served

    async def aserve(self, request: Request, salt: str = "", max_tokens: int | None = None) -> Served:
        """As `serve`, without blocking the event loop while it waits."""
        served, fault = self._work(request, salt, max_tokens)
        await asyncio.sleep(served.seconds)
        if fault:
            raise fault
        return served

    def _work(self, request: Request, salt: str, max_tokens: int | None) -> tuple[Served, FaultError | None]:
        text = request.text
        prompt = count_tokens(text)
        fault = self._fault(text, salt, prompt)
        reply = respond(request, self.knobs, salt, self.answerers)  # for a fault as well: the log names the role
        if fault:
            self.log.add(Record(reply.role, prompt, 0, 0, fault.kind, text, ""))
            return Served("", reply.role, prompt, 0, 0, False, self.knobs.latency), fault
        said, truncated = clip_tokens(reply.text, max_tokens)
        cached = self.cache.visit(text) if self.knobs.prefix_cache else 0
        completion = count_tokens(said)
        self.log.add(Record(reply.role, prompt, cached, completion, None, text, said))
        return Served(
            said,
            reply.role,
            prompt,
            cached,
            completion,
            truncated,
            self._seconds(prompt - cached, completion),
        ), None

    def _seconds(self, uncached: int, completion: int) -> float:
        knobs = self.knobs
        written = completion * knobs.latency_per_completion_token
        return knobs.latency + uncached * knobs.latency_per_prompt_token + written

    def _fault(self, text: str, salt: str, prompt: int) -> FaultError | None:
        window = self.knobs.context_window
        if window is not None and prompt > window:
            return FaultError("context_overflow", f"{prompt} tokens, {window} allowed")
        if not any(self.knobs.faults.values()):
            return None
        key = hash((text, salt))
        with self._lock:
            attempt = self._attempts[key]
            self._attempts[key] += 1
        dice = Dice(f"{self.knobs.seed}\x1f{salt}\x1f{attempt}\x1f{text}")
        hit = next((kind for kind in FAULTS if dice.happens(kind, self.knobs.faults.get(kind, 0.0))), None)
        return FaultError(hit) if hit else None
