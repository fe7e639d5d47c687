"""Annotations become arrays, and batches that leave nothing out; a draw alone decides what becomes of its picture."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.artifact import Size
from model.checkpoint import metadata_of
from model.checks import check
from model.config import FCOSConfig, InputConfig
from model.data import Annotations, Draw, Plans, TrainingPictures
from model.layout import Augmentation
from model.pictures import open_picture
from model.sampling import CanvasBatches, canvas_indices, repeat_factors
from tests.toy import IDS, content, read_annotations, write_coco, write_pictures

CANVASES = (Size(64, 96), Size(96, 64), Size(96, 96))


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_coco(tmp_path_factory.mktemp("toy"), 7)


def metadata() -> Any:
    config = InputConfig(short=96, long=96, canvases=tuple(tuple(canvas) for canvas in CANVASES))
    return metadata_of(FCOSConfig(classes=tuple(IDS)), config)


# --- arrays


def test_sparse_ids_become_positions(toy: tuple[Path, Path]) -> None:
    annotations = read_annotations(*toy)
    document = json.loads(toy[0].read_text())
    names = {number: name for name, number in IDS.items()}
    assert annotations.classes == tuple(names[number] for number in sorted(names))
    ids = {image["file_name"]: image["id"] for image in document["images"]}
    for index, file_name in enumerate(annotations.file_names.tolist()):
        expected = [
            (names[a["category_id"]], [*a["bbox"][:2], a["bbox"][0] + a["bbox"][2], a["bbox"][1] + a["bbox"][3]])
            for a in document["annotations"]
            if a["image_id"] == ids[file_name]
        ]
        boxes, labels = annotations.of(index)
        assert [
            (annotations.classes[label], box) for label, box in zip(labels, boxes.tolist(), strict=True)
        ] == expected


def test_the_order_of_the_json_does_not_matter(toy: tuple[Path, Path], tmp_path: Path) -> None:
    document = json.loads(toy[0].read_text())
    for entries in document.values():
        entries.reverse()
    document["annotations"].sort(key=lambda annotation: annotation["id"])
    (tmp_path / "boxes.json").write_text(json.dumps(document))
    assert content(read_annotations(tmp_path / "boxes.json", toy[1])) == content(read_annotations(*toy))


def test_a_missing_or_broken_picture_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"gone\.jpg"):
        open_picture(tmp_path / "gone.jpg")
    (tmp_path / "bad.jpg").write_bytes(b"bad")
    with pytest.raises(ValueError, match=r"bad\.jpg"):
        open_picture(tmp_path / "bad.jpg")


# --- batches


def drawn(batches: CanvasBatches, epoch: int = 0, skip: int = 0) -> list[list[Draw]]:
    batches.start(epoch, skip)
    return list(batches)


def test_every_leftover_batch_has_a_canvas_that_holds_its_pictures() -> None:
    """Also where no canvas holds all others, as torchvision's 83."""
    canvases = (Size(64, 128), Size(128, 64), Size(96, 96))
    canvas = np.random.default_rng(0).integers(0, 3, 20)
    for batch in drawn(CanvasBatches(canvas, canvases, 4, 0)):
        for draw in batch:
            own = canvases[canvas[draw.picture]]
            assert draw.canvas.height >= own.height
            assert draw.canvas.width >= own.width


canvas_lists = st.lists(st.integers(0, 2), min_size=8, max_size=60).map(lambda values: np.array(values, dtype=np.int64))


@given(canvas=canvas_lists, batch_size=st.sampled_from([2, 4, 8]), epoch=st.integers(0, 3))
def test_an_epoch_shows_every_picture_once_on_a_canvas_that_holds_it(
    canvas: np.ndarray, batch_size: int, epoch: int
) -> None:
    batches = CanvasBatches(canvas, CANVASES, batch_size, seed=1)
    found = drawn(batches, epoch)
    assert len(found) == len(batches) == len(canvas) // batch_size
    shown = [draw.picture for batch in found for draw in batch]
    assert len(shown) == len(set(shown))
    for batch in found:
        assert len(batch) == batch_size and len({draw.canvas for draw in batch}) == 1
        assert all(draw.canvas in (CANVASES[canvas[draw.picture]], CANVASES[2]) for draw in batch)


