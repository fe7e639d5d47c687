"""Annotations as one COCO document, whatever their format: a COCO json, a folder of Pascal VOC xml, or of YOLO txt.

A document is `{"images": [...], "annotations": [...], "categories": [...]}` as in COCO's json. Nothing is checked here:
`model.checks` does that, for all formats alike.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from unicodedata import normalize
from xml.etree import ElementTree

from PIL import Image

from app.errors import first_line
from app.images import FORMATS, MOST_PIXELS, SUFFIXES, TURNED, orientation

Document = dict[str, Any]

_TAIL = 4096  # bytes searched for the end of a JPEG or PNG: some programs write a little after it
POLYGON = "a polygon"  # in place of a bbox


def with_images(document: Document, images: list[dict[str, Any]]) -> Document:
    """A document with only these of its images, and their annotations."""
    ids = {image["id"] for image in images}
    return document | {"images": images, "annotations": [a for a in document["annotations"] if a["image_id"] in ids]}


def read_document(path: Path, images: Path, classes: Sequence[str] = ()) -> Document:
    """Read annotations.

    Args:
        path: a COCO json, whose sizes may be missing; a folder of VOC xml; or a folder of YOLO txt, whose class names
            are in `classes.txt` or `data.yaml` in the same folder or one of the two above.
        images: the folder of the pictures. With YOLO, a picture without a txt file has no objects; with VOC, a picture
            without an xml file is not part of the set.
        classes: for VOC, the classes in order; by default, those found in the folder, sorted.

    Raises:
        ValueError: the file or folder is missing, or is none of these.
    """
    if path.is_file():
        if path.suffix.lower() in (".yaml", ".yml"):
            raise ValueError(f"{path} only names YOLO's classes: give the folder of its txt files instead")
        if path.suffix.lower() in (".txt", ".xml"):
            raise ValueError(
                f"{path} is one file of a set: give the folder of its {path.suffix[1:].lower()} files instead"
            )
        return _read_json(path, images)
    if not path.is_dir():
        raise ValueError(f"no annotations at {path}: give a COCO json, a folder of VOC xml, or a folder of YOLO txt")
    if not images.is_dir():
        raise ValueError(f"no folder of pictures at {images}")
    voc, yolo = any(path.glob("*.xml")), any(file.name != "classes.txt" for file in path.glob("*.txt"))
    below = [file.parent for kind in ("xml", "txt") for file in path.glob(f"*/**/*.{kind}")]
    # Hidden folders are programs' own.
    below = [folder for folder in below if not any(part[0] == "." for part in folder.relative_to(path).parts)]
    if below and (voc or yolo):
        raise ValueError(f"{below[0]} holds annotations, too, but only those right in {path} would be read: move them")
    if voc:
        return _read_voc(path, images, classes)
    if yolo:
        return _read_yolo(path, images)
    hint = f": give the folder that does, such as {below[0]}" if below else ""
    raise ValueError(f"the folder {path} holds neither VOC xml nor YOLO txt files{hint}")


def upright_size(path: Path) -> tuple[int, int]:
    """(height, width) of a picture with its EXIF orientation applied, read only from its header.

    Raises:
        OSError: there is no file, or it is not a picture that the service decodes.
    """
    try:
        with Image.open(path, formats=FORMATS) as picture:
            if picture.mode == "F":
                raise OSError("floating-point pixels")
            # If a PNG has no tag ahead of its pixels, Pillow would decode them all to look behind.
            tagged = picture.format != "PNG" or "exif" in picture.info
            turned = tagged and orientation(picture) in TURNED
            return (picture.width, picture.height) if turned else (picture.height, picture.width)
    except Image.DecompressionBombError:
        raise OSError(f"more than {MOST_PIXELS} pixels") from None
    except (SyntaxError, ValueError) as error:  # what some of Pillow's parsers raise on a broken header
        raise OSError(str(error)) from None


def require_whole(path: Path) -> None:
    """A truncated picture is detected by its last bytes or, if these are inconclusive, by decoding it.

    Raises:
        OSError: the picture is truncated, or cannot be decoded.
    """
    with path.open("rb") as file:
        file.seek(-min(_TAIL, path.stat().st_size), os.SEEK_END)
        tail = file.read()
    if b"\xff\xd9" in tail or b"IEND" in tail:
        return
    try:
        with Image.open(path, formats=FORMATS) as picture:
            picture.load()
    except (SyntaxError, ValueError) as error:
        raise OSError(str(error)) from None


def _read_json(path: Path, images: Path) -> Document:
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
            width, height = _size_or_none(images / str(picture.get("file_name")))
            picture |= {"width": width, "height": height}
    return document


def _read_voc(path: Path, images: Path, classes: Sequence[str]) -> Document:
    """Pascal VOC: pixels count from 1 and boxes include their last pixel; `difficult` objects become COCO's crowds.

    Many programs that write this xml count from 0: if any box in the folder begins at 0, all are read that way.
    """
    by_stem = {Path(name).stem: name for name in _pictures(images)}
    pictures: list[dict[str, Any]] = []
    objects: list[tuple[int, str, tuple[float, float, float, float] | None, int]] = []
    for number, file in enumerate(sorted(path.glob("*.xml")), 1):
        try:
            root = ElementTree.parse(file).getroot()  # noqa: S314 - one's own annotations, and expat stops entity bombs
        except (ElementTree.ParseError, OSError, ValueError, LookupError) as error:  # the last two if badly encoded
            raise ValueError(f"{file} is not readable xml: {error}. If it is complete, save it as UTF-8") from None
        # LabelImg and others often keep an old name in it, perhaps that of another picture.
        name = by_stem.get(file.stem) or (root.findtext("filename") or "").strip() or f"{file.stem}.jpg"
        width, height = (_number(root.findtext(f"size/{key}")) for key in ("width", "height"))
        if not (width and height):
            width, height = _size_or_none(images / name)
        pictures.append({"id": number, "file_name": name, "width": width, "height": height})
        for found in root.iter("object"):
            x1, y1, x2, y2 = (_number(found.findtext(f"bndbox/{key}")) for key in ("xmin", "ymin", "xmax", "ymax"))
            corners = None
            if x1 is not None and y1 is not None and x2 is not None and y2 is not None:
                corners = (x1, y1, x2, y2)
            crowd = int((found.findtext("difficult") or "0").strip() == "1")
            label = normalize("NFC", (found.findtext("name") or "").strip())
            objects.append((number, label, corners, crowd))
    first = 0 if any(corners is not None and min(corners[:2]) == 0 for _, _, corners, _ in objects) else 1
    names = list(classes) or sorted({label for _, label, _, _ in objects})
    # An unknown name serves as its own id, so that the check can report it.
    ids: dict[str, Any] = {name: position for position, name in enumerate(names, 1)}
    annotations = [
        {"image_id": number, "category_id": ids.get(label, label), "bbox": _voc_box(corners, first), "iscrowd": crowd}
        for number, label, corners, crowd in objects
    ]
    return _document(pictures, annotations, ((number, name) for name, number in ids.items()))


def _voc_box(corners: tuple[float, float, float, float] | None, first: int) -> list[float] | None:
    """COCO's bbox. `first` is the number of the first pixel; if it is 1, a side also includes its last pixel."""
    if corners is None:
        return None
    x1, y1, x2, y2 = corners
    return [x1 - first, y1 - first, x2 - x1 + first, y2 - y1 + first]


