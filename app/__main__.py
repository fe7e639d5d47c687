"""python -m app                                                     the service
python -m app detect A.jpg B.jpg DIR [--json OUT] [--draw DIR]    the same, on files and folders
python -m app settings                                            every setting, as a table in Markdown

Settings are environment variables: FCOS_MODEL, FCOS_HOST, FCOS_PORT, FCOS_PROVIDER (auto, cuda or cpu) and those of
app/settings.py. Exit codes: 0, 1 where a picture failed, 2 where the service or the model cannot start.
"""

import argparse
import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path

from app import logs
from app.errors import StartError
from app.settings import Settings, load_settings, settings_table


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
    detect.add_argument("--coco", type=Path, metavar="OUT", help="write COCO results")
    detect.add_argument(
        "--coco-annotations", type=Path, metavar="J", help="take the image and category ids of this file for --coco"
    )
    detect.add_argument("--draw", type=Path, metavar="DIR", help="write each picture with its boxes into this folder")
    options = parser.parse_args(arguments)
    if options.command == "settings":
        print(settings_table())
        return 0
    try:
        settings = load_settings()
        logs.configure(settings.log_level, settings.log_format)
        if options.command == "detect":
            from app.files import Outputs, detect_files

            outputs = Outputs(options.json, options.json_lines, options.coco, options.coco_annotations, options.draw)
            return asyncio.run(detect_files(settings, options.pictures, outputs))
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


if __name__ == "__main__":
    sys.exit(main())
