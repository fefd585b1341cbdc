"""A browser, a server whose writer knows its text, and pages that are watched."""

import contextlib

import pytest

from tests.serve import browser
from tests.serve.running import KEY, running
from tests.serve.scripted import ScriptedWriter


@pytest.fixture(scope="module")
def chromium():
    with browser.launched() as chromium:
        yield chromium


@pytest.fixture(scope="module")
def writer():
    return ScriptedWriter()


@pytest.fixture(scope="module")
def server(writer):
    with running(writer, [KEY]) as server:
        yield server


@pytest.fixture(scope="module")
def url(server):
    return f"{server.url}/"


@pytest.fixture
def service(server, writer):
    """The server's, whose writer may be taken away for a while."""
    yield server.service
    server.service.writer = writer


@pytest.fixture
def opened(chromium, url, writer):
    """Opens a page of its own kind. Afterwards: no errors in the console, and no request went anywhere else."""
    writer.reset()
    with contextlib.ExitStack() as stack:
        seen = []

        def open_page(with_key=True, **kind):
            context = chromium.new_context(**{"locale": "en-US", **kind})
            stack.callback(context.close)
            page = context.new_page()
            seen.append(browser.Watch(page))
            page.set_default_timeout(10_000)
            page.goto(url)
            if with_key:
                browser.give_key(page)
            return page

        yield open_page
        for watch in seen:
            assert watch.errors == []
            assert watch.hosts == {url.removeprefix("http://").rstrip("/")}
