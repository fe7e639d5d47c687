"""A finished run's pictures are drawn whatever its classes are called."""

from pathlib import Path

import numpy as np
import pytest

from model import plots
from model.scoring import METRICS, Evaluation, Found
from tests.toy import write_pictures

CLASSES = ("$", r"$\frac$", "a_b")


@pytest.mark.parametrize("precision", [0.5, -1.0])  # -1: no box of the class
def test_results_are_drawn_of_any_class(tmp_path: Path, precision: float) -> None:
    evaluation = Evaluation(
        metrics=dict.fromkeys(METRICS, precision),
        per_class={name: {"AP": precision, "AP50": precision} for name in CLASSES},
        curves={name: np.full(101, precision) for name in CLASSES},
        score_threshold=0.5,
        f1=0.5,
        confusion=np.eye(len(CLASSES) + 1, dtype=np.int64),
    )
    document = write_pictures(tmp_path / "pictures", 2)
    plots.draw_results(evaluation, Found.join([]), document, tmp_path / "pictures", CLASSES, tmp_path)
    for name in ("precision_recall.png", "confusion.png", "predictions.jpg"):
        assert (tmp_path / name).stat().st_size
