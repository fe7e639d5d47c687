"""Annotations as one COCO document, which is what all formats become; and COCO's own json.

A document is `{"images": [...], "annotations": [...], "categories": [...]}` as in that json. If it comes from another
format, it also has `"format"`, and its entries have `found_in`, a place that a person can look up.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from unicodedata import normalize

from model.names import find_pictures
from model.pictures import add_sizes

Document = dict[str, Any]


def with_images(document: Document, images: list[dict[str, Any]]) -> Document:
    """A document with only these of its images, and their annotations."""
    ids = {image["id"] for image in images}
    return document | {"images": images, "annotations": [a for a in document["annotations"] if a["image_id"] in ids]}


def box_count(document: Document) -> int:
    """The boxes of single objects: crowds are not counted."""
    return sum(not annotation["iscrowd"] for annotation in document["annotations"])


def hold_out(document: Document, share: float) -> tuple[Document, Document]:
    """A document without about this share of its pictures, and one of those. Whether a picture is held out depends on
    its name alone, so that it stays so in a resumed or fine-tuned run, and as pictures are added.

    Raises:
        ValueError: there are not two pictures to divide.
    """
    images = document["images"]
    if len(images) < 2:
        raise ValueError(f"too few pictures to hold some out for an evaluation: {len(images)}")
    places = {image["id"]: _place(image["file_name"]) for image in images}
    ordered = sorted(places.values())
    limit = min(max(share, ordered[0]), ordered[-2])  # at least one picture on either side
    learnt, held = ([one for one in images if (places[one["id"]] <= limit) == wanted] for wanted in (False, True))
    return with_images(document, learnt), with_images(document, held)


def _place(name: str) -> float:
    """A place from 0 to 1 that a name always has, by its hash."""
    return int.from_bytes(hashlib.sha256(normalize("NFC", name).encode("utf-8", "replace")).digest()[:8]) / 2**64


def around(polygon: Sequence[float]) -> list[float]:
    """The box [x, y, width, height] around a polygon's points x1, y1, x2, y2, ..."""
    xs, ys = polygon[::2], polygon[1::2]
    return [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]


def document_of(
    form: str,
    pictures: list[dict[str, Any]],
    annotations: list[dict[str, Any]],
    categories: Iterable[tuple[Any, str]],
) -> Document:
    return {
        "format": form,
        "images": pictures,
        "annotations": annotations,
        "categories": [{"id": number, "name": name} for number, name in categories],
    }


def read_json(path: Path, images: Path) -> Document:
    """COCO's json. Sizes that it lacks are the pictures' own, and boxes that it lacks are those around its polygons.

    Raises:
        ValueError: it cannot be read or lacks one of its lists, or no pictures, or only few, are in the folder.
    """
    try:
        document = json.loads(path.read_bytes(), object_hook=_with_box_only)
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not readable json: {error}") from None
    keys = ("images", "annotations", "categories")
    missing = [key for key in keys if not isinstance(document, dict) or not isinstance(document.get(key), list)]
    if missing:
        raise ValueError(f"{path} is not a COCO detection json: it has no list of {' and no list of '.join(missing)}")
    assert isinstance(document, dict)
    find_pictures(document["images"], path, images)
    entries = [picture for picture in document["images"] if isinstance(picture, dict)]
    # Only if both are missing: if only one is, something else is wrong.
    add_sizes([one for one in entries if not (one.get("width") or one.get("height"))], images)
    # Of what else it has, a "format" would be taken for ours.
    return {key: document[key] for key in keys} | {"categories": _without_dummy(document)}


def _with_box_only(entry: dict[str, Any]) -> dict[str, Any]:
    """An entry of the json as it is read: once it has a box, its polygons go, which are most of a large file."""
    if not entry.get("bbox") and (points := _points(entry)):
        entry["bbox"] = around(points)
    if entry.get("bbox"):
        entry.pop("segmentation", None)
    return entry


def _without_dummy(document: Document) -> list[Any]:
    """The categories but Roboflow's first one, which has no boxes: it is only the others' supercategory."""
    entries: list[Any] = document["categories"]
    used = [annotation.get("category_id") for annotation in document["annotations"] if isinstance(annotation, dict)]
    for dummy in entries if all(isinstance(entry, dict) for entry in entries) else ():
        others = [entry for entry in entries if entry is not dummy]
        name = dummy.get("name")
        is_above = isinstance(name, str) and all(entry.get("supercategory") == name for entry in others)
        if others and is_above and dummy.get("id") not in used:
            return others
    return entries


def _points(annotation: dict[str, Any]) -> list[float]:
    """All points of an annotation's polygons, x1, y1, x2, y2, ...; none if it has no polygons that can be read."""
    polygons = annotation.get("segmentation")
    if not isinstance(polygons, list) or not all(isinstance(polygon, list) for polygon in polygons):
        return []
    if any(len(polygon) < 6 or len(polygon) % 2 for polygon in polygons):
        return []
    points = [number for polygon in polygons for number in polygon]
    finite = all(isinstance(number, (int, float)) and abs(number) < math.inf for number in points)
    return points if finite else []


def number_of(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return int(value) if value.is_integer() else value
