"""The offline model without DSPy: a request in, a reply with its usage out, everything logged.

How a request becomes a reply:

| file | job |
|---|---|
| `request` · `reply` | a chat request as fields and values · values in the types and format that it asks for |
| `words` · `calculate` | stems and sentences · numbers and written formulas, worked out without running code |
| `statements` · `evidence` | possible answers and the sentences that name them · a score for each answer |
| `answer` · `agent` | the task model: a value for each field · the next step of an agent |
| `reflect` · `curate` | the Reflector and the Curator |
| `noise` · `backend` | deliberate imperfections · who answers, faults, latency, usage, log |
| `offline` · `server` | the DSPy model · the same model as an OpenAI-compatible HTTP server |

An answerer of your own may use all of them.

A token is a run of up to eight letters, of up to three digits, or one other visible character. The count is close to
that of common tokenizers for English prose, needs no vocabulary, and is the same everywhere.
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
from .reflect import reflect
from .reply import write
from .request import Ask, Request, read

TASK, REFLECTOR, CURATOR = "task", "reflector", "curator"

Answerer = Callable[[Ask, Dice], tuple[str, dict[str, Any]] | None]
"""Answers one sort of request: (request as read, dice for it) → (role for the log, output field → value).

None leaves the request to the next answerer. The result may depend on the two arguments alone.
"""

_CLOSE = 0.3
"""Margin of a verdict below which samples of one request may differ."""
_TOKEN = re.compile(r"[^\W\d_]{1,8}|\d{1,3}|[^\w\s]|_")
_FAULTS = {
    "rate_limit": (429, "rate_limit_exceeded", "requests", "rate limit reached"),
    "server_error": (503, "server_error", "server_error", "the server is overloaded"),
    "timeout": (408, "timeout", "timeout", "the request timed out"),
    "context_overflow": (400, "context_length_exceeded", "invalid_request_error",
                         "This model's maximum context length is exceeded"),
    "auth": (401, "invalid_api_key", "invalid_request_error", "Incorrect API key provided"),
}  # fmt: skip


class FaultError(Exception):
    """A provider fault that the settings ask for.

    Attributes:
        kind: its name, one of `FAULTS`.
        status, code, type: the HTTP status, and the code and type of the error object, that OpenAI's API would send.
    """

    def __init__(self, kind: str, detail: str = "") -> None:
        self.kind = kind
        self.status, self.code, self.type, message = _FAULTS[kind]
        super().__init__(f"offline: {message}" + (f" ({detail})" if detail else ""))


@dataclass(frozen=True)
class Record:
    """One request received.

    Attributes:
        role: `task`, `reflector`, `curator`, or the role that an answerer named.
        prompt_tokens, completion_tokens: as `count_tokens` counts them.
        cached_tokens: how many of the prompt tokens came from the prefix cache.
        fault: name of the fault that was raised instead of a reply, or None.
        request, reply: the texts.
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
    """A reply with its usage in tokens. `truncated`: it was cut at `max_tokens`; `seconds`: how long it takes."""

    text: str
    role: str
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    truncated: bool
    seconds: float


def count_tokens(text: str) -> int:
    """Count the tokens of `text`."""
    return len(_TOKEN.findall(text))


def clip_tokens(text: str, limit: int | None) -> tuple[str, bool]:
    """Return the first `limit` tokens of `text`, and True if something was cut."""
    if limit is None:
        return text, False
    for number, match in enumerate(_TOKEN.finditer(text)):
        if number >= limit:
            return text[: match.start()].rstrip(), True
    return text, False


class PrefixCache:
    """Remembers prompt prefixes in whole blocks, as the prompt caches of providers do. Thread-safe.

    Args:
        block: tokens of a block.
        minimum: a shared prefix of fewer tokens counts as nothing.
    """

    def __init__(self, block: int = 128, minimum: int = 1024) -> None:
        self.block = block
        self.minimum = minimum
        self._seen: set[int] = set()
        self._lock = threading.Lock()

    def visit(self, text: str) -> int:
        """Count the tokens of the longest known prefix of `text`, and remember `text`."""
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


