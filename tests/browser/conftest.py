"""A real Chromium and a real service: `make test-browser`. Not part of `make test`, which must not need a browser."""

import os
import shutil
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.serving import Served, served

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream",
)  # fmt: skip
# Chromium takes this in silence.
FIREFOXS_WARNING = """
    const { getElementById } = Document.prototype;
    Document.prototype.getElementById = function (id) {
        if (id === "") console.warn("Empty string passed to getElementById().");
        return getElementById.call(this, id);
    };
"""


def chromium() -> str | None:
    """Returns: The path of an installed Chromium."""
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    path = chromium()
    if path is None:
        pytest.exit("There is no Chromium: install one (apt-get install chromium), or set CHROMIUM to its path.", 2)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(FLAGS))
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def service(model_file: Path) -> Iterator[Served]:
    with served(model=model_file) as running:
        yield running


@contextmanager
def opened(browser: Browser, service: Served, **options: Any) -> Generator[Page]:
    """The playground. Anything it complains of, or asks another host for, fails the test."""
    page = browser.new_page(**options)
    page.add_init_script(FIREFOXS_WARNING)
    page.set_default_timeout(20_000)
    requests: list[str] = []
    complaints: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda said: complaints.append(said.text) if said.type in ("error", "warning") else None)
    page.requests = requests  # type: ignore[attr-defined]
    page.goto(service.address)
    yield page
    assert all(url.startswith((service.address, "blob:")) for url in requests), requests
    # A refusal that a test asks for is reported by the browser itself.
    assert [text for text in complaints if "Failed to load resource" not in text] == []
    page.close()


@pytest.fixture
def page(browser: Browser, service: Served) -> Iterator[Page]:
    with opened(browser, service, viewport={"width": 1280, "height": 860}, permissions=["camera"]) as page:
        expect(page.locator("#model")).not_to_be_empty()
        yield page
