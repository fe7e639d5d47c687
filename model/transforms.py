"""Layouts painted by Pillow, one picture at a time. Pixels are resized once, from the picture to the canvas.

G ground-truth boxes. Boxes are xyxy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance
from torchvision.transforms.v2 import functional as F

from app.artifact import Metadata, Size
from app.canvas import REDUCING_GAP
from model.layout import Augmentation, Content, Layout, Light, lay_out


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
    image = paint(layout, lambda index: pictures[index].picture, metadata.mean_pixel)
    return Placed(image, layout.boxes, layout.labels)


def paint(layout: Layout, picture_of: Callable[[int], Image.Image], filler: tuple[int, int, int]) -> NDArray[np.uint8]:
    """A layout's canvas, uint8 [H, W, 3].

    Args:
        picture_of: the upright RGB picture of a layer's number.
        filler: what the canvas holds where no picture lies.
    """
    image = np.empty((*layout.canvas, 3), dtype=np.uint8)
    image[:] = filler
    for layer in layout.layers:
        left, top, width, height = layer.target
        shown = picture_of(layer.picture).resize((width, height), Image.Resampling.BILINEAR, layer.source, REDUCING_GAP)
        image[top : top + height, left : left + width] = np.asarray(_change_light(shown, layer.light))
    return np.ascontiguousarray(image[:, ::-1]) if layout.flipped else image


def mix(one: NDArray[np.uint8], other: NDArray[np.uint8], share: float) -> NDArray[np.uint8]:
    """Mixup for detection (arXiv:1902.04103): two canvases of one size, `share` of the first."""
    blended = one * np.float32(share) + other * (1 - np.float32(share))
    return np.round(blended).astype(np.uint8)


def _change_light(picture: Image.Image, light: Light) -> Image.Image:
    enhancers = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    for enhancer, factor in zip(enhancers, light[:3], strict=True):
        if factor != 1.0:
            picture = enhancer(picture).enhance(factor)
    return F.adjust_hue(picture, light.hue) if light.hue else picture
