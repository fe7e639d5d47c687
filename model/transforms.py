"""Augmentation: one crop-and-resize per picture onto the canvas, a flip, a change of light; mosaic, mixup as options.

Every choice comes from the generator that is handed in. Pixels are resized once, from the picture to the canvas,
however many steps choose what is shown. G ground-truth boxes. Boxes are xyxy.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageEnhance
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from app.artifact import Metadata, Size
from app.canvas import REDUCING_GAP, resized_size

MIN_VISIBLE = 0.25
"""Of a box's area; what the crop leaves less of is no longer learnt."""
MOSAIC_SCALE = 0.75
"""Pictures of a mosaic are smaller, so that more than a corner of each is seen."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Augmentation:
    """What a training picture may go through."""

    flip: float = 0.5
    """Probability of a horizontal flip."""
    scale: tuple[float, float] = (0.6, 1.6)
    """Large-scale jitter: range of the size relative to the served one, drawn log-uniformly; over 1 it crops."""
    iou_crop: float = 0.0
    """Probability of SSD's crop (arXiv:1512.02325, 2.2), in place of the scale."""
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
        if not 0 < low <= high:
            raise ValueError(
                f"augmentation.scale must be a range of positive factors such as 0.6 1.6, but got {low} {high}"
            )
        for key in ("flip", "iou_crop", "mosaic", "mixup"):
            if not 0 <= getattr(self, key) <= 1:
                raise ValueError(f"augmentation.{key} must be a probability, 0 to 1, but got {getattr(self, key)}")
        if not 0 <= self.color < 1:
            raise ValueError(f"augmentation.color must be at least 0 and under 1, but got {self.color}")
        if not 0 <= self.hue <= 0.5:
            raise ValueError(f"augmentation.hue must be 0 to 0.5, but got {self.hue}")

    def plain(self) -> Augmentation:
        """What is left of it in the last epochs: the flip."""
        return dataclasses.replace(NO_AUGMENTATION, flip=self.flip)


NO_AUGMENTATION = Augmentation(flip=0.0, scale=(1.0, 1.0), color=0.0)


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


class _Rectangle(NamedTuple):
    left: int
    top: int
    width: int
    height: int


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
    image = np.empty((*canvas, 3), dtype=np.uint8)
    image[:] = metadata.mean_pixel
    tiles = [_Rectangle(0, 0, canvas.width, canvas.height)]
    if len(pictures) == 4:
        tiles, zoom = _quarters(canvas, rng), zoom * MOSAIC_SCALE
    parts = [
        _lay(image, tile, labelled, metadata, augmentation, rng, zoom)
        for tile, labelled in zip(tiles, pictures, strict=True)
    ]
    placed = Placed(
        image, np.concatenate([boxes for boxes, _ in parts]), np.concatenate([labels for _, labels in parts])
    )
    return flip(placed) if rng.random() < augmentation.flip else placed


def flip(placed: Placed) -> Placed:
    """Mirror a canvas, left to right."""
    boxes = placed.boxes[:, [2, 1, 0, 3]]
    boxes[:, [0, 2]] = placed.image.shape[1] - boxes[:, [0, 2]]
    return Placed(np.ascontiguousarray(placed.image[:, ::-1]), boxes, placed.labels)


def mix(one: Placed, other: Placed, rng: np.random.Generator) -> Placed:
    """Mixup for detection (arXiv:1902.04103): two canvases of one size blended, the boxes of both."""
    share = np.float32(rng.beta(8.0, 8.0))
    blended = one.image * share + other.image * (1 - share)
    return Placed(
        np.round(blended).astype(np.uint8),
        np.concatenate([one.boxes, other.boxes]),
        np.concatenate([one.labels, other.labels]),
    )


