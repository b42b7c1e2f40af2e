"""Pages in a headless Chromium, as a reader meets them: opened, clicked, typed into, looked at.

`make setup-browser` installs Chromium and axe-core; where they are missing tests are skipped and say so. Nothing but
this machine can be reached from a page, and one that asks for more than files and its own host fails when it is closed.
"""

import atexit
import base64
import functools
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

import pytest

from support.devtools import BrowserError, Chromium
from support.in_page import AXE_RUN, FOCUSED, FROM_THE_TOP, OVERFLOW, PAINTED
from support.policies import ROOT

AXE = ROOT / ".browser" / "node_modules" / "axe-core" / "axe.min.js"
_LOCAL = ("file", "data", "blob", "about")
_KEYS = {
    "Enter": (13, "\r"), "Tab": (9, ""), "Escape": (27, ""), "Backspace": (8, ""), "Space": (32, " "),
    "PageUp": (33, ""), "PageDown": (34, ""), "End": (35, ""), "Home": (36, ""), "ArrowLeft": (37, ""),
    "ArrowUp": (38, ""), "ArrowRight": (39, ""), "ArrowDown": (40, ""), "Delete": (46, ""),
}  # fmt: skip
_MODIFIERS = {"Alt": 1, "Control": 2, "Meta": 4, "Shift": 8}


@dataclass(frozen=True, slots=True, kw_only=True)
class Violation:
    """A rule of axe's that a page breaks, how bad it is, and the places: a selector, its HTML, what is wrong there."""

    rule: str
    impact: str
    help: str
    nodes: tuple[tuple[str, str, str], ...]

    def __str__(self) -> str:
        """Return it as a failing test shows it."""
        lines = [f"{self.rule} ({self.impact}): {self.help}"]
        return "\n".join(lines + [f"  {where}  {html[:120]}\n    {why}" for where, html, why in self.nodes])


@functools.cache
def _chromium() -> tuple[Chromium, dict[str, "Page"]]:
    """Start the one Chromium of this process, or skip the test that asks for it."""
    program = shutil.which("chromium")
    if program is None or not AXE.is_file():
        what = "Chromium" if program is None else "axe-core"
        pytest.skip(f"no {what} here: make setup-browser installs it")
    pages: dict[str, Page] = {}

    def on_event(session: str, name: str, values: dict[str, Any]) -> None:
        if name == "Target.attachedToTarget":  # a worker or a frame belongs to the page that made it
            if (page := pages.get(session)) is not None:
                pages[values["sessionId"]] = page
                for method in ("Network.enable", "Runtime.enable", "Runtime.runIfWaitingForDebugger"):
                    chromium.send(method, session=values["sessionId"])
        elif (page := pages.get(session)) is not None:
            page.heard(name, values)

    chromium = Chromium(program, on_event)
    started_by = os.getpid()
    atexit.register(lambda: chromium.close() if os.getpid() == started_by else None)
    return chromium, pages


