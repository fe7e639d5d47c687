"""The pages' contract as files: what a browser does with them is tested in tests/browser."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from app.api import create_app
from app.artifact import MOST_DETECTIONS
from app.pages import STATIC
from app.settings import Settings

PAGES = ("/", "/docs")
FILES = sorted(path.name for path in STATIC.iterdir())


@pytest.fixture(scope="module")
def client(model_file: Path) -> Iterator[TestClient]:
    with TestClient(create_app(Settings(model=model_file, provider="cpu", threads=1))) as client:
        yield client


@pytest.mark.parametrize("page", PAGES)
def test_a_page_and_all_it_refers_to_is_there(client: TestClient, page: str) -> None:
    response = client.get(page)
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    addresses = re.findall(r'(?:src|href)="([^"#]+)"', response.text)
    assert addresses
    for address in addresses:
        assert client.get(f"/{address}").status_code == 200, address


@pytest.mark.parametrize("name", FILES)
def test_no_file_needs_another_host_or_breaks_the_policy(name: str) -> None:
    path = STATIC / name

    if path.suffix == ".jpg":
        return
    text = path.read_text()
    hosts = set(re.findall(r"https?://([\w.-]+)", text))
    assert hosts <= {"www.w3.org"}, "only the SVG namespace has a host"
    if path.suffix == ".html":
        assert not re.search(r"<style|\sstyle=|\son\w+=", text), "the policy forbids inline styles and handlers"
        assert all("src=" in tag for tag in re.findall(r"<script[^>]*>", text))
    if path.suffix == ".js":
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", text)


def test_modules_import_only_what_is_there() -> None:
    for path in STATIC.glob("*.js"):
        for imported in re.findall(r"""(?:from|import\()\s*"\./([^"]+)""", path.read_text()):
            assert imported in FILES, f"{path.name} imports {imported}"


def test_the_page_asks_for_as_many_detections_as_the_service_allows() -> None:
    assert f"const MOST_DETECTIONS = {MOST_DETECTIONS};" in (STATIC / "page.js").read_text()


def test_scripts_and_labels_name_elements_that_exist() -> None:
    page = (STATIC / "index.html").read_text()
    ids = re.findall(r'\sid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    wanted = set(re.findall(r'(?:for|aria-labelledby|aria-describedby)="([^"]+)"', page))
    for name in ("page.js", "camera.js"):
        wanted |= set(re.findall(r"""(?:\$|getElementById)\("([^"]+)"\)""", (STATIC / name).read_text()))
    assert wanted <= set(ids)


@pytest.mark.parametrize("address", [*PAGES, "/static/page.js", "/static/sample.jpg"])
def test_answers_are_small_fresh_and_locked_down(client: TestClient, address: str) -> None:
    response = client.get(address)
    policy = response.headers["content-security-policy"]
    for wanted in ("default-src", "base-uri", "form-action", "frame-ancestors"):
        assert f"{wanted} 'none'" in policy
    assert "unsafe" not in policy
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["referrer-policy"] == "no-referrer"
    assert response.headers["cache-control"] == "no-cache", "or a browser would not ask whether it is still the same"
    assert (response.headers.get("content-encoding") == "gzip") == (not address.endswith(".jpg"))
    assert client.get(address, headers={"If-None-Match": response.headers["etag"]}).status_code == 304
    plain = client.get(address, headers={"Accept-Encoding": "identity"})
    assert plain.content == response.content
    assert client.head(address).status_code == 200


@pytest.mark.parametrize("address", ["/static/", "/static/nothing.js", "/static/..%2fpages.py", "/static/../pages.py"])
def test_only_the_pages_files_are_served(client: TestClient, address: str) -> None:
    assert client.get(address).json()["code"] == "not_found"


def test_the_playground_stays_light() -> None:
    """All that is loaded before the first picture, uncompressed."""
    names = ("index.html", "page.css", "page.js", "service.js", "paint.js", "view.js", "icon.svg")
    assert sum((STATIC / name).stat().st_size for name in names) < 60_000
