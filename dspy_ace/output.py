"""Text on its way out: secrets are taken out of it, and it prints on any terminal.

`redact` is the one function for secrets. It is applied where a text becomes a value that is written or shown: bullets
and operations, errors of this package, lines of its log, what is said of a foreign error, told records, cells.
"""

from __future__ import annotations

import codecs
import logging
import os
import re
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from typing import Any
from urllib.parse import unquote, urlsplit

MARK = "[redacted]"
_A_KEY = re.compile(r"(?![a-z_-]{0,11}\Z).{8,}", re.DOTALL)  # a local server's may be a word: "not-needed"

# What looks ahead is bounded, and what is not opens behind a sign that it does not hold: linear time on any text.
_LIKE_A_KEY = r"(?=[^\s\"'&]{0,64}\d)[\w.~+/=-]{8}"  # a digit tells it from a word: "Authorization: required"
_SHAPES = re.compile(
    rf"""
    (?P<keep>                              # what tells that a secret follows
        (?i:\b(?:bearer|basic|token)\s+|\b(?:proxy-)?authorization["']?\s*[:=]\s*["']?(?:(?:bearer|basic|token)\s+)?)
            (?={_LIKE_A_KEY})
      | (?i:--(?:[a-z]{{1,20}}-){{0,3}}[a-z]{{0,20}}(?:key|token|secret|password)[ =])
      | (?i:[?&](?:api_?key|key|access_token|token|password|pwd|secret|sig|signature)=)
      | (?i:(?<![a-z])(?:[a-z]{{1,20}}[_-]){{0,3}}(?:api[_-]?key|token|secret|password|passwd)["']?\s*[:=]\s*["']?)
            (?![\w.]{{1,64}}[(\[])(?={_LIKE_A_KEY})
    )(?:[^\s"'&<>]+)
  | (?<=://)[^\s/"'<>]+(?=@)               # user:password@ in an address
  | (?<![\w-])(?:sk|pk|rk)[-_][\w-]{{16,}}  # OpenAI, Anthropic, OpenRouter, Langfuse, Stripe
  | (?<![\w-])(?:gsk_|hf_|xai-|nvapi-|pplx-|r8_|npm_|pypi-|glpat-|fw_|tvly-|gh[oprsu]_|github_pat_)[\w-]{{20,}}
  | (?<![\w-])(?:AIza[\w-]{{30,}}|ya29\.[\w-]{{20,}}|(?:AKIA|ASIA)[0-9A-Z]{{16}}|dapi[0-9a-f]{{32}})
  | (?<![\w-])xox[a-z]-[\w-]{{10,}}         # Slack
  | (?<![\w-])eyJ[\w-]{{8,}}\.eyJ[\w-]{{8,}}\.[\w-]*  # a signed token (JWT)
  | -----BEGIN\ [A-Z ]*PRIVATE\ KEY-----(?:[^-]|-(?!----))*(?:-----END\ [A-Z ]*PRIVATE\ KEY-----)?
    """,
    re.VERBOSE,
)
_SECRET_NAMES = re.compile(r"keys?$|key_id$|token$|secret|password|authorization|credential", re.IGNORECASE)
_ADDRESS_NAMES = re.compile(r"api_base|base_url|endpoint", re.IGNORECASE)

_secrets: list[str] = []  # known for certain, the longest first
_adding = threading.Lock()
_redactors: list[Callable[[str], str]] = []


def redact(text: str) -> str:
    """Return `text` without secrets: `[redacted]` stands in their place.

    Taken out are the keys and addresses of LMs met so far (`keep_secret`), passwords in addresses, keys of well-known
    shapes, and what the user's own functions take out (`redacting`). To redact twice changes nothing more.

    Example:
        >>> redact("401 for Bearer abc123def456 at https://me:pw@gateway/v1")
        '401 for Bearer [redacted] at https://[redacted]@gateway/v1'
    """
    for secret in _secrets[:]:  # another thread may add one
        text = text.replace(secret, MARK)
    text = _SHAPES.sub(lambda found: (found["keep"] or "") + MARK, text)
    for redactor in _redactors[:]:
        text = redactor(text)
    return text


