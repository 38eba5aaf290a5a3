"""A real browser to try a page of the server in: Debian's Chromium, headless, told what to do over its DevTools pipe
(https://chromedevtools.github.io/devtools-protocol). Needs no package: the pipe is file descriptors 3 and 4, each
message JSON that ends in a NUL."""

import base64
import fcntl
import json
import os
import select
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from tests.helpers.viewer_data import browser

KEYS = {"Enter": 13, "Tab": 9, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40, "Delete": 46, " ": 32}
KEYS |= {"Escape": 27, **{str(digit): 48 + digit for digit in range(10)}}


class Browser:
    """One window. Pages are driven as a person drives them: by clicks at a place on the screen, keys and files."""

    def __init__(self, profile: Path, *, width_px: int = 1300, height_px: int = 900) -> None:
        self._down, self._up, self._last = b"", 0, 0
        self.console: list[str] = []
        """What the page said to the developer: errors, and violations of its policy."""
        ours_in, theirs_out = _pipe()
        theirs_in, ours_out = _pipe()
        self._in, self._out = ours_in, ours_out
        command = [
            browser(), "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars",
            f"--user-data-dir={profile}", f"--window-size={width_px},{height_px}", "--remote-debugging-pipe",
            "about:blank",
        ]  # fmt: skip
        quiet = [(os.POSIX_SPAWN_OPEN, number, os.devnull, os.O_WRONLY, 0) for number in (1, 2)]
        pipe = [(os.POSIX_SPAWN_DUP2, theirs_in, 3), (os.POSIX_SPAWN_DUP2, theirs_out, 4)]
        self._process = os.posix_spawn(command[0], command, os.environ, file_actions=[*quiet, *pipe])
        os.close(theirs_in)
        os.close(theirs_out)
        self._session = ""
        targets = self.send("Target.getTargets")["targetInfos"]
        page = next(target["targetId"] for target in targets if target["type"] == "page")
        self._session = self.send("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "DOM"):
            self.send(f"{domain}.enable")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(Exception):
            self._session = ""
            self.send("Browser.close")
        with suppress(ProcessLookupError):
            os.kill(self._process, signal.SIGTERM)
        os.waitpid(self._process, 0)
        os.close(self._in)
        os.close(self._out)

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        """A command's result."""
        self._last += 1
        number = self._last
        message = {"id": number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + 60
        while True:
            answer = self._receive(deadline)
            if answer.get("id") == number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                result: dict[str, Any] = answer["result"]
                return result

    def _receive(self, deadline: float) -> dict[str, Any]:
        while b"\0" not in self._down:
            ready, _, _ = select.select([self._in], [], [], max(0, deadline - time.monotonic()))
            chunk = os.read(self._in, 1 << 20) if ready else b""
            assert chunk, "the browser does not answer"
            self._down += chunk
        line, _, self._down = self._down.partition(b"\0")
        message: dict[str, Any] = json.loads(line)
        self._note(message)
        return message

    def _note(self, message: dict[str, Any]) -> None:
        params = message.get("params", {})
        if message.get("method") == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            self.console.append(details.get("exception", {}).get("description") or details["text"])
        elif message.get("method") == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.console.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")
        elif message.get("method") == "Runtime.consoleAPICalled" and params["type"] == "error":
            self.console.append(
                str([argument.get("value") or argument.get("description") for argument in params["args"]])
            )

    def do(self, code: str) -> Any:
        """The value of an expression in the page; a promise is awaited."""
        result = self.send("Runtime.evaluate", expression=code, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"].get("exception", result["exceptionDetails"])
        return result["result"].get("value")

    def show(self, url: str) -> None:
        """Returns once the page begins to load."""
        self.send("Page.navigate", url="about:blank")  # a change of the fragment alone would load nothing
        self.wait("location.href === 'about:blank'")
        self.send("Page.navigate", url=url)

    def open(self, url: str) -> None:
        """Returns once the page says that it is ready."""
        self.show(url)
        self.wait("document.documentElement.dataset.ready === 'yes'")

    def wait(self, condition: str, timeout_s: float = 60) -> None:
        """Until an expression is true."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            with suppress(AssertionError):  # between two pages there is nothing to ask
                if self.do(f"Boolean({condition})"):
                    return
            time.sleep(0.03)
        raise AssertionError(f"never came true: {condition}; console: {self.console}; page: {self.text('body')[:2000]}")

    def text(self, selector: str) -> str:
        """What is seen of an element."""
        return str(self.do(f"document.querySelector({json.dumps(selector)})?.innerText ?? ''"))

    def click(self, selector: str, index: int = 0) -> None:
        """At the middle of the element; it must be in sight and nothing above it."""
        point = self.do(f"""(() => {{
            const node = document.querySelectorAll({json.dumps(selector)})[{index}];
            if (!node) return null;
            node.scrollIntoView({{ block: "center", inline: "nearest", behavior: "instant" }});
            const box = node.getBoundingClientRect(), x = box.x + box.width / 2, y = box.y + box.height / 2;
            const top = document.elementFromPoint(x, y);
            return {{ x, y, hit: Boolean(top && (node.contains(top) || top.contains(node))) }};
        }})()""")
        assert point and point["hit"], f"{selector} {index} cannot be clicked: {point}"
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, x=point["x"], y=point["y"], button="left", clickCount=1)

    def type(self, selector: str, text: str) -> None:
        """Into a field, in place of what is there."""
        self.do(
            f"(() => {{ const node = document.querySelector({json.dumps(selector)}); node.focus(); node.select(); }})()"
        )
        if text:
            self.send("Input.insertText", text=text)
        else:
            self.press("Delete")

    def press(self, key: str, *, shift: bool = False) -> None:
        """A key, to what has the focus."""
        text = {"Enter": "\r", " ": " "}.get(key)
        code, number = "Space" if key == " " else f"Digit{key}" if key.isdigit() else key, KEYS[key]
        common: dict[str, Any] = {"key": key, "code": code, "windowsVirtualKeyCode": number, "modifiers": 8 * shift}
        self.send("Input.dispatchKeyEvent", type="keyDown", **common, **({"text": text} if text else {}))
        self.send("Input.dispatchKeyEvent", type="keyUp", **common)

    def give_file(self, selector: str, path: Path) -> None:
        """As if picked in the file dialog."""
        root = self.send("DOM.getDocument")["root"]["nodeId"]
        node = self.send("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.send("DOM.setFileInputFiles", nodeId=node, files=[str(path)])

    def shape(self, width_px: int, height_px: int, *, phone: bool = False, dark: bool = False, scale: int = 1) -> None:
        """The size of the window's inside, in CSS px; a phone has touch."""
        size = {"width": width_px, "height": height_px, "deviceScaleFactor": scale}
        self.send("Emulation.setDeviceMetricsOverride", **size, mobile=phone)
        self.send("Emulation.setTouchEmulationEnabled", enabled=phone)
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.send("Emulation.setEmulatedMedia", features=scheme)

    def photograph(self, path: Path, *, whole: bool = False) -> None:
        """A PNG of what is seen, or of the whole page."""
        shot = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(shot["data"]))


def _pipe() -> tuple[int, int]:
    """Ends above 9, so that none is one of those that the browser is given."""
    ends = []
    for end in os.pipe():
        ends.append(fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10))
        os.close(end)
    return ends[0], ends[1]
