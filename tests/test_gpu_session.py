"""What is prepared for a GPU machine without a network arrives whole and is used there; tried without pip and GPU."""

import os
import shutil
import stat
import subprocess
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = Path("deploy/gpu-session")
MODELS = ("fcos-everyday.pt", "fcos-everyday.onnx", "fcos-everyday-int8.onnx")

# `pip download` and `pip install` of wheels, which are one file each; a run of recipes that fails; and what else is
# asked for, which is only said, behind where packages are looked for first.
PYTHON = """#!/bin/sh
words=$*
for last; do :; done
past() { while [ "$1" != "$option" ]; do shift; done; echo "$2"; }
case $words in
  *"pip download"*) option=--dest; echo "$last" >"$(past "$@")/${last%%=*}.whl" ;;
  *"pip install"*) option=--target; for wheel; do case $wheel in *.whl) cp "$wheel" "$(past "$@")" ;; esac; done ;;
  *"import nvidia"*) dirname "$0" ;;
  *) echo "${PYTHONPATH%%:*} $words"; case $words in *recipes*)
    option=--output; mkdir -p "$(past "$@")/base"; cd "$(past "$@")"
    touch final.pt recipes.json base/last.pt base/train.log; exit 1 ;;
    *serving*) option=--output; touch "$(past "$@")" ;;
  esac ;;
esac
"""


def test_what_a_gpu_session_lacks_is_named(tmp_path: Path) -> None:
    for name in ("train.json", "val.json", "train-0.tar", "val-0.tar"):
        pattern = name.replace("-0", "-*")
        done = subprocess.run(
            ["bash", ROOT / SCRIPTS / "prepare.sh", tmp_path], capture_output=True, text=True, timeout=60, check=False
        )
        assert (done.returncode, done.stderr.strip()[-len(pattern) :]) == (2, pattern)
        (tmp_path / name).touch()


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """Returns: Its folder."""
    path = tmp_path / "bin/python3"
    path.parent.mkdir()
    path.write_text(PYTHON)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path.parent


@pytest.fixture
def carried(tmp_path: Path, python: Path) -> Path:
    """Returns: What is prepared of a repository that leaves little room, on a branch without the model files."""
    data, repository = tmp_path / "data", tmp_path / "repository"
    for part in ("train", "val"):
        (data / part).mkdir(parents=True)
        (data / part / "a.jpg").write_bytes(os.urandom(700_000))
        with tarfile.open(data / f"{part}-0.tar", "w") as tar:
            tar.add(data / part / "a.jpg", f"{part}/a.jpg")
        (data / f"{part}.json").write_text(part)
    shutil.copytree(ROOT / SCRIPTS, repository / SCRIPTS)
    shutil.copytree(ROOT / "requirements", repository / "requirements")
    weights = repository / "model/weights"
    weights.mkdir(parents=True)
    for name in MODELS:
        (weights / name).write_text(name)
    with (repository / "large").open("wb") as large:
        large.truncate(int(59.5 * 2**20))

    def git(*words: str) -> None:
        who = (
            "-c",
            "user.name=a",
            "-c",
            "user.email=a@b",
            "-c",
            "core.looseCompression=0",
            "-c",
            "commit.gpgSign=false",
        )
        subprocess.run(["git", *who, *words], cwd=repository, check=True, capture_output=True)

    git("init")
    git("add", ".")
    git("commit", "--message", "all")
    git("rm", "-r", "model/weights")
    git("commit", "--message", "Model files stay here")
    environment = os.environ | {"PATH": f"{python}:{os.environ['PATH']}"}
    subprocess.run(
        ["bash", repository / SCRIPTS / "prepare.sh", data],
        env=environment,
        check=True,
        capture_output=True,
        timeout=60,
    )
    return repository / ".carry"


@pytest.mark.skipif(os.name == "nt", reason="needs bash")
def test_what_is_sent_in_parts_is_used_once_it_is_whole(tmp_path: Path, python: Path, carried: Path) -> None:
    machine, store, out = (tmp_path / name for name in ("machine", "store", "out"))
    shutil.copytree(ROOT / SCRIPTS, machine / SCRIPTS)
    environment = os.environ | {"STORE": str(store), "OUT": str(out), "PYTHON": str(python / "python3")}

    def call(*words: str, part: str = "") -> tuple[int, str]:
        shutil.rmtree(machine / ".carry", ignore_errors=True)
        if part:
            shutil.copytree(carried / part, machine / ".carry" / part)
        done = subprocess.run(
            ["bash", machine / SCRIPTS / "remote.sh", *words],
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
        )
        return done.returncode, done.stdout + done.stderr

    def installed() -> set[str]:
        pins = (ROOT / "requirements/dev.txt").read_text().splitlines()
        return {wheel.stem for wheel in (store / "site").glob("*.whl") if wheel.read_text().strip() in pins}

    assert sorted(part.name for part in carried.iterdir()) == ["000", "001", "002"]
    assert sum(file.stat().st_size for file in (carried / "000").iterdir()) < 1.1 * 2**20, "with the repository 61 MiB"
    assert call("recipes") == (2, "no part of the set 'train' has arrived\n")
    status, said = call("recipes", part="000")
    assert (status, said) == (2, "the set 'train' is incomplete; so far there are train.part000\n")
    assert call("keep", part="002")[0] == 0
    for part in ("001", ""):  # the last one, and again, as a run that was cut off
        status, said = call("recipes", "--minutes", "9", part=part)
        assert said == f"{store}/site -m model.recipes --data {store}/train/data --output {store}/runs --minutes 9\n"
        assert status == 1, "that of the recipes"
        assert {path.name for path in out.iterdir()} == {"final.pt", "recipes.json", "logs.tar.gz"}
    with tarfile.open(out / "logs.tar.gz") as logs:
        names = {Path(name).name for name in logs.getnames()}
    assert "train.log" in names and "last.pt" not in names
    for part in ("train", "val"):
        for name in (f"{part}.json", f"{part}/a.jpg"):
            assert (store / "train/data" / name).read_bytes() == (tmp_path / "data" / name).read_bytes()
    assert (store / "train" / MODELS[0]).read_text() == MODELS[0]
    assert {"pillow", "tyro"} <= installed()
    shutil.rmtree(store / "site")  # a session either trains or measures

    model, other = (store / "serve" / name for name in MODELS[1:])
    options = f"--provider cuda --model {model}"
    assert call("serving", "--open", "2") == (
        0, f"{store}/site benchmarks/serving.py {options} --output {out}/serving.csv --open 2\n"
    )  # fmt: skip
    assert (out / "serving.csv.gz").exists(), "as it is it may be too large to come back"
    assert call("promises") == (0, f"{store}/site benchmarks/promises.py {options} --other {other}\n")
    assert (model.read_text(), other.read_text()) == MODELS[1:]
    assert {"pillow", "uvicorn"} <= installed()
    assert (store / "site/nvidia").samefile(python), "where ONNX Runtime looks for CUDA"
    assert call("train")[0] == 2
