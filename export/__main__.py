"""Write a model file for the service.

    python -m export runs/first/best.pt --output first.onnx
    python -m export runs/first/best.pt --output first-int8.onnx --precision int8 --calibration-images data/train
    python -m export --torchvision-coco --output coco.onnx              # torchvision's FCOS, downloaded
    python -m export --torchvision-coco FILE.pth --output coco.onnx     # or from its file
    FCOS_MODEL=first.onnx python -m app

The graph is always compared with torch, and a lower precision with fp32 on real pictures; if they differ, nothing is
written.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":  # before what takes seconds to import
    from app.launch import end_at_once

    end_at_once()

from app.launch import escape_unknown_letters, raise_again
from model.config import require_name
from model.files import require_folder

DOWNLOAD = Path()
"""Stands for the option given without a file."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns: The exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m export", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("checkpoint", type=Path, nargs="?", help="a .pt file from model/train.py")
    source.add_argument(
        "--torchvision-coco",
        type=Path,
        nargs="?",
        const=DOWNLOAD,
        metavar="FILE.pth",
        help="torchvision's fcos_resnet50_fpn weights for COCO; downloaded if no file is given",
    )
    parser.add_argument("--output", type=Path, required=True, help="the .onnx file to write")
    parser.add_argument("--precision", choices=("fp32", "fp16", "int8"), default="fp32")
    parser.add_argument(
        "--calibration-images",
        type=Path,
        metavar="D",
        help="folder of pictures like those the model will see, for fp16 and int8",
    )
    parser.add_argument(
        "--name", help="of the model, as the service shows it (default: the training's --name, else the file's)"
    )
    parser.add_argument(
        "--score-threshold",
        type=float,
        metavar="N",
        help="the service's default (default: the checkpoint's, which is that of best F1 on the training's val)",
    )
    options = parser.parse_args(arguments)
    if options.torchvision_coco == DOWNLOAD:
        options.torchvision_coco = None
    try:
        _check(options)

        # Not before: torch and what comes with it take seconds, and a wrong option should not.
        from export.convert import convert

        raise_again()
        escape_unknown_letters()
        print(convert(options))
    except (ValueError, OSError) as error:
        print(f"export: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def _check(options: argparse.Namespace) -> None:
    """Raises: ValueError: the options do not go together, or one has no sense."""
    output, precision, threshold = options.output, options.precision, options.score_threshold
    if output.suffix != ".onnx":
        raise ValueError(f"--output must end in .onnx, but is {output}")
    require_folder(output)
    if precision != "fp32" and options.calibration_images is None:
        raise ValueError(f"--precision {precision} is judged on real pictures: give a folder with --calibration-images")
    if precision == "fp32" and options.calibration_images is not None:
        raise ValueError(
            "--calibration-images is for a lower precision: choose --precision fp16 or int8, or leave it out"
        )
    if threshold is not None and not 0 <= threshold <= 1:
        raise ValueError(f"--score-threshold must be between 0 and 1, but is {threshold}")
    if options.name is not None:
        require_name(options.name)


if __name__ == "__main__":
    sys.exit(main())
