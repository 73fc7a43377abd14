"""Token counts and a provider-like prompt cache, both deterministic.

A token is a run of up to eight letters, of up to three digits, or one other visible character. The count is close
to what common tokenizers give for English prose, needs no vocabulary, and is the same on every machine.
"""

from __future__ import annotations

import re
import threading

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
