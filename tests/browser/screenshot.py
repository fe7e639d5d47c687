"""python -m tests.browser.screenshot docs/playground.jpg: the page with its sample, as README shows it."""

import sys
from pathlib import Path

from playwright.sync_api import expect, sync_playwright

from app.settings import load_settings
from tests.browser.conftest import FLAGS, chromium
from tests.serving import served


def main(output: Path) -> None:
    with served(model=load_settings().model) as service, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=list(FLAGS))
        page = browser.new_page(viewport={"width": 1200, "height": 820})
        page.goto(service.address)
        page.get_by_role("button", name="Sample").click()
        expect(page.locator("#status")).to_contain_text("sample.jpg: ", timeout=30_000)
        expect(page.locator("#copies")).to_be_visible()
        page.mouse.move(0, 0)
        page.screenshot(path=output, type="jpeg", quality=85)
        browser.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
