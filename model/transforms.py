"""Layouts painted by Pillow, one picture at a time. Pixels are resized once, from the picture to the canvas."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance
from torchvision.transforms.v2 import functional as F

from app.artifact import Size
from app.images import Decoded
from app.resizing import Box, resized
from model.layout import Layer, Layout, Light


def paint(layout: Layout, decoded_of: Callable[[Layer], Decoded], filler: tuple[int, int, int]) -> NDArray[np.uint8]:
    """A layout's canvas, uint8 [H, W, 3].

    Args:
        decoded_of: gives a layer's picture, perhaps decoded smaller than it is.
        filler: what the canvas holds where no picture lies.
    """
    canvas = Image.new("RGB", (layout.canvas.width, layout.canvas.height), filler)
    for layer in layout.layers:
        left, top, width, height = layer.target
        decoded = decoded_of(layer)
        source = _in_decoded(layer.source, decoded)
        shown = resized(decoded.picture, Size(height, width), source)
        canvas.paste(_change_light(shown, layer.light), (left, top))
    # Pillow fills and mirrors pixel by pixel, NumPy byte by byte: a fifth of all that making a picture takes.
    return np.array(canvas.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if layout.flipped else canvas)


def mix(one: NDArray[np.uint8], other: NDArray[np.uint8], share: float) -> NDArray[np.uint8]:
    """Mixup for detection (arXiv:1902.04103): two canvases [H, W, 3], `share` of the first, in 0..1."""
    blended = one * np.float32(share) + other * (1 - np.float32(share))
    return np.round(blended).astype(np.uint8)


def _in_decoded(source: Box, decoded: Decoded) -> Box:
    """A part of a picture in decoded pixels."""
    left, top, right, bottom = decoded.box
    x, y = (right - left) / decoded.size.width, (bottom - top) / decoded.size.height
    return left + source[0] * x, top + source[1] * y, left + source[2] * x, top + source[3] * y


def _change_light(picture: Image.Image, light: Light) -> Image.Image:
    enhancers = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    for enhancer, factor in zip(enhancers, light[:3], strict=True):
        if factor != 1.0:
            picture = enhancer(picture).enhance(factor)
    return F.adjust_hue(picture, light.hue) if light.hue else picture
