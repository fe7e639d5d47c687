import io
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from PIL import Image, ImageFont
from skimage import data

from app.draw import MOST_JPEG_PIXELS, _installed, _knows_all, _readable_on, class_colour, draw, drawing
from app.negotiation import JPEG, PNG
from app.schemas import Box, Detection


def detection(xmin: float, ymin: float, xmax: float, ymax: float, class_id: int = 0) -> Detection:
    return Detection(
        label="potted plant", class_id=class_id, score=0.5, box=Box(xmin=xmin, ymin=ymin, xmax=xmax, ymax=ymax)
    )


def drawn_on(picture: Image.Image, detections: Sequence[Detection]) -> Image.Image:
    """Returns: A copy of the picture, with the boxes."""
    copy = picture.copy()
    draw(copy, detections)
    return copy


@pytest.mark.parametrize("size", [(1, 1), (20, 30), (640, 480), (3000, 200), (4000, 3000)])
def test_the_box_is_drawn(size: tuple[int, int]) -> None:
    picture = Image.new("RGB", size)
    draw(picture, [detection(0.1 * size[0], 0.1 * size[1], 0.9 * size[0], 0.9 * size[1])])
    assert picture.size == size
    assert np.asarray(picture).any()


@pytest.mark.parametrize("class_id", range(100))
def test_labels_can_be_read_on_every_colour(class_id: int) -> None:
    """WCAG 2.2, 1.4.3: a contrast of at least 4.5 to 1."""

    def luminance(colour: tuple[int, ...]) -> float:
        parts = [part / 255 for part in colour]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    colour = class_colour(class_id)
    darker, lighter = sorted((luminance(colour), luminance(_readable_on(colour))))
    assert (lighter + 0.05) / (darker + 0.05) >= 4.5


def test_labels_outside_ascii_are_written_where_a_font_knows_them(monkeypatch: pytest.MonkeyPatch) -> None:
    dejavu = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    blank = Image.new("RGB", (320, 240))

    def drawn(label: str) -> bytes:
        return drawn_on(blank, [detection(100, 100, 200, 200).model_copy(update={"label": label})]).tobytes()

    monkeypatch.setattr("app.draw.FONTS", ("none.ttf", str(dejavu)))
    _installed.cache_clear()
    assert len({drawn(label) for label in ("кот", "ток", "été", "étè")}) == 4
    assert drawn("кот 猫") != drawn("тек 猫"), "what it does know is written, though no font knows all"
    monkeypatch.setattr("app.draw.FONTS", ())
    _installed.cache_clear()
    assert drawn("кот") == drawn("тек"), "boxes, but no failure"
    monkeypatch.undo()
    _installed.cache_clear()


@pytest.mark.parametrize("end", ["\n", "\r", "\x1c", "\x85", "\u2028", "\u2029", "\t"])
@pytest.mark.parametrize("word", ["cat", "été"])
def test_a_class_name_of_several_lines_is_written_on_one(word: str, end: str) -> None:
    blank, found = Image.new("RGB", (320, 240)), detection(100, 100, 200, 200)
    one, several = (found.model_copy(update={"label": label}) for label in (f"{word} {word}", f"{word}{end}{word}"))
    assert drawn_on(blank, [several]).tobytes() == drawn_on(blank, [one]).tobytes()


def test_a_font_that_knows_all_letters_comes_before_one_that_does_not() -> None:
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    plain, symbols = (ImageFont.truetype(folder / name, 20) for name in ("DejaVuSans.ttf", "STIXSizOneSymReg.ttf"))
    assert _knows_all(plain, "кошка") and not _knows_all(symbols, "кошка")


def test_the_longest_jpeg_that_is_drawn_is_one() -> None:
    drawn = drawing(Image.new("RGB", (1, MOST_JPEG_PIXELS)), [], JPEG)
    assert Image.open(io.BytesIO(drawn)).size == (1, MOST_JPEG_PIXELS)


@pytest.mark.parametrize(("width", "height"), [(320, 240), (1280, 960), (5000, 4000)])
def test_labels_grow_with_the_picture_and_stay_inside(width: int, height: int) -> None:
    """Where the box is, at an edge or in a corner, the label covers the same share of the picture."""
    blank = Image.new("RGB", (width, height))
    shares = []
    for x, y in ((0.0, 0.0), (0.5, 0.5), (1.0, 1.0), (0.0, 1.0), (1.0, 0.0)):
        spot = detection(x * width, y * height, x * width, y * height)
        shares.append(np.asarray(drawn_on(blank, [spot])).any(axis=2).mean())
    assert min(shares) > 0.004
    assert max(shares) < 1.3 * min(shares)