@given(canvas=canvas_lists, processes=st.sampled_from([2, 4]))
def test_processes_together_draw_what_one_would(canvas: np.ndarray, processes: int) -> None:
    alone = drawn(CanvasBatches(canvas, CANVASES, 8, seed=1, zooms=(0.5, 1.0)))
    shares = [
        drawn(CanvasBatches(canvas, CANVASES, 8, seed=1, rank=rank, processes=processes, zooms=(0.5, 1.0)))
        for rank in range(processes)
    ]
    together = [{draw for share in shares for draw in share[i]} for i in range(len(alone))]
    assert together == [set(batch) for batch in alone]


@given(canvas=canvas_lists, skip=st.integers(0, 10))
def test_a_resumed_epoch_goes_on_where_it_stopped(canvas: np.ndarray, skip: int) -> None:
    batches = CanvasBatches(canvas, CANVASES, 2, seed=1)
    assert drawn(batches, 2, skip) == drawn(batches, 2)[skip:]


def test_epochs_differ_and_repeat_by_seed() -> None:
    canvas = np.zeros(32, dtype=np.int64)
    one, same, other = (CanvasBatches(canvas, CANVASES, 4, seed=seed) for seed in (1, 1, 2))
    assert drawn(one, 0) == drawn(same, 0)
    assert drawn(one, 0) != drawn(one, 1) and drawn(one, 0) != drawn(other, 0)


def test_the_last_epochs_are_plain() -> None:
    batches = CanvasBatches(np.zeros(8, dtype=np.int64), CANVASES, 4, seed=0, zooms=(0.5,), plain_from=1)
    before, after = drawn(batches, 0), drawn(batches, 1)
    assert {(draw.plain, draw.canvas) for batch in before for draw in batch} == {(False, Size(32, 64))}
    assert {(draw.plain, draw.canvas) for batch in after for draw in batch} == {(True, CANVASES[0])}


def test_batches_are_cut_to_whole_accumulations() -> None:
    batches = CanvasBatches(np.zeros(27, dtype=np.int64), CANVASES, 4, seed=0, multiple=4)
    assert len(batches) == len(drawn(batches)) == 4


@given(st.lists(st.floats(1, 4), min_size=8, max_size=40), st.integers(0, 5))
def test_repeated_pictures_come_as_often_as_said(repeats: list[float], epoch: int) -> None:
    factors = np.array(repeats)
    batches = CanvasBatches(np.zeros(len(factors), dtype=np.int64), CANVASES, 1, seed=0, repeats=factors)
    shown = np.bincount([draw.picture for batch in drawn(batches, epoch) for draw in batch], minlength=len(factors))
    assert shown.sum() == round(factors.sum()) == len(batches)
    assert (np.abs(shown - factors) < 1.2).all()


def test_pictures_of_thin_classes_are_repeated(tmp_path: Path) -> None:
    document = write_pictures(tmp_path, 16, boxes=1)
    for position, annotation in enumerate(document["annotations"]):
        annotation["category_id"] = IDS["blue"] if position == 5 else IDS["red"]
    factors = repeat_factors(Annotations.from_document(check(document, "it")[0]), threshold=0.25)
    assert factors[5] == pytest.approx((0.25 / (1 / 16)) ** 0.5)
    assert (np.delete(factors, 5) == 1).all()


def test_too_few_pictures_for_a_batch_say_so() -> None:
    with pytest.raises(ValueError, match="lower --batch-size"):
        CanvasBatches(np.zeros(3, dtype=np.int64), CANVASES, 4, seed=0)
    with pytest.raises(ValueError, match="3 processes"):
        CanvasBatches(np.zeros(9, dtype=np.int64), CANVASES, 4, seed=0, processes=3)


