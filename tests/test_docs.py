"""README and docs: their examples run, their tables and answers are the service's, their links lead somewhere."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.errors import KINDS
from app.schemas import Answer, DetectQuery
from app.settings import settings_table
from tests.serving import Served, served
from tests.support import metadata, rectangle_picture, write_model

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
ADDRESS = "http://127.0.0.1:8000"


def examples() -> list[tuple[str, str, str]]:
    """Returns: Page, language and code of each example that needs no more than a service and two pictures."""
    found = []
    for page in PAGES:
        for language, code in re.findall(r"^```(bash|python)\n(.*?)^```$", page.read_text(), re.M | re.S):
            found.append((page.name, language, code))
    return found


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    classes = metadata(classes=["cat", "dog", "person"])
    return write_model(tmp_path_factory.mktemp("model") / "model.onnx", classes.to_json())


@pytest.fixture(scope="module")
def service(model: Path) -> Iterator[Served]:
    with served(model=model) as running:
        yield running


@pytest.mark.parametrize(("page", "language", "code"), examples())
def test_an_example_runs(page: str, language: str, code: str, model: Path, service: Served, tmp_path: Path) -> None:
    rectangle_picture(320, 240, (40, 40, 200, 200)).save(tmp_path / "cat.jpg")
    rectangle_picture(320, 240, (40, 40, 200, 200), "green").save(tmp_path / "dog.jpg")
    code = code.replace(ADDRESS, service.address).replace("curl ", "curl --silent --show-error ")
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT),
        "FCOS_MODEL": str(model), "FCOS_PROVIDER": "cpu", "API_KEY": "",
    }  # fmt: skip
    command = ["bash", "-euo", "pipefail", "-c", code] if language == "bash" else [sys.executable, "-c", code]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, f"{page}:\n{code}\n{result.stderr}"
    assert result.stdout or any(tmp_path.glob("boxes.*"))
    if '"problem"' in result.stdout or "urn:fcos-detect:problem" in result.stdout:
        assert "classes=cta" in code, f"{page}: only the example of a problem may have one\n{result.stdout}"


def test_the_table_of_settings_is_current() -> None:
    text = (ROOT / "docs/operating.md").read_text()
    table = text.partition("<!-- settings -->")[2].partition("<!-- /settings -->")[0].strip()
    assert table == settings_table(), "`python -m app settings` prints it"


def test_the_table_of_parameters_has_all() -> None:
    text = (ROOT / "docs/api.md").read_text()
    assert re.findall(r"^\| `(\w+)` \|", text, re.M) == list(DetectQuery.model_fields)


def test_the_table_of_problems_has_all() -> None:
    text = (ROOT / "docs/api.md").read_text()
    told = re.findall(r"(\d{3}) `(\w+)`", text)
    assert sorted(told) == sorted((str(kind.status), code) for code, kind in KINDS.items())


def test_readmes_answer_is_one_and_whole() -> None:
    text = (ROOT / "README.md").read_text().partition("http://127.0.0.1:8000/detect\n")[2].partition("```")[0]
    assert Answer.model_validate_json(text).model_dump() == json.loads(text)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_mentioned_files_are_there(page: Path) -> None:
    for target, heading in re.findall(r"\]\((?!https?://)([^)#]+)#?([^)]*)", page.read_text()):
        assert (page.parent / target).exists(), target
        if heading:
            headings = re.findall(r"^#+ (.+)$", (page.parent / target).read_text().lower(), re.M)
            assert heading in [re.sub(r"[^\w -]", "", one).replace(" ", "-") for one in headings], heading


def test_readmes_map_has_every_module() -> None:
    text = (ROOT / "README.md").read_text().partition("## The map")[2]
    modules = [path for folder in ("app", "model", "export") for path in sorted((ROOT / folder).glob("*.py"))]
    assert [path.name for path in modules if path.name != "__init__.py" and path.name not in text] == []
