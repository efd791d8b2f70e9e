"""A headless Chromium for tests of pages, spoken to over a pipe (its DevTools protocol), without a driver."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

PROGRAM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--remote-debugging-pipe")
QUIET = "--disable-background-networking"  # what Chromium itself would fetch


class Browser:
    """`with Browser() as browser: browser.open(path); browser.value("document.title")`.

    `requests` has the address of everything that the page asked for since `open`, `errors` what its scripts raised.
    """

    def __enter__(self) -> Browser:
        assert PROGRAM is not None
        self.profile = tempfile.mkdtemp()
        theirs_in, self.writes = os.pipe()
        self.reads, theirs_out = os.pipe()
        # Chromium reads from descriptor 3 and writes to 4; high numbers first, so that neither is overwritten.
        line = f'exec "$0" "$@" 3<&{theirs_in} 4>&{theirs_out}'
        words = [PROGRAM, *FLAGS, QUIET, f"--user-data-dir={self.profile}", "about:blank"]
        self.process = subprocess.Popen(
            ["bash", "-c", line, *words],
            pass_fds=(theirs_in, theirs_out),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self.buffer, self.number, self.session = b"", 0, ""
        self.requests: list[str] = []
        self.errors: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network"):
            self.call(f"{domain}.enable")
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait(timeout=30)
        for end in (self.reads, self.writes):
            os.close(end)
        shutil.rmtree(self.profile, ignore_errors=True)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command of the protocol and its answer."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        os.write(
            self.writes, json.dumps(message | ({"sessionId": self.session} if self.session else {})).encode() + b"\0"
        )
        while True:
            answer = self.receive()
            if answer.get("id") == self.number:
                assert "error" not in answer, answer["error"]
                return answer["result"]

    def receive(self, seconds: float = 60) -> dict[str, Any]:
        """The next message; events are remembered."""
        while b"\0" not in self.buffer:
            assert select.select([self.reads], [], [], seconds)[0], "Chromium does not answer"
            part = os.read(self.reads, 1 << 20)
            assert part, "Chromium has ended"
            self.buffer += part
        text, _, self.buffer = self.buffer.partition(b"\0")
        message = json.loads(text)
        if message.get("method") == "Network.requestWillBeSent":
            self.requests.append(message["params"]["request"]["url"])
        if message.get("method") == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(message["params"]["exceptionDetails"]))
        return message

    def open(
        self, path: Path, *, until: str = "true", width: int = 1280, height: int = 900, dark: bool = False
    ) -> float:
        """Open a file without any network; the seconds until the expression `until` is true."""
        self.requests, self.errors = [], []
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Network.emulateNetworkConditions", offline=True, latency=0, downloadThroughput=0, uploadThroughput=0)
        start = time.perf_counter()
        self.call("Page.navigate", url=path.resolve().as_uri())
        self.wait(f"location.protocol === 'file:' && document.readyState === 'complete' && ({until})")
        return time.perf_counter() - start

    def wait(self, expression: str, seconds: float = 60) -> None:
        """Until an expression is true."""
        end = time.perf_counter() + seconds
        while not self.value(f"Boolean({expression})"):
            assert time.perf_counter() < end, f"never true: {expression}; {self.errors}"
            time.sleep(0.02)

    def value(self, expression: str) -> Any:
        """What an expression gives, waited for if it is a promise."""
        answer = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def picture(self, path: Path, *, whole: bool = False) -> None:
        """A PNG of what is seen, or of the whole page."""
        found = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(found["data"]))
