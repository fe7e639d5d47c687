"""Augmentation: one crop-and-resize onto the canvas, a flip, a change of light.

G ground-truth boxes. Boxes are xyxy.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance

from app.artifact import Metadata, Size
from app.canvas import resized_size

MIN_VISIBLE = 0.25
"""Of a box's area; what the crop leaves less of is no longer learnt."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Augmentation:
    """What a training picture may go through."""

    flip: float = 0.5
    """Probability of a horizontal flip."""
    scale: tuple[float, float] = (0.6, 1.6)
    """Range of the size relative to the served one, drawn log-uniformly; crops where it is over 1."""
    color: float = 0.2
    """Largest relative change of brightness, contrast and saturation."""

    def __post_init__(self) -> None:
        low, high = self.scale
        if not 0 < low <= high:
            raise ValueError(f"scale must be a range of positive factors such as 0.6 1.6, but got {low} {high}")
        if not 0 <= self.flip <= 1:
            raise ValueError(f"flip must be a probability, 0 to 1, but got {self.flip}")
        if not 0 <= self.color < 1:
            raise ValueError(f"color must be at least 0 and under 1, but got {self.color}")


NO_AUGMENTATION = Augmentation(flip=0.0, scale=(1.0, 1.0), color=0.0)


def augment(
    picture: Image.Image,
    boxes: NDArray[np.float32],
    labels: NDArray[np.int64],
    canvas: Size,
    metadata: Metadata,
    augmentation: Augmentation,
    rng: np.random.Generator,
) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.int64]]:
    """A picture on a canvas, and its boxes there.

    Args:
        picture: upright, RGB.
        boxes: [G, 4], pixels of the picture.
        labels: [G].

    Returns:
        uint8 [H, W, 3], boxes [G', 4] in canvas pixels, labels [G'].
    """
    low, high = augmentation.scale
    factor = math.exp(rng.uniform(math.log(low), math.log(high)))
    size = resized_size(Size(picture.height, picture.width), metadata.resize)
    height, width = max(1, round(size.height * factor)), max(1, round(size.width * factor))

    # The part of the resized picture that the canvas shows, and where it lies there: a random crop on an axis where it
    # is larger than the canvas, a random place where it is smaller. Unscaled pictures lie where the service lays them.
    top, place_y, shown_height = _window(height, canvas.height, rng, moves=factor != 1.0)
    left, place_x, shown_width = _window(width, canvas.width, rng, moves=factor != 1.0)
    ratio_y, ratio_x = picture.height / height, picture.width / width
    source = (left * ratio_x, top * ratio_y, (left + shown_width) * ratio_x, (top + shown_height) * ratio_y)
    source = (source[0], source[1], min(source[2], picture.width), min(source[3], picture.height))
    shown = picture.resize((shown_width, shown_height), Image.Resampling.BILINEAR, box=source)
    if augmentation.color:
        shown = _change_light(shown, augmentation.color, rng)

    image = np.empty((*canvas, 3), dtype=np.uint8)
    image[:] = metadata.mean_pixel
    image[place_y : place_y + shown_height, place_x : place_x + shown_width] = np.asarray(shown)

    shift = np.array([left - place_x, top - place_y] * 2, dtype=np.float32)
    moved = boxes / np.array([ratio_x, ratio_y] * 2, dtype=np.float32) - shift
    limits = np.array([place_x, place_y, place_x + shown_width, place_y + shown_height], dtype=np.float32)
    clipped = np.clip(moved, np.tile(limits[:2], 2), np.tile(limits[2:], 2))
    sides = clipped[:, 2:] - clipped[:, :2]
    visible = sides.prod(1) / np.maximum((moved[:, 2:] - moved[:, :2]).prod(1), 1e-6)
    kept = (visible >= MIN_VISIBLE) & (sides >= 1).all(1)
    clipped, labels = clipped[kept], labels[kept]

    if rng.random() < augmentation.flip:
        image = np.ascontiguousarray(image[:, ::-1])
        clipped = clipped[:, [2, 1, 0, 3]]
        clipped[:, [0, 2]] = canvas.width - clipped[:, [0, 2]]
    return image, clipped.astype(np.float32), labels


def _window(side: int, canvas: int, rng: np.random.Generator, moves: bool) -> tuple[int, int, int]:
    """Along one axis: first pixel shown, its place on the canvas, number of pixels shown."""
    if side > canvas:
        return int(rng.integers(side - canvas + 1)), 0, canvas
    return 0, int(rng.integers(canvas - side + 1)) if moves else 0, side


def _change_light(picture: Image.Image, strength: float, rng: np.random.Generator) -> Image.Image:
    for enhancer in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        picture = enhancer(picture).enhance(1 + rng.uniform(-strength, strength))
    return picture
