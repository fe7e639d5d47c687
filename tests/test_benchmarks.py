"""Every benchmark runs to its end and measures what it says, at a size that says nothing about speed."""

import csv
import re
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest

from benchmarks.promises import agreement
from tests.serving import ROOT
from tests.support import write_model
from tests.toy import write_folder

Here = Callable[..., tuple[int, str, str]]


def run(name: str, *arguments: object) -> str:
    command = [sys.executable, str(ROOT / "benchmarks" / f"{name}.py"), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Here:
    """Runs a benchmark in this process, as torch is imported for 10 s in another. Returns: Its code, and its words."""

    def run_here(name: str, *arguments: object) -> tuple[int, str, str]:
        script = str(ROOT / "benchmarks" / f"{name}.py")
        monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
        monkeypatch.setattr(sys, "path", [*sys.path])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(script, run_name="__main__")
        assert isinstance(ended.value.code, int)
        return ended.value.code, *capsys.readouterr()

    return run_here


def test_each_finds_the_project_from_anywhere(tmp_path: Path) -> None:
    """In one process, which imports torch once."""
    code = """
import runpy, sys
for script in sys.argv[1:]:
    before = [*sys.path]
    runpy.run_path(script)
    sys.path[:] = before
    for name in [name for name in sys.modules if name.split(".")[0] in ("app", "model", "export", "benchmarks")]:
        del sys.modules[name]
"""
    imported_by_others = {"command.py", "load.py", "systems.py"}
    scripts = [path for path in (ROOT / "benchmarks").glob("*.py") if path.name not in imported_by_others]
    subprocess.run([sys.executable, "-c", code, *map(str, scripts)], cwd=tmp_path, check=True, timeout=300)


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_training_parity_trains_and_scores_both_networks(tmp_path: Path, here: Here) -> None:
    data = write_folder(tmp_path, train=4, val=2)
    code, _, said = here(
        "training_parity", "--data", data, "--output", tmp_path / "parity.csv", "--pictures", 0, "--epochs", 1,
        "--size", 64, "--backbone", "test_efficientnet", "--weights", "none", "--channels", 64, "--batch-size", 2,
        "--workers", 0,
    )  # fmt: skip
    assert code == 0, said
    rows = rows_of(tmp_path / "parity.csv")
    assert [(row["network"], row["pictures"]) for row in rows] == [("ours", "4"), ("torchvision", "4")]
    assert all(0 <= float(row["AP"]) <= 1 for row in rows)


def test_decode_prints_times_and_ap_of_both_ways(tmp_path: Path, here: Here) -> None:
    data = write_folder(tmp_path, train=1, val=2)
    model = write_model(tmp_path / "model.onnx")
    options = ("--annotations", data / "val.json", "--images", data / "val", "--scale", 2)
    code, text, said = here("decode", "--model", model, *options)
    assert code == 0, said
    assert [line.split(" {")[0].strip() for line in text.splitlines() if '"AP"' in line] == ["whole", "as served"]


def test_postprocess_matches_torchvision_box_for_box(tmp_path: Path, here: Here) -> None:
    output = tmp_path / "postprocess.csv"
    code, _, said = here("postprocess", "--pictures", 1, "--repetitions", 1, "--output", output)
    assert code == 0, said
    (row,) = rows_of(output)
    assert int(row["matched"]) == int(row["torchvision_boxes"]) == int(row["ours_boxes"]) > 0


def test_an_exported_torchvision_model_detects_what_torchvision_does(tmp_path: Path, here: Here) -> None:
    output = tmp_path / "parity.csv"
    code, _, said = here("torchvision_parity", "--count", 1, "--csv", output)
    assert code == 0, said
    (row,) = rows_of(output)
    matched, count = map(int, row["same pixels"].split("/"))
    assert matched >= 0.99 * count > 0


def test_the_service_keeps_its_promises() -> None:
    text = run(
        "promises", "--promises", "alone", "corrupt", "left", "swap", "end", "--pictures", 24, "--leaving", 40,
        "--swaps", 1, "--waiting", 20, "--settings", "max_batch=4", "sessions=1",
    )  # fmt: skip
    assert [line.split()[:2] for line in text.splitlines()] == [
        [name, "kept"] for name in ("alone", "corrupt", "left", "swap", "end")
    ]  # fmt: skip


def test_on_a_gpu_answers_agree_that_differ_in_their_last_digits_and_anothers_do_not() -> None:
    def objects(seed: int, shift: float = 0.0) -> list[dict[str, Any]]:
        random = Random(seed)
        corners = [(random.uniform(0, 500), random.uniform(0, 500)) for _ in range(20)]
        return [
            {
                "class_id": number % 3,
                "score": random.uniform(0.1, 1) + shift / 100,
                "box": {"xmin": x, "ymin": y + shift, "xmax": x + 40 + shift, "ymax": y + 60},
            }
            for number, (x, y) in enumerate(corners)
        ]

    answer = objects(0)
    assert agreement(answer, answer) == agreement([], []) == 1
    assert agreement(answer, objects(0, shift=1.5)) == 1
    assert 0.9 < agreement(answer, answer[:18]) < 1
    assert agreement(answer, objects(1)) < 0.2
    assert agreement(answer, []) == agreement([], answer) == 0


def test_a_busy_service_is_measured() -> None:
    """Whether it keeps that promise depends on what else the machine does, which a test must not."""
    command = [sys.executable, str(ROOT / "benchmarks" / "promises.py"), "--promises", "busy"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    before, share, answered = re.fullmatch(
        r"busy +(?:kept|BROKEN) +(\S+) answers per second before, (\d+)% of that under load; \d+ late, "
        r"(\d+) answered\n",
        done.stdout,
    ).groups()
    assert float(before) > 0 and int(share) > 0 and int(answered) > 0, done.stderr


def test_serving_compares_the_service_with_the_bare_pipeline_and_the_baseline(tmp_path: Path) -> None:
    output = tmp_path / "serving.csv"
    text = run(
        "serving", "--systems", "bare", "service", "fastapi", "--models", "tiny", "--windows", 1, "--rounds", 1,
        "--seconds", 1, "--levels", 2, "--open", 0.5, "--output", output,
    )  # fmt: skip
    table = [line.split() for line in text.splitlines()]
    (ratio,) = [float(line[2]) for line in table if len(line) == 5 and line[0] == "fastapi"]
    assert 0 < ratio < 100
    loads = {(row["system"], row["loop"]) for row in rows_of(output) if row["kind"] == "request"}
    assert loads == {(system, loop) for system in ("service", "fastapi") for loop in ("closed", "open")}
    assert {row["status"] for row in rows_of(output) if row["kind"] == "request"} == {"200"}


def test_what_the_service_could_feed_a_gpu_is_measured(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model.onnx")
    text = run("feeding", "--model", model, "--gpu-ms", 20, "--clients", 8, "--seconds", 1)
    answers, core_ms, batch = map(
        float,
        re.fullmatch(r"(\S+) answers/s, (\S+) ms of a core for each, (\S+) pictures in a batch\n", text).groups(),
    )
    assert 0 < answers <= 8 / 0.02 and core_ms > 0 and 1 <= batch <= 8


@pytest.mark.parametrize(
    ("name", "arguments", "says"),
    [
        ("decode", ["--model", "gone.onnx"], "gone.onnx"),
        ("feeding", ["--model", "gone.onnx"], "gone.onnx"),
        ("feeding", ["--clients", "0"], "max_queue"),
        ("decode", ["--annotations", "a.json"], "go together"),
        ("promises", ["--other", "gone.onnx"], "no file gone.onnx"),
        ("promises", ["--settings", "foo"], "NAME=VALUE"),
        ("serving", ["--changed", "foo"], "NAME=VALUE"),
        ("promises", ["--settings", "max_batch=3"], "max_batch"),
        ("serving", ["--picture", "gone.jpg"], "gone.jpg"),
        ("serving", ["--systems", "litserve"], "--peers"),
        ("serving", ["--systems", "litserve", "--peers", "gone/python"], "gone/python"),
        ("serving", ["--levels", "--open", "5"], "--levels"),
        ("tiny_model", ["gone/tiny.onnx"], "gone/tiny.onnx"),
    ],
)
def test_what_a_user_gets_wrong_is_one_sentence(name: str, arguments: list[str], says: str) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / f"{name}.py"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert says in done.stderr.splitlines()[-1] and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("name", "arguments", "says"),
    [
        ("torchvision_parity", ["--weights", "gone.pth"], "gone.pth"),
        ("torchvision_parity", ["--images", "gone"], "gone"),
        ("torchvision_parity", ["--count", "0"], "--count"),
        ("training_parity", ["--data", "gone", "--output", "a.csv"], "gone"),
    ],
)
def test_so_is_what_is_wrong_for_those_that_need_torch(here: Here, name: str, arguments: list[str], says: str) -> None:
    code, _, said = here(name, *arguments)
    assert code == 2
    assert says in said.splitlines()[-1]
