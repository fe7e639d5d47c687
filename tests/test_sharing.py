"""Who has how many cores, and which batches pay."""

from pathlib import Path

import numpy as np
import pytest

from app.session import OnnxRunner
from app.sharing import best_batch


@pytest.mark.parametrize(
    ("seconds", "best"),
    [
        ({1: 0.004, 2: 0.007, 4: 0.012}, 4),  # the larger the better
        ({1: 0.004, 2: 0.007, 4: 0.015}, 2),
        ({1: 0.004, 2: 0.0079, 4: 0.0157}, 1),  # too little to be sure of
        ({1: 0.004, 2: 0.009, 4: 0.020}, 1),
    ],
)
def test_the_best_batch_takes_the_least_time_for_a_picture(
    model_file: Path, monkeypatch: pytest.MonkeyPatch, seconds: dict[int, float], best: int
) -> None:
    runner = OnnxRunner.load(model_file)
    clock, runs = [0.0], []

    def run(_: OnnxRunner, canvases: list[np.ndarray], cores: int = 1) -> None:
        runs.append(len(canvases))
        clock[0] += seconds[len(canvases)] * (3 if len(runs) % 5 == 0 else 1)  # now and then the machine is busy

    monkeypatch.setattr(OnnxRunner, "run_batch", run)
    monkeypatch.setattr("app.sharing.perf_counter", lambda: clock[0])
    assert best_batch(runner, 4) == best
