"""Untrusted bytes → an upright RGB picture.

The format is read only from the bytes; a file's name and a request's content type are never trusted. Training and
evaluation read their pictures here, too: what is refused here cannot be learnt from either.
"""

import math
import re
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

# Pillow loads all of its forty plugins to find a format of `formats` that it has not loaded yet.
from PIL import BmpImagePlugin as _bmp  # noqa: F401
from PIL import ExifTags, Image, UnidentifiedImageError
from PIL import GifImagePlugin as _gif
from PIL import JpegImagePlugin as _jpeg
from PIL import PngImagePlugin as _png
from PIL import TiffImagePlugin as _tiff
from PIL import WebPImagePlugin as _webp  # noqa: F401

from app.artifact import Size
from app.bombs import JPEGS, BoundedFile, occurrences
from app.errors import Refusal

MOST_PIXELS = 178_956_970  # Pillow refuses more
FORMATS = ("JPEG", "PNG", "WEBP", "STILL_GIF", "BMP", "TIFF")
SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"))  # looked for in folders
FORMATS_TEXT = "JPEG, PNG, WebP, GIF, BMP and TIFF"
# What people send instead, by how it begins: they are told what they have, as its name may say otherwise.
_FOREIGN = {
    name: re.compile(begins, re.DOTALL)
    for name, begins in (
        ("AVIF", rb".{4}ftyp(?:.{4}){0,16}avi[fs]"),
        ("HEIC", rb".{4}ftyp(?:.{4}){0,16}(?:hei[cx]|hevc|mif1|msf1)"),  # a phone's
        ("a video", rb".{4}ftyp(?:iso|mp4|avc1|M4V|qt|3gp)"),
        ("JPEG XL", rb"\xff\x0a|\0\0\0\x0cJXL "),
        ("PDF", rb"%PDF-"),
        ("SVG", rb"(?:\xef\xbb\xbf)?\s*(?:<[?!](?!(?i:doctype html)).{0,1000}?)?<svg\b"),
    )
}
_BEGINNING = 4096  # bytes: to go through megabytes of spaces takes a second, in which nobody is answered
BACKGROUND = (255, 255, 255)  # what transparent pixels show

# A large JPEG is decoded at a half, a quarter or an eighth of its size, as long as that is still this many times as
# large as what it will be resized to: hardly distinguishable from decoding all of it, and several times faster. At 2,
# the usual 1,920, 4,000, 4,032 and 4,080 pixels would just miss twice 512.
DRAFT_GAP = 1.8
DRAFT_SCALES = (8, 4, 2)  # reductions that a JPEG's 8 x 8 blocks allow

# Characters of all of a PNG's texts, in memory up to 4 bytes each, which count for no bound. Packed, they may be a
# thousandth of that in the file, and by default Pillow unpacks sixteen times as many.
_png.MAX_TEXT_MEMORY = 4 * 2**20

# A tile of a TIFF is decoded whole, however little of it the picture shows.
MOST_TILED = 4  # times the largest picture: tiles stick out at the edges, and each colour may have its own
_WHITE_IS_ZERO = 0

_GREYS = {"L;2": 85, "L;4": 17}  # Pillow's name of such a PNG → what makes 255 of its white
_XMP = ("xmp", "XML:com.adobe.xmp")  # as Pillow names it in the formats that have it
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
TURNED = {5, 6, 7, 8}  # width and height change places
# What decoding leaves over, at the right and bottom of the stored picture, ends up on these sides of the upright one.
_REST_AT_LEFT = {2, 3, 6, 7}
_REST_AT_TOP = {3, 4, 7, 8}


class _StillGif(_gif.GifImageFile):
    """A GIF of which only the first frame is read. What the next one would begin with, Pillow fills when it opens the
    file: up to 179 MB for 37 bytes, before anybody has looked at the picture's size."""

    disposal_method = property(lambda self: 0, lambda self, method: None)


Image.register_open("STILL_GIF", _StillGif, lambda prefix: prefix.startswith((b"GIF87a", b"GIF89a")))


class Decoded(NamedTuple):
    """A picture, upright and RGB, perhaps decoded smaller than it is in its file.

    Attributes:
        picture: Its EXIF orientation is applied; what was transparent is white.
        size: The upright picture's full size.
        box: Where that picture lies in the decoded one: left, top, right, bottom, in decoded pixels. A size that is
            not a multiple of 8 leaves part of a decoded pixel over, on a side that depends on the orientation.
    """

    picture: Image.Image
    size: Size
    box: tuple[float, float, float, float]


