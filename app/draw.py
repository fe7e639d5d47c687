"""Boxes on a picture, with labels that are readable at any picture size and a colour for each class."""

import colorsys
import contextlib
import io
from collections.abc import Sequence
from functools import cache

from PIL import Image, ImageDraw, ImageFont

from app.negotiation import JPEG
from app.schemas import Box, Detection

Colour = tuple[int, int, int]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
Rectangle = tuple[float, float, float, float]  # xyxy

MOST_JPEG_PIXELS = 65_500  # of one side

# Pillow's own font has only ASCII. Of these, which systems may have, the first that has all letters is used.
FONTS = (
    "DejaVuSans.ttf",
    "NotoSans-Regular.ttf",
    "NotoSansCJK-Regular.ttc",
    "Arial Unicode.ttf",
    "arial.ttf",
    "msyh.ttc",
)
_UNKNOWN = "\uffff"  # not a letter: it looks like any letter that a font lacks

_GOLDEN_RATIO = 0.618033988749895  # steps of this size around the colour circle never return to the same hue


def class_colour(class_id: int) -> Colour:
    """Returns: The class's colour, RGB. Neighbouring ids are far apart; every third is darker, or paler."""
    hue = (0.02 + class_id * _GOLDEN_RATIO) % 1
    saturation, value = ((0.9, 1.0), (0.95, 0.7), (0.55, 1.0))[class_id % 3]
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
    return round(red * 255), round(green * 255), round(blue * 255)


def drawing(picture: Image.Image, detections: Sequence[Detection], media_type: str) -> bytes:
    """Draws detections on a picture. Returns: The bytes of a JPEG or PNG file."""
    draw(picture, detections)
    out = io.BytesIO()
    if media_type == JPEG:
        picture.save(out, "JPEG", quality=90)
    else:
        picture.save(out, "PNG", compress_level=1)  # a tenth larger, and four times as fast
    return out.getvalue()


def draw(picture: Image.Image, detections: Sequence[Detection]) -> None:
    """Draws detections on an upright RGB picture. Labels outside ASCII need a font on the system: `FONTS`.

    Line width and text size grow with the picture; labels stay inside it and, where there is room, off one another.
    Better detections lie on top.
    """
    canvas = ImageDraw.Draw(picture)
    scale = (picture.width * picture.height) ** 0.5
    line = padding = max(1, round(scale / 250))
    # On one line: of a lone line break, which a class's name may have, Pillow cannot make a mask.
    texts = [" ".join(f"{detection.label} {detection.score:.2f}".split()) for detection in detections]
    font = _font("".join(texts), max(10, scale / 32))

    for detection in reversed(detections):
        box = detection.box
        corners = (round(box.xmin), round(box.ymin), round(box.xmax), round(box.ymax))
        limits = (picture.width - 1, picture.height - 1) * 2  # a box may end where the picture does
        canvas.rectangle(tuple(map(min, corners, limits)), outline=class_colour(detection.class_id), width=line)

    labels: list[tuple[Rectangle, tuple[float, float], str, Colour]] = []
    for detection, text in zip(detections, texts, strict=True):  # the best are placed first, and painted last
        left, top, right, bottom = canvas.textbbox((0, 0), text, font=font)
        size = (right - left + 2 * padding, bottom - top + 2 * padding)
        place = _label_place(detection.box, size, picture.size, [label[0] for label in labels])
        start = (place[0] + padding - left, place[1] + padding - top)
        labels.append((place, start, text, class_colour(detection.class_id)))
    for place, start, text, colour in reversed(labels):
        canvas.rectangle(place, fill=colour)
        canvas.text(start, text, fill=_readable_on(colour), font=font)


def _font(text: str, size: float) -> Font:
    if text.isascii():
        return ImageFont.load_default(size)
    installed = [ImageFont.truetype(path, size) for path in _installed()]
    knowing = (font for font in installed if _knows_all(font, text))
    return next(knowing, installed[0] if installed else ImageFont.load_default(size))


def _knows_all(font: ImageFont.FreeTypeFont, text: str) -> bool:
    unknown = bytes(font.getmask(_UNKNOWN))
    return all(bytes(font.getmask(letter)) != unknown for letter in set(text))


@cache
def _installed() -> list[str]:
    paths = []
    for name in FONTS:
        with contextlib.suppress(OSError):
            paths.append(str(ImageFont.truetype(name).path))
    return paths


def _label_place(box: Box, size: tuple[float, float], picture: tuple[int, int], taken: list[Rectangle]) -> Rectangle:
    """Returns: Where a label lies: above its box, else in it at the top, below it or in it at the bottom; inside the
    picture and, as far as possible, on none of the labels in `taken`."""
    (width, height), (picture_width, picture_height) = size, picture
    x = max(0.0, min(box.xmin, picture_width - width))
    wanted = (box.ymin - height, box.ymin, box.ymax, box.ymax - height)
    possible = [y for y in wanted if 0 <= y <= picture_height - height] or [0.0]
    places = [(x, y, x + width, y + height) for y in possible]
    return next((place for place in places if not any(_overlap(place, other) for other in taken)), places[0])


def _overlap(one: Rectangle, other: Rectangle) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _readable_on(colour: Colour) -> Colour:
    """Returns: Black or white, whichever contrasts more (WCAG 2, relative luminance): always at least 4.5 to 1."""
    linear = [(part / 255 / 12.92) if part <= 10 else ((part / 255 + 0.055) / 1.055) ** 2.4 for part in colour]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return (0, 0, 0) if luminance > 0.179 else (255, 255, 255)
