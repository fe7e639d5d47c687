"""What `python -m app detect` writes: JSON, JSON lines, COCO results and annotations; and its drawings' names."""

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from io import FileIO
from itertools import count
from pathlib import Path
from typing import Any, Self

from pydantic_core import to_json

from app.errors import StartError
from app.images import SUFFIXES

Result = dict[str, Any]  # an answer of POST /detect or `problem`, and `file`
STDOUT = Path("-")


@dataclass(frozen=True)
class Outputs:
    """Where results go; None: nowhere; STDOUT: to standard output, which then holds nothing else.

    Attributes:
        json: A list with one result per picture.
        json_lines: One result per line, each written as it comes.
        coco: COCO's results format, as `COCO.loadRes` reads it.
        coco_annotations: The annotation file whose image and category ids `coco` uses.
        labels: COCO annotations, as labelling tools and model/train.py read them.
        drawings: A folder for the pictures with their boxes, as PNG.
    """

    json: Path | None = None
    json_lines: Path | None = None
    coco: Path | None = None
    coco_annotations: Path | None = None
    labels: Path | None = None
    drawings: Path | None = None

    def files(self) -> dict[str, Path]:
        """The files that are written, by option."""
        named = {"--json": self.json, "--json-lines": self.json_lines, "--coco": self.coco, "--labels": self.labels}
        return {option: path for option, path in named.items() if path is not None}

    def require(self, pictures: Sequence[Path]) -> None:
        """Raises: StartError: One cannot be written, or would replace another file that is needed."""
        if self.coco_annotations is not None and self.coco is None:
            raise StartError("--coco-annotations needs --coco: name a file for the results, or leave it out.")
        taken = {os.path.realpath(picture): "is one of the pictures" for picture in pictures}
        for option, path in self.files().items():
            if is_folder(path):
                raise StartError(f"{option} {path} is a folder: name a file in it.")
            if not is_folder(path.parent):
                raise StartError(f"{option} {path} cannot be written: there is no folder {path.parent}.")
            if path.suffix.lower() in SUFFIXES:
                raise StartError(f"{option} {path} has a picture's suffix: choose another name for the results.")
            place = os.path.realpath(path)
            if place in taken:
                raise StartError(f"{option} {path} {taken[place]}: name another file.")
            taken[place] = f"is written to by {option}, too"


class Results:
    """Takes results, in the pictures' order, and writes them where `outputs` says.

    Attributes:
        drawings: For each picture the file of its drawing; None if none is wanted.

    Raises:
        StartError: An output cannot be written, or does not fit the pictures; if possible, before all the work.
    """

    def __init__(self, outputs: Outputs, pictures: Sequence[Path]) -> None:
        outputs.require(pictures)
        self._outputs = outputs
        self._ids = CocoIds.read(outputs.coco_annotations)
        if outputs.coco is not None:
            self._ids.require(pictures)
        if outputs.labels is not None:
            _require_distinct(pictures, lambda picture: picture.name, "be one picture in --labels")
        self.drawings: Sequence[Path | None] = (
            [None] * len(pictures) if outputs.drawings is None else drawings_of(pictures, outputs.drawings)
        )
        self._lines: GrowingFile | None = None
        self._kept: list[Result] = []

    def __enter__(self) -> Self:
        if self._outputs.json_lines is not None:
            self._lines = GrowingFile(self._outputs.json_lines)
        return self

    def __exit__(self, *_: object) -> None:
        if self._lines is not None:
            self._lines.close()

    def add(self, result: Result) -> None:
        if self._lines is not None:
            self._lines.append(json.dumps(result, ensure_ascii=False) + "\n")
        if any((self._outputs.json, self._outputs.coco, self._outputs.labels)):
            self._kept.append(result)

    def write(self, classes: Sequence[str], above: float) -> None:
        """Writes what is only written as a whole.

        Args:
            classes: The model's.
            above: The score above which a detection is a label.
        """
        if self._outputs.json is not None:
            # Python's own, where it indents, takes ten times as long, and 600 MB more for half a million detections.
            write(self._outputs.json, to_json(self._kept, indent=1) + b"\n")
        if self._outputs.coco is not None:
            rows = [row for result in self._kept for row in self._ids.rows(result)]
            write(self._outputs.coco, json.dumps(rows) + "\n")
        if self._outputs.labels is not None:
            write(self._outputs.labels, json.dumps(labels_of(self._kept, classes, above), ensure_ascii=False) + "\n")


