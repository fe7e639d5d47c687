"""What is wrong with a data set, found before any work."""

import math
import re
from collections.abc import Callable, Hashable, Iterable
from pathlib import Path
from typing import Any

from app.images import MOST_PIXELS
from model.coco import Document
from model.config import service_name
from model.pictures import NO_FILE, for_each, require_whole, upright_size
from model.problems import Problems

SHOWN_LENGTH = 60
"""Of what cannot be read."""
OVERHANG_PX = 2.0
"""A box may extend this far beyond its picture, as rounding can cause; it is clipped."""


def check(document: Document, source: str, images: Path | None = None) -> tuple[Document, Problems]:
    """Find everything wrong with a document.

    Args:
        document: as `model.formats.read_document` gives it.
        source: its name in the messages.
        images: the pictures' folder; if it is given, their files are looked at.

    Returns:
        The document without what is wrong, its annotations numbered from 1 and each with `area` and `iscrowd`, its
        images and categories in the order of their ids, and class names without space around them; and the problems.
        The given document stays as it is.
    """
    problems = Problems(source, document.get("format", "COCO"))
    stripped = [_stripped(category) for category in document["categories"]]
    categories = _named(stripped, "category", "name", _is_category, problems)
    _compare_names([category["name"] for category in categories.values()], problems)
    pictures = _named(document["images"], "image", "file_name", _is_image, problems)
    if images is not None:
        pictures = _with_files(pictures, images, problems)
    pictures = _as_in_folder(pictures, problems)
    annotations = _sound(document, pictures, categories, problems)

    used = {annotation["category_id"] for annotation in annotations if not annotation["iscrowd"]}
    for number, category in categories.items():
        if number not in used:
            problems.add("class without boxes", f"category {number} ({category['name']})")
    clean = {"images": list(pictures.values()), "annotations": annotations, "categories": list(categories.values())}
    return clean, problems


def check_classes(train: Iterable[str], val: Iterable[str], problems: Problems) -> None:
    """Add to val's problems the classes that train does not have."""
    for name in sorted(set(val) - set(train)):
        problems.add("unknown class", f"val has {name!r}, train does not")


def _compare_names(classes: Iterable[str], problems: Problems) -> None:
    """Warn of classes that are probably one class in several writings."""
    alike: dict[str, list[str]] = {}
    for name in classes:
        alike.setdefault(re.sub(r"[\s_-]", "", name.casefold()), []).append(name)
    for names in alike.values():
        if len(names) > 1:
            problems.add("class names alike", " and ".join(map(repr, names)))


def _stripped(category: Any) -> Any:
    """A category with its name as the service will show it, None if that is not a valid name."""
    return category | {"name": service_name(category.get("name"))} if isinstance(category, dict) else category


def _is_category(one: Any) -> bool:
    return isinstance(one, dict) and _is_id(one.get("id")) and one["name"] is not None


def _is_image(one: Any) -> bool:
    sides = isinstance(one, dict) and all(
        isinstance(one.get(key), (int, float)) and 1 <= one[key] <= MOST_PIXELS for key in ("width", "height")
    )
    if not sides or not _is_id(one.get("id")):
        return False
    name = one.get("file_name")
    return isinstance(name, str) and "\0" not in name


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and abs(value) < 2**63


def _named(
    entries: list[Any], what: str, name: str, is_sound: Callable[[Any], bool], problems: Problems
) -> dict[int, dict[str, Any]]:
    """Images or categories by id, ascending. Of several with the same name, only the first; an id with several names is
    left out, as nobody knows which of them its annotations belong to."""
    meant: dict[int, set[str]] = {}
    for entry in entries:
        if isinstance(entry, dict) and _is_id(entry.get("id")):
            meant.setdefault(entry["id"], set()).add(str(entry.get(name)))
    found: dict[int, dict[str, Any]] = {}
    names: set[str] = set()
    for position, entry in enumerate(entries):
        if not is_sound(entry):
            # Its size could only have come from the picture.
            if isinstance(entry, dict) and {"id", "file_name"} <= set(entry) and entry.get("width", 0) is None:
                kind = "unreadable picture" if entry.get("unreadable") else "missing picture"
                problems.add(kind, f"{what} {entry['id']} ({entry['file_name']})")
            else:
                problems.add("unreadable entry", f"{_place(entry, what, position)}: {_short(entry)}")
        elif len(meant[entry["id"]]) > 1:
            problems.add("duplicate id", f"{what} {entry['id']} ({entry[name]}): another has this id")
        elif entry["id"] in found:
            problems.add("duplicate id", f"{what} {entry['id']} ({entry[name]}) is listed twice")
        elif entry[name] in names:
            problems.add("duplicate id", f"{what} {entry['id']}: another has the name {entry[name]}")
        else:
            found[entry["id"]] = entry
            names.add(entry[name])
    return dict(sorted(found.items()))


def _as_in_folder(pictures: dict[int, dict[str, Any]], problems: Problems) -> dict[int, dict[str, Any]]:
    """Say which pictures were found under another name than the one they are listed with."""
    found = [f"{one['file_name']} for {one['listed_as']}" for one in pictures.values() if "listed_as" in one]
    if found:
        problems.add("name in another writing", f"{len(found)} found, such as {', '.join(found[:2])}")
    return {
        number: {key: value for key, value in one.items() if key != "listed_as"} for number, one in pictures.items()
    }


