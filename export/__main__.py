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
import dataclasses
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":  # before what takes seconds to import
    from app.launch import end_at_once

    end_at_once()

import onnx

from app.artifact import Metadata
from app.errors import StartError, first_line
from app.launch import escape_unknown_letters, raise_again
from app.session import OnnxRunner
from export import precision as precisions
from export.agreement import LOWER, agreement
from export.graph import add_metadata, to_onnx
from export.verify import Difference, compare
from model import checkpoint as checkpoints
from model.config import require_name
from model.fcos import FCOS
from model.files import require_folder, write_bytes
from model.torchvision_weights import download, load_torchvision

DOWNLOAD = Path()
"""Stands for the option given without a file."""


def export(model: FCOS, metadata: Metadata, output: Path) -> Difference:
    """Translate in fp32, compare with torch, write.

    Returns:
        How far apart ONNX Runtime and torch are.

    Raises:
        ValueError: the network cannot be translated, or the results differ.
        OSError: the file cannot be written.
    """
    proto = to_onnx(model)
    add_metadata(proto, metadata)
    difference = compare(proto, model, metadata)
    write_bytes(output, proto.SerializeToString())
    return difference


def lower_precision(fp32: Path, precision: str, pictures: Sequence[Path], output: Path) -> tuple[float, int]:
    """Convert an exported fp32 file, compare detections on pictures, write.

    Args:
        precision: one of `LOWER`.
        pictures: files of real ones; int8 takes its ranges from every other one and is judged on the rest.

    Returns:
        The two files' agreement, and the number of fp32's detections: see `agreement`.

    Raises:
        ValueError: they agree too little, fp32 finds nothing, or a picture cannot be read.
        OSError: the file cannot be written.
    """
    reference, bounds = OnnxRunner.load(fp32), LOWER[precision]
    # fp32's metrics do not hold for it.
    metadata = reference.metadata.model_copy(update={"precision": precision, "metrics": {}})
    if precision == "int8":
        proto = precisions.to_int8(onnx.load(fp32), pictures[::2], metadata)
        pictures = pictures[1::2] or pictures  # judged on the others, if there are any
    else:
        proto = precisions.to_fp16(onnx.load(fp32))
    add_metadata(proto, metadata)
    with tempfile.TemporaryDirectory() as folder:
        converted = Path(folder) / output.name
        write_bytes(converted, proto.SerializeToString())
        try:
            share, count = agreement(reference, OnnxRunner.load(converted), pictures, bounds)
        except StartError as error:
            raise ValueError(f"the {precision} graph does not run ({first_line(error.__cause__ or error)})") from error
    if not count:
        raise ValueError(
            f"fp32 finds nothing on {len(pictures)} of the calibration pictures, so {precision} cannot be judged: "
            "nothing was written. Give pictures that show the model's classes, or train it longer"
        )
    if share < bounds.share:
        raise ValueError(
            f"{precision} and fp32 agree on {share:.1%} of {count} detections in the calibration pictures, but "
            f"{bounds.share:.0%} are needed, with an IoU of {bounds.iou} and scores at most {bounds.score} apart: "
            "nothing was written. A model trained longer is more certain, and more pictures judge it better"
        )
    write_bytes(output, proto.SerializeToString())
    return share, count


def read(checkpoint: Path | None, torchvision_coco: Path | None) -> tuple[checkpoints.Checkpoint, str]:
    """The checkpoint named on the command line, and its file's sha256.

    Raises:
        ValueError: it cannot be read, or downloaded.
    """
    if checkpoint is not None:
        return checkpoints.load(checkpoint), checkpoints.sha256(checkpoint)
    if torchvision_coco is None or torchvision_coco == DOWNLOAD:
        torchvision_coco = download()
    return load_torchvision(torchvision_coco), checkpoints.sha256(torchvision_coco)


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
    parser.add_argument("--precision", choices=("fp32", *LOWER), default="fp32")
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
    escape_unknown_letters()
    try:
        print(_run(options))
    except (ValueError, OSError) as error:
        print(f"export: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def _run(options: argparse.Namespace) -> str:
    output, precision = options.output, options.precision
    if output.suffix != ".onnx":
        raise ValueError(f"--output must end in .onnx, but is {output}")
    require_folder(output)
    if precision != "fp32" and options.calibration_images is None:
        raise ValueError(f"--precision {precision} is judged on real pictures: give a folder with --calibration-images")
    if precision == "fp32" and options.calibration_images is not None:
        raise ValueError(
            "--calibration-images is for a lower precision: choose --precision fp16 or int8, or leave it out"
        )
    threshold = options.score_threshold
    if threshold is not None and not 0 <= threshold <= 1:
        raise ValueError(f"--score-threshold must be between 0 and 1, but is {threshold}")
    pictures = [] if precision == "fp32" else precisions.choose_pictures(options.calibration_images)
    checkpoint, checksum = read(options.checkpoint, options.torchvision_coco)
    name = str(checkpoint.training.get("name", output.stem)) if options.name is None else options.name
    require_name(name)
    if threshold is not None:
        checkpoint = dataclasses.replace(checkpoint, score_threshold=threshold)
    metadata = checkpoint.metadata(name, checkpoint_sha256=checksum)
    if precision == "fp32":
        lines = [str(export(checkpoint.model(), metadata, output))]
    else:
        with tempfile.TemporaryDirectory() as folder:
            fp32 = Path(folder) / "fp32.onnx"
            lines = [str(export(checkpoint.model(), metadata, fp32))]
            share, count = lower_precision(fp32, precision, pictures, output)
        lines.append(f"{precision} and fp32 agree on {share:.1%} of {count} detections")
    return "\n".join([*lines, f"wrote {output} ({output.stat().st_size / 1e6:.1f} MB, {name})"])


if __name__ == "__main__":
    raise_again()
    sys.exit(main())
