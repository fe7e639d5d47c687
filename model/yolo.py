"""YOLO: a folder with a txt file per picture, and the names of the classes near it."""

import math
from pathlib import Path
from typing import Any

from app.errors import first_line
from model.coco import Document, around, document_of, number_of
from model.names import pictures_of, require_some
from model.pictures import add_sizes, pictures_in


def read_yolo(path: Path, images: Path) -> Document:
    """YOLO: a line `class cx cy w h` per box, in fractions of the picture; classes count from 0. A line may also be a
    polygon, `class x1 y1 x2 y2 x3 y3 ...`, which is turned into its box. A pose's keypoints are left out.

    Raises:
        ValueError: a file cannot be read, there are no class names, or no pictures, or only few, are in the folder.
    """
    names, poses = _read_names(path)
    annotations: list[dict[str, Any]] = []
    own = pictures_of({file.stem for file in path.glob("*.txt")} - {"classes"}, images)
    own = {label: found for label, found in own.items() if found or not is_prose(path / f"{label}.txt")}
    require_some([f"{label}.txt" for label in own], [label for label, found in own.items() if found], path, images)
    # One for all pictures that differ only in the suffix.
    labels = {name: label for label, found in own.items() for name in found or [f"{label}.jpg"]}
    names_in_order = enumerate(sorted({*pictures_in(images), *labels}), 1)
    pictures: list[dict[str, Any]] = [{"id": number, "file_name": name} for number, name in names_in_order]
    add_sizes(pictures, images)
    for picture in pictures:
        name = picture["file_name"]
        if (label := labels.get(name)) is None:
            continue
        if label != Path(name).stem:
            picture["listed_as"] = f"{label}.txt"
        for count, line in enumerate(_text(path / f"{label}.txt").splitlines(), 1):
            if line.strip():
                box = _box(line, picture["width"] or 0, picture["height"] or 0, poses)
                annotations.append({"found_in": f"{label}.txt line {count}", "image_id": picture["id"]} | box)
    return document_of("YOLO", pictures, annotations, enumerate(names))


def _box(line: str, width: float, height: float, pose: bool) -> dict[str, Any]:
    """A line as an annotation, whose bbox is the line itself if it cannot be read."""
    words = line.split()[: 5 if pose else None]
    numbers = [number for word in words if (number := number_of(word)) is not None]
    whole = len(numbers) == len(words) and isinstance(numbers[0], int) and all(map(math.isfinite, numbers))
    if whole and len(words) in (5, 6):  # a sixth number is a prediction's confidence
        label, cx, cy, w, h = numbers[:5]
        x, y = cx - w / 2, cy - h / 2
    elif whole and len(words) >= 7 and len(words) % 2:
        label, (x, y, w, h) = numbers[0], around(numbers[1:])
    else:
        return {"category_id": words[0], "bbox": line}
    return {"category_id": label, "bbox": [x * width, y * height, w * width, h * height]}


def is_prose(file: Path) -> bool:
    """Whether a txt file among YOLO's is something else: a list of pictures (some with a number each), a readme."""
    words = _text(file).strip().partition("\n")[0].split()
    return bool(words) and (len(words) < 3 or number_of(words[0]) is None)


def _read_names(path: Path) -> tuple[list[str], bool]:
    """The names of the classes, and whether the lines are poses: a box, then keypoints."""
    whole = path.absolute()
    for folder in (whole, *whole.parents[:2]):
        for plain in (folder / "classes.txt", folder / "obj.names"):  # the latter darknet's
            if plain.is_file():
                return [line.strip() for line in _text(plain).splitlines() if line.strip()], False
        if (file := _yaml_of_names(folder)) is not None:
            import yaml

            try:
                # BaseLoader: a class called no, 007 or 12:30 is text, too.
                described = yaml.load(_text(file), Loader=yaml.BaseLoader)  # noqa: S506
                return _names_in_order(described["names"]), "kpt_shape" in described
            except (yaml.YAMLError, KeyError, TypeError, RecursionError) as error:
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
    # As text, a list of references to lists of references may be of any length.
    if not all(isinstance(name, str) for name in names):
        raise TypeError("a name is not text")
    return names


def _text(file: Path) -> str:
    try:
        return file.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} cannot be read as UTF-8 text: {first_line(error)}") from None
