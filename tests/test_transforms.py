"""A box stays on its object, whatever happens to the picture."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from app.artifact import Metadata, Size
from app.canvas import fit
from app.images import Decoded
from model.checkpoint import metadata_of
from model.config import FCOSConfig, InputConfig
from model.layout import NO_AUGMENTATION, Augmentation, Content, Layer, Layout, lay_out, mirror
from model.transforms import mix, paint

METADATA = metadata_of(
    FCOSConfig(classes=("red", "green", "blue")), InputConfig(short=128, long=128, canvases=((128, 128),))
)
CANVAS = Size(128, 128)
Box = tuple[int, int, int, int]


class Labelled(NamedTuple):
    """A picture, upright, RGB; its boxes [G, 4] in its own pixels; and their labels [G]."""

    picture: Image.Image
    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]


class Placed(NamedTuple):
    """A canvas, uint8 [H, W, 3]; its boxes [G, 4] in canvas pixels; and their labels [G]."""

    image: NDArray[np.uint8]
    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]


def augment(
    pictures: Sequence[Labelled],
    canvas: Size,
    metadata: Metadata,
    augmentation: Augmentation,
    rng: np.random.Generator,
    zoom: float = 1.0,
) -> Placed:
    """Pictures on a canvas, and their boxes there.

    Args:
        pictures: one, or four for a mosaic.
        zoom: size of the canvas relative to the served one; the picture's grows with it.
    """
    contents = [
        Content(index, Size(picture.height, picture.width), boxes, labels)
        for index, (picture, boxes, labels) in enumerate(pictures)
    ]
    layout = lay_out(contents, canvas, metadata.resize, augmentation, rng, zoom)
    image = paint(layout, lambda layer: _whole(pictures[layer.picture].picture), metadata.mean_pixel)
    return Placed(image, layout.boxes, layout.labels)


def _whole(picture: Image.Image) -> Decoded:
    return Decoded(picture, Size(picture.height, picture.width), (0, 0, picture.width, picture.height))


def layouts(augmentation: Augmentation, pictures: int = 1, zoom: float = 1.0) -> list[Layout]:
    """300 of pictures as large as the canvas."""
    content = Content(0, CANVAS, np.zeros((0, 4), np.float32), np.zeros(0, np.int64))
    rng = np.random.default_rng(0)
    return [lay_out([content] * pictures, CANVAS, METADATA.resize, augmentation, rng, zoom) for _ in range(300)]


def enlarged(layer: Layer) -> float:
    """A layer's width relative to what it shows."""
    return layer.target.width / (layer.source[2] - layer.source[0])


def assert_uniform(values: NDArray[Any], low: float, high: float) -> None:
    """Hundreds of values, [N] or [N, K], fill the range evenly."""
    parts = (values - low) / (high - low)
    assert ((parts > -0.02) & (parts < 1.02)).all()
    quartiles = np.quantile(parts, [0, 0.25, 0.5, 0.75, 1], axis=0).T
    np.testing.assert_allclose(quartiles, np.broadcast_to([0, 0.25, 0.5, 0.75, 1], quartiles.shape), atol=0.08)


def picture(size: Size, box: Box, label: int) -> Labelled:
    """Grey, with a rectangle whose only bright channel is `label`."""
    pixels = np.full((*size, 3), 100, dtype=np.uint8)
    left, top, right, bottom = box
    pixels[top:bottom, left:right] = np.eye(3, dtype=np.uint8)[label] * 255
    return Labelled(Image.fromarray(pixels), np.array([box], dtype=np.float32), np.array([label], dtype=np.int64))


