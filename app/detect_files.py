"""python -m app detect: the service's pipeline on files."""

import asyncio
import logging
import math
import os
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TextIO

from app.cores import core_count
from app.errors import Refusal, StartError, failed
from app.images import SUFFIXES
from app.negotiation import PNG
from app.postprocess import COCO_SCORE_THRESHOLD
from app.results import STDOUT, Outputs, Result, Results, is_folder, write
from app.schemas import DetectQuery
from app.service import Service
from app.settings import Settings

log = logging.getLogger(__name__)


async def detect_files(settings: Settings, paths: Sequence[Path], outputs: Outputs, query: DetectQuery) -> int:
    """Detects objects in files. Returns: 1 if a picture failed, else 0. Raises: StartError."""
    files = pictures_in(paths)
    results = Results(outputs, files)
    shown_on = sys.stderr if STDOUT in outputs.files().values() else sys.stdout
    failures = 0
    with ExitStack() as stack:
        service = stack.enter_context(closing(Service.load(settings)))
        metadata = service.runner.metadata
        try:
            shown_above = query.parameters(metadata).score_threshold
        except Refusal as refusal:  # of an unknown class
            raise StartError(refusal.message) from None
        if outputs.coco is not None and query.score_threshold is None:
            query = query.model_copy(update={"score_threshold": COCO_SCORE_THRESHOLD})
        stack.enter_context(results)
        await service.warm_up(every_shape=False)  # a large model with 83 canvases takes minutes for them
        if service.not_ready is not None:
            raise StartError(service.not_ready)
        progress = Progress(len(files), sys.stderr)  # which measures the speed from here on
        stack.callback(progress.clear)
        async for result in _detect_each(service, files, results.drawings, query):
            progress.clear()
            _print(result, shown_above, shown_on)
            progress.step()
            failures += "problem" in result
            results.add(result)
    results.write(metadata.classes, shown_above)
    return 1 if failures else 0


def pictures_in(paths: Sequence[Path]) -> list[Path]:
    """Returns: The paths, each folder replaced by the pictures in it. Raises: StartError."""
    found: list[Path] = []
    for path in paths:
        if is_folder(path):
            try:
                listed = sorted(path.iterdir())
            except OSError as error:
                raise StartError(f"The folder {path} cannot be read: {error.strerror}.") from None
            inside = [one for one in listed if one.suffix.lower() in SUFFIXES and not is_folder(one)]
            if not inside:
                raise StartError(f"There are no pictures in the folder {path}.")
            found += inside
        else:
            found.append(path)
    return found


async def _detect_each(
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
        outcome = await service.detect_in_time(data, query, deadline=math.inf, draw=None if drawing is None else PNG)
    except Refusal as expected:
        return {"file": _name(file), "problem": expected.problem()}
    except Exception:
        log.exception("The model failed on %s.", _name(file))
        return {"file": _name(file), "problem": failed("picture").problem()}
    if drawing is not None and outcome.drawn is not None:
        await asyncio.to_thread(write, drawing, outcome.drawn)
        outcome.let_go()
    return {"file": _name(file), **outcome.answer.model_dump()}


def _print(result: Result, above: float, out: TextIO) -> None:
    file = result["file"]
    if "problem" in result:
        print(f"{file}: {result['problem']['detail']}", file=sys.stderr)
        return
    shown = [detection for detection in result["detections"] if detection["score"] > above]
    for detection in shown:
        corners = " ".join(f"{side:.0f}" for side in detection["box"].values())
        print(f"{file}: {detection['label']} {detection['score']:.2f} at {corners}", file=out)
    if not shown:
        print(f"{file}: nothing found", file=out)


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


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise Refusal("not_found", f"The file cannot be read: {error.strerror}.") from None


def _name(path: Path) -> str:
    """Returns: The path as text; what is not UTF-8 is replaced, as JSON could not hold it."""
    return os.fsencode(path).decode("utf-8", "replace")
