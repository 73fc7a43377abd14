"""A language model whose replies a test writes: a real `dspy` LM, on both DSPy generations."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import dspy

Messages = list[dict[str, str]]
Reply = str | BaseException


class Script:
    """The replies of a scripted model, and the requests it got.

    Args:
        replies: one for each request (the last one again when they run out; an exception is raised), or a
            function of the messages.
    """

    def __init__(self, replies: Reply | Sequence[Reply] | Callable[[Messages], Reply]) -> None:
        self._replies = replies if callable(replies) else [replies] if isinstance(replies, Reply) else list(replies)
        self._lock = threading.Lock()
        self.requests: list[Messages] = []
        self.formats: list[Any] = []

    def __deepcopy__(self, memo: dict[int, Any]) -> Script:
        return self

    def answer(self, messages: Messages, response_format: Any) -> str:
        """Return the next reply, and keep the request."""
        with self._lock:
            number = len(self.requests)
            self.requests.append(messages)
            self.formats.append(response_format)
        if callable(self._replies):
            reply = self._replies(messages)
        else:
            reply = self._replies[min(number, len(self._replies) - 1)]
        if isinstance(reply, BaseException):
            raise reply
        return reply


def scripted(
    replies: Reply | Sequence[Reply] | Callable[[Messages], Reply], *, structured: bool = False, **settings: Any
) -> Any:
    """Make a `dspy` LM that says `replies`; `lm.script.requests` holds the messages of every request.

    Args:
        replies: see `Script`.
        structured: True if the model says of itself that it takes a response schema.
        settings: of the LM; the cache is off unless asked for.
    """
    script = Script(replies)
    lm = _make(script, structured, settings)
    lm.script = script
    return lm


def rate_limited(retry_after: float | None = None) -> BaseException:
    """Make a provider's refusal, to be raised by a scripted model."""
    if hasattr(dspy, "lm15"):
        return dspy.lm15.RateLimitError("slow down", status=429, provider="scripted", retry_after=retry_after)
    from dspy.utils.exceptions import LMRateLimitError

    return LMRateLimitError(message="slow down", model="scripted", provider="scripted", retry_after=retry_after)


if hasattr(dspy, "lm15"):
    from dspy import lm15

    class _Engine:
        def __init__(self, script: Script, structured: bool) -> None:
            self.script = script
            self.supports_response_schema = structured
            self.supported_params = {"response_format"} if structured else set()

        def __deepcopy__(self, memo: dict[int, Any]) -> _Engine:
            return self

        def complete(self, request: Any) -> Any:
            reply = self.script.answer(_messages(request), request.config.response_format)
            usage = lm15.Usage(input_tokens=10, output_tokens=2, total_tokens=12, cache_read_tokens=4)
            message = lm15.Message.assistant([lm15.TextPart(reply)])
            return lm15.Response(id=None, model=request.model, message=message, finish_reason="stop", usage=usage)

        def close(self) -> None:
            pass

    class _AsyncEngine(_Engine):
        async def complete(self, request: Any) -> Any:
            return super().complete(request)

        async def aclose(self) -> None:
            pass

    def _messages(request: Any) -> Messages:
        found = []
        if request.system is not None:
            found.append({"role": "system", "content": _text(request.system)})
        return found + [{"role": m.role, "content": _text(m.parts)} for m in request.messages]

    def _text(content: Any) -> str:
        return content if isinstance(content, str) else "".join(getattr(part, "text", "") or "" for part in content)

    def _make(script: Script, structured: bool, settings: dict[str, Any]) -> Any:
        settings = {"cache": False, "num_retries": 0, **settings}
        engines = {"engine": _Engine(script, structured), "async_engine": _AsyncEngine(script, structured)}
        return dspy.LM("scripted/model", **engines, **settings)

else:

    class _Scripted(dspy.BaseLM):
        forward_contract = "legacy"

        def __init__(self, script: Script, structured: bool, **settings: Any) -> None:
            super().__init__("scripted/model", **settings)
            self.script, self._structured = script, structured

        @property
        def supports_response_schema(self) -> bool:
            return self._structured

        @property
        def supported_params(self) -> set[str]:
            return {"response_format"} if self._structured else set()

        def forward(self, prompt: str | None = None, messages: Any = None, **kwargs: Any) -> Any:
            asked = messages or [{"role": "user", "content": prompt or ""}]
            kept = [{"role": m["role"], "content": _text(m["content"])} for m in asked]
            reply = self.script.answer(kept, kwargs.get("response_format"))
            usage = {
                "prompt_tokens": 10,
                "completion_tokens": 2,
                "total_tokens": 12,
                "prompt_tokens_details": {"cached_tokens": 4},
            }
            message = SimpleNamespace(role="assistant", content=reply, tool_calls=None)
            choice = SimpleNamespace(index=0, finish_reason="stop", message=message)
            return SimpleNamespace(model=self.model, choices=[choice], usage=usage)

        async def aforward(self, prompt: str | None = None, messages: Any = None, **kwargs: Any) -> Any:
            return self.forward(prompt, messages, **kwargs)

    def _text(content: Any) -> str:
        return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)

    def _make(script: Script, structured: bool, settings: dict[str, Any]) -> Any:
        settings.pop("num_retries", None)
        return _Scripted(script, structured, **{"cache": False, **settings})
