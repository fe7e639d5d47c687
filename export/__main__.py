"""Write a model file for the service.

    python -m export runs/first/best.pt --output first.onnx
    python -m export --torchvision-coco --output coco.onnx              # torchvision's FCOS, downloaded
    python -m export --torchvision-coco FILE.pth --output coco.onnx     # or from its file
    FCOS_MODEL=first.onnx python -m app

The graph is always compared with torch; where they differ, nothing is written.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import onnx

from app.artifact import Metadata
from export.graph import add_metadata, to_onnx
from export.verify import Difference, compare
from model import checkpoint as checkpoints
from model.fcos import FCOS
from model.torchvision_weights import download, load_torchvision

DOWNLOAD = Path()
"""Stands for an option without its file."""


def export(model: FCOS, metadata: Metadata, output: Path) -> Difference:
    """Translate, compare with torch, write.

    Returns:
        How far ONNX Runtime and torch are apart.

    Raises:
        ValueError: the network cannot be translated, the results differ, or the file cannot be written.
    """
    proto = to_onnx(model)
    add_metadata(proto, metadata)
    difference = compare(proto, model, metadata)
    write(proto, output)
    return difference


def read(checkpoint: Path | None, torchvision_coco: Path | None) -> tuple[checkpoints.Checkpoint, str]:
    """The checkpoint that the command line names, and the sha256 of its file.

    Raises:
        ValueError: it cannot be read, or downloaded.
    """
    if checkpoint is not None:
        return checkpoints.load(checkpoint), checkpoints.sha256(checkpoint)
    if torchvision_coco is None or torchvision_coco == DOWNLOAD:
        torchvision_coco = download()
    return load_torchvision(torchvision_coco), checkpoints.sha256(torchvision_coco)


def write(proto: onnx.ModelProto, output: Path) -> None:
    """Write the file whole or not at all: a service may be watching it.

    Raises:
        ValueError: the folder is missing or not writable.
    """
    temporary = output.with_name(f".{output.name}.{os.getpid()}")
    try:
        temporary.write_bytes(proto.SerializeToString())
        temporary.replace(output)
    except OSError as error:
        raise ValueError(f"{output} cannot be written: {error.strerror}") from error
    finally:
        temporary.unlink(missing_ok=True)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m export", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("checkpoint", type=Path, nargs="?", help="a .pt file of model/train.py")
    source.add_argument(
        "--torchvision-coco",
        type=Path,
        nargs="?",
        const=DOWNLOAD,
        metavar="FILE.pth",
        help="torchvision's fcos_resnet50_fpn weights for COCO; downloaded where no file is given",
    )
    parser.add_argument("--output", type=Path, required=True, help="the .onnx file to write")
    parser.add_argument("--name", help="of the model, as the service shows it (default: the training's --name)")
    options = parser.parse_args(arguments)
    try:
        if options.output.suffix != ".onnx":
            raise ValueError(f"--output must end in .onnx, but is {options.output}")
        if not options.output.parent.is_dir():
            raise ValueError(f"there is no folder {options.output.parent} to write to")
        checkpoint, checksum = read(options.checkpoint, options.torchvision_coco)
        name = options.name or str(checkpoint.training.get("name", options.output.stem))
        metadata = checkpoint.metadata(name, checkpoint_sha256=checksum)
        difference = export(checkpoint.model(), metadata, options.output)
    except ValueError as error:
        print(f"export: {error}", file=sys.stderr)
        return 2
    print(f"{difference}\nwrote {options.output} ({options.output.stat().st_size / 1e6:.1f} MB, {metadata.name})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
