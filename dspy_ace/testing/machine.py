"""The offline provider without DSPy: one request in, one reply with usage out, everything logged."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from .brain import Answerer, respond
from .noise import FAULTS, Dice, Knobs
from .reader import Request
from .tokens import PrefixCache, clip_tokens, count_tokens

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


class Machine:
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

    def __deepcopy__(self, memo: dict[int, Any]) -> Machine:
        return self

    def __copy__(self) -> Machine:
        return self

    def with_knobs(self, **changes: Any) -> Machine:
        """A machine with other knobs that writes to the same log."""
        return Machine(replace(self.knobs, **changes), self.answerers, self.log, self.cache)

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