class Backend:
    """Serves requests under some knobs.

    Copies, deep ones too, are the same backend: they share the log, the prefix cache and the dice.

    Args:
        knobs: the settings.
        answerers: asked in their order, before the model's own roles.
        log: gets a `Record` of each request, in the order in which they were answered.
        cache: the prefix cache.
    """

    def __init__(
        self,
        knobs: Knobs,
        answerers: Sequence[Answerer] = (),
        log: list[Record] | None = None,
        cache: PrefixCache | None = None,
    ) -> None:
        self.knobs = knobs
        self.answerers = tuple(answerers)
        self.log = [] if log is None else log  # appending to a list is atomic
        self.cache = PrefixCache(knobs.cache_block, knobs.cache_minimum) if cache is None else cache
        self._attempts: Counter[int] = Counter()
        self._lock = threading.Lock()

    def __deepcopy__(self, memo: dict[int, Any]) -> Backend:
        return self

    def __copy__(self) -> Backend:
        return self

    def __reduce__(self) -> tuple[Any, ...]:  # in another process it begins anew, with an empty log
        return Backend, (self.knobs, self.answerers)

    def with_knobs(self, **changes: Any) -> Backend:
        """Return a backend with other knobs that writes to the same log."""
        return Backend(replace(self.knobs, **changes), self.answerers, self.log, self.cache)

    def serve(self, request: Request, salt: str = "", max_tokens: int | None = None) -> Served:
        """Answer `request` after the latency that the knobs ask for.

        Args:
            request: the chat request.
            salt: tells apart samples of one request (a rollout id).
            max_tokens: where the reply is cut.

        Raises:
            FaultError: a fault that the knobs ask for, after the fixed latency.
        """
        served, fault = self._work(request, salt, max_tokens)
        time.sleep(served.seconds)
        if fault:
            raise fault
        return served

    async def aserve(self, request: Request, salt: str = "", max_tokens: int | None = None) -> Served:
        """Answer as `serve` does, without blocking the event loop."""
        served, fault = self._work(request, salt, max_tokens)
        await asyncio.sleep(served.seconds)
        if fault:
            raise fault
        return served

    def _work(self, request: Request, salt: str, max_tokens: int | None) -> tuple[Served, FaultError | None]:
        text, knobs = request.text, self.knobs
        prompt = count_tokens(text)
        fault = self._fault(text, salt, prompt)
        said, role = respond(request, knobs, salt, self.answerers)  # for a fault as well: the log names the role
        if fault:
            self.log.append(Record(role, prompt, 0, 0, fault.kind, text, ""))
            return Served("", role, prompt, 0, 0, False, knobs.latency), fault
        said, truncated = clip_tokens(said, max_tokens)
        cached = self.cache.visit(text) if knobs.prefix_cache else 0
        completion = count_tokens(said)
        self.log.append(Record(role, prompt, cached, completion, None, text, said))
        seconds = knobs.latency + (prompt - cached) * knobs.latency_per_prompt_token
        seconds += completion * knobs.latency_per_completion_token
        return Served(said, role, prompt, cached, completion, truncated, seconds), None

    def _fault(self, text: str, salt: str, prompt: int) -> FaultError | None:
        window = self.knobs.context_window
        if window is not None and prompt > window:
            return FaultError("context_overflow", f"{prompt} tokens, {window} allowed")
        chances = dict[str, float](self.knobs.faults.items())
        if not any(chances.values()):
            return None
        key = hash((text, salt))
        with self._lock:
            attempt = self._attempts[key]
            self._attempts[key] += 1
        dice = Dice(f"{self.knobs.seed}\x1f{salt}\x1f{attempt}\x1f{text}")
        hit = next((kind for kind in FAULTS if dice.happens(kind, chances.get(kind, 0.0))), None)
        return FaultError(hit) if hit else None


def respond(request: Request, knobs: Knobs, salt: str = "", answerers: Sequence[Answerer] = ()) -> tuple[str, str]:
    """Return the reply to `request` and the role it was written in. A pure function of its arguments."""
    ask = read(request)
    dice = Dice(f"{knobs.seed}\x1f{salt}\x1f{request.text}")
    answers = (answered for answerer in answerers for answered in (answerer(ask, dice),) if answered is not None)
    role, values = next(answers, None) or _own_answer(ask, knobs, dice, bool(salt))
    text = write(ask, values)
    return spoil(text, dice) if dice.happens("unparsable", knobs.unparsable) else text, role


def role_of(ask: Ask) -> str:
    """Return `task`, `reflector` or `curator`, by the fields of the request alone."""
    names, given = ask.asks_for, set(ask.values) | {f.name for f in ask.inputs}
    if "operations" in names and any("playbook" in name or "review" in name for name in given):
        return CURATOR
    if any("insight" in name for name in names) or "bullet_tags" in names:
        return REFLECTOR
    return TASK


def _own_answer(ask: Ask, knobs: Knobs, dice: Dice, sampled: bool) -> tuple[str, dict[str, Any]]:
    role = role_of(ask)
    if role == REFLECTOR:
        wording = 1 + dice.below("wording", 3) if dice.happens("paraphrase", knobs.paraphrase) else 0
        values = reflect(ask, wording, lambda lesson: dice.happens(f"wrong_lessons{lesson}", knobs.wrong_lessons))
    elif role == CURATOR:
        values = curate(ask, dice.happens("junk", knobs.junk))
    elif is_step(ask):
        values = step(ask)
    else:
        values = answer(ask, lambda name, verdict: _pick(dice, knobs, sampled, name, verdict))
    return role, values


def _pick(dice: Dice, knobs: Knobs, sampled: bool, name: str, verdict: Verdict) -> int:
    """Choose an option: the best one; among samples of one request any that is close to it; then slips."""
    best = verdict.best
    if sampled and verdict.margin < _CLOSE:
        ranked = sorted(range(len(verdict.scores)), key=lambda i: (-verdict.scores[i], i))
        close = [i for i in ranked if verdict.scores[i] >= (1 - _CLOSE) * verdict.scores[best]] or ranked
        best = close[dice.below(f"sample {name}", len(close))]
    return dice.other(f"slip {name}", best, len(verdict.scores), knobs.slips)