class GrowingFile:
    """A file, or standard output, that grows bit by bit; a reader sees each at once. Raises: StartError."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:  # without a buffer: one that does not fit on a full disk fails twice
            self._file = FileIO(sys.stdout.fileno() if path == STDOUT else path, "w", closefd=path != STDOUT)
        except OSError as error:
            raise _unwritten(path, error) from None

    def append(self, text: str | bytes) -> None:
        rest = memoryview(text.encode() if isinstance(text, str) else text)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            raise _unwritten(self._path, error) from None

    def close(self) -> None:
        self._file.close()


@dataclass(frozen=True)
class CocoIds:
    """The ids in COCO results.

    With an annotation file, its image ids, by file name, and its category ids, by name. Without one, the image id is
    the file's name without its suffix, as a number if it is one, and the category id is the class id.
    """

    images: Mapping[str, int | str] | None = None
    categories: Mapping[str, int] | None = None
    source: Path | None = None

    @classmethod
    def read(cls, path: Path | None) -> Self:
        """Raises: StartError."""
        if path is None:
            return cls()
        try:
            document = json.loads(path.read_bytes())
            images: dict[str, int | str] = {}
            for one in document["images"]:
                name = Path(one["file_name"]).name
                if not isinstance(one["id"], int | str):
                    raise TypeError
                if images.setdefault(name, one["id"]) != one["id"]:
                    raise StartError(f"{path} has several images called {name}: give each file a name of its own.")
            return cls(images, {one["name"]: one["id"] for one in document["categories"]}, path)
        except OSError as error:
            raise StartError(f"{path} cannot be read: {error.strerror}.") from None
        except (ValueError, KeyError, TypeError, RecursionError):
            raise StartError(f"{path} is not a COCO annotation file: it needs `images` and `categories`.") from None

    def require(self, files: Iterable[Path]) -> None:
        """Raises: StartError: A file is not in the annotations, or two share an id; better now than after the work."""
        _require_distinct(files, self._image, "have the same image id in --coco")

    def rows(self, result: Result) -> Iterator[Result]:
        """Yields a row for each detection. Raises: StartError: A class is not in the annotations."""
        file = Path(result["file"])
        for detection in result.get("detections", ()):
            yield {
                "image_id": self._image(file),
                "category_id": self._category(detection),
                "bbox": _xywh(detection["box"]),
                "score": detection["score"],
            }

    def _image(self, file: Path) -> int | str:
        if self.images is None:
            return int(file.stem) if file.stem.isdecimal() else file.stem
        if file.name not in self.images:
            raise StartError(f"{self.source} has no image {file.name}: leave it out, or use the file it belongs to.")
        return self.images[file.name]

    def _category(self, detection: Result) -> int:
        if self.categories is None:
            return int(detection["class_id"])
        if detection["label"] not in self.categories:
            raise StartError(f"{self.source} has no category {detection['label']!r}, but the model has it.")
        return self.categories[detection["label"]]


def labels_of(results: Sequence[Result], classes: Sequence[str], above: float) -> dict[str, Any]:
    """COCO annotations: of each picture that could be read, the detections above a score."""
    images: list[Result] = []
    annotations: list[Result] = []
    for result in results:
        if "problem" in result:
            continue
        images.append({"id": len(images) + 1, "file_name": Path(result["file"]).name, **result["image"]})
        for detection in result["detections"]:
            if detection["score"] > above:
                box = _xywh(detection["box"])
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": images[-1]["id"],
                        "category_id": detection["class_id"] + 1,  # some tools take 0 for the background
                        "bbox": box,
                        "segmentation": [],
                        "area": round(box[2] * box[3], 3),
                        "iscrowd": 0,
                        "score": detection["score"],
                    }
                )
    categories = [{"id": number, "name": name} for number, name in enumerate(classes, 1)]
    # Empty entries, too: Datumaro, which CVAT imports with, refuses a file without `segmentation` or, read in parts,
    # without `info` and `licenses`.
    return {"info": {}, "licenses": [], "images": images, "annotations": annotations, "categories": categories}


def _require_distinct(files: Iterable[Path], key: Callable[[Path], int | str], clash: str) -> None:
    """Raises: StartError: Two files have the same key, so that they would clash."""
    files_of: dict[int | str, Path] = {}
    for file in files:
        other = files_of.setdefault(key(file), file)
        if other is not file:
            raise StartError(f"{other} and {file} would {clash}: take one at a time.")


def _xywh(box: Mapping[str, float]) -> list[float]:
    """COCO's [x, y, width, height], in pixels to three decimals, as `box` is."""
    width, height = box["xmax"] - box["xmin"], box["ymax"] - box["ymin"]
    return [box["xmin"], box["ymin"], round(width, 3), round(height, 3)]


def drawings_of(files: Sequence[Path], directory: Path) -> list[Path]:
    """Makes the folder. Returns: A file in it for each picture, never one of the pictures themselves.

    Raises: StartError: The folder cannot be made.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StartError(f"The folder {directory} cannot be made: {error.strerror}.") from None
    taken = {os.path.realpath(file) for file in files}
    drawings: dict[Path, None] = {}
    names: dict[str, Iterator[str]] = {}  # by stem: those that no file has tried yet
    for file in files:
        untried = map(directory.joinpath, names.setdefault(file.stem, _drawing_names(file.stem)))
        drawings[next(one for one in untried if one not in drawings and os.path.realpath(one) not in taken)] = None
    return list(drawings)


def _drawing_names(stem: str) -> Iterator[str]:
    yield f"{stem}.png"
    yield from (f"{stem}-{number}.png" for number in count(2))


def write(path: Path, content: str | bytes) -> None:
    """Raises: StartError."""
    with closing(GrowingFile(path)) as file:
        file.append(content)


def is_folder(path: Path) -> bool:
    """Unlike pathlib's, never an error: of a path that cannot be reached, its picture's own problem will tell."""
    return os.path.isdir(path)  # noqa: PTH112


def _unwritten(path: Path, error: OSError) -> Exception:
    if path == STDOUT:
        return error  # as of all that is printed
    return StartError(f"{path} cannot be written: {error.strerror}.")
