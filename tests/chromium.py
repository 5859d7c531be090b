"""A headless Chromium that is told what to do over a pipe (the DevTools protocol), without another package."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PROGRAM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
_KEYS = {"Tab": 9, "Enter": 13, "Escape": 27, "End": 35, "Home": 36}
_KEYS |= {"ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40}


class Browser:
    """One tab."""

    def __init__(self, reads: int, writes: int):
        self._in, self._out = os.fdopen(reads, "rb"), os.fdopen(writes, "wb")
        self._count = 0
        self._session: str | None = None
        self.complaints: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "DOM", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **given: Any) -> dict[str, Any]:
        """Send a command, and wait for its answer; what the page complains of meanwhile is kept."""
        self._count += 1
        content = {"id": self._count, "method": method, "params": given}
        if self._session:
            content["sessionId"] = self._session
        self._out.write(json.dumps(content).encode() + b"\0")
        self._out.flush()
        while True:
            answer = self._next()
            if answer.get("id") == self._count:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]
            self._note(answer)

    def _next(self) -> dict[str, Any]:
        parts = []
        while (byte := self._in.read(1)) != b"\0":
            assert byte, "the browser has ended"
            parts.append(byte)
        return json.loads(b"".join(parts))

    def _note(self, event: dict[str, Any]) -> None:
        if event.get("method") == "Runtime.exceptionThrown":
            self.complaints.append(event["params"]["exceptionDetails"]["text"])
        elif event.get("method") == "Log.entryAdded" and event["params"]["entry"]["level"] == "error":
            self.complaints.append(event["params"]["entry"]["text"])

    def screen(self, width: int, height: int, *, dark: bool = False, phone: bool = False) -> None:
        """The size of the window in CSS pixels, and the theme of the system."""
        scale = 2 if phone else 1
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=phone
        )
        self.call("Emulation.setTouchEmulationEnabled", enabled=phone)
        theme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.call("Emulation.setEmulatedMedia", features=theme)

    def open(self, address: str) -> None:
        """Go to an address, and wait until the page has nothing more to do."""
        self.call("Page.navigate", url="about:blank")
        self.call("Page.navigate", url=address)
        self.wait("document.readyState === 'complete'")

    def run(self, script: str) -> Any:
        """The value of an expression on the page, waited for."""
        found = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, (script, found["exceptionDetails"])
        return found["result"].get("value")

    def wait(self, script: str, *, seconds: float = 20) -> None:
        """Until an expression is true."""
        end = time.monotonic() + seconds
        while not self.run(script):
            assert time.monotonic() < end, (
                f"never true: {script}; {self.complaints}; {self.run('document.body.innerText')}"
            )
            time.sleep(0.03)

    def press(self, key: str) -> None:
        """Press a key, or type a letter."""
        code = _KEYS.get(key)
        named = {"key": key, "code": key, "windowsVirtualKeyCode": code} if code else {"key": key, "text": key}
        if key == "Enter":
            named["text"] = "\r"
        self.call("Input.dispatchKeyEvent", type="keyDown", **named)
        self.call("Input.dispatchKeyEvent", type="keyUp", **{k: v for k, v in named.items() if k != "text"})

    def write(self, text: str) -> None:
        """Type a text where the focus is."""
        self.call("Input.insertText", text=text)

    def choose(self, selector: str, *files: Path) -> None:
        """Give files to an input of files."""
        document = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=document, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", files=[str(file) for file in files], nodeId=node)

    def picture(self, path: Path, *, whole: bool = False) -> Path:
        """What is seen, as PNG."""
        content = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)["data"]
        path.write_bytes(base64.b64decode(content))
        return path


@contextmanager
def browser(folder: Path) -> Iterator[Browser]:
    """A browser with a profile in this folder; ended afterwards."""
    assert PROGRAM
    theirs_in, ours_out = os.pipe()
    ours_in, theirs_out = os.pipe()

    options = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    options += ["--remote-debugging-pipe", "--hide-scrollbars", f"--user-data-dir={folder / 'profile'}"]
    # bash puts the pipes where Chromium looks for them: file descriptors 3 and 4
    line = ["bash", "-c", f'exec "$0" "$@" 3<&{theirs_in} 4>&{theirs_out}', PROGRAM, *options]
    process = subprocess.Popen(
        line, pass_fds=(theirs_in, theirs_out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    os.close(theirs_in)
    os.close(theirs_out)
    made = Browser(ours_in, ours_out)
    try:
        yield made
    finally:
        process.terminate()
        process.wait(20)
        made._in.close()
        made._out.close()