def extent(image: np.ndarray, label: int) -> list[float] | None:
    """The box around the pixels whose channel `label` stands out, at least half as much as it does anywhere.

    Half: where a small rectangle is enlarged its edge is a ramp, in whose middle the box ends.
    """
    rest = np.delete(image, label, axis=2).max(2).astype(int)
    excess = image[..., label].astype(int) - rest
    if excess.max() < 60:
        return None
    rows, columns = np.nonzero(excess >= excess.max() / 2)
    return [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


@st.composite
def pictures(draw: st.DrawFn, label: int = 0) -> Labelled:
    height, width = draw(st.integers(60, 300)), draw(st.integers(60, 300))
    w, h = draw(st.integers(width // 4, width // 2)), draw(st.integers(height // 4, height // 2))
    left, top = draw(st.integers(0, width - w)), draw(st.integers(0, height - h))
    return picture(Size(height, width), (left, top, left + w, top + h), label)


augmentations = st.builds(
    Augmentation,
    scale=st.sampled_from([(1.0, 1.0), (0.5, 2.0), (0.3, 0.8), (1.5, 2.5)]),
    color=st.just(0.2),
    hue=st.sampled_from([0.0, 0.02]),
    flip=st.sampled_from([0.0, 0.5, 1.0]),
)


@given(one=pictures(), augmentation=augmentations, seed=st.integers(0, 2**32), zoom=st.sampled_from([0.5, 1.0, 1.5]))
def test_a_box_stays_on_its_object(one: Labelled, augmentation: Augmentation, seed: int, zoom: float) -> None:
    placed = augment([one], CANVAS, METADATA, augmentation, np.random.default_rng(seed), zoom)
    assert placed.image.shape == (128, 128, 3) and placed.image.dtype == np.uint8
    assert len(placed.boxes) == len(placed.labels) <= 1
    if len(placed.boxes):
        assert placed.boxes[0].tolist() == pytest.approx(extent(placed.image, 0), abs=1.5)


def test_a_box_of_which_less_than_a_quarter_is_left_is_not_learnt() -> None:
    content = Content(0, Size(100, 100), np.array([[0, 0, 100, 50]], np.float32), np.zeros(1, np.int64))
    augmentation, rng = Augmentation(scale=(2.0, 4.0)), np.random.default_rng(0)
    kept = []
    for _ in range(200):
        layout = lay_out([content], CANVAS, METADATA.resize, augmentation, rng)
        left, top, right, bottom = layout.layers[0].source
        share = (right - left) * max(min(bottom, 50) - top, 0) / (100 * 50)
        kept.append(share > 0.25)
        assert abs(share - 0.25) < 1e-3 or len(layout.boxes) == kept[-1]
    assert {False, True} == set(kept)


@pytest.mark.parametrize(("zoom", "kept"), [(1.0, True), (0.5, False)])
def test_a_box_that_becomes_less_than_a_pixel_is_not_learnt(zoom: float, kept: bool) -> None:
    one = picture(Size(128, 128), (64, 64, 65, 70), 0)
    placed = augment([one], CANVAS, METADATA, NO_AUGMENTATION, np.random.default_rng(0), zoom)
    assert len(placed.boxes) == kept


@pytest.mark.parametrize("zoom", [0.5, 1.0])
def test_pictures_of_a_mosaic_are_smaller(zoom: float) -> None:
    for layout in layouts(NO_AUGMENTATION, pictures=4, zoom=zoom):
        assert len(layout.layers) == 4
        for layer in layout.layers:
            assert enlarged(layer) == pytest.approx(0.75 * zoom)


def test_a_mosaics_pictures_meet_somewhere_around_the_centre() -> None:
    # Each is larger than its part of the canvas, which it fills.
    centres = np.array([layout.layers[0].target[2:] for layout in layouts(NO_AUGMENTATION, pictures=4)])
    assert_uniform(centres / 128, 0.3, 0.7)


@pytest.mark.parametrize("scale", [(0.5, 2.0), (0.3, 0.6)])
def test_sizes_are_drawn_log_uniformly(scale: tuple[float, float]) -> None:
    sizes = np.array([enlarged(layout.layers[0]) for layout in layouts(Augmentation(scale=scale))])
    assert_uniform(np.log(sizes), *np.log(scale))


def test_a_small_picture_lies_anywhere_on_the_canvas() -> None:
    assert_uniform(np.array([layout.layers[0].target[:2] for layout in layouts(Augmentation(scale=(0.5, 0.5)))]), 0, 64)


def test_of_a_large_picture_any_part_is_shown() -> None:
    assert_uniform(np.array([layout.layers[0].source[:2] for layout in layouts(Augmentation(scale=(2.0, 2.0)))]), 0, 64)


def test_light_is_drawn_within_its_bounds_for_each_picture_anew() -> None:
    lights = np.array([layout.layers[0].light for layout in layouts(Augmentation(color=0.2, hue=0.1))])
    neutral, most = np.array([1, 1, 1, 0]), np.array([0.2, 0.2, 0.2, 0.1])
    assert_uniform(lights, neutral - most, neutral + most)
    assert len(np.unique(lights, axis=0)) == len(lights)


@given(four=st.tuples(*[pictures(label) for label in (0, 1, 2)]), seed=st.integers(0, 2**32))
def test_in_a_mosaic_every_box_stays_on_its_object(four: tuple[Labelled, ...], seed: int) -> None:
    empty = Labelled(Image.new("RGB", (50, 70), (100, 100, 100)), np.zeros((0, 4), np.float32), np.zeros(0, np.int64))
    placed = augment([*four, empty], CANVAS, METADATA, Augmentation(color=0.0), np.random.default_rng(seed))
    for box, label in zip(placed.boxes.tolist(), placed.labels.tolist(), strict=True):
        assert box == pytest.approx(extent(placed.image, label), abs=1.5)


@given(one=pictures(), seed=st.integers(0, 2**32))
def test_what_is_no_longer_seen_is_no_longer_learnt(one: Labelled, seed: int) -> None:
    placed = augment([one], CANVAS, METADATA, Augmentation(scale=(2.0, 3.0), color=0.0), np.random.default_rng(seed))
    if extent(placed.image, 0) is None:
        assert len(placed.boxes) == 0


@given(one=pictures(), seed=st.integers(0, 2**32))
def test_a_flipped_canvas_is_the_others_mirror_image(one: Labelled, seed: int) -> None:
    straight, flipped = (
        augment([one], CANVAS, METADATA, Augmentation(flip=flip), np.random.default_rng(seed)) for flip in (0.0, 1.0)
    )
    assert np.array_equal(flipped.image, straight.image[:, ::-1])
    assert np.array_equal(flipped.boxes, mirror(straight.boxes, CANVAS.width))
    assert np.allclose(mirror(flipped.boxes, CANVAS.width), straight.boxes, atol=1e-4)
    assert np.array_equal(flipped.labels, straight.labels)


@given(one=pictures())
def test_without_augmentation_the_network_sees_what_the_service_shows_it(one: Labelled) -> None:
    placed = augment([one], CANVAS, METADATA, NO_AUGMENTATION, np.random.default_rng(0))
    canvas, placement = fit(one.picture, METADATA)
    assert np.array_equal(placed.image, canvas)
    ratio = np.array([placement.resized.width / one.picture.width, placement.resized.height / one.picture.height] * 2)
    assert np.allclose(placed.boxes, one.boxes * ratio, atol=1e-3)


@given(share=st.floats(0, 1))
def test_a_blend_lies_between_its_pictures(share: float) -> None:
    one, other = np.random.default_rng(0).integers(256, size=(2, 8, 9, 3)).astype(np.uint8)
    mixed = mix(one, other, share)
    assert mixed.dtype == np.uint8
    assert (mixed >= np.minimum(one, other)).all() and (mixed <= np.maximum(one, other)).all()


def test_a_box_too_thin_for_its_numbers_is_not_learnt() -> None:
    one = picture(Size(128, 128), (64, 64, 64, 70), 0)  # 1e-7 px wide in the annotations
    assert not len(augment([one], CANVAS, METADATA, NO_AUGMENTATION, np.random.default_rng(0)).boxes)


def test_pictures_without_boxes_pass() -> None:
    empty = Labelled(Image.new("RGB", (50, 70)), np.zeros((0, 4), np.float32), np.zeros(0, np.int64))
    placed = augment([empty], CANVAS, METADATA, Augmentation(), np.random.default_rng(0))
    assert isinstance(placed, Placed) and placed.boxes.shape == (0, 4)


@pytest.mark.parametrize(
    "values",
    [{"flip": 2}, {"scale": (2, 1)}, {"scale": (0, 1)}, {"color": 1}, {"hue": 0.7}, {"mosaic": -1}, {"mixup": 3}],
)
def test_values_that_make_no_sense_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(values))):
        Augmentation(**values)
