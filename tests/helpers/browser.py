"""A headless Chromium, driven over a pipe by the DevTools protocol: what a reader's browser makes of a page."""

from __future__ import annotations

import base64
import importlib.util
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)


class Page:
    """One open page. `requests`: addresses it asked for; `complaints`: console messages, errors, policy violations."""

    def __init__(self, read: int, write: int) -> None:
        self._read, self._write, self._buffer, self._number = read, write, b"", 0
        self._session: str | None = None
        self.requests: list[str] = []
        self.complaints: list[str] = []
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.send(f"{domain}.enable")

    def open(self, path: Path, width: int = 1280, dark: bool = False) -> None:
        """Load a file at a width in CSS pixels and a colour scheme, and wait until it stands."""
        self.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[scheme])
        self.requests.clear()
        self.complaints.clear()
        self.send("Page.navigate", url=path.resolve().as_uri())
        while self.run("document.readyState + location.protocol") != "completefile:":
            time.sleep(0.02)
        self.run("new Promise(done => requestAnimationFrame(() => setTimeout(done, 50)))")

    def run(self, script: str) -> Any:
        """The value of an expression in the page."""
        answer = self.send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def complaints_of_axe(self) -> list[str]:
        """What axe-core finds serious or critical for readers with a screen reader, a keyboard or weak eyes."""
        package = importlib.util.find_spec("axe_playwright_python")
        if package is None and "DSPY_ACE_GATE" not in os.environ:
            return []
        assert package, "the gate checks with axe-core: pip install --no-deps axe-playwright-python"
        self.run(Path(str(package.origin)).with_name("axe.min.js").read_text(encoding="utf-8") + ";0")
        found = json.loads(self.run("axe.run().then(found => JSON.stringify(found.violations))"))
        return [
            f"{each['id']}: {each['help']} {each['nodes'][0]['html'][:200]}"
            for each in found
            if each["impact"] in ("serious", "critical")
        ]

    def screenshot(self, path: Path) -> None:
        """The whole page as PNG."""
        data = self.send("Page.captureScreenshot", captureBeyondViewport=True)["data"]
        path.write_bytes(base64.b64decode(data))

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        """One command and its answer; what happens meanwhile is noted."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]
            self._note(answer.get("method", ""), answer.get("params", {}))

    def _note(self, event: str, params: dict[str, Any]) -> None:
        if event == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        if event in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded"):
            self.complaints.append(json.dumps(params)[:2000])

    def _receive(self, seconds: float = 60.0) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._read], [], [], seconds)
            assert ready, f"the browser did not answer within {seconds} s"
            data = os.read(self._read, 1 << 20)
            assert data, "the browser is gone"
            self._buffer += data
        line, self._buffer = self._buffer.split(b"\0", 1)
        return json.loads(line)


@contextmanager
def browser(profile: Path) -> Iterator[Page]:
    """A browser with one page, its profile in a folder of its own; ended with the block.

    Without a browser on this machine the test is skipped. In the gate, which installs one, it fails.
    """
    if CHROMIUM is None and "DSPY_ACE_GATE" not in os.environ:
        pytest.skip("no Chromium on this machine")
    assert CHROMIUM, "the gate runs the browser tests: install Chromium (apt-get install chromium)"
    to_browser, from_us = os.pipe()
    to_us, from_browser = os.pipe()
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run"]
    options += ["--disable-background-networking", "--remote-debugging-pipe", f"--user-data-dir={profile}"]
    command = f'exec 3<&{to_browser} 4>&{from_browser}; exec "$@"'  # the pipe is read at 3 and written at 4
    with subprocess.Popen(
        ["bash", "-c", command, "browser", CHROMIUM, *options, "about:blank"],
        pass_fds=(to_browser, from_browser),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        os.close(to_browser)
        os.close(from_browser)
        try:
            yield Page(to_us, from_us)
        finally:
            os.close(from_us)
            os.close(to_us)
            process.terminate()