def _read_yolo(path: Path, images: Path) -> Document:
    """YOLO: a line `class cx cy w h` per box, in fractions of the picture; classes count from 0."""
    names = _yolo_names(path)
    pictures: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    files = _pictures(images)
    labels = {file.stem for file in path.glob("*.txt")} - {"classes"}
    without = labels - {Path(name).stem for name in files}
    missing = [f"{stem}.jpg" for stem in without if not _is_prose(path / f"{stem}.txt")]
    for number, name in enumerate(sorted([*files, *missing]), 1):
        width, height = _size_or_none(images / name)
        pictures.append({"id": number, "file_name": name, "width": width, "height": height})
        file = (path / name).with_suffix(".txt")  # one for all pictures that differ only in the suffix
        for line in _text(file).splitlines() if file.is_file() else ():
            if words := line.split():
                annotations.append({"image_id": number} | _yolo_box(words, width or 0, height or 0))
    return _document(pictures, annotations, enumerate(names))


def _yolo_box(words: list[str], width: float, height: float) -> dict[str, Any]:
    try:
        number, cx, cy, w, h = (float(word) for word in words[:5])
        label = int(number)
    except (ValueError, OverflowError):
        return {"category_id": words[0], "bbox": None}
    if label != number:
        return {"category_id": words[0], "bbox": None}
    if len(words) > 6:  # as YOLO's segmentation files have; a sixth number is a prediction's confidence
        return {"category_id": label, "bbox": POLYGON}
    return {"category_id": label, "bbox": [(cx - w / 2) * width, (cy - h / 2) * height, w * width, h * height]}


