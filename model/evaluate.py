"""COCO's 12 numbers and AP per class of a model file, measured through the service's own pre- and post-processing.

    python model/evaluate.py model/weights/fcos-lite0-everyday.onnx --annotations data/val.json --images data/val
    python model/evaluate.py runs/first/best.pt --annotations data/val.json --images data/val --json out.json

What is reported is what is served: pictures are opened, resized, decoded and filtered by `app`. The json holds
{"metrics": {"AP", "AP50", "AP75", ...}, "per_class": {name: {"AP", "AP50"}}}.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

if not __package__:  # run as a script: the repository's packages lie one level up
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from app.artifact import Metadata
from app.canvas import Placement, fit, unfit
from app.postprocess import Heads, Parameters, postprocess

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
BATCH = 16
"""Pictures of one canvas that go through the network together."""
PARAMETERS = Parameters(score_threshold=0.01, iou_threshold=0.6, max_detections=100)
"""COCO's protocol: AP wants the whole precision-recall curve, so almost no threshold, and 100 boxes."""

Runner = Callable[[NDArray[np.uint8]], Heads]
"""Canvases [N, H, W, 3] -> raw heads."""


def evaluate(
    runner: Runner, metadata: Metadata, annotations: Path, images: Path, console: Console
) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """Detect on every picture and compare with the annotations.

    Returns:
        COCO's 12 numbers in 0..1 (-1 where there is no ground truth of that size), and AP and AP50 per class.

    Raises:
        ValueError: a file is missing or does not fit the model's classes.
    """
    from model.data import open_picture, read_coco

    truth = read_coco(annotations)
    category_of = dict(zip(truth.classes, truth.category_ids.tolist(), strict=True))
    unknown = [name for name in metadata.classes if name not in category_of]
    if len(unknown) == len(metadata.classes):
        raise ValueError(
            f"the model's classes ({', '.join(metadata.classes[:3])}, ...) have nothing in common with those of {annotations}"
        )

    waiting: dict[tuple[int, int], list[tuple[int, NDArray[np.uint8], Placement]]] = {}
    results: list[dict[str, Any]] = []

    def run(group: list[tuple[int, NDArray[np.uint8], Placement]]) -> Iterator[dict[str, Any]]:
        heads = runner(np.stack([canvas for _, canvas, _ in group]))
        for position, (image_id, _, placement) in enumerate(group):
            found = postprocess(heads.of(position), placement, metadata, PARAMETERS)
            boxes = unfit(found.boxes, placement)
            boxes[:, 2:] -= boxes[:, :2]
            for box, score, class_id in zip(boxes.tolist(), found.scores.tolist(), found.class_ids.tolist(), strict=True):
                category = category_of.get(metadata.classes[class_id])
                if category is not None:
                    yield {"image_id": image_id, "category_id": category, "bbox": box, "score": score}

    pictures = list(zip(truth.image_ids.tolist(), truth.file_names.tolist(), strict=True))
    for image_id, name in track(pictures, "evaluating", console=console, transient=True, disable=not console.is_terminal):
        canvas, placement = fit(open_picture(images / name), metadata)
        group = waiting.setdefault(placement.canvas, [])
        group.append((image_id, canvas, placement))
        if len(group) == BATCH:
            results += run(waiting.pop(placement.canvas))
    for group in waiting.values():
        results += run(group)
    return score(results, annotations, metadata.classes)


def score(
    results: list[dict[str, Any]], annotations: Path, classes: tuple[str, ...]
) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """COCO's protocol over detections in COCO's result format."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(annotations))
        category_of = {category["name"]: category["id"] for category in truth.dataset["categories"]}
        measured = [name for name in classes if name in category_of]
        if not results:
            return dict.fromkeys(METRICS, 0.0), {name: {"AP": 0.0, "AP50": 0.0} for name in measured}
        coco = COCOeval_faster(truth, truth.loadRes(results), iouType="bbox")
        coco.params.catIds = [category_of[name] for name in measured]
        coco.evaluate()
        coco.accumulate()
        coco.summarize()
    metrics = {key: float(value) for key, value in zip(METRICS, coco.stats, strict=False)}
    precision = coco.eval["precision"]  # [IoU thresholds, recalls, classes, areas, max detections], -1: no ground truth
    per_class = {}
    for position, name in enumerate(measured):
        curves = precision[:, :, position, 0, -1]
        per_class[name] = {"AP": _mean(curves), "AP50": _mean(curves[0])}
    return metrics, per_class


def evaluate_model(
    model: Any, metadata: Metadata, annotations: Path, images: Path, device: Any, console: Console
) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """`evaluate` for a torch module on a device."""
    was_training = model.training
    try:
        return evaluate(torch_runner(model.eval(), device), metadata, annotations, images, console)
    finally:
        model.train(was_training)


def torch_runner(model: Any, device: Any) -> Runner:
    """The network as the post-processing sees an ONNX session."""
    import torch

    @torch.inference_mode()
    def run(canvases: NDArray[np.uint8]) -> Heads:
        images = torch.from_numpy(canvases).to(device).permute(0, 3, 1, 2)  # channels last in memory, as the model is
        return Heads(*(head.cpu().numpy() for head in model(images)))

    return run


def _mean(precision: NDArray[np.float64]) -> float:
    known = precision[precision > -1]
    return float(known.mean()) if known.size else -1.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help=".onnx or .pt")
    parser.add_argument("--annotations", type=Path, required=True, help="COCO json")
    parser.add_argument("--images", type=Path, required=True, help="the folder its file names are relative to")
    parser.add_argument("--json", type=Path, help="write the numbers there")
    options = parser.parse_args()
    console = Console()
    try:
        runner, metadata = open_model(options.model)
        metrics, per_class = evaluate(runner, metadata, options.annotations, options.images, console)
    except ValueError as error:
        print(f"evaluate: {error}", file=sys.stderr)
        return 2
    for name, values in per_class.items():
        console.print(f"{name:>16}  AP {values['AP']:.3f}  AP50 {values['AP50']:.3f}", highlight=False)
    console.print("  ".join(f"{key} {value:.4f}" for key, value in metrics.items()), highlight=False)
    if options.json:
        options.json.write_text(json.dumps({"metrics": metrics, "per_class": per_class}, indent=2) + "\n")
    return 0


def open_model(path: Path) -> tuple[Runner, Metadata]:
    """A runner and the metadata of a `.pt` or `.onnx` file.

    Raises:
        ValueError: the file is missing or is no model of ours.
    """
    if path.suffix == ".onnx":
        raise ValueError("soon")
    from model import checkpoint as checkpoints

    checkpoint = checkpoints.load(path)
    return torch_runner(checkpoint.model(), "cpu"), checkpoint.metadata(path.stem)


if __name__ == "__main__":
    sys.exit(main())
