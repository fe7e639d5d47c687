from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from app.detector import Detector
from app.postprocess import Heads, Parameters
from app.session import OnnxRunner
from tests.support import metadata, rectangle_picture


@pytest.fixture(scope="module")
def detector(model_file: Path) -> Detector:
    runner = OnnxRunner.load(model_file)
    return Detector(runner.metadata, runner)


@pytest.mark.parametrize("scale", [0.25, 1, 3.7])
def test_boxes_are_in_the_pictures_own_pixels(detector: Detector, scale: float) -> None:
    picture = rectangle_picture(160, 128, (32, 32, 96, 96), "blue")
    picture = picture.resize((round(160 * scale), round(128 * scale)), Image.Resampling.NEAREST)
    found = detector.detect(picture)
    assert len(found) > 0
    assert set(found.class_ids.tolist()) == {2}
    centres = (found.boxes[:, :2] + found.boxes[:, 2:]) / 2 / scale
    assert ((centres > 30) & (centres < 98)).all()


def test_an_array_and_a_picture_give_the_same(detector: Detector) -> None:
    picture = rectangle_picture()
    one, other = detector.detect(picture), detector.detect(np.asarray(picture))
    np.testing.assert_array_equal(one.boxes, other.boxes)


def test_every_box_has_area_and_lies_inside(detector: Detector) -> None:
    found = detector.detect(rectangle_picture(97, 61, (0, 0, 97, 61)), Parameters(0.01, 1.0, 1000))
    assert len(found) > 0
    assert (found.boxes[:, 2:] > found.boxes[:, :2]).all()
    assert (found.boxes >= 0).all()
    assert (found.boxes <= [97, 61, 97, 61]).all()


def test_points_on_the_padding_find_nothing() -> None:
    """A model that sees an object at every point gives boxes inside the picture only."""

    def sees_everything(canvases: np.ndarray) -> Heads:
        points = 20 * 20 + 10 * 10 + 5 * 5 + 3 * 3 + 2 * 2
        return Heads(
            np.full((1, points, 3), 5, np.float32),
            np.full((1, points, 4), 3, np.float32),
            np.full((1, points), 5, np.float32),
        )

    found = Detector(metadata(canvases=[(160, 160)]), sees_everything).detect(np.zeros((40, 160, 3), np.uint8))
    assert len(found) > 0
    assert (found.boxes[:, 3] <= 40).all()
    assert (found.boxes[:, 3] > found.boxes[:, 1]).all()
