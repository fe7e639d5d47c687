"""A finished run's pictures are drawn whatever its classes are called."""

import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from model import plots
from model.data import Batch
from model.pictures import open_picture
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


def test_each_class_that_has_boxes_has_its_curve_and_ap50() -> None:
    evaluation = evaluation_of(["cat", "dog"], 0.5)
    evaluation.curves["dog"][:] = -1
    (line,) = plots._precision_recall(evaluation).axes[0].lines
    assert line.get_label() == "cat 0.50"


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


def test_a_row_of_the_confusion_matrix_is_what_a_class_is_detected_as() -> None:
    counts = np.array([[1, 3, 0], [0, 0, 0], [2, 0, 0]])
    axes = plots._confusion(dataclasses.replace(evaluation_of("ab", 0.5), confusion=counts)).axes[0]
    assert {(*text.get_position(), text.get_text()) for text in axes.texts} == {(0, 0, "1"), (1, 0, "3"), (0, 2, "2")}
    assert axes.images[0].get_array().tolist() == [[0.25, 0.75, 0], [0, 0, 0], [1, 0, 0]]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["missed", "b", "a"]


@pytest.fixture
def sheets(monkeypatch: pytest.MonkeyPatch) -> dict[str, Sequence[Image.Image]]:
    """Returns: The tiles of each sheet that is drawn, by its file's name."""
    drawn: dict[str, Sequence[Image.Image]] = {}
    monkeypatch.setattr(plots, "_save_sheet", lambda tiles, path: drawn.update({path.name: tiles}))
    return drawn


def test_predictions_are_those_above_the_threshold_on_pictures_from_first_to_last(
    tmp_path: Path, sheets: dict[str, Sequence[Image.Image]]
) -> None:
    document = write_pictures(tmp_path, 2 * plots.TILES)
    places = np.array([0, 2 * plots.TILES - 1])
    found = Found(
        places, np.array([[9, 9, 50, 50]] * 2, np.float32), np.array([0.4, 0.6], np.float32), np.zeros(2, np.int64)
    )
    plots.draw_results(evaluation_of(CLASSES, 0.5), found, document, tmp_path, CLASSES, tmp_path)
    tiles = sheets["predictions.jpg"]
    assert len(tiles) == plots.TILES
    nothing = np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0)
    first, last = (
        plots._drawn(open_picture(tmp_path / document["images"][place]["file_name"]), *nothing, CLASSES)
        for place in places
    )
    assert tiles[0] == first
    assert tiles[-1].size == last.size and tiles[-1] != last


def test_a_batch_is_shown_with_the_boxes_that_are_learnt(
    tmp_path: Path, sheets: dict[str, Sequence[Image.Image]]
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    count = plots.TILES + 1
    images = torch.from_numpy(pixels).permute(2, 0, 1).expand(count, -1, -1, -1)
    box, label = np.array([[10, 5, 50, 35]], np.float32), np.array([2])
    batch = Batch(images, [torch.from_numpy(box)] * count, [torch.from_numpy(label)] * count, list(range(count)))
    plots.draw_batch(batch, CLASSES, tmp_path / "batch.jpg")
    expected = plots._drawn(Image.fromarray(pixels), box, label, np.ones(1), CLASSES)
    assert sheets["batch.jpg"] == [expected] * plots.TILES


def test_tiles_lie_on_a_sheet_row_by_row(tmp_path: Path) -> None:
    colours = [(250, 0, 0), (0, 250, 0), (0, 0, 250)]
    for count, size in ((1, (1, 1)), (2, (2, 1)), (3, (2, 2))):
        plots._save_sheet([Image.new("RGB", (9, 9), colour) for colour in colours[:count]], tmp_path / "sheet.jpg")
        with Image.open(tmp_path / "sheet.jpg") as sheet:
            assert sheet.size == (size[0] * plots.TILE_PX, size[1] * plots.TILE_PX)
            places = [(4 + place % 2 * plots.TILE_PX, 4 + place // 2 * plots.TILE_PX) for place in range(count)]
            seen = [np.asarray(sheet)[y, x] for x, y in places]
        np.testing.assert_allclose(seen, colours[:count], atol=20)


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
