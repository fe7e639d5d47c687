"""Pascal VOC: a folder with an xml file per picture."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unicodedata import normalize
from xml.etree import ElementTree

from model.coco import Document, document_of, number_of
from model.names import find_pictures, pictures_of
from model.pictures import add_sizes


def read_voc(path: Path, images: Path, classes: Sequence[str]) -> Document:
    """Pascal VOC: pixels count from 1 and boxes include their last pixel; `difficult` objects become COCO's crowds.

    Many programs that write this xml count from 0: if any box in the folder begins at 0, or most sides have fractions
    of a pixel, all are read that way.

    Raises:
        ValueError: a file cannot be read, or is CVAT's own, or no pictures, or only few, are in the folder.
    """
    files = sorted(path.glob("*.xml"))
    own = pictures_of([file.stem for file in files], images)
    pictures: list[dict[str, Any]] = []
    objects: list[tuple[int, str, list[Any], int]] = []
    for number, file in enumerate(files, 1):
        try:
            root = ElementTree.parse(file).getroot()  # noqa: S314 - one's own annotations, and expat stops entity bombs
        except (ElementTree.ParseError, OSError, ValueError, LookupError) as error:  # the last two if badly encoded
            raise ValueError(f"{file} is not readable xml: {error}. If it is complete, save it as UTF-8") from None
        if root.find("image") is not None:
            raise ValueError(f"{file} is in CVAT's own format: export as COCO or Pascal VOC instead")
        # LabelImg and others often keep an old name in it, perhaps that of another picture.
        listed = (root.findtext("filename") or "").strip() or f"{file.stem}.jpg"
        name = next(reversed(own[file.stem]), listed)
        width, height = (number_of(root.findtext(f"size/{key}")) for key in ("width", "height"))
        pictures.append({"found_in": file.name, "id": number, "file_name": name, "width": width, "height": height})
        for found in root.iter("object"):
            texts = [found.findtext(f"bndbox/{key}") for key in ("xmin", "ymin", "xmax", "ymax")]
            numbers = [number_of(text) for text in texts]
            corners = texts if None in numbers else numbers  # texts for the check to report
            crowd = int((found.findtext("difficult") or "0").strip() == "1")
            label = normalize("NFC", (found.findtext("name") or "").strip())
            objects.append((number, label, corners, crowd))
    find_pictures(pictures, path, images)
    add_sizes([picture for picture in pictures if not (picture["width"] and picture["height"])], images)
    sides = [side for _, _, corners, _ in objects for side in corners]
    fractions = sum(isinstance(side, float) for side in sides) > len(sides) / 2
    at_0 = any(0 in corners[:2] and min(corners[:2]) == 0 for _, _, corners, _ in objects)
    first = 0 if at_0 or fractions else 1
    names = list(classes) or sorted({label for _, label, _, _ in objects})
    # An unknown name serves as its own id, so that the check can report it.
    ids: dict[str, Any] = {name: position for position, name in enumerate(names, 1)}
    annotations = [
        {
            "found_in": files[number - 1].name,
            "image_id": number,
            "category_id": ids.get(label, label),
            "bbox": _box(corners, first),
            "iscrowd": crowd,
        }
        for number, label, corners, crowd in objects
    ]
    return document_of("VOC", pictures, annotations, ((number, name) for name, number in ids.items()))


def _box(corners: list[Any], first: int) -> list[Any]:
    """COCO's bbox. `first` is the number of the first pixel; if it is 1, a side also includes its last pixel. Corners
    that are not all numbers stay as they are."""
    if not all(isinstance(number, (int, float)) for number in corners):
        return corners
    x1, y1, x2, y2 = corners
    return [x1 - first, y1 - first, x2 - x1 + first, y2 - y1 + first]
