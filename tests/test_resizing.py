import platform
import runpy
import sys

import numpy as np
import PIL
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from app import resizing
from app.artifact import Size
from app.resizing import LONGEST, REDUCING_GAP, Box, resized

sides = st.integers(1, 60)
GAP = REDUCING_GAP if vars(resizing)["simd"] is None else None  # where there are no wheels, Pillow does it all


def noise(width: int, height: int) -> Image.Image:
    """Black and white by chance, where rounding shows most."""
    pixels = np.random.default_rng(0).integers(0, 2, (height, width, 3), np.uint8) * np.uint8(255)
    return Image.fromarray(pixels)


def by_pillow(picture: Image.Image, size: Size, box: Box | None = None, gap: float | None = None) -> Image.Image:
    return picture.resize((size.width, size.height), Image.Resampling.BILINEAR, box, gap)


def most_apart(one: Image.Image, other: Image.Image) -> int:
    return int(np.abs(np.asarray(one).astype(int) - np.asarray(other)).max())


@pytest.fixture
def without_simd(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.resizing.simd", None)


def test_simd_is_there_where_it_has_wheels() -> None:
    if platform.machine() in ("x86_64", "AMD64") or sys.platform == "darwin":
        assert vars(resizing)["simd"] is not None


def test_it_is_left_alone_with_another_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PIL, "__version__", "14.0.0")
    assert runpy.run_path(resizing.__file__)["simd"] is None


@given(sides, sides, sides, sides)
def test_a_picture_is_resized_as_pillow_resizes_it(width: int, height: int, new_width: int, new_height: int) -> None:
    picture, size = noise(width, height), Size(new_height, new_width)

    assert most_apart(resized(picture, size), by_pillow(picture, size, gap=GAP)) <= 2


@given(st.data())
def test_a_box_is_resized_as_pillow_resizes_it(data: st.DataObject) -> None:
    width, height, new_width, new_height = (data.draw(sides) for _ in range(4))
    left, top = data.draw(st.floats(0, width - 0.5)), data.draw(st.floats(0, height - 0.5))
    right, bottom = data.draw(st.floats(left + 0.25, width)), data.draw(st.floats(top + 0.25, height))
    picture, size, box = noise(width, height), Size(new_height, new_width), (left, top, right, bottom)

    assert most_apart(resized(picture, size, box), by_pillow(picture, size, box, GAP)) <= 2


@pytest.mark.parametrize("beyond", [1e-14, 1e-9])
def test_a_box_may_end_a_hair_beyond_the_picture(beyond: float) -> None:
    picture, size = noise(30, 20), Size(11, 17)

    assert resized(picture, size, (2, 3, 30 + beyond, 20 + beyond)) == resized(picture, size, (2, 3, 30, 20))


def test_a_picture_of_the_size_stays_as_it_is() -> None:
    picture = noise(30, 20)

    assert resized(picture, Size(20, 30)) == picture
    assert resized(picture, Size(20, 30), (0, 0, 29, 20)) != picture


@pytest.mark.parametrize(("width", "height"), [(LONGEST + 1, 3), (3, LONGEST + 1)])
def test_pictures_like_lines_are_left_to_pillow(width: int, height: int) -> None:
    picture, size = noise(width, height), Size(min(height, 512), min(width, 512))

    assert resized(picture, size) == by_pillow(picture, size, gap=REDUCING_GAP) != by_pillow(picture, size)


def test_a_picture_of_many_blocks_of_memory_is_resized() -> None:
    picture, size = noise(5000, 1500), Size(700, 2000)  # Pillow allocates 16 MB at a time

    assert most_apart(resized(picture, size), by_pillow(picture, size)) <= 2


@pytest.mark.usefixtures("without_simd")
def test_without_simd_pillow_resizes() -> None:
    picture, size, box = noise(640, 480), Size(30, 41), (1.5, 2.25, 600.0, 400.0)

    assert resized(picture, size) == by_pillow(picture, size, gap=REDUCING_GAP) != by_pillow(picture, size)
    assert resized(picture, size, box) == by_pillow(picture, size, box, REDUCING_GAP)