def _lay(
    image: NDArray[np.uint8],
    tile: _Rectangle,
    labelled: Labelled,
    metadata: Metadata,
    augmentation: Augmentation,
    rng: np.random.Generator,
    zoom: float,
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Paint a picture, or a part of it, on a tile of the canvas. Returns: Its boxes [G', 4] and labels [G'] there."""
    picture, boxes, labels = labelled
    region = _Rectangle(0, 0, picture.width, picture.height)
    if rng.random() < augmentation.iou_crop and len(boxes):
        region, factor, moves = _iou_crop(picture, boxes, rng), zoom, True
    else:
        low, high = augmentation.scale
        drawn = math.exp(rng.uniform(math.log(low), math.log(high)))
        # Unscaled pictures lie where the service lays them.
        factor, moves = drawn * zoom, drawn != 1.0
    size = resized_size(Size(region.height, region.width), metadata.resize)
    height, width = max(1, round(size.height * factor)), max(1, round(size.width * factor))

    # The part of the resized region that the tile shows, and where it lies there: a random crop on an axis where it is
    # larger than the tile, a random place where it is smaller.
    top, place_y, shown_height = _window(height, tile.height, rng, moves)
    left, place_x, shown_width = _window(width, tile.width, rng, moves)
    ratio_y, ratio_x = region.height / height, region.width / width
    source = (
        region.left + left * ratio_x,
        region.top + top * ratio_y,
        min(region.left + (left + shown_width) * ratio_x, picture.width),
        min(region.top + (top + shown_height) * ratio_y, picture.height),
    )
    shown = picture.resize(
        (shown_width, shown_height), Image.Resampling.BILINEAR, box=source, reducing_gap=REDUCING_GAP
    )
    shown = _change_light(shown, augmentation, rng)
    place_x, place_y = place_x + tile.left, place_y + tile.top
    image[place_y : place_y + shown_height, place_x : place_x + shown_width] = np.asarray(shown)

    corner = np.array([region.left, region.top] * 2, dtype=np.float32)
    shift = np.array([left - place_x, top - place_y] * 2, dtype=np.float32)
    moved = (boxes - corner) / np.array([ratio_x, ratio_y] * 2, dtype=np.float32) - shift
    low_edge = np.array([place_x, place_y] * 2, dtype=np.float32)
    high_edge = low_edge + np.array([shown_width, shown_height] * 2, dtype=np.float32)
    clipped = np.clip(moved, low_edge, high_edge)
    sides = clipped[:, 2:] - clipped[:, :2]
    visible = sides.prod(1) / np.maximum((moved[:, 2:] - moved[:, :2]).prod(1), 1e-6)
    kept = (visible >= MIN_VISIBLE) & (sides >= 1).all(1)
    return clipped[kept].astype(np.float32), labels[kept]


def _quarters(canvas: Size, rng: np.random.Generator) -> list[_Rectangle]:
    """Four tiles that meet somewhere around the canvas's centre."""
    x, y = round(canvas.width * rng.uniform(0.3, 0.7)), round(canvas.height * rng.uniform(0.3, 0.7))
    columns, rows = ((0, x), (x, canvas.width - x)), ((0, y), (y, canvas.height - y))
    return [_Rectangle(left, top, width, height) for top, height in rows for left, width in columns]


def _window(side: int, tile: int, rng: np.random.Generator, moves: bool) -> tuple[int, int, int]:
    """Along one axis: first pixel shown, its place on the tile, number of pixels shown."""
    if side > tile:
        return int(rng.integers(side - tile + 1)), 0, tile
    return 0, int(rng.integers(tile - side + 1)) if moves else 0, side


def _iou_crop(picture: Image.Image, boxes: NDArray[np.float32], rng: np.random.Generator) -> _Rectangle:
    size = (picture.height, picture.width)
    boxes_of = tv_tensors.BoundingBoxes(torch.from_numpy(boxes), format="XYXY", canvas_size=size)
    with torch.random.fork_rng(devices=[]):  # torchvision draws from torch's global generator
        torch.manual_seed(int(rng.integers(2**62)))
        crop = v2.RandomIoUCrop().make_params([picture, boxes_of]) if min(size) >= 8 else {}
    if not crop:
        return _Rectangle(0, 0, picture.width, picture.height)
    return _Rectangle(crop["left"], crop["top"], crop["width"], crop["height"])


def _change_light(picture: Image.Image, augmentation: Augmentation, rng: np.random.Generator) -> Image.Image:
    if strength := augmentation.color:
        for enhancer in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
            picture = enhancer(picture).enhance(1 + rng.uniform(-strength, strength))
    if augmentation.hue:
        picture = F.adjust_hue(picture, rng.uniform(-augmentation.hue, augmentation.hue))
    return picture
