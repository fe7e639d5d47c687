"""Points and distances: the geometry that training and serving must agree on."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList

from app.artifact import Size, grids
from model.config import STRIDES, FCOSConfig
from model.points import canvas_points, decode, encode

CLASSES = ("cat", "dog")


@given(
    points=st.lists(st.tuples(st.floats(0, 1333), st.floats(0, 1333)), min_size=1, max_size=8),
    seed=st.integers(0, 2**32 - 1),
)
def test_decode_undoes_encode(points: list[tuple[float, float]], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    centers = torch.tensor(points)
    boxes = torch.rand(len(points), 4, generator=generator) * 1333
    torch.testing.assert_close(decode(centers, encode(centers, boxes)), boxes, atol=1e-3, rtol=0)


def test_distances_are_left_top_right_bottom() -> None:
    point, box = torch.tensor([[10.0, 20.0]]), torch.tensor([[7.0, 18.0, 15.0, 29.0]])
    assert encode(point, box).tolist() == [[3.0, 2.0, 5.0, 9.0]]


def test_the_first_points_of_each_level_are_half_a_stride_in() -> None:
    points, strides = canvas_points((128, 256), FCOSConfig(classes=CLASSES))
    starts = np.cumsum([0] + [rows * columns for rows, columns in grids(STRIDES, Size(128, 256))])
    assert points[starts[:-1]].tolist() == [[s / 2, s / 2] for s in STRIDES]
    assert strides[starts[:-1]].tolist() == list(STRIDES)
    assert points[1].tolist() == [12.0, 4.0]  # x runs fastest


@pytest.mark.parametrize("canvas", [(800, 1344), (320, 416), (672, 1344)])
def test_step_canvas_and_no_offset_are_torchvisions_points(canvas: tuple[int, int]) -> None:
    config = FCOSConfig(classes=CLASSES, point_step="canvas", point_offset=0.0)
    generator = AnchorGenerator(sizes=tuple((s,) for s in STRIDES), aspect_ratios=((1.0,),) * 5)
    features = [torch.zeros(1, 1, *shape) for shape in grids(STRIDES, Size(*canvas))]
    (anchors,) = generator(ImageList(torch.zeros(1, 3, *canvas), [canvas]), features)
    theirs = (anchors[:, :2] + anchors[:, 2:]) / 2
    torch.testing.assert_close(canvas_points(canvas, config)[0], theirs, atol=0, rtol=0)
