"""python -m app                                                     the service
python -m app detect A.jpg B.jpg DIR [--json OUT] [--draw DIR]    the same, on files

Settings are environment variables: FCOS_MODEL, FCOS_HOST, FCOS_PORT, FCOS_PROVIDER (auto, cuda or cpu) and those of
app/settings.py. Exit codes: 0, 1 where a picture failed, 2 where the service or the model cannot start.
"""

import argparse
import asyncio
import io
import json
import math
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app import logs
from app.errors import Refusal, StartError
from app.settings import Settings, load_settings

if TYPE_CHECKING:
    from app.service import Service

PICTURE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"}  # looked for in folders


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns: The exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m app", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    commands.add_parser("serve", help="answer HTTP requests (the default)")
    detect = commands.add_parser("detect", help="detect objects in picture files")
    detect.add_argument("pictures", type=Path, nargs="+", metavar="PICTURE", help="a picture, or a folder of them")
    detect.add_argument("--json", type=Path, metavar="OUT", help="write a list with one answer per picture")
    detect.add_argument("--draw", type=Path, metavar="DIR", help="write each picture with its boxes into this folder")
    options = parser.parse_args(arguments)
    try:
        settings = load_settings()
        logs.configure(settings.log_level, settings.log_format)
        if options.command == "detect":
            return asyncio.run(detect_files(settings, options.pictures, options.json, options.draw))
        return serve(settings)
    except StartError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def serve(settings: Settings) -> int:
    """Answers requests until SIGINT or SIGTERM; what is accepted by then is finished. Raises: StartError."""
    from app.server import serve  # not needed by `detect`

    return serve(settings)


async def detect_files(
    settings: Settings, paths: Sequence[Path], json_path: Path | None, draw_directory: Path | None
) -> int:
    """Detects objects in files, one after another. Returns: 1 where a picture failed, else 0. Raises: StartError."""
    from app.service import Service

    service = Service.load(settings)
    try:
        await service.warm_up()
        files = _pictures(paths)
        drawings = [None] * len(files) if draw_directory is None else _drawings(files, draw_directory)
        results = [await _detect_file(service, *pair) for pair in zip(files, drawings, strict=True)]
    finally:
        service.close()
    if json_path is not None:
        _write(json_path, (json.dumps(results, indent=1, ensure_ascii=False) + "\n").encode())
    return 1 if any("problem" in result for result in results) else 0


def _pictures(paths: Sequence[Path]) -> list[Path]:
    """Returns: The paths, with the pictures in it in place of each folder."""
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = [one for one in sorted(path.iterdir()) if one.suffix.lower() in PICTURE_SUFFIXES]
            if not inside:
                raise StartError(f"There are no pictures in the folder {path}.")
            found += inside
        else:
            found.append(path)
    return found


def _drawings(files: Sequence[Path], directory: Path) -> list[Path]:
    """Makes the folder. Returns: A file in it for each picture; pictures of the same name get different ones."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StartError(f"The folder {directory} cannot be made: {error.strerror}.") from None
    seen: Counter[str] = Counter()
    drawings = []
    for file in files:
        seen[file.stem] += 1
        number = f"-{seen[file.stem]}" if seen[file.stem] > 1 else ""
        drawings.append(directory / f"{file.stem}{number}.png")
    return drawings


async def _detect_file(service: "Service", path: Path, drawing: Path | None) -> dict[str, Any]:
    """Prints what is found in a file. Returns: The answer of POST /detect or its problem, and `file`."""
    from app.draw import draw
    from app.schemas import DetectQuery

    try:
        data = await asyncio.to_thread(_read, path)
        outcome = await service.detect(data, DetectQuery().parameters, deadline=math.inf)
    except Refusal as refusal:
        print(f"{path}: {refusal.message}", file=sys.stderr)
        return {"file": str(path), "problem": refusal.problem()}
    for detection in outcome.answer.detections:
        box = detection.box
        corners = f"{box.xmin:.0f} {box.ymin:.0f} {box.xmax:.0f} {box.ymax:.0f}"
        print(f"{path}: {detection.label} {detection.score:.2f} at {corners}")
    if not outcome.answer.detections:
        print(f"{path}: nothing found")
    if drawing is not None:
        buffer = io.BytesIO()
        draw(outcome.picture, outcome.answer.detections).save(buffer, "PNG")
        _write(drawing, buffer.getvalue())
    return {"file": str(path), **outcome.answer.model_dump()}


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise Refusal("not_found", f"The file cannot be read: {error.strerror}.") from None


def _write(path: Path, content: bytes) -> None:
    try:
        path.write_bytes(content)
    except OSError as error:
        raise StartError(f"{path} cannot be written: {error.strerror}.") from None


if __name__ == "__main__":
    sys.exit(main())