def open_page(
    path_or_url: Path | str,
    *,
    width: int = 1400,
    height: int = 900,
    scheme: str = "light",
    seconds: float = 60,
) -> "Page":
    """Open a file or an address of this machine in a window of its own, without cookies, and wait until it is loaded.

    `scheme` is the reader's choice of colours, light or dark. Close the page, or use it in a `with` block.
    """
    url = path_or_url.resolve().as_uri() if isinstance(path_or_url, Path) else path_or_url
    chromium, pages = _chromium()
    context = chromium.call("Target.createBrowserContext")["browserContextId"]
    target = chromium.call("Target.createTarget", {"url": "about:blank", "browserContextId": context})["targetId"]
    session = chromium.call("Target.attachToTarget", {"targetId": target, "flatten": True})["sessionId"]
    page = pages[session] = Page(chromium, session, context, url)
    for domain in ("Page", "Runtime", "Log", "Network"):
        page.call(f"{domain}.enable")
    page.call("Target.setAutoAttach", {"autoAttach": True, "waitForDebuggerOnStart": True, "flatten": True})
    page.call("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]})
    page.resize(width, height)
    page.load(seconds)
    return page


class Page:
    """A page that is open."""

    def __init__(self, chromium: Chromium, session: str, context: str, url: str):
        self._chromium, self._session, self._context, self.url = chromium, session, context, url
        self.requests: list[str] = []
        self._errors: list[str] = []

    def __enter__(self) -> "Page":
        """Return the page."""
        return self

    def __exit__(self, kind: type[BaseException] | None, _error: object, _traceback: TracebackType | None) -> None:
        """Close the page; what failed before is told rather than what it asked for."""
        self.close(is_checked=kind is None)

    def call(self, method: str, values: dict[str, Any] | None = None, *, seconds: float = 60) -> Any:
        """Return what a method of the DevTools protocol answers for this page."""
        return self._chromium.call(method, values, session=self._session, seconds=seconds)

    def heard(self, name: str, values: dict[str, Any]) -> None:
        """Take note of an event."""
        if name in ("Network.requestWillBeSent", "Network.webSocketCreated"):
            self.requests.append(values["request"]["url"] if "request" in values else values["url"])
        elif name == "Runtime.exceptionThrown":
            self._errors.append(_raised(values["exceptionDetails"]))
        elif name == "Runtime.consoleAPICalled" and values["type"] in ("error", "assert"):
            self._errors.append(" ".join(str(one.get("value", one.get("description"))) for one in values["args"]))
        elif name == "Log.entryAdded" and values["entry"]["level"] == "error":
            self._errors.append(f"{values['entry']['text']} {values['entry'].get('url', '')}".strip())

    def load(self, seconds: float = 60) -> None:
        """Load the page, again if it is open."""
        answer = self.call("Page.navigate", {"url": self.url}, seconds=seconds)
        if "errorText" in answer:
            raise BrowserError(f"{self.url}: {answer['errorText']}")
        self.wait_for("document.readyState === 'complete'", seconds=seconds)

    def run(self, js: str, *, seconds: float = 60) -> Any:
        """Return what JavaScript comes to (a promise: what it comes to in the end); BrowserError where it throws."""
        values = {"expression": js, "returnByValue": True, "awaitPromise": True, "userGesture": True}
        answer = self.call("Runtime.evaluate", values, seconds=seconds)
        if "exceptionDetails" in answer:
            raise BrowserError(_raised(answer["exceptionDetails"]))
        return answer["result"].get("value")

    def wait_for(self, js: str, *, seconds: float = 10) -> Any:
        """Return the first value of an expression that counts as true; BrowserError where it has none in time."""
        look = f"""new Promise((done) => {{
            const until = performance.now() + {1000 * seconds};
            const look = () => {{
                let value = null;
                try {{ value = ({js}); }} catch (error) {{ value = null; }}
                if (value || performance.now() > until) done(value); else setTimeout(look, 10);
            }};
            look();
        }})"""
        if not (value := self.run(look, seconds=seconds + 30)):
            raise BrowserError(f"{js} did not come true in {seconds:g} s.")
        return value

    def click(self, selector: str) -> None:
        """Press the mouse in the middle of the first element that a selector finds, whatever lies over it there."""
        place = self.run(
            f"""(() => {{
                const found = document.querySelector({json.dumps(selector)});
                if (!found) return null;
                found.scrollIntoView({{block: "center", inline: "center", behavior: "instant"}});
                const box = found.getBoundingClientRect();
                return {{x: box.x + box.width / 2, y: box.y + box.height / 2}};
            }})()"""
        )
        if place is None:
            raise BrowserError(f"there is no {selector} to click on.")
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            button = {"button": "left", "clickCount": 1} if kind != "mouseMoved" else {}
            self.call("Input.dispatchMouseEvent", {"type": kind, **place, **button})

    def keys(self, text: str) -> None:
        """Type: each letter as it is, other keys as {Escape}, {ArrowDown}, {Shift+Tab}, {Control+f}."""
        while text:
            if text.startswith("{") and "}" in text:
                (*held, key), text = text[1 : text.index("}")].split("+"), text[text.index("}") + 1 :]
            else:
                held, key, text = [], text[0], text[1:]
            code, typed = _KEYS.get(key, (ord(key.upper()) if len(key) == 1 and key.isalnum() else 0, key))
            modifiers = sum(_MODIFIERS[one] for one in held)
            values = {"key": " " if key == "Space" else key, "windowsVirtualKeyCode": code, "modifiers": modifiers}
            text_of = {"text": typed} if typed and not {"Control", "Alt", "Meta"} & set(held) else {}
            self.call("Input.dispatchKeyEvent", {"type": "keyDown" if text_of else "rawKeyDown", **values, **text_of})
            self.call("Input.dispatchKeyEvent", {"type": "keyUp", **values})

    def console_errors(self) -> list[str]:
        """Return what was written as an error to the console, what was thrown, and what could not be loaded."""
        self.run("new Promise((done) => setTimeout(done, 0))")
        return list(self._errors)

    def screenshot(self, path: Path, *, is_whole: bool = False) -> None:
        """Write what is seen, or the whole page, as PNG."""
        values = {"format": "png", "captureBeyondViewport": is_whole}
        if is_whole:
            size = self.call("Page.getLayoutMetrics")["cssContentSize"]
            values["clip"] = {**size, "scale": 1}
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", values)["data"]))

    def axe(self, *, within: str = "", but: Sequence[str] = ()) -> list[Violation]:
        """Return what axe finds against WCAG 2.2 A and AA and good practice, the order of focus too.

        `within` is the selector of a part to look at, `but` are rules to leave out.
        """
        if not self.run("typeof axe === 'object'"):
            self.run(AXE.read_text(encoding="utf-8") + ";null")
        found = self.run(AXE_RUN % {"within": json.dumps(within), "but": json.dumps(list(but))}, seconds=300)
        return [Violation(**{**one, "nodes": tuple(tuple(node) for node in one["nodes"])}) for one in found]

    def overflow(self) -> list[str]:
        """Return the elements that reach beyond the window where it cannot be scrolled, or whose text is cut off."""
        return self.run(OVERFLOW)

    def focus_order(self, *, limit: int = 200) -> list[str]:
        """Return what the Tab key comes to one after the other, from the top, as `tag#id.class "text"`.

        A positive tabindex, which axe refuses, is taken where it stands.
        """
        self.run(FROM_THE_TOP)
        order: list[str] = []
        while len(order) < limit:
            self.keys("{Tab}")
            if (found := self.run(FOCUSED)) is None:
                break
            order.append(found)
        return order

    def first_paint_seconds(self) -> float:
        """Return the time from the request of the page to its first text or picture on the screen."""
        return self.run(PAINTED) / 1000

    def resize(self, width: int, height: int) -> None:
        """Give the window another size, in CSS pixels, and wait until the page is drawn in it."""
        values = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", values)
        self.run("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def foreign_requests(self) -> list[str]:
        """Return the addresses that the page, its frames and its workers asked for beside files and its own host."""
        self._chromium.listen(0)
        host = urlsplit(self.url).netloc
        seen = (urlsplit(url) for url in self.requests)
        return [url.geturl() for url in seen if url.scheme not in _LOCAL and url.netloc != host]

    def close(self, *, is_checked: bool = True) -> None:
        """Close the page; AssertionError where it asked for anything beside files and its own host."""
        foreign = self.foreign_requests()
        self._chromium.call("Target.disposeBrowserContext", {"browserContextId": self._context})
        assert not (is_checked and foreign), f"{self.url} asked for {', '.join(foreign)}"


def _raised(details: dict[str, Any]) -> str:
    exception = details.get("exception", {})
    return str(exception.get("description") or exception.get("value") or details.get("text"))