# --- draws


def test_what_becomes_of_a_picture_depends_on_its_draw_alone(toy: tuple[Path, Path]) -> None:
    annotations = read_annotations(*toy)
    strong = Augmentation(mosaic=0.5, mixup=0.5, hue=0.1)
    pictures = TrainingPictures(Plans(annotations, metadata(), strong), toy[1])
    batches = CanvasBatches(canvas_indices(annotations, metadata()), CANVASES, 1, seed=3)
    draws = [draw for batch in drawn(batches) for draw in batch]
    there = [pictures[draw] for draw in draws]
    back = [pictures[draw] for draw in reversed(draws)][::-1]
    for one, other in zip(there, back, strict=True):
        assert one.image.equal(other.image) and one.boxes.equal(other.boxes) and one.labels.equal(other.labels)


def test_pictures_join_others_on_a_canvas_as_often_as_they_are_repeated(toy: tuple[Path, Path]) -> None:
    annotations = read_annotations(*toy)
    repeats = np.array([1.0, 1.0, 3.5, 1.0, 2.0, 1.0, 1.0])
    plans = Plans(annotations, metadata(), Augmentation(mosaic=1.0, mixup=1.0), repeats)
    counts = np.zeros(len(repeats))
    for seed in range(1000):
        plan = plans[Draw(0, CANVASES[2], 1.0, False, seed)]
        first, *others = (layer.picture for layout in plan.layouts for layer in layout.layers)
        assert first == 0 and len(others) == 7
        np.add.at(counts, others, 1)
    assert counts / counts.sum() == pytest.approx(repeats / repeats.sum(), abs=0.02)


def test_a_plain_draw_is_only_mirrored_and_a_zoom_reaches_its_picture(toy: tuple[Path, Path]) -> None:
    strong = Augmentation(scale=(0.3, 0.5), mosaic=1.0, mixup=1.0, color=0.5, flip=0.0)
    annotations = read_annotations(*toy)
    metadata = metadata_of(
        FCOSConfig(classes=annotations.classes), InputConfig(short=96, long=96, canvases=((96, 96),))
    )
    plans, still = (Plans(annotations, metadata, augmentation) for augmentation in (strong, strong.plain()))
    canvas, index = metadata.canvases[-1], 0
    plain, unplain = (plans[Draw(index, canvas, 1.0, flag, 1)] for flag in (True, False))
    assert len(plain.layouts) == 1 and len(unplain.layouts) == 2
    assert plain.share == 1 and 0.1 < unplain.share < 0.9
    np.testing.assert_array_equal(plain.boxes, still[Draw(index, canvas, 1.0, False, 1)].boxes)
    np.testing.assert_allclose(plans[Draw(index, canvas, 0.5, True, 1)].boxes, plain.boxes / 2, atol=1.5)


def test_mosaics_blends_and_flips_come_as_often_as_said_and_with_any_picture(toy: tuple[Path, Path]) -> None:
    plans = Plans(read_annotations(*toy), metadata(), Augmentation(flip=0.2, mosaic=0.4, mixup=0.7))
    found = [plans[Draw(0, CANVASES[2], 1.0, False, seed)] for seed in range(1000)]
    flipped = [plan.layouts[0].flipped for plan in found]
    mosaics = [len(plan.layouts[0].layers) == 4 for plan in found]
    blended = [len(plan.layouts) == 2 for plan in found]
    assert np.mean([flipped, mosaics, blended], axis=1) == pytest.approx([0.2, 0.4, 0.7], abs=0.05)
    beside = [layer.picture for plan in found for layer in plan.layouts[0].layers[1:]]
    under = [plan.layouts[1].layers[0].picture for plan in found if len(plan.layouts) == 2]
    for others in (beside, under):
        assert np.bincount(others) / len(others) == pytest.approx([1 / 7] * 7, abs=0.05)
