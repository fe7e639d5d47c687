"""A checkpoint's model file: translated, compared with torch, in the precision asked for, and written."""

import argparse
import dataclasses
import tempfile
from collections.abc import Sequence
from pathlib import Path

import onnx

from app.artifact import Metadata
from app.errors import StartError, first_line
from app.session import OnnxRunner
from export import precision as precisions
from export.agreement import LOWER, agreement
from export.graph import add_metadata, to_onnx
from export.verify import Difference, compare
from model import checkpoint as checkpoints
from model.config import require_name
from model.fcos import FCOS
from model.files import write_bytes
from model.torchvision_weights import download, load_torchvision


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
    """A checkpoint, or torchvision's for COCO, downloaded if no file of it is given; and the file's sha256.

    Raises:
        ValueError: it cannot be read, or downloaded.
    """
    if checkpoint is not None:
        return checkpoints.load(checkpoint), checkpoints.sha256(checkpoint)
    file = torchvision_coco or download()
    return load_torchvision(file), checkpoints.sha256(file)


def convert(options: argparse.Namespace) -> str:
    """What `python -m export` does once it has read its options. Returns: What to print.

    Raises:
        ValueError: checkpoint or pictures cannot be read, or the file would differ too much from the checkpoint.
        OSError: the file cannot be written.
    """
    output, precision = options.output, options.precision
    pictures = [] if precision == "fp32" else precisions.choose_pictures(options.calibration_images)
    checkpoint, checksum = read(options.checkpoint, options.torchvision_coco)
    name = str(checkpoint.training.get("name", output.stem)) if options.name is None else options.name
    require_name(name)
    if options.score_threshold is not None:
        checkpoint = dataclasses.replace(checkpoint, score_threshold=options.score_threshold)
    metadata = checkpoint.metadata(name, checkpoint_sha256=checksum)
    with tempfile.TemporaryDirectory() as folder:
        fp32 = output if precision == "fp32" else Path(folder) / "fp32.onnx"
        lines = [str(export(checkpoint.model(), metadata, fp32))]
        if precision != "fp32":
            share, count = lower_precision(fp32, precision, pictures, output)
            lines.append(f"{precision} and fp32 agree on {share:.1%} of {count} detections")
    return "\n".join([*lines, f"wrote {output} ({output.stat().st_size / 1e6:.1f} MB, {name})"])
