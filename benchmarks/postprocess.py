"""Post-processing against torchvision's, on the same heads: milliseconds and matched boxes.

    python benchmarks/postprocess.py [--output postprocess.csv]

22,400 points (an 800 x 1344 canvas) x 91 classes, about 1,200 candidates in clusters as a detector gives them. Needs
torch and torchvision. Writes one CSV row per repetition and prints the medians.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torchvision.models.detection import fcos_resnet50_fpn
from torchvision.models.detection.image_list import ImageList

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from app.artifact import Size, grids
from app.canvas import Placement
from app.postprocess import Detections, Parameters, PictureHeads, postprocess
from benchmarks.command import as_command, write_csv
from model.checkpoint import metadata_of
from model.config import STRIDES, FCOSConfig, InputConfig

CLASSES = 91
CANVAS = Size(800, 1344)
PARAMETERS = Parameters(score_threshold=0.2, iou_threshold=0.6, max_detections=100)


def clustered_heads(rng: np.random.Generator, objects: int = 52) -> PictureHeads:
    """Background at about -6, and around each object a cluster of points that nearly agree on its box."""
    levels = grids(STRIDES, CANVAS)
    points = sum(grid.area for grid in levels)
    logits = rng.normal(-6.0, 0.8, (points, CLASSES)).astype(np.float32)
    centerness = rng.normal(0.0, 1.0, points).astype(np.float32)
    distances = np.abs(rng.normal(0, 40, (points, 4))).astype(np.float32)
    first = np.cumsum([0] + [grid.area for grid in levels])
    for _ in range(objects):
        level = rng.choice(5, p=[0.4, 0.3, 0.2, 0.07, 0.03])
        grid, stride, label = levels[level], STRIDES[level], rng.integers(CLASSES)
        row, column = int(rng.integers(grid.height)), int(rng.integers(grid.width))
        half = stride * rng.uniform(2, 8, 2)  # of the width and the height
        for y in range(max(0, row - 2), min(grid.height, row + 3)):
            for x in range(max(0, column - 2), min(grid.width, column + 3)):
                point = first[level] + y * grid.width + x
                logits[point, label] = rng.normal(0.5, 1.5)
                dx, dy = (x - column) * stride, (y - row) * stride
                sides = np.array([half[0] + dx, half[1] + dy, half[0] - dx, half[1] - dy])
                distances[point] = np.maximum(sides + rng.normal(0, 0.1 * stride, 4), 0)
    return PictureHeads(logits, distances, centerness)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("postprocess.csv"))
    parser.add_argument("--pictures", type=int, default=10)
    parser.add_argument("--repetitions", type=int, default=10)
    arguments = parser.parse_args()

    config = FCOSConfig.torchvision(tuple(f"class {index}" for index in range(CLASSES)))
    input_config = InputConfig(short=800, long=1333, canvases=((800, 1344), (1344, 800)))
    metadata = metadata_of(config, input_config)
    resized = Size(800, 1333)
    placement = Placement(picture=resized, resized=resized, canvas=CANVAS)
    reference = fcos_resnet50_fpn(weights=None, weights_backbone=None, num_classes=CLASSES).eval()
    levels = grids(STRIDES, CANVAS)
    counts = [grid.area for grid in levels]
    features = [torch.empty(1, 1, *grid) for grid in levels]
    anchors = reference.anchor_generator(ImageList(torch.empty(1, 3, *CANVAS), [tuple(resized)]), features)
    split_anchors = [list(one.split(counts)) for one in anchors]
    strides = np.repeat(np.array(STRIDES, np.float32), counts)[:, None]

    rows = []
    for picture in range(arguments.pictures):
        heads = clustered_heads(np.random.default_rng(picture))
        outputs = {
            "cls_logits": list(torch.from_numpy(heads.class_logits)[None].split(counts, dim=1)),
            "bbox_regression": list(torch.from_numpy(heads.distances / strides)[None].split(counts, dim=1)),
            "bbox_ctrness": list(torch.from_numpy(heads.centerness)[None, :, None].split(counts, dim=1)),
        }
        scores = torch.sqrt(
            torch.from_numpy(heads.class_logits).sigmoid() * torch.from_numpy(heads.centerness)[:, None].sigmoid()
        )
        candidates = int((scores > PARAMETERS.score_threshold).sum())
        # One after the other, not in turns: torch's idle threads spin for a while and would take our core.
        with torch.inference_mode():
            theirs_ms = []
            for _ in range(arguments.repetitions):
                begun = time.perf_counter()
                theirs = reference.postprocess_detections(outputs, split_anchors, [tuple(resized)])[0]
                theirs_ms.append((time.perf_counter() - begun) * 1e3)
        ours_ms = []
        for _ in range(arguments.repetitions):
            begun = time.perf_counter()
            ours = postprocess(heads, placement, metadata, PARAMETERS)
            ours_ms.append((time.perf_counter() - begun) * 1e3)
        matched = count_matched(ours, theirs)
        for repetition, (torchvision_ms, our_ms) in enumerate(zip(theirs_ms, ours_ms, strict=True)):
            rows.append(
                {
                    "picture": picture,
                    "repetition": repetition,
                    "candidates": candidates,
                    "torchvision_ms": torchvision_ms,
                    "ours_ms": our_ms,
                    "torchvision_boxes": len(theirs["boxes"]),
                    "ours_boxes": len(ours),
                    "matched": matched,
                }
            )

    write_csv(arguments.output, rows)
    firsts = [row for row in rows if row["repetition"] == 0]
    print(f"pictures {len(firsts)}, candidates (median) {statistics.median(row['candidates'] for row in firsts):.0f}")
    print("              median ms   fastest ms")
    for whose in ("torchvision", "ours"):
        times = [row[f"{whose}_ms"] for row in rows]
        print(f"{whose:13} {statistics.median(times):9.2f}   {min(times):10.2f}")
    of_all = {key: sum(row[key] for row in firsts) for key in ("matched", "torchvision_boxes", "ours_boxes")}
    print("matched boxes {matched} of torchvision's {torchvision_boxes} and our {ours_boxes}".format(**of_all))


def count_matched(ours: Detections, theirs: dict[str, torch.Tensor]) -> int:
    """Returns: How many of torchvision's boxes have their own box in ours: label, score to 1e-5, sides to 1e-3 px."""
    free = set(range(len(ours)))
    matched = 0
    for box, score, label in zip(
        theirs["boxes"].numpy(), theirs["scores"].numpy(), theirs["labels"].numpy(), strict=True
    ):
        for index in free:
            if (
                ours.class_ids[index] == label
                and abs(ours.scores[index] - score) < 1e-5
                and np.abs(ours.boxes[index] - box).max() < 1e-3
            ):
                free.remove(index)
                matched += 1
                break
    return matched


if __name__ == "__main__":
    as_command(main)
