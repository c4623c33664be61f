"""A headless Chromium driven over the DevTools protocol, through a pair of pipes: no driver program, no open port."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import shutil
import signal
import subprocess
import time
from base64 import b64decode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here")

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-dev-shm-usage", "--remote-debugging-pipe",
)  # fmt: skip
SECONDS = 60
# Name, and code of Windows, of the keys that are no letters.
_NAMED_KEYS = {"Backspace": 8, "Enter": 13, "Tab": 9}


class Browser:
    """One Chromium; its messages are JSON objects that end in a zero byte."""

    def __init__(self, profile: Path) -> None:
        commands, self._to = os.pipe()
        self._from, answers = os.pipe()
        # Chromium reads 3 and writes 4: the shell is to find both ends elsewhere.
        ends = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in (commands, answers)]
        self._process = subprocess.Popen(
            [
                "bash",
                "-c",
                f'exec "$@" 3<&{ends[0]} 4>&{ends[1]}',
                "bash",
                CHROMIUM,
                *FLAGS,
                f"--user-data-dir={profile}",
            ],
            pass_fds=ends,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        for end in (commands, answers, *ends):
            os.close(end)
        self._received = b""
        self._number = 0
        self.events: list[dict[str, Any]] = []

    def call(self, method: str, session: str | None = None, **parameters: Any) -> Any:
        """Send a command and return its result; what the browser reports meanwhile goes to ``events``."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if session:
            message["sessionId"] = session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]
            self.events.append(answer)

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._received:
            ready, _, _ = select.select([self._from], [], [], SECONDS)
            assert ready, "Chromium is silent"
            chunk = os.read(self._from, 1 << 20)
            assert chunk, "Chromium has ended"
            self._received += chunk
        message, _, self._received = self._received.partition(b"\0")
        return json.loads(message)

    def open(self, url: str, width: int = 1280, height: int = 800) -> Page:
        """Open a page in a tab of its own."""
        return Page(self, url, width, height)

    def close(self) -> None:
        """End the browser and all its processes."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(SECONDS)
        os.close(self._to)
        os.close(self._from)


class Page:
    """One tab."""

    def __init__(self, browser: Browser, url: str, width: int, height: int) -> None:
        self._browser = browser
        target = browser.call("Target.createTarget", url="about:blank", newWindow=True)["targetId"]
        self._session = browser.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.call("Page.navigate", url=url)

    def call(self, method: str, **parameters: Any) -> Any:
        return self._browser.call(method, self._session, **parameters)

    def value(self, expression: str) -> Any:
        """Return the value of an expression of JavaScript in the page, as JSON has it."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def wait(self, expression: str) -> Any:
        """Wait until an expression is true, and return its value."""
        until = time.monotonic() + SECONDS
        while not (value := self.value(expression)):
            assert time.monotonic() < until, f"{expression} stays {value!r}: {self.value('document.body.innerText')}"
            time.sleep(0.01)
        return value

    def text(self, identifier: str) -> str:
        """Return the text that an element shows; none while it is hidden."""
        element = f"document.getElementById({identifier!r})"
        return self.value(f"{element}.checkVisibility() ? {element}.innerText : ''")

    def press(self, key: str, *, repeated: bool = False) -> None:
        """Press a key, as the keyboard does; ``repeated``: it is held down, and comes once more."""
        code = _NAMED_KEYS.get(key) or ord(key.upper())
        name = {"key": key, "code": key if key in _NAMED_KEYS else f"Key{key.upper()}", "windowsVirtualKeyCode": code}
        text = {"text": "\r"} if key == "Enter" else {} if key in _NAMED_KEYS else {"text": key}
        self.call("Input.dispatchKeyEvent", type="keyDown", autoRepeat=repeated, **name, **text)
        if not repeated:
            self.call("Input.dispatchKeyEvent", type="keyUp", **name)

    def click(self, identifier: str) -> None:
        """Click on the middle of an element."""
        place = self.value(
            f"(() => {{ const box = document.getElementById({identifier!r}).getBoundingClientRect();"
            " return {x: box.x + box.width / 2, y: box.y + box.height / 2}; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, button="left", clickCount=1, **place)

    def of_kind(self, method: str) -> list[dict[str, Any]]:
        """Return what this tab has reported under a name."""
        self.value("0")
        events = self._browser.events
        return [one["params"] for one in events if one.get("sessionId") == self._session and one["method"] == method]

    def screenshot(self, path: Path) -> None:
        path.write_bytes(b64decode(self.call("Page.captureScreenshot")["data"]))


@contextlib.contextmanager
def chromium(profile: Path) -> Iterator[Browser]:
    """Start a browser with a new profile, and end it."""
    browser = Browser(profile)
    try:
        yield browser
    finally:
        browser.close()
