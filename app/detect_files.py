"""python -m app detect: the service's pipeline on files; answers as JSON, JSON lines, COCO results and drawings."""

import asyncio
import json
import logging
import math
import os
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TextIO

from app.cores import core_count
from app.errors import Refusal, StartError, failed
from app.images import SUFFIXES
from app.negotiation import PNG
from app.postprocess import COCO_SCORE_THRESHOLD
from app.schemas import DetectQuery
from app.service import Service
from app.settings import Settings

log = logging.getLogger(__name__)

Result = dict[str, Any]  # an answer of POST /detect or `problem`, and `file`


@dataclass(frozen=True)
class Outputs:
    """Where results go; None: nowhere.

    Attributes:
        json: A list with one result per picture.
        json_lines: One result per line, each written as it comes.
        coco: COCO's results format, as `COCO.loadRes` reads it.
        coco_annotations: The annotation file whose image and category ids `coco` uses.
        drawings: A folder for the pictures with their boxes, as PNG.
    """

    json: Path | None = None
    json_lines: Path | None = None
    coco: Path | None = None
    coco_annotations: Path | None = None
    drawings: Path | None = None

    def require(self, pictures: Sequence[Path]) -> None:
        """Raises: StartError: One cannot be written, or would replace another file that is needed; better now than
        after all the work."""
        if self.coco_annotations is not None and self.coco is None:
            raise StartError("--coco-annotations needs --coco: name a file for the results, or leave it out.")
        taken = {os.path.realpath(picture): "is one of the pictures" for picture in pictures}
        for option, path in (("--json", self.json), ("--json-lines", self.json_lines), ("--coco", self.coco)):
            if path is None:
                continue
            if _is_folder(path):
                raise StartError(f"{option} {path} is a folder: name a file in it.")
            if not _is_folder(path.parent):
                raise StartError(f"{option} {path} cannot be written: there is no folder {path.parent}.")
            if path.suffix.lower() in SUFFIXES:
                raise StartError(f"{option} {path} has a picture's suffix: choose another name for the results.")
            place = os.path.realpath(path)
            if place in taken:
                raise StartError(f"{option} {path} {taken[place]}: name another file.")
            taken[place] = f"is written to by {option}, too"