def _with_files(pictures: dict[int, dict[str, Any]], images: Path, problems: Problems) -> dict[int, dict[str, Any]]:
    def look(picture: dict[str, Any]) -> tuple[str, str] | None:
        where = f"image {picture['id']} ({picture['file_name']})"
        path = images / picture["file_name"]
        try:
            size = upright_size(path)
            require_whole(path)
        except NO_FILE:
            return "missing picture", where
        except OSError:
            return "unreadable picture", where
        if size != (picture["height"], picture["width"]):
            says = f"{picture['width']} x {picture['height']}"
            return "wrong size", f"{where} is {size[1]} x {size[0]} upright, but its entry says {says} (width x height)"
        return None

    outcomes = for_each(look, pictures.values())
    for outcome in outcomes:
        if outcome is not None:
            problems.add(*outcome)
    return {number: one for (number, one), outcome in zip(pictures.items(), outcomes, strict=True) if outcome is None}


def _sound(
    document: Document, pictures: dict[int, dict[str, Any]], categories: dict[int, dict[str, Any]], problems: Problems
) -> list[dict[str, Any]]:
    """The annotations that can be learnt from."""
    listed = {
        part: {one["id"] for one in document[part] if isinstance(one, dict) and isinstance(one.get("id"), int)}
        for part in ("images", "categories")
    }
    sound: list[dict[str, Any]] = []
    seen: set[tuple[Hashable, ...]] = set()
    for position, entry in enumerate(document["annotations"]):
        box = _numbers(entry.get("bbox")) if isinstance(entry, dict) else None
        where = _place(entry, "annotation", position)
        if isinstance(entry, dict) and "found_in" not in entry:
            where += f" of {_picture(entry, pictures)}"
        if box is None or not {"image_id", "category_id"} <= set(entry) or entry.get("iscrowd") not in (None, 0, 1):
            shown = entry["bbox"] if box is None and isinstance(entry, dict) and "bbox" in entry else entry
            problems.add("unreadable entry", f"{where}: {_short(shown)}")
            continue
        image, category, crowd = entry["image_id"], entry["category_id"], int(bool(entry.get("iscrowd")))
        if not _in(image, listed["images"]):
            problems.add("unknown image id", where)
        elif not _in(category, listed["categories"]):
            problems.add("unknown category id", f"{where}: {category!r}")
        elif image not in pictures or category not in categories:
            pass  # these were left out, which has been reported
        elif fault := _fault_of(box, pictures[image]):
            kind, how = fault
            problems.add(kind, f"{where}: {box}{how}")
        elif (key := (image, category, *box, crowd)) in seen:
            problems.add("duplicate box", f"{where}: {box}")
        else:
            seen.add(key)
            width, height = box[2:]
            if min(width, height) < 1:
                problems.add("box under 1 px", f"{where}: {box}")
            area = entry.get("area")
            area = float(area) if isinstance(area, (int, float)) and 0 < area <= MOST_PIXELS else width * height
            sound.append(
                {
                    "id": len(sound) + 1,  # COCO's protocol takes an id of 0 for "unmatched"
                    "image_id": image,
                    "category_id": category,
                    "bbox": box,
                    "area": area,
                    "iscrowd": crowd,
                }
            )
    if sound and all(min(one["bbox"][2:]) < 1 for one in sound):
        problems.add("fractions", f"all {len(sound)} boxes are under 1 px")
        return []
    return sound


def _fault_of(box: list[float], picture: dict[str, Any]) -> tuple[str, str] | None:
    """What is wrong with a box [x, y, width, height] in a picture: the problem's kind, and more of it in words."""
    x, y, width, height = box
    if not all(map(math.isfinite, box)) or width <= 0 or height <= 0:
        return "degenerate box", ""
    left, top = max(x, 0.0), max(y, 0.0)
    right, bottom = min(x + width, picture["width"]), min(y + height, picture["height"])
    if x < -OVERHANG_PX or y < -OVERHANG_PX or x + width > right + OVERHANG_PX or y + height > bottom + OVERHANG_PX:
        return "box outside", f" in a picture of {picture['width']} x {picture['height']} (width x height)"
    if right - left <= 0 or bottom - top <= 0:
        return "degenerate box", ", on the picture's edge"
    return None


def _picture(entry: dict[str, Any], pictures: dict[int, dict[str, Any]]) -> str:
    """An annotation's picture. Its id is shown so that "0" is told from 0."""
    number: Any = entry.get("image_id")
    return f"image {number!r}" + (f" ({pictures[number]['file_name']})" if _in(number, pictures) else "")


def _place(entry: Any, what: str, position: int) -> str:
    """Where a person finds an entry: in VOC and YOLO by its file, as the ids are those that we gave."""
    if isinstance(entry, dict) and "found_in" in entry:
        return str(entry["found_in"])
    numbered = what == "annotation" and isinstance(entry, dict) and "id" in entry
    return f"{what} {entry['id']}" if numbered else f"{what} at position {position}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= SHOWN_LENGTH else f"{text[:SHOWN_LENGTH]}..."


def _numbers(bbox: Any) -> list[float] | None:
    try:
        x, y, width, height = (side + 0.0 for side in bbox)  # so that text, unlike for float(), is an error
    except (TypeError, ValueError, OverflowError):  # the last as json's integers have as many digits as they like
        return None
    return [x, y, width, height]


def _in(key: Any, known: Any) -> bool:
    return isinstance(key, Hashable) and key in known