@pytest.mark.parametrize(("width", "height"), [(640, 480), (5000, 4000)])
def test_lines_grow_with_the_picture(width: int, height: int) -> None:
    box = detection(0.1 * width, 0.2 * height, 0.9 * width, 0.9 * height)
    lines = (np.asarray(drawn_on(Image.new("RGB", (width, height)), [box])) == class_colour(0)).all(axis=2)
    assert 0.006 < lines[height // 2].mean() < 0.009, "the left and the right one"


def test_text_lies_in_the_middle_of_its_label() -> None:
    spot = detection(640, 480, 640, 480)
    drawn = (np.asarray(drawn_on(Image.new("RGB", (1280, 960)), [spot])) == class_colour(0)).all(axis=2)
    above = drawn[:481, 640:]  # without the spot's own lines
    text = ~above[above.any(axis=1)][:, above.any(axis=0)]
    for axis in (0, 1):
        inside = np.flatnonzero(text.any(axis=1 - axis))
        before, after = inside[0], text.shape[axis] - 1 - inside[-1]
        assert before > 0 and after > 0 and abs(before - after) <= 2


def test_of_a_label_that_has_no_room_the_beginning_is_seen() -> None:
    narrow, wide = (
        np.asarray(drawn_on(Image.new("RGB", size), [detection(0, 40, 0, 40)])) for size in ((60, 100), (100, 60))
    )
    assert np.array_equal(narrow[:60], wide[:, :60]) and (wide[:, 60:] != 0).any()


def test_a_drawing_keeps_the_picture_and_stays_small() -> None:
    photograph = Image.fromarray(data.cat())
    for kind in (JPEG, PNG):
        drawn = drawing(photograph.copy(), [], kind)
        apart = np.abs(np.asarray(Image.open(io.BytesIO(drawn))).astype(int) - np.asarray(photograph))
        assert apart.mean() < (3 if kind == JPEG else 1e-9)
        assert len(drawn) < (0.2 if kind == JPEG else 0.8) * photograph.width * photograph.height * 3


def test_labels_of_boxes_at_one_place_are_all_seen() -> None:
    """Four boxes begin at one corner: above it, in it, below and at the bottom there is room for a label each."""
    blank = Image.new("RGB", (640, 480))
    boxes = [detection(100, 100, 400 + 10 * index, 300, class_id=index) for index in range(4)]
    covered = [
        (np.asarray(drawn_on(blank, boxes)) == class_colour(index)).all(axis=2).sum()
        / (np.asarray(drawn_on(blank, [boxes[index]])) == class_colour(index)).all(axis=2).sum()
        for index in range(4)
    ]
    assert min(covered) > 0.6


def test_a_box_along_the_pictures_edges_has_all_its_sides() -> None:
    box = detection(0, 0, 90, 60)
    lines = (np.asarray(drawn_on(Image.new("RGB", (90, 60)), [box])) == class_colour(0)).all(axis=2)
    assert lines[-1].all()
    assert lines[:, -1].all()
    draw(Image.new("RGB", (90, 60)), [detection(90, 60, 90, 60)])


def test_the_better_ones_are_on_top() -> None:
    one, other = (detection(100, 100, 300, 300, class_id) for class_id in (0, 1))
    for found in ([one, other], [other, one]):
        drawn = np.asarray(drawn_on(Image.new("RGB", (400, 400)), found))
        assert tuple(drawn[200, 300].tolist()) == class_colour(found[0].class_id)
        narrow = np.asarray(
            drawn_on(
                Image.new("RGB", (40, 12)),
                [one.model_copy(update={"box": Box(xmin=0, ymin=0, xmax=40, ymax=12)}) for one in found],
            )
        )  # with room for one label
        better, worse = ((narrow == class_colour(one.class_id)).all(axis=2).sum() for one in found)
        assert better > worse


def test_nothing_found_leaves_the_picture_as_it_is() -> None:
    picture = Image.new("RGB", (50, 50), "teal")
    assert drawn_on(picture, []).tobytes() == picture.tobytes()


def test_classes_have_colours_of_their_own() -> None:
    colours = np.array([class_colour(index) for index in range(91)])
    assert len({tuple(colour) for colour in colours.tolist()}) == 91
    neighbours = np.abs(colours[1:] - colours[:-1]).sum(axis=1)
    assert neighbours.min() > 100
