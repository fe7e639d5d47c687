"""python -m app                                                        the service
python -m app detect A.jpg B.jpg FOLDER [--json OUT] [--draw DIR]    the same, on files and folders
python -m app settings                                               every setting, as a table in Markdown

OUT may be -, which is standard output: what is found is then shown on stderr.

Settings are environment variables: FCOS_MODEL, FCOS_HOST, FCOS_PORT, FCOS_PROVIDER (auto, cuda or cpu) and those of
app/settings.py. Exit codes: 0; 1 if a picture failed, or the service had to leave something that hung; 2 if it cannot
start or write its output; 130 if Ctrl-C ends `detect` or the start of the service, or is pressed again while it ends.
"""

if __name__ == "__main__":  # before what takes seconds to import
    from app.launch import end_at_once, open_standard_files, require_packages, require_processor

    open_standard_files()
    end_at_once()
    require_processor()
    require_packages()

import argparse
import asyncio
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from pydantic import ValidationError

from app import logs
from app.errors import NO_THREADS, StartError
from app.launch import escape_unknown_letters, raise_again
from app.schemas import DetectQuery
from app.settings import Settings, load_settings, settings_table

log = logging.getLogger("app")


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns: The exit code."""
    parser = _Parser(prog="python -m app", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    commands.add_parser("serve", help="answer HTTP requests (the default)")
    commands.add_parser("settings", help="list every setting, its default and what it means")
    detect = commands.add_parser("detect", help="detect objects in picture files")
    detect.add_argument("pictures", type=Path, nargs="+", metavar="PICTURE", help="a picture, or a folder of them")
    detect.add_argument("--json", type=Path, metavar="OUT", help="write a list with one answer per picture")
    detect.add_argument("--json-lines", type=Path, metavar="OUT", help="write one answer per line, each as it comes")
    detect.add_argument(
        "--coco",
        type=Path,
        metavar="OUT",
        help="write COCO results; they and the lists then hold all above 0.01, as AP needs, or above --score-threshold",
    )
    detect.add_argument(
        "--coco-annotations", type=Path, metavar="J", help="take the image and category ids of this file for --coco"
    )
    detect.add_argument(
        "--labels",
        type=Path,
        metavar="OUT",
        help="write COCO annotations, to be corrected in a labelling tool and trained on",
    )
    detect.add_argument("--draw", type=Path, metavar="DIR", help="write each picture with its boxes into this folder")
    detect.add_argument("--model", type=Path, metavar="M.onnx", help="the model file (default: FCOS_MODEL)")
    for name, kind in (("score_threshold", float), ("iou_threshold", float), ("max_detections", int)):
        detect.add_argument(_option(name), type=kind, metavar="N", help=_help(name))
    detect.add_argument("--classes", nargs="+", metavar="NAME", help="only these classes; give it after the pictures")
    detect.add_argument("--class-agnostic", action="store_true", help=_help("class_agnostic"))
    options = parser.parse_args(arguments)
    complain: Callable[[str], object] = _print_error
    try:
        if options.command == "settings":
            print(settings_table(), flush=True)
            return 0
        settings = load_settings()
        logs.configure(settings.log_level, settings.log_format)
        if settings.log_format == "json":  # whatever parses the log must find nothing else in it
            complain = log.error
        if options.command == "detect":
            return _detect(settings, options)
        from app.server import serve  # not needed by `detect`

        return serve(settings)
    except BrokenPipeError:  # whatever read the output has stopped
        _write_no_more()
        return 0
    except StartError as error:
        complain(str(error))
        return 2
    except OSError as error:  # of the output: any other is a StartError by now
        _write_no_more()
        complain(f"The output cannot be written: {error.strerror}.")
        return 2
    except RuntimeError as error:
        if str(error) != "can't start new thread":
            raise
        complain(NO_THREADS)
        return 2
    except KeyboardInterrupt:
        if options.command == "detect":
            _say_what_is_lost(options, complain)
        return 130


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        if message.endswith("PICTURE"):  # none is left
            message += ". Put the pictures first: --classes takes all the names that follow it"
        super().error(message)


def _say_what_is_lost(options: argparse.Namespace, complain: Callable[[str], object]) -> None:
    lost = [str(path) for path in (options.json, options.coco, options.labels) if path is not None]
    if lost:
        kept = "keeps what is done" if options.json_lines is None else "has what was done"
        complain(f"Stopped: nothing was written to {' and '.join(lost)}; --json-lines {kept}.")


def _print_error(text: str) -> None:
    print(f"error: {text}", file=sys.stderr)


def _write_no_more() -> None:
    """Discards what is still to be written to stdout, also at the exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _detect(settings: Settings, options: argparse.Namespace) -> int:
    """Runs the service's pipeline on files. Returns: The exit code. Raises: StartError."""
    from app.detect_files import detect_files
    from app.results import Outputs

    try:
        query = DetectQuery.model_validate({name: getattr(options, name) for name in DetectQuery.model_fields})
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        raise StartError(f"{_option(str(fault['loc'][0]))} {fault['input']}: {fault['msg'].lower()}.") from None
    escape_unknown_letters()
    if options.model is not None:
        settings = settings.model_copy(update={"model": options.model})
    outputs = Outputs(
        json=options.json,
        json_lines=options.json_lines,
        coco=options.coco,
        coco_annotations=options.coco_annotations,
        labels=options.labels,
        drawings=options.draw,
    )
    return asyncio.run(detect_files(settings, options.pictures, outputs, query))


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def _help(name: str) -> str:
    return str(DetectQuery.model_fields[name].description)


if __name__ == "__main__":
    raise_again()
    sys.exit(main())
