"""Text on its way out: secrets are taken out of it wherever it goes, and it prints on any terminal."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import dspy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dspy_ace import ACE, Bullet, OnlineACE, Playbook, PlaybookStore, compare
from dspy_ace.errors import AceError, RunError, SettingsError
from dspy_ace.output import keep_secret, printable, redact, redacted, redacting
from dspy_ace.playbook import Add, Delete, Delta, Rejected, Update
from dspy_ace.roles import Reflection
from dspy_ace.testing import OfflineLM
from strategies import texts
from tasks import Route, desk_metric, messages

KEY = "sk-live-0a1B2c3D4e5F6g7H8i9J"

SECRETS = [
    f"rejected: {KEY}",
    "Authorization: Bearer abcdef123456",
    "authorization: Basic dXNlcjpwYXNzd29yZDE=",
    '{"Authorization": "Bearer abcdef123456"}',
    "{'x-api-key': 'abcdef123456'}",
    "OPENAI_API_KEY=abcdef123456",
    "api_key = 'abcdef123456'",
    "run --api-key abcdef-hidden --out x",
    "run --openai-api-key abcdef-hidden --client-secret=abcdef-too",
    "GET /v1?api-key=x&key=abcdef&page=2",
    "postgresql://me:abcdef@host/db?password=abcdef&user=me",
    "http://user:abcdef@gateway:8080/v1/chat",
    "sk-ant-api03-abcdefghijklmnop_abcdef",
    "gsk_abcdefghijklmnopqrstuvwx",
    "hf_abcdefghijklmnopqrstuvwx",
    "ghp_abcdefghijklmnopqrstuvwx",
    "AIzaSyabcdefghijklmnopqrstuvwxyz0123456",
    "AKIAABCDEFGHIJKLMNOP",
    "xoxb-123-abcdefghijkl",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.abcdefghijkl",
    "-----BEGIN RSA PRIVATE KEY-----\nabcdef+/=\n-----END RSA PRIVATE KEY-----",
]
HARMLESS = [
    "Authorization: required for refunds above 500.",
    "Use a bearer token; basic authentication is refused.",
    "password: ask the user, never guess.",
    'Call login(password=passwords["spotify"]) and keep access_token=reply["access_token"].',
    "api_key=os.environ['KEY_2']",
    "token = login(user1, 12)",
    "max_tokens=20000, temperature=0.7, tokens: 12345678",
    "See https://example.com/@name?page=2 or write to help@example.com.",
    "risk-averse-strategies-are-fine-here; task-00001",
    "[str-00042] (RULES) Keep key: value pairs in order.",
]


@pytest.fixture(autouse=True)
def _nothing_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dspy_ace.output._secrets", [])


@pytest.mark.parametrize("text", SECRETS)
def test_keys_of_known_shapes_are_taken_out(text: str) -> None:
    """Whatever stands around them; what tells what they were stays."""
    for around in ("{}", "({})", "401: {}.", "`{}`", "a\n{}\nb"):
        found = redact(around.format(text))
        assert "[redacted]" in found
        assert not re.search(r"abcdef|ABCDEF|SyA|0a1B2c|dXNlcjpw|eyJzd", found)
        assert redact(found) == found


@pytest.mark.parametrize("text", HARMLESS)
def test_other_texts_stay_as_they_are(text: str) -> None:
    """Words of advice, code with names for secrets, numbers, ids, addresses."""
    assert redact(text) == text


@given(texts())
def test_redacting_twice_changes_nothing_more(text: str) -> None:
    """A journal that is read again gives the same values."""
    assert redact(redact(text)) == redact(text)


def test_secrets_of_an_lm_are_known_whatever_they_look_like() -> None:
    """Key, headers, address and the password in it; short words that may stand in any text are left."""
    settings = {
        "kwargs": {
            "api_key": "correct horse",
            "api_base": "http://me:p%40ssword-x@gateway.corp:8080/v1/",
            "extra_headers": {"X-Auth-Token": "Bearer staple-battery"},
            "temperature": 0.5,
        },
        "azure_ad_token": "none",
    }
    keep_secret(settings)
    for text in ("correct horse", "http://me:p%40ssword-x@gateway.corp:8080/v1", "gateway.corp:8080", "p@ssword-x"):
        assert redact(f"<{text}>") == "<[redacted]>"
    assert redact("staple-battery and none") == "[redacted] and none"
    keep_secret({"api_key": "placeholder", "token": "NOT A WORD"})
    assert redact("a placeholder, NOT A WORD") == "a placeholder, [redacted]"


def test_keys_in_the_environment_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """An LM without `api_key` takes it from there."""
    monkeypatch.setenv("GATEWAY_API_KEY", "plain-words-only")
    keep_secret({})
    assert redact("refused: plain-words-only") == "refused: [redacted]"


def test_a_function_of_the_users_takes_out_more() -> None:
    """In its scope, and in what the patterns left. One that fails hides the whole text and ends nothing."""

    def names(text: str) -> Any:
        if "bad" in text:
            raise ValueError(text)
        return None if "odd" in text else text.replace("Ada", "[name]")

    with redacting(names):
        assert redact(f"Ada has {KEY}") == "[name] has [redacted]"
        assert redact("bad Ada") == "[redacted as a whole: redact= raised ValueError]"
        assert redact("odd Ada") == "[redacted as a whole: redact= returned no text]"
        assert Bullet("a-1", "Ada", "Ask Ada.").block == "[a-1] ([name]) Ask [name]."
    assert redact("Ada") == "Ada"


def test_values_hold_no_secret() -> None:
    """Bullets, operations, rejections, errors and data for a store, however they are made."""
    made: list[Any] = [
        Bullet("a-1", KEY, f"Use {KEY}."),
        Playbook().add(f"Use {KEY}."),
        Playbook.from_text(f"## S\n[a-1] Use {KEY}."),
        Delta((Add(KEY, KEY), Update("a-1", KEY, KEY), Delete("a-1", KEY))).to_json(),
        Rejected(None, f"got {KEY}").to_json(),
        AceError(f"refused {KEY}"),
        redacted({"a": [KEY, (KEY,), {"b": KEY}], "n": 1}),
    ]
    for value in made:
        assert KEY not in repr(value)
        assert "[redacted]" in repr(getattr(value, "bullets", value))


def test_the_log_holds_no_secret(caplog: pytest.LogCaptureFixture) -> None:
    """Neither a line nor the traceback below it."""
    logger = logging.getLogger("dspy.ace")
    with caplog.at_level(logging.INFO, "dspy.ace"):
        try:
            raise ConnectionError(f"refused {KEY}")
        except ConnectionError as error:
            logger.warning("It failed: %s", error, exc_info=error)
    written = logging.Formatter("%(message)s").format(caplog.records[-1])
    assert KEY not in written
    assert "It failed: refused [redacted]" in written
    assert "ConnectionError: refused [redacted]" in written
    assert caplog.records[-1].exc_info is None  # what another handler would write


@pytest.mark.parametrize(
    "piece",
    [
        "sk-",
        "eyJ-",
        "://a",
        "bearer ",
        "token=1",
        "token=1(",
        "api_key=",
        "a_",
        "?key=",
        "-----BEGIN PRIVATE KEY-----",
        "-",
        "--a",
        "1",
    ],
)
def test_hostile_text_takes_linear_time(piece: str) -> None:
    """Four times the text, about four times as long."""

    def seconds(size: int) -> float:
        text = piece * (size // len(piece))
        began = time.process_time()
        redact(text)
        return time.process_time() - began

    small = min(seconds(25_000) for _ in range(3))
    assert seconds(100_000) < 12 * small + 0.05


# --- where everything goes


def everything_in(folder: Path) -> str:
    return "\n".join(path.read_text(encoding="utf-8", errors="replace") for path in folder.rglob("*") if path.is_file())


def leaky_curate(playbook: Playbook, group: Any) -> Any:
    words = f"Ask Ada Lovelace with {KEY} about {group[0].trajectory.source}."
    return Delta((Add(f"Ada {KEY}", words),)), (Rejected(None, f"no {KEY} of Ada"),)


class Leaky(dspy.Module):  # type: ignore[misc]  # dspy is untyped
    """Answers, or raises an error that repeats a key."""

    def __init__(self) -> None:
        super().__init__()
        self.route = dspy.Predict(Route)

    def forward(self, message: str) -> Any:
        if len(message) % 2:
            raise ConnectionError(f"401 for Ada: Bearer {KEY}")
        return self.route(message=message)


def test_a_run_writes_and_returns_no_secret(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Journal, playbook, program, page, results and log; nor what `redact` takes out. New files are the owner's."""
    folder = tmp_path / "run"
    with dspy.context(lm=OfflineLM()), caplog.at_level(logging.INFO, "dspy.ace"):
        program = ACE(
            desk_metric,
            reflect=lambda playbook, trajectory: Reflection((f"{KEY} of Ada",)),
            curate=leaky_curate,
            max_reflection_rounds=1,
            batch_size=4,
            num_threads=1,
            log_dir=folder,
            redact=lambda text: text.replace("Ada", "[name]"),
        ).compile(Leaky(), messages(12, 1), valset=messages(6, 2))
    program.playbook.save(tmp_path / "kept.json")
    shown = f"{program.detailed_results}{program.detailed_results.records}{program.playbook.render()}{caplog.text}"
    for text in (everything_in(tmp_path), shown):
        assert KEY not in text
        assert "Ada" not in text
        assert "[name]" in text
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) & 0o077 for path in tmp_path.rglob("*.json*")}
    assert os.name == "nt" or not any(modes.values()), modes


