"""The base of `OfflineLM` on DSPy 3.3: a `dspy.BaseLM` whose `forward` asks the backend."""

from __future__ import annotations

import copy
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
        request, salt, limit, count = self._prepared(prompt, messages, kwargs)
        served: list[Served] = []
        attempt = 0
        while len(served) < count:
            try:
                served.append(self.backend.serve(request, salt, limit))
                attempt = 0
            except FaultError as fault:
                self._give_up(fault, attempt)
                attempt += 1
        return _completion(self.model, served)

    async def aforward(self, prompt: str | None = None, messages: Any = None, **kwargs: Any) -> Any:
        """Answer as `forward` does, without blocking the event loop."""
        request, salt, limit, count = self._prepared(prompt, messages, kwargs)
        served: list[Served] = []
        attempt = 0
        while len(served) < count:
            try:
                served.append(await self.backend.aserve(request, salt, limit))
                attempt = 0
            except FaultError as fault:
                self._give_up(fault, attempt)
                attempt += 1
        return _completion(self.model, served)

    def _give_up(self, fault: FaultError, attempt: int) -> None:
        if attempt >= self.num_retries or fault.kind not in _RETRIED:
            raise _ERRORS[fault.kind](message=str(fault), model=self.model, provider="offline") from None

    def _prepared(self, prompt: str | None, messages: Any, kwargs: dict[str, Any]) -> tuple[Request, str, Any, int]:
        settings = {**self.kwargs, **kwargs}
        limit = settings.get("max_tokens") or settings.get("max_completion_tokens")
        request = request_of(messages or [{"role": "user", "content": prompt or ""}], settings)
        return request, str(settings.get("rollout_id") or ""), limit, int(settings.get("n") or 1)

    def _copied(self, backend: Backend, changes: dict[str, Any]) -> OfflineBase:
        copied = copy.copy(self)  # `BaseLM.copy` of DSPy 3.3 copies callbacks deeply: theirs would count apart
        copied.history = []
        copied.callbacks = list(self.callbacks)
        copied.kwargs = dict(self.kwargs)
        for key, value in changes.items():
            if hasattr(self, key):
                setattr(copied, key, value)
            if key in copied.kwargs or not hasattr(self, key):
                copied.kwargs.pop(key, None)
                copied.kwargs |= {key: value} if value is not None else {}
        copied.backend = backend
        return copied


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
