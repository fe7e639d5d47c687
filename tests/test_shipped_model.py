"""The model in model/weights, as `make serve` serves it: right about photographs that it was not trained on."""

import io
import json
import urllib.request
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import pytest
import skimage.data
from numpy.typing import NDArray
from PIL import Image

from app.session import OnnxRunner
from app.settings import DEFAULT_MODEL
from export.verify import compare
from model import checkpoint as checkpoints
from tests.serving import Served, served
from tests.support import assert_right_without_vnni

INT8 = DEFAULT_MODEL.with_name(f"{DEFAULT_MODEL.stem}-int8.onnx")


@pytest.fixture(scope="module")
def service() -> Iterator[Served]:
    with served(model=DEFAULT_MODEL) as service:
        yield service


def detect(service: Served, pixels: NDArray[np.uint8], orientation: int = 1) -> Any:
    """The answer of POST /detect to a JPEG."""
    file = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(file, "JPEG", quality=95, exif=exif)
    request = urllib.request.Request(
        f"{service.address}/detect", data=file.getvalue(), headers={"Content-Type": "image/jpeg"}
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.load(response)


def overlap(box: dict[str, float], other: tuple[float, float, float, float]) -> float:
    """IoU of a box of the answer with (xmin, ymin, xmax, ymax)."""
    width = min(box["xmax"], other[2]) - max(box["xmin"], other[0])
    height = min(box["ymax"], other[3]) - max(box["ymin"], other[1])
    shared = max(width, 0) * max(height, 0)
    area = (box["xmax"] - box["xmin"]) * (box["ymax"] - box["ymin"])
    return shared / (area + (other[2] - other[0]) * (other[3] - other[1]) - shared)


def test_its_checkpoint_is_what_it_was_exported_from() -> None:
    """Who fine-tunes `--from` it begins with what is served."""
    file = DEFAULT_MODEL.with_suffix(".pt")
    checkpoint, runner = checkpoints.load(file), OnnxRunner.load(DEFAULT_MODEL)
    assert runner.metadata == checkpoint.metadata(runner.metadata.name, checkpoint_sha256=checkpoints.sha256(file))
    compare(onnx.load(DEFAULT_MODEL), checkpoint.model(), runner.metadata)


def test_int8_is_the_same_model() -> None:
    fp32, int8 = (OnnxRunner.load(path).metadata for path in (DEFAULT_MODEL, INT8))
    assert int8 == fp32.model_copy(update={"precision": "int8", "metrics": int8.metrics})
    assert_right_without_vnni(onnx.load(INT8))


# Boxes drawn by eye, around the cat's head and around the astronaut without her helmet.
@pytest.mark.parametrize(
    ("picture", "label", "around"),
    [("cat", "cat", (0, 0, 400, 300)), ("astronaut", "person", (20, 15, 370, 512))],
)
def test_the_best_detection_is_what_the_photograph_shows(
    service: Served, picture: str, label: str, around: tuple[float, float, float, float]
) -> None:
    pixels = getattr(skimage.data, picture)()
    answer = detect(service, pixels)
    assert answer["image"] == {"width": pixels.shape[1], "height": pixels.shape[0]}
    best = answer["detections"][0]
    assert best["label"] == label
    assert overlap(best["box"], around) > 0.5


def test_a_photograph_stored_on_its_side_gives_the_same_boxes(service: Served) -> None:
    # Orientation 6: to be shown, the stored pixels are turned by 90 degrees clockwise.
    upright = detect(service, skimage.data.cat())
    stored = np.ascontiguousarray(np.rot90(skimage.data.cat()))
    turned = detect(service, stored, orientation=6)
    assert turned["image"] == upright["image"]
    best, other = upright["detections"][0], turned["detections"][0]
    assert other["label"] == best["label"]
    box = best["box"]
    assert overlap(other["box"], (box["xmin"], box["ymin"], box["xmax"], box["ymax"])) > 0.95


def test_a_picture_of_nothing_has_no_detections(service: Served) -> None:
    assert detect(service, np.full((300, 400, 3), 127, np.uint8))["detections"] == []


def test_the_model_says_what_it_was_trained_on_and_how_good_it_is(service: Served) -> None:
    with urllib.request.urlopen(f"{service.address}/model", timeout=60) as response:
        model = json.load(response)
    assert len(model["classes"]) == 20
    assert 0 < model["metrics"]["AP"] < model["metrics"]["AP50"] < 1
