"""The processes that prepare pictures: how many there are, and how they end."""

import multiprocessing
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from model import run as runs
from model import train as script
from model.data import Batch
from model.learner import Learner
from model.loading import Feed, naming_dead_workers
from model.training import train
from tests.serving import ROOT
from tests.toy import ALONE, QUIET, Data, settings, words, write_coco

pytestmark = pytest.mark.usefixtures("one_thread")


def test_there_are_no_more_workers_than_cores(data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step, counts = Learner.step, set()

    def counted(learner: Learner, parts: list[Batch], iteration: int) -> dict[str, float]:
        counts.add(len(multiprocessing.active_children()))
        return step(learner, parts, iteration)

    monkeypatch.setattr(Learner, "step", counted)
    monkeypatch.setattr("model.loading.core_count", lambda: 1)
    assert train(settings(data, tmp_path / "run", epochs=1, workers=3), ALONE, QUIET)
    assert counts == {1}


def test_after_an_error_the_workers_end(tmp_path: Path) -> None:
    mine = write_coco(tmp_path, 8)
    file = mine[1] / "picture-3.png"
    file.write_bytes(file.read_bytes()[:60] + bytes(400) + b"IEND")  # what the check reads is whole
    command = [sys.executable, "model/train.py", *words(settings(mine, tmp_path / "run", workers=2))]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 2, done.stderr
    assert "picture-3.png" in done.stderr


def test_another_error_is_not_taken_for_the_end_of_a_worker() -> None:
    with pytest.raises(RuntimeError, match="shapes"), naming_dead_workers():
        raise RuntimeError("shapes do not fit")


def test_too_little_shared_memory_is_told_with_the_way_out() -> None:
    full = "unable to allocate shared memory(shm) for file </torch_7_29_0>: No space left on device (28)"
    with pytest.raises(ValueError, match=r"--shm-size .* fewer"), naming_dead_workers():
        raise RuntimeError(f"Caught RuntimeError in DataLoader worker process 0.\nOriginal Traceback:\n{full}")


def test_an_epoch_of_which_nothing_was_left_has_no_speed() -> None:
    assert Feed([]).speed(1) == {}


def test_a_worker_that_the_system_ends_is_one_sentence(
    data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def killed(*_: Any) -> None:
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed.")

    monkeypatch.setattr(runs, "step", killed)
    monkeypatch.setattr(sys, "argv", ["train.py", *words(settings(data, tmp_path / "run"))])
    assert script.main() == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "fewer --workers" in line
