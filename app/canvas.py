"""Picture → canvas, and boxes back.

GroupNorm sees padding, so a picture's canvas must depend only on the picture: the resize rule gives the picture's size,
the smallest canvas of a fixed set that holds it is taken, the picture lies at the top-left, the rest is the mean pixel.
Training, evaluation and serving all come through here.

Sizes are (height, width). Boxes are xyxy. H, W: the canvas's height and width. K: boxes.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from app.artifact import Metadata, Resize, Size
from app.images import Decoded
from app.resizing import resized


@dataclass(frozen=True)
class Placement:
    """Where a picture lies on its canvas: at the top-left, with the size `resized`."""

    picture: Size  # the upright picture's own size
    resized: Size
    canvas: Size


def resized_size(picture: Size, resize: Resize) -> Size:
    """Applies scale = min(short / shorter side, long / longer side), each side rounded down, at least 1.

    In whole numbers, so that it is exact. torchvision's `GeneralizedRCNNTransform` multiplies floats and gives the same
    size, except when the exact product is a whole number and the float falls just short of it (149 * (1333 / 149)).
    """
    shorter, longer = min(picture), max(picture)
    if resize.short * longer <= resize.long * shorter:
        numerator, denominator = resize.short, shorter
    else:
        numerator, denominator = resize.long, longer
    return Size(
        max(1, picture.height * numerator // denominator),
        max(1, picture.width * numerator // denominator),
    )


def place(picture: Size, metadata: Metadata) -> Placement:
    """Returns: The picture's place on the smallest canvas that holds it; of several, the first listed."""
    resized = resized_size(picture, metadata.resize)
    # `Metadata` refuses a set of canvases that leaves some picture without one.
    canvas = min(
        (one for one in metadata.canvases if resized.height <= one.height and resized.width <= one.width),
        key=lambda one: one.area,
    )
    return Placement(picture, resized, canvas)


def fit(picture: Image.Image | NDArray[np.uint8] | Decoded, metadata: Metadata) -> tuple[NDArray[np.uint8], Placement]:
    """Lays an upright RGB picture on its canvas.

    Args:
        picture: A Pillow picture of mode RGB, or uint8 [height, width, 3], or the result of `images.decode`.

    Returns:
        The canvas, uint8 [H, W, 3], and where the picture lies on it.

    Raises:
        ValueError: The picture is not RGB of 8 bits, or has no pixels.
    """
    size, box = None, None
    if isinstance(picture, Decoded):
        picture, size, box = picture
    if isinstance(picture, np.ndarray):
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
            raise ValueError(f"picture must be uint8 [height, width, 3], but got {picture.dtype} {list(picture.shape)}")
        if 0 in picture.shape:
            raise ValueError(f"picture must have pixels, but has shape {list(picture.shape)}")
        picture = Image.fromarray(picture)
    elif picture.mode != "RGB":
        raise ValueError(f"picture must be of mode RGB, but is {picture.mode}; use images.decode or convert it")

    placement = place(size or Size(picture.height, picture.width), metadata)
    height, width = placement.resized
    canvas = np.empty((*placement.canvas, 3), np.uint8)
    canvas[:height, :width] = np.asarray(resized(picture, placement.resized, box))
    canvas[:height, width:] = canvas[height:] = metadata.mean_pixel  # not all of it: filling takes longer than copying
    return canvas, placement


def unfit(boxes: NDArray[np.float32], placement: Placement) -> NDArray[np.float32]:
    """Maps boxes from canvas pixels to the picture's own, per axis, and clips them to the picture.

    Args:
        boxes: float32 [K, 4], xyxy in canvas pixels.

    Returns:
        float32 [K, 4], xyxy in pixels of the upright picture.
    """
    picture, resized = placement.picture, placement.resized
    ratio_x, ratio_y = picture.width / resized.width, picture.height / resized.height
    ratios = np.array([ratio_x, ratio_y, ratio_x, ratio_y], np.float32)
    limits = np.array([picture.width, picture.height, picture.width, picture.height], np.float32)
    own: NDArray[np.float32] = np.clip(boxes * ratios, np.float32(0), limits)
    return own
