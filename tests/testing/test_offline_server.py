"""The offline model behind an OpenAI-compatible endpoint, asked by DSPy's true client."""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
from typing import Any, Literal
from urllib.parse import urlparse

import dspy
import pytest
from dspy.utils.exceptions import (
    ContextWindowExceededError,
    LMAuthError,
    LMError,
    LMRateLimitError,
    LMServerError,
)

from dspy_ace.testing.server import serve
from paths import ROOT

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::UserWarning")


def client(url: str, **settings: Any) -> dspy.LM:
    return dspy.LM("openai/offline", api_base=url, api_key="none", cache=False, **settings)


def post(url: str, body: Any, path: str = "/v1/chat/completions") -> tuple[int, str]:
    where = urlparse(url)
    connection = http.client.HTTPConnection(where.hostname or "", where.port, timeout=10)
    try:
        raw = body if isinstance(body, str) else json.dumps(body)
        connection.request("POST", path, raw, {"Content-Type": "application/json"})
        reply = connection.getresponse()
        return reply.status, reply.read().decode()
    finally:
        connection.close()


def test_true_client_is_served_and_counted() -> None:
    """Answers, usage and the log of the server agree with what the client saw."""
    sign = dspy.Signature("note -> desk: Literal['north', 'south']", "Kayaks go to south.")
    with serve(prefix_cache=True) as server:
        lm = client(server.url)
        with dspy.context(lm=lm):
            assert [dspy.Predict(sign)(note=f"kayak {n}").desk for n in range(5)] == ["south"] * 5
        assert server.calls == len(server.log) == len(lm.history) == 5
        used = [entry["usage"]["prompt_tokens"] for entry in lm.history]
        assert used == [record.prompt_tokens for record in server.log]
        assert {(record.role, record.fault) for record in server.log} == {("task", None)}


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("rate_limit", LMRateLimitError),
        ("server_error", LMServerError),
        ("auth", LMAuthError),
        ("context_overflow", ContextWindowExceededError),
        ("timeout", LMError),
    ],
)
def test_faults_reach_the_client_as_its_errors(kind: str, error: type[Exception]) -> None:
    """HTTP statuses and a closed connection become the errors that DSPy makes of a provider's."""
    with serve(faults={kind: 1.0}) as server:
        with pytest.raises(error):
            client(server.url, num_retries=0)("hello")
        assert server.log[0].fault == kind


def test_schema_is_kept_and_stream_is_one_piece() -> None:
    """A response format is followed; a streamed reply arrives as server-sent events."""
    schema = {"type": "object", "properties": {"desk": {"enum": ["north", "south"]}, "n": {"type": "integer"}}}
    messages = [{"role": "system", "content": "Kayaks go to south."}, {"role": "user", "content": "4 kayaks"}]
    wanted = {"type": "json_schema", "json_schema": {"name": "reply", "schema": schema}}
    with serve() as server:
        _, raw = post(server.url, {"model": "offline", "messages": messages, "response_format": wanted})
        assert json.loads(json.loads(raw)["choices"][0]["message"]["content"]) == {"desk": "south", "n": 4}
        status, raw = post(server.url, {"model": "offline", "messages": messages, "stream": True})
    events = [line[6:] for line in raw.splitlines() if line.startswith("data: ")]
    assert (status, events[-1]) == (200, "[DONE]")
    assert json.loads(events[0])["choices"][0]["delta"]["content"]


@pytest.mark.parametrize("body", ["no json", {"model": "offline"}, {"messages": "hi"}])
def test_malformed_requests_are_refused(body: Any) -> None:
    """What is not a chat request gets status 400 and an error object."""
    with serve() as server:
        status, raw = post(server.url, body)
        assert (status, "error" in json.loads(raw)) == (400, True)
        assert post(server.url, {}, "/v1/elsewhere")[0] == 404


def test_odd_messages_are_answered() -> None:
    """Null contents, unknown parts and tool calls do no harm."""
    odd: list[Any] = [
        {"role": "user", "content": None},
        {"role": "assistant", "content": "", "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": "{}"}}]},
        {"role": "tool", "content": [{"type": "mystery"}], "tool_call_id": "1"},
        "not an object",
    ]
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    with serve() as server:
        assert post(server.url, {"model": "offline", "messages": odd, "tools": tools, "n": 2})[0] == 200
        assert post(server.url, {"model": "offline", "messages": []})[0] == 200


def test_command_prints_its_address_first() -> None:
    """`python -m dspy_ace.testing.server` serves at the URL on its first line, with the knobs it was given."""
    command = [sys.executable, "-m", "dspy_ace.testing.server", "--faults", "rate_limit=1.0", "--seed", "3"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        assert url.startswith("http://127.0.0.1:")
        assert post(url, {"messages": [{"role": "user", "content": "hi"}]})[0] == 429
    finally:
        process.kill()
        process.communicate(timeout=10)


def test_program_learns_through_the_server() -> None:
    """Several threads of one client keep their answers apart."""
    sign = dspy.Signature("note -> desk", "Pick a desk.").with_updated_fields("desk", type_=Literal["north", "south"])
    sign = sign.with_instructions("Kayaks go to south. Tents go to north.")
    with serve() as server, dspy.context(lm=client(server.url)):
        notes = ["a kayak", "a tent"] * 10
        parallel = dspy.Parallel(num_threads=4, disable_progress_bar=True)
        replies = parallel([(dspy.Predict(sign), dspy.Example(note=n).with_inputs("note")) for n in notes])
    assert [reply.desk for reply in replies] == ["south", "north"] * 10
