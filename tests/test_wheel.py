"""What `pip install .` installs."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("app", "model", "export", "tests", "benchmarks")


def test_a_wheel_holds_the_packages_whole_and_nothing_else(tmp_path: Path) -> None:
    """Of the weights, which are large, only the names."""
    source = tmp_path / "source"
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__", "*.onnx", "*.pt"))
    for path in (ROOT / "model/weights").iterdir():
        (source / "model/weights" / path.name).touch()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = "import sys; from setuptools.build_meta import build_wheel; build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", build, str(tmp_path)], cwd=source, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    wanted = {path for folder in ("app", "model", "export") for path in (source / folder).rglob("*.py")}
    wanted |= {*source.glob("app/static/*"), *source.glob("model/weights/*"), source / "app/py.typed"}
    assert held == {path.relative_to(source).as_posix() for path in wanted if path.is_file()}
    assert "app/py.typed" in held, "who calls it gets its types"
