"""Annotations as one COCO document, whatever their format. Nothing is checked here: `model.checks` does that, for all
formats alike.
"""

from collections.abc import Sequence
from pathlib import Path

from model.coco import Document, read_json
from model.pictures import require_unpacked
from model.voc import read_voc
from model.yolo import is_prose, read_yolo


def read_document(path: Path, images: Path, classes: Sequence[str] = ()) -> Document:
    """Read annotations.

    Args:
        path: a COCO json, whose sizes may be missing; a folder of VOC xml; or a folder of YOLO txt, whose class names
            are in `classes.txt` or `data.yaml` in the same folder or one of the two above.
        images: the folder of the pictures. With YOLO, a picture without a txt file has no objects; with VOC, a picture
            without an xml file is not part of the set.
        classes: for VOC, the classes in order; by default, those found in the folder, sorted.

    Raises:
        ValueError: the file or folder is missing, is none of these or cannot be read; or the pictures are elsewhere.
    """
    if not path.exists():
        raise ValueError(f"no annotations at {path}: give a COCO json, a folder of VOC xml, or a folder of YOLO txt")
    if path.is_file():
        _require_all_in_one(path)
    require_unpacked(images)
    if not images.is_dir():
        raise ValueError(f"no folder of pictures at {images}")
    if path.is_file():
        return read_json(path, images)
    voc, texts = any(path.glob("*.xml")), [file for file in path.glob("*.txt") if file.name != "classes.txt"]
    json = _json_in(path)
    below = [file.parent for kind in ("xml", "txt") for file in sorted(path.glob(f"*/**/*.{kind}"))]
    # Hidden folders are programs' own.
    below = [folder for folder in below if not any(part[0] == "." for part in folder.relative_to(path).parts)]
    # Exports have readmes and lists of pictures above the annotations.
    yolo = any(not is_prose(file) for file in texts) if json or below else bool(texts)
    if below and (voc or yolo):
        raise ValueError(f"{below[0]} holds annotations, too, but only those right in {path} would be read: move them")
    if voc:
        return read_voc(path, images, classes)
    if yolo:
        return read_yolo(path, images)
    hints = [f"{json} itself"] if json else []
    if below:
        hints.append(f"the folder that does, such as {min(below, key=_is_not_train)}")
    hint = f": give {', or '.join(hints)}" if hints else ""
    raise ValueError(f"the folder {path} holds neither VOC xml nor YOLO txt files{hint}")


def _json_in(folder: Path) -> Path | None:
    """The json in a folder that is the likeliest to be COCO's: Roboflow's, or another; of several, train's."""
    places = ("*.json", "*/_annotations.coco.json", "annotations/*.json")
    found = sorted(file for place in places for file in folder.glob(place))
    return min(
        found,
        key=lambda file: (file.parent != folder, not file.name.startswith("_annotations"), _is_not_train(file)),
        default=None,
    )


def _is_not_train(path: Path) -> bool:
    return not any("train" in part for part in path.parts[-2:])


def _require_all_in_one(file: Path) -> None:
    """Raises: ValueError: a file does not hold a whole set's annotations, as COCO's json does."""
    require_unpacked(file)
    suffix = file.suffix.lower()
    if suffix in (".yaml", ".yml"):
        raise ValueError(f"{file} only names YOLO's classes: give the folder of its txt files instead")
    if suffix in (".txt", ".xml"):
        raise ValueError(f"{file} is one file of a set: give the folder of its {suffix[1:]} files instead")
