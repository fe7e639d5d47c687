"""Annotations as one COCO document, which is what all formats become; and COCO's own json.

A document is `{"images": [...], "annotations": [...], "categories": [...]}` as in that json.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from model.pictures import size_or_none

Document = dict[str, Any]


def with_images(document: Document, images: list[dict[str, Any]]) -> Document:
    """A document with only these of its images, and their annotations."""
    ids = {image["id"] for image in images}
    return document | {"images": images, "annotations": [a for a in document["annotations"] if a["image_id"] in ids]}


def document_of(
    pictures: list[dict[str, Any]], annotations: list[dict[str, Any]], categories: Iterable[tuple[Any, str]]
) -> Document:
    return {
        "images": pictures,
        "annotations": annotations,
        "categories": [{"id": number, "name": name} for number, name in categories],
    }


def read_json(path: Path, images: Path) -> Document:
    try:
        document = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not readable json: {error}") from None
    keys = ("images", "annotations", "categories")
    missing = [key for key in keys if not isinstance(document, dict) or not isinstance(document.get(key), list)]
    if missing:
        raise ValueError(f"{path} is not a COCO detection json: it has no list of {' and no list of '.join(missing)}")
    assert isinstance(document, dict)
    for picture in document["images"]:
        # Only if both are missing: if only one is, something else is wrong.
        if isinstance(picture, dict) and not (picture.get("width") or picture.get("height")):
            width, height = size_or_none(images / str(picture.get("file_name")))
            picture |= {"width": width, "height": height}
    return document


def number_of(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return int(value) if value.is_integer() else value
