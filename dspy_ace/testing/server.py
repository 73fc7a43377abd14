"""The offline model behind an OpenAI-compatible endpoint on this machine, for exercising a true client.

`python -m dspy_ace.testing.server --port 0 --log calls.jsonl --slips 0.05` prints its base URL as its first line.
In a process: `with serve(seed=1) as server: dspy.LM("openai/offline", api_base=server.url, api_key="none")`.

Faults become what a client of a provider sees: status 429, 503, 401, 400 with `context_length_exceeded`, and for a
timeout a connection that is closed without a reply after `stall` seconds.
"""

from __future__ import annotations

import argparse
import json
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from .backend import Answerer, Backend, FaultError, Record, Served
from .noise import FAULTS, Knobs
from .request import request_of

_CODES = {
    "rate_limit": ("rate_limit_exceeded", "requests"),
    "server_error": ("server_error", "server_error"),
    "context_overflow": ("context_length_exceeded", "invalid_request_error"),
    "auth": ("invalid_api_key", "invalid_request_error"),
    "timeout": ("timeout", "timeout"),
}


class OfflineServer(ThreadingHTTPServer):
    """The HTTP server. `url`: base URL for clients; `log`, `calls`: requests received so far.

    Args:
        knobs: how the model behaves.
        host, port: where to listen; port 0 takes a free one.
        journal: a file that gets one JSON line per request, or None.
        stall: seconds that a timed-out request stays unanswered before its connection is closed.
        answerers: as `OfflineLM` takes them.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(
        self,
        knobs: Knobs,
        host: str = "127.0.0.1",
        port: int = 0,
        journal: Path | None = None,
        stall: float = 0.0,
        answerers: Sequence[Answerer] = (),
    ) -> None:
        super().__init__((host, port), _Handler)
        self.backend = Backend(knobs, answerers)
        self.stall = stall
        self._journal = journal
        self._lock = threading.Lock()
        self._number = 0

    @property
    def url(self) -> str:
        """Base URL, as `api_base` wants it."""
        return f"http://{self.server_address[0]!s}:{self.server_address[1]}/v1"

    @property
    def log(self) -> list[Record]:
        """Records of the requests received, oldest first (a copy)."""
        return self.backend.log.records()

    @property
    def calls(self) -> int:
        """Number of requests received."""
        return len(self.backend.log)

    def note(self, status: int, role: str, served: Served | None, fault: str | None) -> None:
        """Write one line to the journal: number, status, role, tokens, fault."""
        with self._lock:
            self._number += 1
            line = {
                "number": self._number,
                "status": status,
                "role": role,
                "prompt_tokens": served.prompt_tokens if served else 0,
                "cached_tokens": served.cached_tokens if served else 0,
                "completion_tokens": served.completion_tokens if served else 0,
                "fault": fault,
            }
            if self._journal is not None:
                with self._journal.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(line) + "\n")

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is no error of this server."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # one write per reply: a header alone on the wire costs a delayed acknowledgement
    disable_nagle_algorithm = True
    server: OfflineServer

    def log_message(self, *args: Any) -> None:
        """Keep quiet: the journal is the log."""

    def do_GET(self) -> None:
        """List the one model."""
        if self.path.rstrip("/").endswith("/models"):
            self._send(200, {"object": "list", "data": [{"id": "offline", "object": "model", "owned_by": "offline"}]})
        else:
            self._send(404, _error("no such path", "not_found", "invalid_request_error"))

    def do_POST(self) -> None:
        """Answer a chat completion."""
        raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if not self.path.rstrip("/").endswith("/chat/completions"):
            self._send(404, _error("no such path", "not_found", "invalid_request_error"))
            return
        try:
            body = json.loads(raw)
        except ValueError:
            body = None
        if not isinstance(body, dict) or not isinstance(body.get("messages"), list):
            self.server.note(400, "task", None, None)
            self._send(400, _error("messages must be a list", "invalid_request", "invalid_request_error"))
            return
        self._complete(body)

    def _complete(self, body: dict[str, Any]) -> None:
        limit = body.get("max_completion_tokens") or body.get("max_tokens")
        request = request_of(body["messages"], body)
        wanted = body.get("n")
        count = wanted if isinstance(wanted, int) and wanted > 0 else 1
        try:
            served = [self.server.backend.serve(request, max_tokens=limit if isinstance(limit, int) else None)]
            served += served[:1] * (count - 1)
        except FaultError as fault:
            self._fail(fault)
            return
        self.server.note(200, served[0].role, served[0], None)
        reply = _completion(str(body.get("model", "offline")), served, self.server.calls)
        if body.get("stream"):
            self._stream(reply)
        else:
            self._send(200, reply)

    def _fail(self, fault: FaultError) -> None:
        self.server.note(fault.status, "task", None, fault.kind)
        if fault.kind == "timeout":
            time.sleep(self.server.stall)
            self.close_connection = True
            return
        code, kind = _CODES[fault.kind]
        self._send(fault.status, _error(str(fault), code, kind), {"Retry-After": "0"} if fault.status == 429 else {})

    def _send(self, status: int, body: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> None:
        raw = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(raw)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(raw)

    def _stream(self, reply: dict[str, Any]) -> None:
        base = {key: reply[key] for key in ("id", "created", "model")} | {"object": "chat.completion.chunk"}
        text = reply["choices"][0]["message"]["content"]
        finish = reply["choices"][0]["finish_reason"]
        chunks = (
            {
                **base,
                "choices": [{"index": 0, "delta": {"role": "assistant", "content": text}, "finish_reason": None}],
            },
            {**base, "choices": [{"index": 0, "delta": {}, "finish_reason": finish}]},
            {**base, "choices": [], "usage": reply["usage"]},
        )
        raw = ("".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n").encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)


def _error(message: str, code: str, kind: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


def _completion(model: str, served: Sequence[Served], number: int) -> dict[str, Any]:
    first = served[0]
    written = sum(s.completion_tokens for s in served)
    return {
        "id": f"offline-{number}",
        "object": "chat.completion",
        "created": 0,
        "model": model,
        "choices": [
            {
                "index": i,
                "message": {"role": "assistant", "content": s.text},
                "finish_reason": "length" if s.truncated else "stop",
            }
            for i, s in enumerate(served)
        ],
        "usage": {
            "prompt_tokens": first.prompt_tokens,
            "completion_tokens": written,
            "total_tokens": first.prompt_tokens + written,
            "prompt_tokens_details": {"cached_tokens": first.cached_tokens},
        },
    }


@contextmanager
def serve(
    *, journal: Path | None = None, stall: float = 0.0, answerers: Sequence[Answerer] = (), **knobs: Any
) -> Iterator[OfflineServer]:
    """A server on a free loopback port for as long as the block runs. `knobs`: fields of `Knobs`."""
    server = OfflineServer(Knobs(**knobs), journal=journal, stall=stall, answerers=answerers)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join(timeout=5)


def _arguments(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m dspy_ace.testing.server", description="Serve the offline model.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free port")
    parser.add_argument("--log", type=Path, default=None, help="file that gets one JSON line per request")
    parser.add_argument("--stall", type=float, default=0.0, help="seconds before a timed-out connection is closed")
    defaults = Knobs()
    for name, value in defaults.as_dict().items():
        option = "--" + name.replace("_", "-")
        if name == "faults":
            parser.add_argument(option, default="", metavar="KIND=P,…", help=f"any of {', '.join(FAULTS)}")
        elif isinstance(value, bool):
            parser.add_argument(option, action="store_true")
        else:
            parser.add_argument(option, type=float if isinstance(value, float) else int, default=value)
    return parser.parse_args(given)


def main(given: Sequence[str] | None = None) -> None:
    """Serve until interrupted."""
    options = vars(_arguments(given))
    host, port, journal, stall = (options.pop(name) for name in ("host", "port", "log", "stall"))
    pairs = [pair.partition("=") for pair in options.pop("faults").split(",") if pair]
    knobs = Knobs(faults={kind.strip(): float(chance or 1) for kind, _, chance in pairs}, **options)
    server = OfflineServer(knobs, host, port, journal, stall)
    print(server.url, flush=True)  # noqa: T201 - the first line of output is the address
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        pass
    finally:
        server.server_close()


if __name__ == "__main__":
    main()