async def detect_files(settings: Settings, paths: Sequence[Path], outputs: Outputs, query: DetectQuery) -> int:
    """Detects objects in files. Returns: 1 if a picture failed, else 0. Raises: StartError."""
    files = pictures_in(paths)
    outputs.require(files)
    ids = CocoIds.read(outputs.coco_annotations)
    if outputs.coco is not None:
        ids.require(files)
    drawings = [None] * len(files) if outputs.drawings is None else _drawings(files, outputs.drawings)
    service = Service.load(settings)
    try:
        shown_above = query.parameters(service.runner.metadata).score_threshold
    except Refusal as refusal:  # of an unknown class
        service.close()
        raise StartError(refusal.message) from None
    if outputs.coco is not None and query.score_threshold is None:
        query = query.model_copy(update={"score_threshold": COCO_SCORE_THRESHOLD})
    results: list[Result] = []
    failures = 0
    with ExitStack() as stack:
        stack.callback(service.close)
        lines = None if outputs.json_lines is None else stack.enter_context(Lines(outputs.json_lines))
        progress = Progress(len(files), sys.stderr)
        stack.callback(progress.clear)
        await service.warm_up()
        if service.not_ready is not None:
            raise StartError(service.not_ready)
        async for result in _results(service, files, drawings, query):
            progress.clear()
            _print(result, shown_above)
            progress.step()
            failures += "problem" in result
            if lines is not None:
                lines.append(json.dumps(result, ensure_ascii=False) + "\n")
            if outputs.json is not None or outputs.coco is not None:
                results.append(result)
    if outputs.json is not None:
        _write(outputs.json, json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    if outputs.coco is not None:
        _write(outputs.coco, json.dumps([row for result in results for row in ids.rows(result)]) + "\n")
    return 1 if failures else 0


def pictures_in(paths: Sequence[Path]) -> list[Path]:
    """Returns: The paths, each folder replaced by the pictures in it. Raises: StartError."""
    found: list[Path] = []
    for path in paths:
        if _is_folder(path):
            try:
                listed = sorted(path.iterdir())
            except OSError as error:
                raise StartError(f"The folder {path} cannot be read: {error.strerror}.") from None
            inside = [one for one in listed if one.suffix.lower() in SUFFIXES and not _is_folder(one)]
            if not inside:
                raise StartError(f"There are no pictures in the folder {path}.")
            found += inside
        else:
            found.append(path)
    return found


def _is_folder(path: Path) -> bool:
    """Unlike pathlib's, never an error: of a path that cannot be reached, its picture's own problem will tell."""
    return os.path.isdir(path)  # noqa: PTH112


async def _results(
    service: Service, files: Sequence[Path], drawings: Sequence[Path | None], query: DetectQuery
) -> AsyncIterator[Result]:
    """Yields each file's result, in order, while the next ones are being worked on."""
    running: deque[asyncio.Task[Result]] = deque()
    ahead = 2 * max(core_count(), service.largest_batch)  # some are decoded while others are in the model
    try:
        for file, drawing in zip(files, drawings, strict=True):
            running.append(asyncio.create_task(_detect(service, file, drawing, query)))
            if len(running) == ahead:
                yield await running.popleft()
        while running:
            yield await running.popleft()
    finally:
        for task in running:
            task.cancel()


async def _detect(service: Service, file: Path, drawing: Path | None, query: DetectQuery) -> Result:
    try:
        data = await asyncio.to_thread(_read, file)
        outcome = await service.detect_in_time(
            data, query.parameters, deadline=math.inf, draw=None if drawing is None else PNG
        )
    except Refusal as expected:
        return {"file": _name(file), "problem": expected.problem()}
    except Exception:
        log.exception("The model failed on %s.", _name(file))
        return {"file": _name(file), "problem": failed("picture").problem()}
    if drawing is not None and outcome.drawn is not None:
        await asyncio.to_thread(_write, drawing, outcome.drawn)
    return {"file": _name(file), **outcome.answer.model_dump()}


def _print(result: Result, above: float) -> None:
    file = result["file"]
    if "problem" in result:
        print(f"{file}: {result['problem']['detail']}", file=sys.stderr)
        return
    shown = [detection for detection in result["detections"] if detection["score"] > above]
    for detection in shown:
        corners = " ".join(f"{side:.0f}" for side in detection["box"].values())
        print(f"{file}: {detection['label']} {detection['score']:.2f} at {corners}")
    if not shown:
        print(f"{file}: nothing found")


class Progress:
    """One line that is overwritten, on a terminal; nothing in a log file."""

    def __init__(self, total: int, out: TextIO) -> None:
        self._total = total
        self._done = 0
        self._out = out if total > 1 and out.isatty() else None
        self._begun_s = time.monotonic()

    def clear(self) -> None:
        if self._out is not None:
            self._out.write("\r\x1b[K")
            self._out.flush()

    def step(self) -> None:
        self._done += 1
        if self._out is not None:
            passed_s = max(time.monotonic() - self._begun_s, 1e-3)
            left_s = (self._total - self._done) * passed_s / self._done
            speed = f"{self._done / passed_s:.1f} pictures/s"
            self._out.write(f"{self._done} of {self._total}, {speed}, {left_s:.0f} s left")
            self._out.flush()


class Lines:
    """A file that grows line by line; a reader sees each at once. Raises: StartError: It cannot be written."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> Self:
        try:
            self._file = self._path.open("wb", buffering=0)  # a buffer that does not fit on a full disk fails twice
        except OSError as error:
            raise _unwritten(self._path, error) from None
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def append(self, line: str) -> None:
        rest = memoryview(line.encode())
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            raise _unwritten(self._path, error) from None


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
        files_of: dict[int | str, Path] = {}
        for file in files:
            other = files_of.setdefault(self._image(file), file)
            if other is not file:
                raise StartError(f"{other} and {file} would have the same image id in --coco: take one at a time.")

    def rows(self, result: Result) -> Iterator[Result]:
        """Yields a row for each detection. Raises: StartError: A class is not in the annotations."""
        file = Path(result["file"])
        for detection in result.get("detections", ()):
            box = detection["box"]
            yield {
                "image_id": self._image(file),
                "category_id": self._category(detection),
                "bbox": [box["xmin"], box["ymin"], box["xmax"] - box["xmin"], box["ymax"] - box["ymin"]],
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


def _drawings(files: Sequence[Path], directory: Path) -> list[Path]:
    """Makes the folder. Returns: A file in it for each picture, never one of the pictures themselves."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StartError(f"The folder {directory} cannot be made: {error.strerror}.") from None
    pictures = {os.path.realpath(file) for file in files}
    drawings: dict[Path, None] = {}
    for file in files:
        drawing, number = directory / f"{file.stem}.png", 1
        while drawing in drawings or os.path.realpath(drawing) in pictures:
            number += 1
            drawing = directory / f"{file.stem}-{number}.png"
        drawings[drawing] = None
    return list(drawings)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise Refusal("not_found", f"The file cannot be read: {error.strerror}.") from None


def _name(path: Path) -> str:
    """Returns: The path as text; what is not UTF-8 is replaced, as JSON could not hold it."""
    return os.fsencode(path).decode("utf-8", "replace")


def _write(path: Path, content: str | bytes) -> None:
    try:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    except OSError as error:
        raise _unwritten(path, error) from None


def _unwritten(path: Path, error: OSError) -> StartError:
    return StartError(f"{path} cannot be written: {error.strerror}.")
