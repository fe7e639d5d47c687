"""Where a training picture's pixels go: every choice of the augmentation, drawn before a pixel is touched.

Boxes and canvases follow only from sizes and annotations. Pillow, picture by picture (`model.transforms`), and a GPU,
in batches (`model.resident`), paint the same layout.

G ground-truth boxes. Boxes are xyxy.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from app.artifact import Resize, Size
from app.canvas import resized_size

MIN_VISIBLE = 0.25
"""Share of a box's area; a box of which the crop leaves less is not learnt."""
MOSAIC_SCALE = 0.75
"""Pictures of a mosaic are smaller, so that more than a corner of each is seen."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Augmentation:
    """What a training picture may go through."""

    flip: float = 0.5
    """Probability of a horizontal flip."""
    scale: tuple[float, float] = (0.6, 1.6)
    """Large-scale jitter: range of the size relative to the served one, log-uniform; above 1, pictures are cropped."""
    color: float = 0.2
    """Largest relative change of brightness, contrast and saturation."""
    hue: float = 0.0
    """Largest change of hue, in turns of the colour circle, at most 0.5."""
    mosaic: float = 0.0
    """Probability that four pictures share a canvas."""
    mixup: float = 0.0
    """Probability that another canvas is blended in."""

    def __post_init__(self) -> None:
        low, high = self.scale
        if not 0 < low <= high < math.inf:
            raise ValueError(
                f"augmentation.scale must be a range of positive factors such as 0.6 1.6, but got {low} {high}"
            )
        for key in ("flip", "mosaic", "mixup"):
            if not 0 <= getattr(self, key) <= 1:
                raise ValueError(f"augmentation.{key} must be a probability, 0 to 1, but got {getattr(self, key)}")
        if not 0 <= self.color < 1:
            raise ValueError(f"augmentation.color must be at least 0 and under 1, but got {self.color}")
        if not 0 <= self.hue <= 0.5:
            raise ValueError(f"augmentation.hue must be 0 to 0.5, but got {self.hue}")

    def plain(self) -> "Augmentation":
        """What is left of it in the last epochs: the flip."""
        return dataclasses.replace(NO_AUGMENTATION, flip=self.flip)


NO_AUGMENTATION = Augmentation(flip=0.0, scale=(1.0, 1.0), color=0.0, hue=0.0, mosaic=0.0, mixup=0.0)


class Content(NamedTuple):
    """What a layout needs to know about a picture: its number, size, boxes [G, 4] in its own pixels, and labels [G]."""

    picture: int
    size: Size
    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]


class Rectangle(NamedTuple):
    left: int
    top: int
    width: int
    height: int


class Light(NamedTuple):
    """Factors, applied in this order, and a shift of hue in turns."""

    brightness: float = 1.0
    contrast: float = 1.0
    saturation: float = 1.0
    hue: float = 0.0


class Layer(NamedTuple):
    """A part of a picture, resized to a rectangle of the canvas."""

    picture: int
    source: tuple[float, float, float, float]
    """xyxy in the picture's own pixels, seldom whole numbers."""
    target: Rectangle
    light: Light


class Layout(NamedTuple):
    """One canvas: layers that do not overlap, then all of it mirrored or not. Boxes are those of the result."""

    canvas: Size
    layers: tuple[Layer, ...]
    flipped: bool
    boxes: NDArray[np.float32]  # [G, 4] canvas pixels
    labels: NDArray[np.int64]  # [G]


def lay_out(
    contents: Sequence[Content],
    canvas: Size,
    resize: Resize,
    augmentation: Augmentation,
    rng: np.random.Generator,
    zoom: float = 1.0,
) -> Layout:
    """Draw where pictures lie on a canvas.

    Args:
        contents: one picture's, or those of four for a mosaic.
        resize: the rule by which the service resizes.
        zoom: size of the canvas relative to the served one; the picture's size scales with it.
    """
    tiles = [Rectangle(0, 0, canvas.width, canvas.height)]
    if len(contents) == 4:
        tiles, zoom = _quarters(canvas, rng), zoom * MOSAIC_SCALE
    parts = [
        _lay(tile, content, resize, augmentation, rng, zoom) for tile, content in zip(tiles, contents, strict=True)
    ]
    flipped = bool(rng.random() < augmentation.flip)
    boxes = np.concatenate([boxes for _, boxes, _ in parts])
    return Layout(
        canvas,
        tuple(layer for layer, _, _ in parts),
        flipped,
        mirror(boxes, canvas.width) if flipped else boxes,
        np.concatenate([labels for _, _, labels in parts]),
    )


