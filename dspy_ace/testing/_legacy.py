"""The base of `OfflineLM` on DSPy 3.3: a `dspy.BaseLM` whose `forward` asks the backend."""

from __future__ import annotations

import asyncio
import itertools
from types import SimpleNamespace
from typing import Any

import dspy
from dspy.utils import exceptions

from .backend import Backend, FaultError, Served
from .request import Request, request_of

_RETRIED = ("rate_limit", "server_error", "timeout")
_ERRORS: dict[str, Any] = {
    "rate_limit": exceptions.LMRateLimitError,
    "server_error": exceptions.LMServerError,
    "timeout": exceptions.LMTimeoutError,
    "context_overflow": exceptions.ContextWindowExceededError,
    "auth": exceptions.LMAuthError,
}


class OfflineBase(dspy.BaseLM):  # type: ignore[misc]  # DSPy ships no types
    """A `dspy.BaseLM` over a backend. It retries passing faults `num_retries` times, as `dspy.LM` does."""

    forward_contract = "legacy"

    def __init__(self, model: str, backend: Backend, **settings: Any) -> None:
        super().__init__(model, **settings)
        self.backend = backend

    def forward(self, prompt: str | None = None, messages: Any = None, **kwargs: Any) -> Any:
        """Return the reply in the shape of an OpenAI completion, or raise the DSPy error of a fault."""
        settings = {**self.kwargs, **kwargs}
        request = request_of(messages or [{"role": "user", "content": prompt or ""}], settings)
        salt, limit = str(settings.get("rollout_id") or ""), settings.get("max_tokens")
        served = [self._served(request, salt, limit) for _ in range(int(settings.get("n") or 1))]
        return _completion(self.model, served)

    async def aforward(self, prompt: str | None = None, messages: Any = None, **kwargs: Any) -> Any:
        """Answer as `forward` does, in a thread, so that the event loop is not blocked."""
        return await asyncio.to_thread(self.forward, prompt, messages, **kwargs)

    def _served(self, request: Request, salt: str, limit: int | None) -> Served:
        for attempt in itertools.count():
            try:
                return self.backend.serve(request, salt, limit)
            except FaultError as fault:
                if attempt >= self.num_retries or fault.kind not in _RETRIED:
                    raise _ERRORS[fault.kind](message=str(fault), model=self.model, provider="offline") from None
        raise AssertionError("unreachable")

    @staticmethod
    def _engines(_: Backend) -> dict[str, Any]:
        """Return no settings: `forward` asks the backend."""
        return {}


def _completion(model: str, served: list[Served]) -> Any:
    prompt = sum(s.prompt_tokens for s in served)
    completion = sum(s.completion_tokens for s in served)
    usage = {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": sum(s.cached_tokens for s in served)},
    }
    choices = [
        SimpleNamespace(
            index=i,
            finish_reason="length" if s.truncated else "stop",
            message=SimpleNamespace(role="assistant", content=s.text, tool_calls=None),
        )
        for i, s in enumerate(served)
    ]
    return SimpleNamespace(model=model, choices=choices, usage=usage)
