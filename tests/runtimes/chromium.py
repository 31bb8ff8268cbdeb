"""A real Chromium without a window, driven over its DevTools protocol through a pipe: no driver, no open port."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# As root there is no sandbox; the rest keeps the browser from calling home.
_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-debugging-pipe",
)


def chromium() -> str | None:
    """The browser's path, if there is one."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Page:
    """One page of a browser. ``requests``: the addresses that it has asked for; ``errors``: what it complained of."""

    def __init__(self, to_browser: int, from_browser: int) -> None:
        self._write = os.fdopen(to_browser, "wb")
        self._read = os.fdopen(from_browser, "rb")
        self._count = 0
        self._waiting = b""
        self._session: str | None = None
        self.requests: list[str] = []
        self.errors: list[str] = []
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network"):
            self._call(f"{domain}.enable")

    def go_to(self, address: str) -> None:
        """Open an address."""
        self._call("Page.navigate", url=address)

    def evaluate(self, script: str) -> Any:
        """The value of a JavaScript expression; a promise is waited for."""
        found = self._call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in found:
            raise AssertionError(found["exceptionDetails"])
        return found["result"].get("value")

    def wait_for(self, condition: str, seconds: float = 60) -> None:
        """Wait until a JavaScript expression is true."""
        waited = self.evaluate(
            f"""new Promise((resolve) => {{
                const until = Date.now() + {seconds * 1000};
                const look = () => {{
                    if ({condition}) resolve(true);
                    else if (Date.now() > until) resolve(false);
                    else setTimeout(look, 20);
                }};
                look();
            }})"""
        )
        if not waited:
            raise AssertionError(
                f"{condition} did not come true: {self.errors} {self.evaluate('document.body.innerText')}"
            )

    def press(self, key: str, text: str = "") -> None:
        """Press a key."""
        self._call(
            "Input.dispatchKeyEvent", type="keyDown", key=key, code=key, text=text, windowsVirtualKeyCode=_CODES[key]
        )
        self._call("Input.dispatchKeyEvent", type="keyUp", key=key, code=key, windowsVirtualKeyCode=_CODES[key])

    def write(self, text: str) -> None:
        """Write into what has the focus."""
        self._call("Input.insertText", text=text)

    def resize(self, width: int, height: int, *, dark: bool = False) -> None:
        """Look as on a screen of this size."""
        self._call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=2, mobile=width < 600
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._call("Emulation.setEmulatedMedia", media="", features=[scheme])

    def contrast(self, selector: str) -> float:
        """The contrast of an element's text with what lies behind it, by the definition of WCAG 2."""
        return float(self.evaluate(_CONTRAST % selector))

    def screenshot(self, path: Path) -> None:
        """Write what is seen as a PNG."""
        path.write_bytes(base64.b64decode(self._call("Page.captureScreenshot", format="png")["data"]))

    def print_pages(self) -> bytes:
        """What would be printed on A4, as a PDF."""
        printed = self._call("Page.printToPDF", printBackground=True, paperWidth=8.27, paperHeight=11.69)
        return base64.b64decode(printed["data"])

    def emulate_paper(self) -> None:
        """Look as on a printed page of A4, 96 dots to an inch."""
        self._call("Emulation.setDeviceMetricsOverride", width=673, height=1000, deviceScaleFactor=1, mobile=False)
        self._call("Emulation.setEmulatedMedia", media="print", features=[])

    def close_browser(self) -> None:
        """End the browser, which then tidies up after itself."""
        self._session = None
        self._call("Browser.close")

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._count += 1
        message = {"id": self._count, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        self._write.write(json.dumps(message).encode() + b"\0")
        self._write.flush()
        while True:
            answer = self._next()
            if answer.get("id") == self._count:
                if "error" in answer:
                    raise AssertionError(f"{method}: {answer['error']}")
                return dict(answer["result"])
            self._note(answer)

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._waiting:
            piece = self._read.read1(1 << 16)
            if not piece:
                raise AssertionError("The browser ended.")
            self._waiting += piece
        message, self._waiting = self._waiting.split(b"\0", 1)
        return dict(json.loads(message))

    def _note(self, event: dict[str, Any]) -> None:
        if event["method"] == "Network.requestWillBeSent":
            self.requests.append(event["params"]["request"]["url"])
        elif event["method"] == "Runtime.exceptionThrown":
            self.errors.append(event["params"]["exceptionDetails"]["text"])


_CODES = {"Enter": 13, "Tab": 9}
_CONTRAST = """(() => {
    const light = (color) => color.match(/[\\d.]+/g).slice(0, 3).map((part) => part / 255)
        .map((part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4))
        .reduce((sum, part, index) => sum + part * [0.2126, 0.7152, 0.0722][index], 0);
    const element = document.querySelector('%s');
    let behind = element;
    while (getComputedStyle(behind).backgroundColor === 'rgba(0, 0, 0, 0)') behind = behind.parentElement;
    const pair = [getComputedStyle(element).color, getComputedStyle(behind).backgroundColor].map(light);
    return (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05);
})()"""


@contextmanager
def page(browser: str, profile: Path) -> Iterator[Page]:
    """A page of a new browser, which ends with the block."""
    from_us, to_browser = os.pipe()
    from_browser, to_us = os.pipe()
    # The protocol's pipes are file descriptors 3 and 4.
    redirect = f'exec "$0" "$@" 3<&{from_us} 4>&{to_us}'
    process = subprocess.Popen(
        ["bash", "-c", redirect, browser, *_FLAGS, f"--user-data-dir={profile}", "about:blank"],
        pass_fds=(from_us, to_us),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(from_us)
    os.close(to_us)
    try:
        opened = Page(to_browser, from_browser)
        yield opened
        opened.close_browser()
        process.wait(timeout=30)
    finally:
        process.kill()
        process.wait()
