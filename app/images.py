"""Untrusted bytes → an upright RGB picture.

What a picture is, is read from its bytes alone; a file's name and a request's content type are never trusted.
"""

import io

import numpy as np

# A plugin that is not imported is never tried: `formats` below does not load any.
from PIL import BmpImagePlugin as _bmp  # noqa: F401
from PIL import GifImagePlugin as _gif  # noqa: F401
from PIL import Image, UnidentifiedImageError
from PIL import JpegImagePlugin as _jpeg  # noqa: F401
from PIL import PngImagePlugin as _png  # noqa: F401
from PIL import TiffImagePlugin as _tiff  # noqa: F401
from PIL import WebPImagePlugin as _webp  # noqa: F401

from app.errors import Refusal

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
FORMATS_TEXT = "JPEG, PNG, WebP, GIF, BMP and TIFF"
BACKGROUND = (255, 255, 255)  # what transparent pixels show

_ORIENTATION_TAG = 0x0112
# EXIF orientation → what makes the picture upright.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def open_picture(data: bytes, max_pixels: int) -> Image.Image:
    """Decodes a picture; of an animated one, the first frame.

    Args:
        data: A whole picture file.
        max_pixels: The largest width x height that is decoded. It is compared with the header, before decoding.

    Returns:
        The upright picture (EXIF orientation applied), mode RGB, transparency on white.

    Raises:
        Refusal: `empty_body`, `not_a_picture`, `picture_too_large` or `corrupt_picture`.
    """
    if not data:
        raise Refusal("empty_body", "The picture has no bytes. Send a whole picture file.")
    try:
        picture = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        raise Refusal(
            "not_a_picture", f"The bytes are not a picture in a known format. {FORMATS_TEXT} can be read."
        ) from None
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise _too_large("more", max_pixels) from None
    except Exception as error:  # Pillow's parsers raise whatever they stumble upon
        raise _corrupt(error) from None

    with picture:
        if picture.width * picture.height > max_pixels:
            raise _too_large(f"{picture.width} x {picture.height}", max_pixels)
        try:
            picture.load()
            return _upright(_rgb(picture), _orientation(picture))
        except Refusal:
            raise
        except Exception as error:
            raise _corrupt(error) from None


def _too_large(size: str, max_pixels: int) -> Refusal:
    return Refusal(
        "picture_too_large", f"The picture has {size} pixels, but at most {max_pixels} are decoded. Send it smaller."
    )


def _corrupt(error: Exception) -> Refusal:
    reason = str(error).rstrip(".") or type(error).__name__
    return Refusal("corrupt_picture", f"The picture cannot be decoded: {reason}. Send it again, whole.")


def _orientation(picture: Image.Image) -> int:
    """Returns: The EXIF orientation, 1 to 8. A TIFF's is already applied, and gone, once it is loaded."""
    try:
        return int(picture.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:  # damaged EXIF is no reason to refuse the picture it comes with
        return 1


def _upright(picture: Image.Image, orientation: int) -> Image.Image:
    method = _UPRIGHT.get(orientation)
    return picture if method is None else picture.transpose(method)


def _rgb(picture: Image.Image) -> Image.Image:
    if picture.mode == "RGB" and "transparency" not in picture.info:
        return picture.copy() if picture.readonly else picture
    if picture.mode.startswith("I"):  # 16 bits; Pillow's own conversion would clip at 255
        values = np.asarray(picture).astype(np.int64)
        return Image.fromarray((values.clip(0, 65_535) >> 8).astype(np.uint8)).convert("RGB")
    if picture.mode == "F":
        raise Refusal("not_a_picture", "The picture has floating-point pixels. Send it with 8 or 16 bits per channel.")
    if picture.has_transparency_data:
        opaque = Image.new("RGBA", picture.size, (*BACKGROUND, 255))
        opaque.alpha_composite(picture.convert("RGBA"))
        return opaque.convert("RGB")
    return picture.convert("RGB")
