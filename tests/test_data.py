"""Annotations become arrays; a draw alone decides what becomes of its picture."""

import gc
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image

from app.artifact import Size
from app.canvas import fit
from model.checkpoint import metadata_of
from model.config import FCOSConfig, InputConfig
from model.data import Annotations, Draw, Plans, TrainingPictures, read_checked, read_usable
from model.layout import NO_AUGMENTATION, Augmentation
from model.pictures import open_as_served
from model.sampling import CanvasBatches, canvas_indices
from tests.toy import IDS, content, read_annotations, write_coco

CANVASES = (Size(64, 96), Size(96, 64), Size(96, 96))


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_coco(tmp_path_factory.mktemp("toy"), 7)


def metadata() -> Any:
    config = InputConfig(short=96, long=96, canvases=tuple((canvas.height, canvas.width) for canvas in CANVASES))
    return metadata_of(FCOSConfig(classes=tuple(IDS)), config)


# --- arrays


def test_sparse_ids_become_positions(toy: tuple[Path, Path]) -> None:
    annotations = read_annotations(*toy)
    document = json.loads(toy[0].read_text())
    names = {number: name for name, number in IDS.items()}
    assert annotations.classes == tuple(names[number] for number in sorted(names))
    for image in document["images"]:
        expected = [
            (names[a["category_id"]], [*a["bbox"][:2], a["bbox"][0] + a["bbox"][2], a["bbox"][1] + a["bbox"][3]])
            for a in document["annotations"]
            if a["image_id"] == image["id"]
        ]
        assert content(annotations)[image["file_name"]] == expected


def test_the_order_of_the_json_does_not_matter(toy: tuple[Path, Path], tmp_path: Path) -> None:
    document = json.loads(toy[0].read_text())
    for entries in document.values():
        entries.reverse()
    document["annotations"].sort(key=lambda annotation: annotation["id"])
    (tmp_path / "boxes.json").write_text(json.dumps(document))
    assert content(read_annotations(tmp_path / "boxes.json", toy[1])) == content(read_annotations(*toy))


# --- draws


def test_what_becomes_of_a_picture_depends_on_its_draw_alone(toy: tuple[Path, Path]) -> None:
    annotations = read_annotations(*toy)
    strong = Augmentation(mosaic=0.5, mixup=0.5, hue=0.1)
    pictures = TrainingPictures(Plans(annotations, metadata(), strong), toy[1])
    batches = CanvasBatches(canvas_indices(annotations, metadata()), CANVASES, 1, seed=3)
    draws = [draw for batch in batches for draw in batch]
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


@pytest.mark.parametrize("orientation", [1, 6])
def test_a_large_photograph_is_learnt_from_as_it_is_served(orientation: int, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (41, 63, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    Image.fromarray(pixels).resize((627, 405)).save(tmp_path / "large.jpg", exif=exif)  # not a multiple of 8
    served, placement = fit(open_as_served(tmp_path / "large.jpg", metadata()), metadata())
    size = placement.picture
    annotations = Annotations(
        classes=tuple(IDS),
        file_names=np.array(["large.jpg"]),
        sizes=np.array([size]),
        starts=np.array([0, 0]),
        boxes=np.zeros((0, 4), np.float32),
        labels=np.zeros(0, np.int64),
    )
    plans = Plans(annotations, metadata(), NO_AUGMENTATION)
    draw = Draw(0, placement.canvas, zoom=1.0, plain=True, seed=0)
    assert np.array_equal(TrainingPictures(plans, tmp_path)[draw].image, served)


@pytest.mark.parametrize("read", [read_checked, lambda path, images: read_usable(path, images, (), print)])
def test_python_collects_nothing_while_annotations_are_read_and_does_so_after_an_error(
    read: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    collects: list[bool] = []

    def refuse(*_: Any) -> Any:
        collects.append(gc.isenabled())
        raise ValueError("no")

    monkeypatch.setattr("model.data.read_document", refuse)
    with pytest.raises(ValueError, match="no"):
        read(tmp_path / "a.json", tmp_path)
    assert collects == [False] and gc.isenabled()
