"""The base of `OfflineLM` from DSPy 3.4 on: a `dspy.LM` whose engine asks the backend."""

from __future__ import annotations

import contextvars
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import dspy
from dspy import lm15

from .backend import Backend, FaultError, Served
from .request import Request

_rollout: contextvars.ContextVar[str] = contextvars.ContextVar("offline_rollout", default="")
_ERRORS: dict[str, type[lm15.LM15Error]] = {
    "rate_limit": lm15.RateLimitError,
    "server_error": lm15.ServerError,
    "timeout": lm15.TimeoutError,
    "context_overflow": lm15.ContextLengthError,
    "auth": lm15.AuthError,
}


class OfflineBase(dspy.LM):  # type: ignore[misc]  # DSPy ships no types
    """A `dspy.LM` over a backend."""

    def __init__(self, model: str, backend: Backend, **settings: Any) -> None:
        self.backend = backend
        super().__init__(model, **self._engines(backend), **settings)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the model as `dspy.LM` does, and hand the rollout id to the engine, whose request lacks it."""
        token = _rollout.set(self._rollout_id(kwargs))
        try:
            return super().__call__(*args, **kwargs)
        finally:
            _rollout.reset(token)

    async def acall(self, *args: Any, **kwargs: Any) -> Any:
        """Call the model as `__call__` does, without blocking the event loop."""
        token = _rollout.set(self._rollout_id(kwargs))
        try:
            return await super().acall(*args, **kwargs)
        finally:
            _rollout.reset(token)

    def _rollout_id(self, kwargs: dict[str, Any]) -> str:
        return str(kwargs.get("rollout_id", self.kwargs.get("rollout_id")) or "")

    @staticmethod
    def _engines(backend: Backend) -> dict[str, Any]:
        """Return the settings of `dspy.LM` that make it ask `backend`."""
        return {"engine": _Engine(backend), "async_engine": _AsyncEngine(backend)}


class _Engine:
    """Answers lm15 requests from the backend."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend

    def complete(self, request: lm15.Request) -> lm15.Response:
        """Return the reply, or raise the lm15 error of a fault."""
        try:
            served = self.backend.serve(_as_request(request), _rollout.get(), request.config.max_tokens)
        except FaultError as fault:
            raise _error(fault) from None
        return _response(request, served)

    def stream(self, request: lm15.Request) -> Iterator[Any]:
        """Return the reply as events, in one piece."""
        return iter(lm15.response_to_events(self.complete(request)))

    def close(self) -> None:
        """Do nothing: there is no connection."""


class _AsyncEngine:
    """Does what `_Engine` does, without blocking the event loop."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend

    async def complete(self, request: lm15.Request) -> lm15.Response:
        """Return the reply, or raise the lm15 error of a fault."""
        try:
            served = await self.backend.aserve(_as_request(request), _rollout.get(), request.config.max_tokens)
        except FaultError as fault:
            raise _error(fault) from None
        return _response(request, served)

    async def stream(self, request: lm15.Request) -> AsyncIterator[Any]:
        """Yield the reply as events, in one piece."""
        for event in lm15.response_to_events(await self.complete(request)):
            yield event

    async def aclose(self) -> None:
        """Do nothing: there is no connection."""


def _error(fault: FaultError) -> lm15.LM15Error:
    hint = 0.0 if fault.kind in ("rate_limit", "server_error", "timeout") else None
    return _ERRORS[fault.kind](str(fault), status=fault.status, provider="offline", retry_after=hint)


def _as_request(request: lm15.Request) -> Request:
    messages: list[tuple[str, str]] = []
    if request.system is not None:
        system = request.system if isinstance(request.system, str) else "".join(_part(p) for p in request.system)
        messages.append(("system", system))
    messages += [(m.role, "\n".join(_part(p) for p in m.parts)) for m in request.messages]
    wanted = request.config.response_format or {}
    body = wanted.get("json_schema")
    schema = body.get("schema") if isinstance(body, dict) else wanted.get("schema")
    return Request(tuple(messages), schema if isinstance(schema, dict) else None, bool(wanted))


def _part(part: Any) -> str:
    """Return a message part as text; one that is not text is named by its type."""
    text = getattr(part, "text", None)
    if isinstance(text, str):
        return text
    content = getattr(part, "content", None)
    if isinstance(content, list | tuple):
        return "\n".join(_part(inner) for inner in content)
    given = getattr(part, "input", None)
    if given is not None:
        return json.dumps(given, default=str)
    return f"({getattr(part, 'type', 'attachment')})"


def _response(request: lm15.Request, served: Served) -> lm15.Response:
    usage = lm15.Usage(
        input_tokens=served.prompt_tokens,
        output_tokens=served.completion_tokens,
        total_tokens=served.prompt_tokens + served.completion_tokens,
        cache_read_tokens=served.cached_tokens,
    )
    message = lm15.Message.assistant([lm15.TextPart(served.text)])
    finish = "length" if served.truncated else "stop"
    return lm15.Response(id=None, model=request.model, message=message, finish_reason=finish, usage=usage)