def test_a_run_is_continued_as_it_was(tmp_path: Path) -> None:
    """What was redacted when it was learned is the same when it is read."""
    arguments: dict[str, Any] = {
        "reflect": lambda playbook, trajectory: Reflection((f"{KEY} of Ada",)),
        "curate": leaky_curate,
        "max_reflection_rounds": 0,
        "batch_size": 4,
        "num_threads": 1,
        "redact": lambda text: text.replace("Ada", "[name]"),
    }
    with dspy.context(lm=OfflineLM()):
        whole = ACE(desk_metric, log_dir=tmp_path / "a", **arguments).compile(Leaky(), messages(12, 1))
        ACE(desk_metric, log_dir=tmp_path / "b", max_metric_calls=8, **arguments).compile(Leaky(), messages(12, 1))
        again = ACE(desk_metric, log_dir=tmp_path / "b", **arguments).compile(Leaky(), messages(12, 1))
    assert again.playbook == whole.playbook
    assert (tmp_path / "a/journal.jsonl").read_bytes() == (tmp_path / "b/journal.jsonl").read_bytes()


PLAIN_KEY = "quiet-blue-harbour"  # of no known shape: only the LM tells that it is one


class Echo(BaseHTTPRequestHandler):
    """A gateway that refuses each call and repeats what it was sent."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        said = f"refused: {self.headers['Authorization']} and {self.headers['Authorization'].split()[-1]}"
        body = json.dumps({"error": {"message": said, "code": "invalid_api_key", "type": "x"}}).encode()
        self.send_response(401)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def gateway() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Echo)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class Inside(dspy.Module):  # type: ignore[misc]  # dspy is untyped
    """Makes its LM when it is called: nobody has seen it before."""

    def __init__(self, gateway: str) -> None:
        super().__init__()
        self.gateway = f"http://{gateway}/v1"
        self.api_key = PLAIN_KEY
        self.route = dspy.Predict(Route)

    def forward(self, message: str) -> Any:
        lm = dspy.LM("openai/x", api_key=self.api_key, api_base=self.gateway, num_retries=0, cache=False)
        with dspy.context(lm=lm):
            return self.route(message=message)


@pytest.mark.parametrize("user", ["", "user:harbour-password@"])
def test_a_key_that_a_provider_repeats_is_shown_nowhere(gateway: str, user: str, tmp_path: Path) -> None:
    """In the error that ends the run, its folder, a comparison's cells and page, and the command line of that."""
    student, command = Inside(user + gateway), f"run --key-of-mine {PLAIN_KEY}"
    said = "failed to connect to [redacted]" if user else "refused: Bearer [redacted] and [redacted]"
    with dspy.context(lm=dspy.LM("openai/not-called", api_key=PLAIN_KEY)):
        with pytest.raises(RunError) as ended:
            ACE(desk_metric, log_dir=tmp_path / "run", num_threads=1).compile(student, messages(6, 1))
        arguments: dict[str, Any] = {"trainset": messages(2, 1), "testset": messages(2, 2), "num_threads": 1}
        optimizers = {"few-shot": dspy.LabeledFewShot(k=1)}
        compared = compare(
            student, metric=desk_metric, optimizers=optimizers, out=tmp_path / "c", command=command, **arguments
        )
    compared.save_report(tmp_path / "report.html")
    written = everything_in(tmp_path)
    for text in (str(ended.value), written, str(compared)):
        assert PLAIN_KEY not in text
        assert "harbour-password" not in text
    assert said in str(ended.value)
    assert said in written
    assert "run --key-of-mine [redacted]" in written


