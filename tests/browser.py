"""Pages in a real Chromium without a window, driven by the DevTools protocol over two pipes."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
# The browser reads commands from 3 and answers on 4.
_ON_PIPES = 'exec "$@" 3<&"$COMMANDS" 4>&"$ANSWERS"'
_WAIT_SECONDS = 60.0


class Page:
    """One open page. `complaints` collects errors and warnings of its console."""

    def __init__(self, commands: int, answers: int) -> None:
        self._commands, self._answers, self._rest = commands, answers, b""
        self._number, self._session = 0, ""
        self.complaints: list[str] = []

    def open(self, path: Path, width: int, height: int) -> None:
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Runtime", "Log", "Page"):
            self.send(f"{domain}.enable")
        self.screen(width, height)
        self.send("Page.navigate", url=path.absolute().as_uri())

    def screen(self, width: int, height: int, phone: bool = False, dark: bool = False) -> None:
        """What the page is shown on, and whether that prefers dark pages."""
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        pointer = {"name": "pointer", "value": "coarse" if phone else "fine"}
        self.send("Emulation.setEmulatedMedia", features=[scheme, pointer])

    def show(self, path: Path) -> None:
        """Another page in place of this one, which is complete when this returns; its complaints begin again."""
        self.complaints = []
        self.send("Page.navigate", url=path.absolute().as_uri())
        self.wait_for(f"document.readyState === 'complete' && location.pathname.endsWith({json.dumps(path.name)})")

    def value(self, expression: str) -> Any:
        """A JavaScript expression's value, or what the promise gives that it is."""
        found = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def press(self, key: str, code: int, text: str = "") -> None:
        """A key, by its name and Windows code, and what it types."""
        for kind in ("keyDown", "keyUp"):
            typed = {"text": text} if text and kind == "keyDown" else {}
            self.send("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **typed)

    def wait_for(self, expression: str) -> None:
        end = time.monotonic() + _WAIT_SECONDS
        while not self.value(expression):
            assert time.monotonic() < end, f"{expression} did not come true; {self.complaints}"
            time.sleep(0.05)

    def mouse(self, kind: str, x: float, y: float, clicks: int = 1) -> None:
        """kind: Pressed, Moved or Released, of the left button."""
        held = kind != "Released"
        self.send("Input.dispatchMouseEvent", type=f"mouse{kind}", x=x, y=y, button="left", buttons=int(held),
                  clickCount=clicks)  # fmt: skip

    def drag(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        self.mouse("Pressed", *start)
        for part in (0.25, 0.5, 0.75, 1.0):
            self.mouse("Moved", *(a + part * (b - a) for a, b in zip(start, end, strict=True)))
        self.mouse("Released", *end)

    def double_click(self, x: float, y: float) -> None:
        for clicks in (1, 2):
            self.mouse("Pressed", x, y, clicks)
            self.mouse("Released", x, y, clicks)

    def image(self) -> bytes:
        """A PNG of what is seen."""
        return base64.b64decode(self.send("Page.captureScreenshot")["data"])

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer["error"]
                return answer["result"]
            self._note(answer.get("method", ""), answer.get("params", {}))

    def _note(self, event: str, params: dict[str, Any]) -> None:
        if event == "Runtime.exceptionThrown":
            self.complaints.append(str(params["exceptionDetails"]))
        if event == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
            self.complaints.append(str(params["args"]))
        if event == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.complaints.append(str(params["entry"]))

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            part = os.read(self._answers, 1 << 20)
            assert part, "the browser is gone"
            self._rest += part
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)


@contextmanager
def opened(path: Path, profile: Path, width: int = 1250, height: int = 1600) -> Iterator[Page]:
    """A page in a browser of its own, which keeps everything in `profile`."""
    assert CHROMIUM is not None
    theirs_in, ours_out = _pipe()
    ours_in, theirs_out = _pipe()
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--remote-debugging-pipe"]
    command = ["bash", "-c", _ON_PIPES, "bash", CHROMIUM, *flags, f"--user-data-dir={profile}"]
    environment = {**os.environ, "COMMANDS": str(theirs_in), "ANSWERS": str(theirs_out)}
    process = subprocess.Popen(command, pass_fds=(theirs_in, theirs_out), env=environment, stderr=subprocess.DEVNULL)
    for theirs in (theirs_in, theirs_out):
        os.close(theirs)
    try:
        page = Page(ours_out, ours_in)
        page.open(path, width, height)
        yield page
    finally:
        process.terminate()
        process.wait(20)
        for ours in (ours_in, ours_out):
            os.close(ours)


def _pipe() -> tuple[int, int]:
    """Both ends above 9, so that bash can put them to 3 and 4."""
    low = os.pipe()
    high = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in low]
    for end in low:
        os.close(end)
    return high[0], high[1]