def _is_prose(file: Path) -> bool:
    """Whether a txt file among YOLO's is something else: a list of pictures, a readme."""
    words = _text(file).split(maxsplit=1)
    return bool(words) and _number(words[0]) is None


def _yolo_names(path: Path) -> list[str]:
    whole = path.absolute()
    for folder in (whole, *whole.parents[:2]):
        for plain in (folder / "classes.txt", folder / "obj.names"):  # the latter darknet's
            if plain.is_file():
                return [line.strip() for line in _text(plain).splitlines() if line.strip()]
        if (file := _yaml_of_names(folder)) is not None:
            import yaml  # type: ignore[import-untyped]

            try:
                # BaseLoader: a class called no, 007 or 12:30 is text, too.
                return _names_in_order(yaml.load(_text(file), Loader=yaml.BaseLoader)["names"])  # noqa: S506
            except (yaml.YAMLError, KeyError, TypeError) as error:
                raise ValueError(f"{file} has no readable list `names` ({first_line(error)})") from None
    raise ValueError(
        f"no class names for {path}: put data.yaml with a list `names`, or classes.txt with a name per line, in it or "
        "in one of the two folders above"
    )


def _yaml_of_names(folder: Path) -> Path | None:
    """YOLO's file of class names in a folder: by its usual names, else the only one that has `names`."""
    for usual in (folder / "data.yaml", folder / "dataset.yaml"):
        if usual.is_file():
            return usual
    others = [file for file in folder.glob("*.y*ml") if file.is_file()]
    named = [file for file in others if "names:" in file.read_text("utf-8", "replace")]
    return named[0] if len(named) == 1 else None


def _names_in_order(names: Any) -> list[str]:
    """Raises: TypeError: they are neither a list nor a mapping with the keys 0, 1, 2, ..."""
    if isinstance(names, dict):
        by_number = {int(str(number)): name for number, name in names.items() if str(number).isdecimal()}
        if sorted(by_number) != list(range(len(names))):
            raise TypeError("a mapping must have the keys 0, 1, 2 and so on")
        names = [by_number[number] for number in range(len(names))]
    if not isinstance(names, list):
        raise TypeError("it is not a list")
    return [str(name) for name in names]


def _text(file: Path) -> str:
    try:
        return file.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} cannot be read as UTF-8 text: {first_line(error)}") from None


def _pictures(folder: Path) -> list[str]:
    """The names of the pictures in a folder."""
    return sorted(file.name for file in folder.iterdir() if file.suffix.lower() in SUFFIXES)


def _size_or_none(path: Path) -> tuple[float | None, float | None]:
    try:
        height, width = upright_size(path)
    except OSError:
        return None, None
    return width, height


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return int(value) if value.is_integer() else value


def _document(
    pictures: list[dict[str, Any]], annotations: list[dict[str, Any]], categories: Iterable[tuple[Any, str]]
) -> Document:
    return {
        "images": pictures,
        "annotations": annotations,
        "categories": [{"id": number, "name": name} for number, name in categories],
    }