def test_what_is_told_reaches_a_store_without_secrets(tmp_path: Path) -> None:
    """Inputs, outputs, feedback and what is learned from them, until `close`."""

    def reflect(playbook: Playbook, trajectory: Any) -> Reflection:
        return Reflection((f"{trajectory.feedback.text} {KEY}",))

    def curate(playbook: Playbook, group: Any) -> Any:
        return Delta(tuple(Add("S", review.insights[0]) for review in group)), ()

    with dspy.context(lm=OfflineLM()), PlaybookStore(tmp_path / "memory.db") as store:
        online = OnlineACE(
            dspy.Predict(Route),
            store=store,
            reflect=reflect,
            curate=curate,
            learn="manual",
            redact=lambda text: text.replace("Ada", "[name]"),
        )
        online.tell(online(message=f"Ada sends {KEY}"), f"Ask Ada for {KEY}.")
        waiting = repr(store.pending()) + everything_in(tmp_path)
        online.learn()
        learned = online.playbook.render() + everything_in(tmp_path)
        online.close()
    for text in (waiting, learned):
        assert KEY not in text
        assert "Ada" not in text
        assert "[name]" in text
    assert redact("Ada") == "Ada"


@pytest.mark.parametrize("redactor", [lambda text: None, "no function"])
def test_a_wrong_redact_is_found_before_the_first_call(redactor: Any) -> None:
    """It is tried with a text."""
    lm = OfflineLM()
    with dspy.context(lm=lm), pytest.raises(SettingsError, match="redact must"):
        ACE(desk_metric, redact=redactor).compile(dspy.Predict(Route), messages(2, 1))
    assert not lm.history