def decode(
    data: bytes,
    max_pixels: int,
    *,
    resized: Callable[[Size], Size] | None = None,
    reserve: Callable[[int], None] = lambda pixels: None,
) -> Decoded:
    """Decodes a picture; of an animated one, the first frame.

    Args:
        data: A whole picture file.
        max_pixels: The largest width x height that is decoded. It is compared with the header, before decoding.
        resized: From the picture's size, upright or not, to what it will be resized to. If None: full size.
        reserve: Called before decoding, with the most pixels, of 4 bytes, that it will hold; a `Refusal` that this
            raises is passed on.

    Raises:
        Refusal: `empty_body`, `not_a_picture`, `picture_too_large` or `corrupt_picture`.
    """
    if not data:
        raise Refusal("empty_body", "The picture has no bytes. Send a whole picture file.")
    try:
        file = BoundedFile(data)
        with Image.open(file, formats=FORMATS) as picture:
            _forget_xmp(picture)
            if picture.width * picture.height > max_pixels:
                raise _too_large(f"{picture.width} x {picture.height}", max_pixels)
            file.allow_decoding(picture)
            tile, tiles = _tile_pixels(picture)
            if max(tile, tile * tiles // MOST_TILED) > max_pixels:
                raise _too_large(f"tiles of {tile * tiles}", max_pixels)
            size, scale = Size(picture.height, picture.width), 1
            if resized is not None and picture.format in JPEGS:
                # The size as stored, perhaps lying on its side: both sides shrink alike.
                scale = _draft(picture, resized(size))
            coefficients = size.area * _coefficients(picture) if file.scans > 1 else 0
            held = _bytes_held(picture, coefficients, may_turn=_may_turn(picture, data)) + _piece_bytes(picture, tile)
            reserve(math.ceil(held / 4))
            _scale_transparency(picture)
            picture.load()
            turn = orientation(picture)
            upright = _rgb(picture)
            if turn in _UPRIGHT:
                upright = upright.transpose(_UPRIGHT[turn])
    except (Refusal, MemoryError):  # the service's own lack says nothing about the picture
        raise
    except UnidentifiedImageError:
        raise _unknown(data) from None
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise _too_large("too many", max_pixels) from None
    except Exception as error:  # Pillow's parsers raise whatever they stumble upon
        raise _corrupt(error) from None
    if turn in TURNED:
        size = Size(size.width, size.height)
    width, height = size.width / scale, size.height / scale
    left = upright.width - width if turn in _REST_AT_LEFT else 0.0
    top = upright.height - height if turn in _REST_AT_TOP else 0.0
    return Decoded(upright, size, (left, top, left + width, top + height))


def _scale_transparency(picture: Image.Image) -> None:
    """Scales the transparent grey of a PNG of 2 or 4 bits a pixel as Pillow will scale the pixels."""
    transparent = picture.info.get("transparency")
    if isinstance(picture, _png.PngImageFile) and isinstance(transparent, int):
        picture.info["transparency"] = transparent * _GREYS.get(str(picture.tile[0].args), 1)


def _draft(picture: Image.Image, resized: Size) -> int:
    """Has the picture decoded smaller, if it is large enough. Returns: How many times smaller."""
    for scale in DRAFT_SCALES:
        size = (picture.width // scale, picture.height // scale)
        if size[0] >= DRAFT_GAP * resized.width and size[1] >= DRAFT_GAP * resized.height:
            picture.draft(None, size)  # None keeps the mode
            return scale
    return 1


def _tile_pixels(picture: Image.Image) -> tuple[int, int]:
    """Returns: The pixels of a tile and the number of tiles, if the picture is a tiled TIFF; else 0."""
    if not isinstance(picture, _tiff.TiffImageFile):
        return 0, 0
    tags = picture.tag_v2
    tile = int(tags.get(_tiff.TILEWIDTH, 0)) * int(tags.get(_tiff.TILELENGTH, 0))
    return tile, len(tags.get(_tiff.TILEOFFSETS, ()))


def _piece_bytes(picture: Image.Image, tile: int) -> float:
    """Returns: The bytes of a TIFF's tile or strip, perhaps the whole picture, which libtiff decodes beside it."""
    if not isinstance(picture, _tiff.TiffImageFile) or picture.info.get("compression") == "raw":
        return 0
    tags = picture.tag_v2
    pixels = tile or tags[_tiff.IMAGEWIDTH] * min(tags.get(_tiff.ROWSPERSTRIP, MOST_PIXELS), tags[_tiff.IMAGELENGTH])
    return float(pixels * tags.get(_tiff.SAMPLESPERPIXEL, 1) * max(tags.get(_tiff.BITSPERSAMPLE, (1,))) / 8)


def _coefficients(jpeg: Image.Image) -> float:
    """Returns: The bytes for each pixel of a JPEG's coefficients: for several scans the decoder holds all of them,
    however small it decodes the picture."""
    assert isinstance(jpeg, _jpeg.JpegImageFile)
    samples = [across * down for _, across, down, _ in jpeg.layer]
    most = max(across for _, across, _, _ in jpeg.layer) * max(down for _, _, down, _ in jpeg.layer)
    return 2 * sum(samples) / most


def _may_turn(picture: Image.Image, data: bytes) -> bool:
    """Whether the picture may have to be turned. A PNG may say so after its pixels, which are not to be read yet."""
    if isinstance(picture, _png.PngImageFile):
        return any(occurrences(what, data) for what in (b"eXIf", b"Raw profile type exif"))
    return orientation(picture) != 1


def _bytes_held(picture: Image.Image, coefficients: float, *, may_turn: bool) -> float:
    """Returns: The most bytes that decoding holds at a time, converted and turned pictures included."""
    if picture.mode.startswith("I"):
        each = 12
    else:
        own, transparent = 1 if picture.mode in ("1", "L", "P") else 4, picture.has_transparency_data
        with_alpha = 4 if transparent and picture.mode != "RGBA" else 0
        converted = 4 if transparent or picture.mode != "RGB" else 0
        each = own + with_alpha + converted + (4 if may_turn else 0)
    if picture.format == "WEBP":
        each = max(16, 8 + each)  # libwebp's own
    elif picture.format == "TIFF":
        each = max(8, each)  # turned by Pillow while it is read
    pixels = picture.width * picture.height
    return max(pixels * each, pixels * 4 + coefficients)


def _unknown(data: bytes) -> Refusal:
    foreign = next((name for name, begins in _FOREIGN.items() if begins.match(data, 0, _BEGINNING)), None)
    if foreign is not None:
        return Refusal("not_a_picture", f"The file is {foreign}, which cannot be read here. Convert it to JPEG.")
    return Refusal(
        "not_a_picture",
        f"The bytes are not a picture in a known format. {FORMATS_TEXT} can be read, with integer pixels of up to "
        "16 bits.",
    )


def _too_large(size: str, max_pixels: int) -> Refusal:
    return Refusal(
        "picture_too_large", f"The picture has {size} pixels: at most {max_pixels} are decoded. Send a smaller one."
    )


def _corrupt(error: Exception) -> Refusal:
    reason = str(error).rstrip(".") or type(error).__name__
    return Refusal("corrupt_picture", f"The picture cannot be decoded: {reason}. Send it again, whole.")


def orientation(picture: Image.Image) -> int:
    """Returns: The EXIF orientation, 1 to 8. A TIFF's is already applied, and gone, once it is loaded."""
    _forget_xmp(picture)  # a PNG's may come after its pixels
    try:
        return int(picture.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # damaged EXIF is no reason to refuse the picture it comes with
        return 1


def _forget_xmp(picture: Image.Image) -> None:
    """If EXIF says nothing, Pillow looks for an orientation in XMP; browsers do not, nor do clients."""
    for name in _XMP:
        if picture.info.pop(name, None) is not None:
            picture._exif = None  # to be read again: Pillow reads a JPEG's when it opens the file, and has looked then


def _rgb(picture: Image.Image) -> Image.Image:
    if picture.mode == "RGB" and "transparency" not in picture.info:
        return picture
    if picture.mode.startswith("I"):
        greys = _eight_bits(picture)
        if isinstance(transparent := picture.info.get("transparency"), int):
            greys[np.asarray(picture) == transparent] = BACKGROUND[0]
        return Image.fromarray(greys).convert("RGB")
    if picture.mode == "F":
        raise Refusal("not_a_picture", "The picture has floating-point pixels. Send it with 8 or 16 bits per channel.")
    if picture.has_transparency_data:
        transparent = picture if picture.mode == "RGBA" else picture.convert("RGBA")
        opaque = Image.new("RGB", picture.size, BACKGROUND)
        opaque.paste(transparent, mask=transparent)
        return opaque
    return picture.convert("RGB")


def _eight_bits(picture: Image.Image) -> NDArray[np.uint8]:
    """Scales greys of 16 bits, or 12 in a TIFF, which Pillow would clip at 255; inverts a TIFF in which 0 is white."""
    tags = picture.tag_v2 if isinstance(picture, _tiff.TiffImageFile) else {}
    bits = 12 if tags.get(_tiff.BITSPERSAMPLE) == (12,) else 16
    greys: NDArray[np.uint8] = (np.asarray(picture).clip(0, 2**bits - 1) >> (bits - 8)).astype(np.uint8)
    return 255 - greys if tags.get(_tiff.PHOTOMETRIC_INTERPRETATION) == _WHITE_IS_ZERO else greys
