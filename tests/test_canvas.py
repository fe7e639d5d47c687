import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from app.artifact import Resize, Size
from app.canvas import fit, place, resized_size, unfit
from app.images import decode
from tests.support import encoded, metadata, rectangle_picture

SIDES = st.integers(1, 6000)


@given(SIDES, SIDES)
def test_every_picture_fits_its_canvas_and_touches_a_limit(height: int, width: int) -> None:
    rule = metadata()
    placement = place(Size(height, width), rule)
    resized, canvas = placement.resized, placement.canvas
    assert 1 <= resized.height <= canvas.height
    assert 1 <= resized.width <= canvas.width
    assert canvas in rule.canvases
    assert max(resized) == rule.resize.long


@pytest.mark.parametrize("orientation", [1, 3])
def test_a_jpeg_that_is_decoded_smaller_lies_where_it_would(orientation: int) -> None:
    """Neither side can be divided by 8: a part of a decoded pixel is left over."""
    pixels = np.zeros((1529, 2041, 3), np.uint8)
    pixels[:, 1020:] = 255
    upright = Image.fromarray(pixels)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = upright if orientation == 1 else upright.transpose(Image.Transpose.ROTATE_180)
    rule = metadata()
    smaller = decode(encoded(stored, "JPEG", exif=exif), 10**7, resized=lambda size: resized_size(size, rule.resize))
    assert smaller.picture.width < 1000
    edges = [160 - fit(picture, rule)[0][50, :160, 0].sum() / 255 for picture in (upright, smaller)]
    assert abs(edges[0] - edges[1]) < 0.03


@given(SIDES, SIDES)
def test_the_smallest_canvas_is_taken(height: int, width: int) -> None:
    rule = metadata()
    placement = place(Size(height, width), rule)
    for other in rule.canvases:
        if placement.resized.height <= other.height and placement.resized.width <= other.width:
            assert placement.canvas.height * placement.canvas.width <= other.height * other.width


def test_a_canvas_is_smaller_by_its_area_not_by_its_height() -> None:
    rule = metadata(canvases=[[128, 192], [96, 320], [160, 160]])
    assert place(Size(96, 160), rule).canvas == Size(128, 192)


def test_a_side_that_meets_its_limit_is_exact() -> None:
    assert math.floor(149 * (1333 / 149)) == 1332  # what floats make of it
    assert resized_size(Size(50, 149), Resize(short=800, long=1333)) == Size(447, 1333)
    assert resized_size(Size(417, 417), Resize(short=416, long=416)) == Size(416, 416)


@pytest.mark.parametrize("rule", [Resize(short=800, long=1333), Resize(short=416, long=416)])
def test_sizes_are_torchvisions_where_floats_do_not_fall_short(rule: Resize) -> None:
    for height in range(50, 1500, 7):
        for width in range(50, 1500, 11):
            scale = min(rule.short / min(height, width), rule.long / max(height, width))
            for side, resized in zip((height, width), resized_size(Size(height, width), rule), strict=True):
                product = side * scale
                if abs(product - round(product)) > 1e-6:
                    assert resized == math.floor(product)
                else:
                    assert resized == round(product)


@given(st.integers(1, 700), st.integers(1, 700))
def test_the_picture_lies_at_the_top_left_and_the_rest_is_the_mean_pixel(height: int, width: int) -> None:
    rule = metadata(mean_pixel=[1, 2, 3])
    canvas, placement = fit(np.full((height, width, 3), 200, np.uint8), rule)
    assert canvas.dtype == np.uint8
    assert canvas.shape == (*placement.canvas, 3)
    rows, columns = placement.resized
    assert (canvas[:rows, :columns] == 200).all()
    outside = np.ones(placement.canvas, bool)
    outside[:rows, :columns] = False
    assert (canvas[outside] == (1, 2, 3)).all()


@given(st.integers(2, 4000), st.integers(2, 4000), st.floats(0, 1), st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
def test_unfit_undoes_fit(height: int, width: int, x1: float, y1: float, x2: float, y2: float) -> None:
    """A box at these fractions of the resized picture is at the same fractions of the picture."""
    placement = place(Size(height, width), metadata())
    fractions = np.array([[min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)]], np.float32)
    resized = np.array([placement.resized.width, placement.resized.height] * 2, np.float32)
    own = np.array([width, height] * 2, np.float32)
    np.testing.assert_allclose(unfit(fractions * resized, placement), fractions * own, rtol=1e-5, atol=1e-3)


def test_boxes_never_leave_the_picture() -> None:
    placement = place(Size(300, 451), metadata())
    boxes = np.array([[-50, -50, 1000, 1000]], np.float32)
    np.testing.assert_array_equal(unfit(boxes, placement), [[0, 0, 451, 300]])


def test_arrays_and_pillow_pictures_are_the_same() -> None:
    picture = rectangle_picture(333, 222)
    np.testing.assert_array_equal(fit(picture, metadata())[0], fit(np.asarray(picture), metadata())[0])


def test_a_large_reduction_is_the_exact_one_within_a_few_grey_levels() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (1200, 1600, 3), dtype=np.uint8)
    canvas, placement = fit(noise, metadata())
    rows, columns = placement.resized
    exact = Image.fromarray(noise).resize((columns, rows), Image.Resampling.BILINEAR)
    difference = np.abs(canvas[:rows, :columns].astype(int) - np.asarray(exact))
    assert difference.mean() < 3


@pytest.mark.parametrize(
    "picture", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8), Image.new("L", (4, 4))]
)
def test_what_is_not_rgb_of_8_bits_is_refused(picture: np.ndarray | Image.Image) -> None:
    with pytest.raises(ValueError, match="picture must"):
        fit(picture, metadata())