def redacted(data: Any) -> Any:
    """Return plain JSON data with every text in it redacted; names of fields stay."""
    if isinstance(data, str):
        return redact(data)
    if isinstance(data, Mapping):
        return {name: redacted(value) for name, value in data.items()}
    return [redacted(item) for item in data] if isinstance(data, (list, tuple)) else data


@contextmanager
def redacting(redactor: Callable[[str], str] | None) -> Iterator[None]:
    """Open a scope in which `redact` also applies a function of the user's, in every thread.

    A text that the function fails on is taken out as a whole: better lost than shown.
    """
    if redactor is None:
        yield
        return

    @lru_cache(maxsize=4096)  # a vote makes a bullet anew, with the same text
    def careful(text: str) -> str:
        try:
            found = redactor(text)
        except Exception as error:  # noqa: BLE001 - the user's function may fail in any way
            return f"[redacted as a whole: redact= raised {type(error).__name__}]"
        return found if isinstance(found, str) else "[redacted as a whole: redact= returned no text]"

    _redactors.append(careful)
    try:
        yield
    finally:
        _redactors.remove(careful)


def keep_secret(settings: Mapping[str, Any]) -> None:
    """Let `redact` know the keys and addresses in an LM's arguments, and in the environment (`…_API_KEY`)."""
    found: list[str] = [value for name, value in os.environ.items() if name.upper().endswith("_API_KEY")]
    waiting = list(settings.items())
    while waiting:
        name, value = waiting.pop()
        if isinstance(value, Mapping):
            waiting += value.items()
        elif isinstance(value, str) and names_a_secret(str(name)):
            found += [value, value.rpartition(" ")[2]]  # a header is "Bearer …"
        elif isinstance(value, str) and _ADDRESS_NAMES.search(str(name)):
            found += _parts_of(value)
    with _adding:
        if new := {secret for secret in found if _A_KEY.match(secret)} - set(_secrets):
            _secrets[:] = sorted({*_secrets, *new}, key=lambda secret: (-len(secret), secret))


def names_a_secret(name: str) -> bool:
    """Return True for the name of a key, a password and the like: what is kept under it is not shown."""
    return _SECRET_NAMES.search(name) is not None


def _parts_of(address: str) -> list[str]:
    """Return an address, its host and its password, as it is written and as it is meant."""
    try:
        parts = urlsplit(address)
        password = parts.password or ""
    except ValueError:
        return [address]
    return [address.rstrip("/"), parts.netloc, parts.netloc.rpartition("@")[2], password, unquote(password)]


# --- the log


def _redact_record(record: logging.LogRecord) -> bool:
    """Take secrets out of a line of the log, and of the traceback below it."""
    record.msg, record.args = redact(record.getMessage()), None
    if record.exc_info and record.exc_info[0] is not None:
        written = "".join(traceback.format_exception(*record.exc_info)).rstrip()
        record.exc_text = redact(written)
        if record.exc_text != written:
            record.exc_info = None  # a handler may write it anew
    return True


logging.getLogger("dspy.ace").addFilter(_redact_record)


# --- any terminal

_PLAIN = {"→": "->", "…": "...", "–": "-", "—": "-", "−": "-", "±": "+/-", "·": "-", "≥": ">=", "≤": "<=", "×": "x"}
_PLAIN |= dict.fromkeys("─━═╌", "-") | dict.fromkeys("│┃║", "|") | dict.fromkeys("┌┐└┘├┤┬┴┼╭╮╰╯┏┓┗┛┡┩╇╈╋┠┨┯┷┿", "+")


SPELLED = "dspy_ace.spelled"
"""The name of an error handler for encodings, as in `sys.stdout.reconfigure(errors=SPELLED)`; see `printable`."""


def printable(text: str) -> str:
    """Return `text` in characters that standard output can write: `→` becomes `->`, others a Python escape."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    return text.encode(encoding, SPELLED).decode(encoding)


def _spelled(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    signs = error.object[error.start : error.end]
    return "".join(_PLAIN.get(sign) or sign.encode("ascii", "backslashreplace").decode() for sign in signs), error.end


codecs.register_error(SPELLED, _spelled)
