"""Headless Chromium for tests: found on PATH, watched for errors and for requests to elsewhere; and what a person does on the page."""

import contextlib
import shutil
import urllib.parse

import pytest

from tests.serve.running import KEY

NAMES = ("chromium", "chromium-browser", "google-chrome")
# Chromium writes every answer of 400 and more into the console, and requests that a test cuts off.
_EXPECTED = "Failed to load resource:"


def find() -> str | None:
    return next((path for name in NAMES if (path := shutil.which(name))), None)


NEEDED = pytest.mark.skipif(find() is None, reason="chromium is not installed (tools/install_chromium.sh)")


@contextlib.contextmanager
def launched():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=find(), args=["--no-sandbox"])
        yield chromium
        chromium.close()


class Watch:
    """What a page has done since it was made: errors in its console, and the hosts it asked."""

    def __init__(self, page):
        self.errors, self.hosts = [], set()
        page.on("console", lambda message: self._note(message.type, message.text))
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("request", lambda request: self.hosts.add(urllib.parse.urlsplit(request.url).netloc))

    def _note(self, kind: str, text: str) -> None:
        if kind in ("error", "warning") and not text.startswith(_EXPECTED):
            self.errors.append(text)


def contrast(page, text: str, ground: str) -> float:
    """Of two CSS colours on this page, as WCAG 2.2 defines it."""
    lights = [_light(_rgb(page, color)) for color in (text, ground)]
    return (max(lights) + 0.05) / (min(lights) + 0.05)


def _rgb(page, color: str) -> list[float]:
    """Painted, then read: the browser knows every way of writing a colour."""
    return page.evaluate(
        """color => {
            const probe = document.body.appendChild(document.createElement("i"));
            probe.style.color = color;
            const paint = Object.assign(document.createElement("canvas"), { width: 1, height: 1 }).getContext("2d");
            paint.fillStyle = getComputedStyle(probe).color;
            paint.fillRect(0, 0, 1, 1);
            probe.remove();
            return [...paint.getImageData(0, 0, 1, 1).data].slice(0, 3);
        }""",
        color,
    )


def _light(rgb: list[float]) -> float:
    linear = [c / 255 / 12.92 if c / 255 <= 0.04045 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in rgb]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def give_key(page, key=KEY):
    page.fill("#key", key)
    page.press("#key", "Enter")
    page.wait_for_selector("#model:not(:empty)")


def ask(page, question="Why are there two tides a day?", until_done=True):
    page.fill("#prompt", question)
    page.press("#prompt", "Control+Enter")
    if until_done:
        page.wait_for_selector(".tools")


def tool(page, name):
    return page.locator(".tools").get_by_text(name, exact=True)


def answer_text(page):
    return page.locator(".text").last.text_content()
