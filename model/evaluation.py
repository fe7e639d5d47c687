"""A model's detections on annotated pictures, through the service's own pre- and post-processing, and their score."""

import argparse
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from torch import nn

from app.artifact import Metadata, Size
from app.canvas import Placement
from app.detector import Detector, Runner
from app.postprocess import COCO_SCORE_THRESHOLD, Heads, Parameters
from model import checkpoint as checkpoints
from model.coco import Document, box_count
from model.data import read_usable
from model.distributed import choose_device
from model.files import require_folder, write_json
from model.pictures import open_as_served
from model.scoring import Evaluation, Found, score

BATCH = 16
"""Pictures of one canvas that go through the network together."""
AHEAD = 256
"""Pictures decoded ahead of the network."""
MOST_WAITING = 256
"""Pictures that wait for others of their canvas: with many canvases, batches hardly ever fill up."""


class Prepared(NamedTuple):
    """A picture for the network."""

    position: int
    """In the document."""
    canvas: NDArray[np.uint8]  # [H, W, 3]
    placement: Placement


def evaluate(runner: Runner, metadata: Metadata, document: Document, images: Path, console: Console) -> Evaluation:
    """Detect on every picture of a cleaned document and compare.

    Raises:
        ValueError: a picture cannot be opened, or model and document have no class in common.
    """
    return score(detect(runner, metadata, document, images, console), document, metadata.classes)


def detect(
    runner: Runner,
    metadata: Metadata,
    document: Document,
    images: Path,
    console: Console,
    rank: int = 0,
    processes: int = 1,
) -> Found:
    """Detections on a document's pictures; each of several processes takes its share.

    Raises:
        ValueError: a picture cannot be opened, or does not have the size that the document says.
    """
    detector, parameters = Detector(metadata, runner), parameters_for(metadata)
    positions = range(rank, len(document["images"]), processes)
    prepared = _prepared(detector, document, positions, images)
    quiet = rank > 0 or not console.is_terminal
    shown = track(prepared, "evaluating", len(positions), console=console, transient=True, disable=quiet)
    found: list[Found] = []
    for group in _groups(shown):
        heads = detector.run(np.stack([one.canvas for one in group]))
        for index, (position, _, placement) in enumerate(group):
            found.append(Found.of(position, detector.finish(heads.of(index), placement, parameters)))
    return Found.join(found)


def _groups(prepared: Iterable[Prepared]) -> Iterator[list[Prepared]]:
    """Pictures of one canvas each: batches, as they fill up; the fullest, as too many wait; and at the end the rest."""
    waiting: dict[tuple[int, int], list[Prepared]] = {}
    for one in prepared:
        group = waiting.setdefault(one.placement.canvas, [])
        group.append(one)
        if len(group) == BATCH:
            yield waiting.pop(one.placement.canvas)
        elif sum(map(len, waiting.values())) == MOST_WAITING:
            yield waiting.pop(max(waiting, key=lambda canvas: len(waiting[canvas])))
    yield from waiting.values()


def parameters_for(metadata: Metadata) -> Parameters:
    """COCO's protocol: AP needs the whole precision-recall curve, so almost no threshold, and 100 boxes. Non-maximum
    suppression is the model's own, as it is served."""
    return Parameters(
        score_threshold=COCO_SCORE_THRESHOLD, iou_threshold=metadata.defaults.iou_threshold, max_detections=100
    )


def _prepared(detector: Detector, document: Document, positions: Sequence[int], images: Path) -> Iterator[Prepared]:
    def prepare(position: int) -> Prepared:
        entry = document["images"][position]
        path, size = images / entry["file_name"], Size(int(entry["height"]), int(entry["width"]))
        canvas, placement = detector.fit(open_as_served(path, detector.metadata))
        if placement.picture != size:
            found = placement.picture
            raise ValueError(
                f"{path} is {found.width} x {found.height} upright, but its annotations say {size.width} x "
                f"{size.height}: their boxes would be scored in the wrong place"
            )
        return Prepared(position, canvas, placement)

    with ThreadPoolExecutor(4) as pool:
        for first in range(0, len(positions), AHEAD):
            yield from pool.map(prepare, positions[first : first + AHEAD])


def torch_runner(model: nn.Module, device: torch.device) -> Runner:
    """The network, moved to the device, with the interface of an ONNX session."""
    model.to(device).to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def run(canvases: NDArray[np.uint8]) -> Heads:
        images = torch.from_numpy(canvases).to(device).permute(0, 3, 1, 2)  # channels last in memory, as the model is
        return Heads(*(head.cpu().numpy() for head in model(images)))

    return run


def open_model(path: Path, device: str = "auto") -> tuple[Runner, Metadata]:
    """A runner and the metadata of a `.pt` or `.onnx` file.

    Args:
        device: auto, cpu or cuda.

    Raises:
        ValueError: the file is not a checkpoint of this project.
        StartError: the file is not a model of this project, or there is no CUDA.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise ValueError(f"--device must be auto, cpu or cuda, but got {device}")
    if path.suffix == ".onnx":
        if not path.is_file():
            raise ValueError(f"no model at {path}")
        from app.session import OnnxRunner  # a machine that only trains may lack ONNX Runtime

        onnx = OnnxRunner.load(path, device)  # type: ignore[arg-type]
        return onnx, onnx.metadata
    if path.suffix != ".pt":
        raise ValueError(f"{path} is neither a .pt checkpoint nor an .onnx model")
    checkpoint = checkpoints.load(path)
    return torch_runner(checkpoint.model(), choose_device(device)), checkpoint.metadata("checkpoint")


def _say_unknown(document: Document, classes: Sequence[str]) -> None:
    unknown = {one["id"]: one["name"] for one in document["categories"] if one["name"] not in classes}
    boxes = Counter(unknown[box["category_id"]] for box in document["annotations"] if box["category_id"] in unknown)
    if boxes:
        print(
            f"evaluate: not counted, as the model has no such class: {', '.join(sorted(boxes))} "
            f"({boxes.total()} boxes)",
            file=sys.stderr,
        )


def _shown(value: float, digits: int) -> str:
    return f"{value:.{digits}f}" if value >= 0 else "(no boxes)"


def report(options: argparse.Namespace, console: Console) -> None:
    """What `model/evaluate.py` does once it has read its options.

    Raises:
        ValueError, StartError: the model, the annotations or the pictures cannot be read, or do not fit each other.
        OSError: the numbers cannot be written.
    """
    if options.json:
        require_folder(options.json)
    runner, metadata = open_model(options.model, options.device)
    document = read_usable(
        options.annotations, options.images, metadata.classes,
        lambda text: print(f"evaluate: {text}", file=sys.stderr),
    )  # fmt: skip
    _say_unknown(document, metadata.classes)
    if not box_count(document):
        print(f"evaluate: {options.annotations} has no boxes to compare with, so there is no AP", file=sys.stderr)
    found = evaluate(runner, metadata, document, options.images, console)
    for name, values in found.per_class.items():
        console.print(f"{name:>16}  AP {_shown(values['AP'], 3)}  AP50 {_shown(values['AP50'], 3)}")
    console.print("  ".join(f"{key} {_shown(value, 4)}" for key, value in found.metrics.items()))
    console.print(f"best F1 {found.f1:.3f} at a score threshold of {found.score_threshold:.2f}")
    if options.json:  # after printing the numbers: they took long, and the disk may be full
        write_json(options.json, found.to_dict())