# --- any terminal


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "latin-1", "cp437", "gbk", "utf-8", "utf-16"])
@given(text=st.text())
def test_anything_prints(encoding: str, text: str) -> None:
    """Signs of the package's own words become ASCII, others an escape; what the terminal can write stays."""
    output = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    before, sys.stdout = sys.stdout, output
    try:
        print(printable(f"0.5 → 0.7 … {text}"), Bullet("a-1", text.strip() or "S", f"→ {text}") if valid(text) else "")
        output.flush()
    finally:
        sys.stdout = before


def valid(text: str) -> bool:
    return not any("\ud800" <= sign <= "\udfff" for sign in text)


def test_signs_are_spelled_in_ascii(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables and arrows can be read on a console of Windows."""
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    assert printable("0.5 → 0.7 ± 0.1 │ 退") == "0.5 -> 0.7 +/- 0.1 | \\u9000"
    monkeypatch.setattr(sys, "stdout", None)
    assert printable("→") == "→"


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_results_print_in_a_process_of_another_encoding(encoding: str) -> None:
    """A run with bullets and errors in any script is printed whole, where stdout refuses what it cannot write."""
    script = """
import dspy
from dspy_ace import ACE, Playbook, with_playbook
from dspy_ace.testing import OfflineLM
from tasks import Route, desk_metric, messages

def reflect(playbook, trajectory):
    raise ValueError("退款 → ✓") if trajectory.source == "7" else TimeoutError("→")

class Desk(dspy.Predict):
    def forward(self, **inputs):
        if "7" in inputs["message"]:
            raise ValueError("退款 → ✓")
        return super().forward(**inputs)

with dspy.context(lm=OfflineLM()):
    start = Playbook().add("退款 → 财务 ✓", section="规则")
    program = ACE(desk_metric, playbook=start, batch_size=4).compile(dspy.Predict(Route), messages(12, 1))
print(program.detailed_results, program.playbook, program.playbook.bullets[0], Playbook().diff(program.playbook))
print(program.playbook.forget(bullets={start.bullets[0].id})[1])
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONIOENCODING": encoding, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode(errors="replace")[-2000:]
    assert b"\\u9000\\u6b3e -> \\u8d22\\u52a1" in done.stdout