def mirror(boxes: NDArray[np.float32], width: int) -> NDArray[np.float32]:
    """Boxes [G, 4] on a canvas after it is mirrored left to right."""
    mirrored = boxes[:, [2, 1, 0, 3]]
    mirrored[:, [0, 2]] = width - mirrored[:, [0, 2]]
    return mirrored


def _lay(
    tile: Rectangle,
    content: Content,
    resize: Resize,
    augmentation: Augmentation,
    rng: np.random.Generator,
    zoom: float,
) -> tuple[Layer, NDArray[np.float32], NDArray[np.int64]]:
    """Lay a picture, or a part of it, on a tile. Returns: The layer, and its boxes [G', 4] and labels [G']."""
    picture, size, boxes, labels = content
    low, high = augmentation.scale
    drawn = math.exp(rng.uniform(math.log(low), math.log(high)))
    resized = resized_size(size, resize)
    height, width = (max(1, round(side * drawn * zoom)) for side in resized)

    # The part of the resized picture that the tile shows, and where it lies there: along each axis, a random crop if it
    # is larger than the tile, a random place if it is smaller. Unscaled pictures lie where the service puts them.
    top, place_y, shown_height = _window(height, tile.height, rng, drawn != 1.0)
    left, place_x, shown_width = _window(width, tile.width, rng, drawn != 1.0)
    ratio_y, ratio_x = size.height / height, size.width / width
    source = (
        left * ratio_x,
        top * ratio_y,
        min((left + shown_width) * ratio_x, size.width),
        min((top + shown_height) * ratio_y, size.height),
    )
    light = _draw_light(augmentation, rng)
    place_x, place_y = place_x + tile.left, place_y + tile.top
    layer = Layer(picture, source, Rectangle(place_x, place_y, shown_width, shown_height), light)

    shift = np.array([left - place_x, top - place_y] * 2, dtype=np.float32)
    moved = boxes / np.array([ratio_x, ratio_y] * 2, dtype=np.float32) - shift
    low_edge = np.array([place_x, place_y] * 2, dtype=np.float32)
    high_edge = low_edge + np.array([shown_width, shown_height] * 2, dtype=np.float32)
    clipped = np.clip(moved, low_edge, high_edge)
    sides = clipped[:, 2:] - clipped[:, :2]
    visible = sides.prod(1) / np.maximum((moved[:, 2:] - moved[:, :2]).prod(1), 1e-6)
    kept = (visible >= MIN_VISIBLE) & (sides >= 1).all(1)
    return layer, clipped[kept].astype(np.float32), labels[kept]


def _quarters(canvas: Size, rng: np.random.Generator) -> list[Rectangle]:
    """Four tiles that meet somewhere around the canvas's centre."""
    x, y = round(canvas.width * rng.uniform(0.3, 0.7)), round(canvas.height * rng.uniform(0.3, 0.7))
    columns, rows = ((0, x), (x, canvas.width - x)), ((0, y), (y, canvas.height - y))
    return [Rectangle(left, top, width, height) for top, height in rows for left, width in columns]


def _window(side: int, tile: int, rng: np.random.Generator, moves: bool) -> tuple[int, int, int]:
    """Along one axis: first pixel shown, its place on the tile, number of pixels shown."""
    if side > tile:
        return int(rng.integers(side - tile + 1)), 0, tile
    return 0, int(rng.integers(tile - side + 1)) if moves else 0, side


def _draw_light(augmentation: Augmentation, rng: np.random.Generator) -> Light:
    light = Light()
    if strength := augmentation.color:
        light = Light(*(1 + rng.uniform(-strength, strength) for _ in range(3)))
    if augmentation.hue:
        light = light._replace(hue=rng.uniform(-augmentation.hue, augmentation.hue))
    return light
