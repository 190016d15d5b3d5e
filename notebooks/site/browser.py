"""A real browser without a window: Debian's chromium, driven over its DevTools protocol.

    with Browser() as browser:
        browser.open("page.html", 1280, 720)
        browser.photograph("page.png")

The protocol: https://chromedevtools.github.io/devtools-protocol/
"""

import base64
import itertools
import json
import os
import shutil
import subprocess
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
SWITCHES = ("--headless=new", "--remote-debugging-port=0", "--remote-allow-origins=*", "--hide-scrollbars",
            "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--disable-background-networking",
            "--force-color-profile=srgb")  # fmt: skip
PATIENCE = 60  # seconds


class NoBrowser(Exception):
    """There is no chromium here; the message says how to get one."""


def find() -> str:
    """The program's path. Raises NoBrowser."""
    for name in NAMES:
        if found := shutil.which(name):
            return found
    raise NoBrowser(
        "no chromium on this machine: `apt-get install chromium` brings it, or another system's own package"
    )


class Browser:
    """A chromium with one page; leave its `with` and it is gone, with its profile."""

    def __init__(self) -> None:
        self.numbers = itertools.count(1)

    def __enter__(self) -> "Browser":
        import websocket  # of the package websocket-client

        program = find()
        self.profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        root = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []  # it refuses root otherwise
        self.process = subprocess.Popen(
            [program, *SWITCHES, *root, f"--user-data-dir={self.profile.name}", "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            port = self._port()
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list", timeout=PATIENCE) as answer:
                page = next(target for target in json.load(answer) if target["type"] == "page")
            self.socket = websocket.create_connection(page["webSocketDebuggerUrl"], timeout=PATIENCE)
            self.send("Page.enable")
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self.socket.close()
        self._stop()

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command of the protocol -> its result."""
        number = next(self.numbers)
        self.socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            answer = json.loads(self.socket.recv())
            if answer.get("id") == number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                return answer["result"]

    def open(self, page: str | Path, width: int, height: int, dark: bool = False, ready: str = "true") -> None:
        """Show a page (a path or an address) in a window of this size; wait until `ready`, an expression, is true."""
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1,
                  mobile=width < 600)  # fmt: skip
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[scheme])
        address = str(page) if "://" in str(page) else Path(page).resolve().as_uri()
        self.send("Page.navigate", url=address)
        self.wait(f"document.readyState === 'complete' && ({ready})")

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression, or what its promise resolves to."""
        result = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in result:
            raise RuntimeError(f"{expression[:80]}: {result['exceptionDetails'].get('exception', {})}")
        return result["result"].get("value")

    def wait(self, expression: str) -> None:
        """Until an expression is true. Raises TimeoutError."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            if self.evaluate(f"(() => {{ try {{ return !!({expression}) }} catch (e) {{ return false }} }})()"):
                return
            time.sleep(0.05)
        raise TimeoutError(f"the page did not come to {expression} in {PATIENCE} seconds")

    def photograph(self, path: str | Path, whole: bool = False) -> None:
        """The window as a PNG, or the whole page where it is longer."""
        clip = {}
        if whole:
            size = self.send("Page.getLayoutMetrics")["cssContentSize"]
            clip = {"clip": {**size, "scale": 1}, "captureBeyondViewport": True}
        data = self.send("Page.captureScreenshot", format="png", optimizeForSpeed=True, **clip)["data"]
        Path(path).write_bytes(base64.b64decode(data))

    def print(self, path: str | Path) -> None:
        """The page as a PDF on A4, as its own style for print says."""
        size = {"paperWidth": 8.27, "paperHeight": 11.69}  # inches
        data = self.send("Page.printToPDF", printBackground=True, preferCSSPageSize=True, **size)["data"]
        Path(path).write_bytes(base64.b64decode(data))

    def _port(self) -> int:
        """Where it listens: it writes the port into its profile once it does."""
        said, end = Path(self.profile.name) / "DevToolsActivePort", time.monotonic() + PATIENCE
        while time.monotonic() < end and self.process.poll() is None:
            if said.exists() and (text := said.read_text()).count("\n"):
                return int(text.split("\n")[0])
            time.sleep(0.05)
        raise RuntimeError(f"{self.process.args[0]} did not start: it ended with {self.process.poll()}")  # type: ignore[index]

    def _stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
        self.profile.cleanup()
