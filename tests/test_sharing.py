"""Who has how many cores, and which batches pay."""

import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app.providers import CPU, CUDA
from app.session import BATCH_SIZES, OnnxRunner
from app.settings import Settings
from app.sharing import (
    drawer_count,
    largest_batch,
    most_threads,
    seconds_per_picture,
    session_count,
    session_threads,
    worker_count,
)


@pytest.mark.parametrize(
    ("settings", "sessions", "threads", "most"),
    [
        ({}, 4, 1, 4),
        ({"threads": 3}, 4, 3, 1),
        ({"sessions": 2}, 2, 2, 1),
        ({"sessions": 3}, 3, 1, 1),
        ({"sessions": 8}, 8, 1, 1),
        ({"sessions": 2, "threads": 1}, 2, 1, 1),
    ],
)
def test_the_settings_share_out_four_cores(
    model_file: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], sessions: int, threads: int, most: int
) -> None:
    monkeypatch.setattr("app.sharing.core_count", lambda: 4)
    given = Settings(model=model_file, **settings)
    assert session_count(given, CPU) == sessions
    assert session_count(given, CUDA) == 1
    assert (session_threads(given), most_threads(given)) == (threads, most)


def test_on_cuda_the_largest_batch_of_all_may_pay() -> None:
    assert largest_batch(CUDA) == max(BATCH_SIZES)


def test_a_pictures_time_is_that_of_the_run_that_was_disturbed_least(
    model_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = replace(OnnxRunner.load(model_file), provider=CUDA)
    clock, lasting = [0.0], iter([3.0, 1.0, 2.0])

    def run(_: OnnxRunner, canvases: list[np.ndarray]) -> None:
        assert [canvas.shape for canvas in canvases] == [(160, 160, 3)] * 2, "the largest"
        clock[0] += next(lasting)

    monkeypatch.setattr(OnnxRunner, "run_batch", run)
    monkeypatch.setattr("app.sharing.perf_counter", lambda: clock[0])
    assert seconds_per_picture(runner, size=2, times=3) == 0.5


@pytest.mark.skipif(sys.platform == "win32", reason="its clock is too coarse")
def test_on_a_cpu_a_pictures_time_is_its_own_however_busy_the_machine_is(
    model_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = OnnxRunner.load(model_file)
    monkeypatch.setattr(OnnxRunner, "run_batch", lambda *_: time.sleep(0.05))
    assert seconds_per_picture(runner) < 0.02


@pytest.mark.parametrize(
    ("cores", "settings", "workers", "drawers"),
    [
        (4, {}, 4, 1),
        (6, {"sessions": 8}, 8, 1),
        (384, {}, 64, 64),
        (384, {"max_queue": 200}, 200, 96),
        (384, {"decode_threads": 100}, 100, 64),
    ],
)
def test_there_are_no_more_threads_than_pictures(
    model_file: Path, monkeypatch: pytest.MonkeyPatch, cores: int, settings: dict[str, Any], workers: int, drawers: int
) -> None:
    """A container's limit of 512 threads would not let a machine of 384 cores start."""
    monkeypatch.setattr("app.sharing.core_count", lambda: cores)
    given = Settings(model=model_file, **settings)
    assert (worker_count(given), drawer_count(given)) == (workers, drawers)
