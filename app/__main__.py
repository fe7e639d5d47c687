"""python -m app                                                     the service
python -m app detect A.jpg B.jpg DIR [--json OUT] [--draw DIR]    the same, on files and folders
python -m app settings                                            every setting, as a table in Markdown

Settings are environment variables: FCOS_MODEL, FCOS_HOST, FCOS_PORT, FCOS_PROVIDER (auto, cuda or cpu) and those of
app/settings.py. Exit codes: 0, 1 where a picture failed, 2 where the service or the model cannot start.
"""

import argparse
import asyncio
import io
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from pydantic import ValidationError

from app import logs
from app.errors import StartError
from app.schemas import DetectQuery
from app.settings import Settings, load_settings, settings_table

log = logging.getLogger("app")


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns: The exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m app", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    commands.add_parser("serve", help="answer HTTP requests (the default)")
    commands.add_parser("settings", help="list every setting, its default and what it means")
    detect = commands.add_parser("detect", help="detect objects in picture files")
    detect.add_argument("pictures", type=Path, nargs="+", metavar="PICTURE", help="a picture, or a folder of them")
    detect.add_argument("--json", type=Path, metavar="OUT", help="write a list with one answer per picture")
    detect.add_argument("--json-lines", type=Path, metavar="OUT", help="write one answer a line, each as it comes")
    detect.add_argument(
        "--coco",
        type=Path,
        metavar="OUT",
        help="write COCO results; as AP wants all, files then get what is above 0.01, but for a --score-threshold",
    )
    detect.add_argument(
        "--coco-annotations", type=Path, metavar="J", help="take the image and category ids of this file for --coco"
    )
    detect.add_argument("--draw", type=Path, metavar="DIR", help="write each picture with its boxes into this folder")
    detect.add_argument("--model", type=Path, metavar="M.onnx", help="the model file (default: FCOS_MODEL)")
    for name, kind in (("score_threshold", float), ("iou_threshold", float), ("max_detections", int)):
        detect.add_argument(_option(name), type=kind, metavar="N", help=_help(name))
    detect.add_argument("--classes", nargs="+", metavar="NAME", help="only these classes; behind the pictures")
    detect.add_argument("--class-agnostic", action="store_true", help=_help("class_agnostic"))
    options = parser.parse_args(arguments)
    complain: Callable[[str], object] = _print_error
    try:
        if options.command == "settings":
            print(settings_table(), flush=True)
            return 0
        settings = load_settings()
        logs.configure(settings.log_level, settings.log_format)
        if settings.log_format == "json":  # whoever reads that wants nothing else among it
            complain = log.error
        if options.command == "detect":
            return _detect(settings, options)
        from app.server import serve  # not needed by `detect`

        return serve(settings)
    except BrokenPipeError:  # whoever read the output has enough of it
        _write_no_more()
        return 0
    except StartError as error:
        complain(str(error))
        return 2
    except OSError as error:  # of the output: of all else it is a StartError
        _write_no_more()
        complain(f"The output cannot be written: {error.strerror}.")
        return 2
    except KeyboardInterrupt:
        return 130


def _print_error(text: str) -> None:
    print(f"error: {text}", file=sys.stderr)


def _write_no_more() -> None:
    """What is left to be written to stdout at the exit, too, goes nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _detect(settings: Settings, options: argparse.Namespace) -> int:
    """The service's pipeline on files. Returns: The exit code. Raises: StartError."""
    from app import files

    try:
        query = DetectQuery.model_validate({name: getattr(options, name) for name in DetectQuery.model_fields})
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        raise StartError(f"{_option(str(fault['loc'][0]))} {fault['input']}: {fault['msg'].lower()}.") from None
    if isinstance(sys.stdout, io.TextIOWrapper):  # whose encoding may lack a letter of a file's or a class's name
        sys.stdout.reconfigure(errors="backslashreplace")
    if options.model is not None:
        settings = settings.model_copy(update={"model": options.model})
    outputs = files.Outputs(options.json, options.json_lines, options.coco, options.coco_annotations, options.draw)
    return asyncio.run(files.detect_files(settings, options.pictures, outputs, query))


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def _help(name: str) -> str:
    return str(DetectQuery.model_fields[name].description)


if __name__ == "__main__":
    sys.exit(main())
