"""Boxes on a picture, with labels that can be read at any picture size and a colour of its own for each class."""

import colorsys
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from app.schemas import Detection

Colour = tuple[int, int, int]

_GOLDEN_RATIO = 0.618033988749895  # steps of it around the colour circle never come back to the same hue


def class_colour(class_id: int) -> Colour:
    """Returns: The class's colour, RGB. Neighbouring ids are far apart; every third is darker, or paler."""
    hue = (0.02 + class_id * _GOLDEN_RATIO) % 1
    saturation, value = ((0.9, 1.0), (0.95, 0.7), (0.55, 1.0))[class_id % 3]
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
    return round(red * 255), round(green * 255), round(blue * 255)


def draw(picture: Image.Image, detections: Sequence[Detection]) -> Image.Image:
    """Draws detections on a copy of the upright RGB picture.

    Line width and text size grow with the picture; labels stay inside it. Better detections lie on top.
    """
    drawn = picture.copy()
    canvas = ImageDraw.Draw(drawn)
    scale = (picture.width * picture.height) ** 0.5
    line = max(1, round(scale / 250))
    font = ImageFont.load_default(max(10, scale / 32))
    padding = max(1, line)

    for detection in reversed(detections):
        box = detection.box
        corners = (round(box.xmin), round(box.ymin), round(box.xmax), round(box.ymax))
        canvas.rectangle(corners, outline=class_colour(detection.class_id), width=line)

    for detection in reversed(detections):
        colour = class_colour(detection.class_id)
        text = f"{detection.label} {detection.score:.2f}"
        left, top, right, bottom = canvas.textbbox((0, 0), text, font=font)
        width, height = right - left + 2 * padding, bottom - top + 2 * padding
        # Above the box where there is room, else inside it; never beyond the picture's edges.
        x = max(0, min(detection.box.xmin, picture.width - width))
        above = detection.box.ymin - height
        y = above if above >= 0 else max(0, min(detection.box.ymin, picture.height - height))
        canvas.rectangle((x, y, x + width, y + height), fill=colour)
        canvas.text((x + padding - left, y + padding - top), text, fill=_readable_on(colour), font=font)
    return drawn


def _readable_on(colour: Colour) -> Colour:
    red, green, blue = colour
    return (0, 0, 0) if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else (255, 255, 255)
