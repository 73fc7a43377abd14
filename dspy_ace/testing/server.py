"""The offline model as an OpenAI-compatible HTTP server on the loopback, for tests with a true client.

In a process: `with serve(seed=1) as server: dspy.LM("openai/offline", api_base=server.url, api_key="none")`.
In a shell: `python -m dspy_ace.testing.server --port 0 --slips 0.05` prints its base URL first.

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
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from .backend import Answerer, Backend, FaultError, Record, Served
from .noise import FAULTS, Knobs
from .request import request_of


class OfflineServer(ThreadingHTTPServer):
    """The HTTP server.

    Args:
        knobs: the settings of the model.
        host: address to listen on.
        port: port to listen on; 0 takes a free one.
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
        stall: float = 0.0,
        answerers: Sequence[Answerer] = (),
    ) -> None:
        super().__init__((host, port), _Handler)
        self.backend = Backend(knobs, answerers)
        self.stall = stall

    @property
    def url(self) -> str:
        """Base URL for clients, as their `api_base`."""
        return f"http://{self.server_address[0]!s}:{self.server_address[1]}/v1"

    @property
    def log(self) -> list[Record]:
        """Records of the requests received, oldest first (a copy of the list)."""
        return list(self.backend.log)

    @property
    def calls(self) -> int:
        """Number of requests received."""
        return len(self.backend.log)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore a client that hangs up."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # one write a reply: headers sent alone wait for a delayed acknowledgement
    disable_nagle_algorithm = True
    server: OfflineServer

    def log_message(self, *args: Any) -> None:
        """Print nothing: `OfflineServer.log` has every request."""

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
            self._send(400, _error("messages must be a list", "invalid_request", "invalid_request_error"))
            return
        self._complete(body)

    def _complete(self, body: dict[str, Any]) -> None:
        limit = body.get("max_completion_tokens") or body.get("max_tokens")
        wanted = body.get("n")
        count = wanted if isinstance(wanted, int) and wanted > 0 else 1
        request = request_of(body["messages"], body)
        try:
            served = self.server.backend.serve(request, max_tokens=limit if isinstance(limit, int) else None)
        except FaultError as fault:
            self._fail(fault)
            return
        reply = _completion(str(body.get("model", "offline")), served, count, self.server.calls)
        if body.get("stream"):
            self._write(200, _events(reply), "text/event-stream")
        else:
            self._send(200, reply)

    def _fail(self, fault: FaultError) -> None:
        if fault.kind == "timeout":
            time.sleep(self.server.stall)
            self.close_connection = True
        else:
            self._send(fault.status, _error(str(fault), fault.code, fault.type))

    def _send(self, status: int, body: Mapping[str, Any]) -> None:
        self._write(status, json.dumps(body), "application/json")

    def _write(self, status: int, text: str, kind: str) -> None:
        raw = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(raw)))
        if status == 429:
            self.send_header("Retry-After", "0")
        self.end_headers()
        self.wfile.write(raw)


def _error(message: str, code: str, kind: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


def _completion(model: str, served: Served, count: int, number: int) -> dict[str, Any]:
    """Return a chat completion with `count` equal choices."""
    finish = "length" if served.truncated else "stop"
    message = {"role": "assistant", "content": served.text}
    written = served.completion_tokens * count
    return {
        "id": f"offline-{number}",
        "object": "chat.completion",
        "created": 0,
        "model": model,
        "choices": [{"index": i, "message": message, "finish_reason": finish} for i in range(count)],
        "usage": {
            "prompt_tokens": served.prompt_tokens,
            "completion_tokens": written,
            "total_tokens": served.prompt_tokens + written,
            "prompt_tokens_details": {"cached_tokens": served.cached_tokens},
        },
    }


def _events(reply: dict[str, Any]) -> str:
    """Return the first choice of a chat completion as server-sent events, in one piece."""
    base = {key: reply[key] for key in ("id", "created", "model")} | {"object": "chat.completion.chunk"}
    choice = reply["choices"][0]
    chunks = (
        {**base, "choices": [{"index": 0, "delta": choice["message"], "finish_reason": None}]},
        {**base, "choices": [{"index": 0, "delta": {}, "finish_reason": choice["finish_reason"]}]},
        {**base, "choices": [], "usage": reply["usage"]},
    )
    return "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"


@contextmanager
def serve(*, stall: float = 0.0, answerers: Sequence[Answerer] = (), **knobs: Any) -> Iterator[OfflineServer]:
    """Run a server on a free loopback port for as long as the block runs.

    Args:
        stall, answerers: as `OfflineServer` takes them.
        **knobs: fields of `Knobs`.

    Example:
        >>> with serve(faults={"rate_limit": 0.1}) as server:
        ...     lm = dspy.LM("openai/offline", api_base=server.url, api_key="none")
    """
    server = OfflineServer(Knobs(**knobs), stall=stall, answerers=answerers)
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
    parser.add_argument("--stall", type=float, default=0.0, help="seconds before a timed-out connection is closed")
    for name, value in asdict(Knobs()).items():
        option = "--" + name.replace("_", "-")
        if name == "faults":
            parser.add_argument(option, default="", metavar="KIND=P,…", help=f"any of {', '.join(FAULTS)}")
        elif isinstance(value, bool):
            parser.add_argument(option, action="store_true")
        else:
            parser.add_argument(option, type=float if isinstance(value, float) else int, default=value)
    return parser.parse_args(given)


def main(given: Sequence[str] | None = None) -> None:
    """Serve until interrupted (Ctrl-C)."""
    options = vars(_arguments(given))
    host, port, stall = (options.pop(name) for name in ("host", "port", "stall"))
    pairs = [pair.partition("=") for pair in options.pop("faults").split(",") if pair]
    knobs = Knobs(faults={kind.strip(): float(chance or 1) for kind, _, chance in pairs}, **options)
    server = OfflineServer(knobs, host, port, stall)
    print(server.url, flush=True)  # noqa: T201 - the first line of output is the address
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        pass
    finally:
        server.server_close()


if __name__ == "__main__":
    main()
