import platform
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from app import resizing
from app.artifact import Size
from app.resizing import MOST_COPIED_PIXELS, REDUCING_GAP, Box, resized

sides = st.integers(1, 60)


def noise(width: int, height: int) -> Image.Image:
    """Black and white by chance, where rounding shows most."""
    pixels = np.random.default_rng(0).integers(0, 2, (height, width, 3), np.uint8) * np.uint8(255)
    return Image.fromarray(pixels)


def by_pillow(picture: Image.Image, size: Size, box: Box | None = None) -> NDArray[np.uint8]:
    return np.asarray(picture.resize((size.width, size.height), Image.Resampling.BILINEAR, box, REDUCING_GAP))


@pytest.fixture
def without_simd(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.resizing.simd", None)


def test_simd_is_there_where_it_has_wheels() -> None:
    if platform.machine() in ("x86_64", "AMD64") or sys.platform == "darwin":
        assert vars(resizing)["simd"] is not None


@given(sides, sides, sides, sides)
def test_a_picture_is_resized_as_pillow_resizes_it(width: int, height: int, new_width: int, new_height: int) -> None:
    picture, size = noise(width, height), Size(new_height, new_width)

    found = resized(picture, size)

    assert found.shape == (new_height, new_width, 3)
    assert np.abs(found.astype(int) - by_pillow(picture, size)).max() <= 2


@given(st.data())
def test_a_box_is_resized_as_pillow_resizes_it(data: st.DataObject) -> None:
    width, height, new_width, new_height = (data.draw(sides) for _ in range(4))
    left, top = data.draw(st.floats(0, width - 0.5)), data.draw(st.floats(0, height - 0.5))
    right, bottom = data.draw(st.floats(left + 0.25, width)), data.draw(st.floats(top + 0.25, height))
    picture, size, box = noise(width, height), Size(new_height, new_width), (left, top, right, bottom)

    assert np.abs(resized(picture, size, box).astype(int) - by_pillow(picture, size, box)).max() <= 2


@pytest.mark.parametrize("beyond", [1e-14, 1e-9])
def test_a_box_may_end_a_hair_beyond_the_picture(beyond: float) -> None:
    picture, size = noise(30, 20), Size(11, 17)

    found = resized(picture, size, (2, 3, 30 + beyond, 20 + beyond))

    assert np.array_equal(found, resized(picture, size, (2, 3, 30, 20)))


def test_a_picture_of_the_size_stays_as_it_is() -> None:
    picture = noise(30, 20)

    assert np.array_equal(resized(picture, Size(20, 30)), np.asarray(picture))
    assert not np.array_equal(resized(picture, Size(20, 30), (0, 0, 29, 20)), np.asarray(picture))


@pytest.mark.parametrize(
    ("picture", "size"),
    [
        (noise(400, 90), Size(90, 100)),  # one side is a quarter
        (noise(90, 400), Size(100, 90)),
        (noise(MOST_COPIED_PIXELS // 1000, 1001), Size(900, 4000)),
    ],
)
def test_large_reductions_and_pictures_are_left_to_pillow(picture: Image.Image, size: Size) -> None:
    assert np.array_equal(resized(picture, size), by_pillow(picture, size))


@pytest.mark.usefixtures("without_simd")
def test_without_simd_pillow_resizes() -> None:
    picture, size, box = noise(64, 48), Size(30, 41), (1.5, 2.25, 60.0, 40.0)

    assert np.array_equal(resized(picture, size), by_pillow(picture, size))
    assert np.array_equal(resized(picture, size, box), by_pillow(picture, size, box))
