"""A finished run's pictures are drawn whatever its classes are called."""

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from model import plots
from model.scoring import METRICS, Evaluation, Found
from tests.toy import write_pictures

CLASSES = ("$", r"$\frac$", "a_b", "三角", "grün")


def evaluation_of(classes: Sequence[str], precision: float) -> Evaluation:
    return Evaluation(
        metrics=dict.fromkeys(METRICS, precision),
        per_class={name: {"AP": precision, "AP50": precision} for name in classes},
        curves={name: np.full(101, precision) for name in classes},
        score_threshold=0.5,
        f1=0.5,
        confusion=np.eye(len(classes) + 1, dtype=np.int64),
    )


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("precision", [0.5, -1.0])  # -1: no box of the class
def test_results_are_drawn_of_any_class(tmp_path: Path, precision: float) -> None:
    document = write_pictures(tmp_path / "pictures", 2)
    plots.draw_results(
        evaluation_of(CLASSES, precision), Found.join([]), document, tmp_path / "pictures", CLASSES, tmp_path
    )
    for name in ("precision_recall.png", "confusion.png", "predictions.jpg"):
        assert (tmp_path / name).stat().st_size


@pytest.mark.parametrize("count", [80, 149, 500])
def test_the_names_along_the_confusion_matrix_do_not_overlap(count: int) -> None:
    figure = plots._confusion(evaluation_of([f"a class {number}" for number in range(count)], 0.5))
    figure.draw_without_rendering()
    labels = figure.axes[0].get_yticklabels()
    assert [label.get_text() for label in labels[:2]] == [
        "nothing there",
        f"a class {count - (1 if count < 150 else 4)}",
    ]
    extents = sorted((box.y0, box.y1) for box in (label.get_window_extent() for label in labels))
    assert all(top <= bottom for (_, top), (bottom, _) in itertools.pairwise(extents))


def test_names_that_the_font_cannot_write_stay_apart() -> None:
    assert plots._literal("grün") == "grün"
    assert plots._literal("三") != plots._literal("四")
    assert plots._literal("三").isascii()


@pytest.mark.parametrize("size", [(64, 48), (2000, 1000), (1, 900)])
def test_a_tile_is_as_large_as_all_and_its_boxes_with_it(size: tuple[int, int]) -> None:
    picture = Image.new("RGB", size)
    boxes = np.array([[0, 0, *size]], np.float32)
    tile = plots._drawn(picture, boxes, np.zeros(1, np.int64), np.ones(1), CLASSES)
    assert max(tile.size) == plots.TILE_PX - 4
    assert np.asarray(tile)[-1].any() and np.asarray(tile)[:, -1].any(), "the box's edges"
