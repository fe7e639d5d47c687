"""The official-weights path against torchvision's own `model(images)`, with random weights unless --weights is given.

    python benchmarks/torchvision_parity.py --images FOLDER --count 20 [--weights FILE.pth] [--csv OUT.csv]

Exports torchvision's FCOS through `python -m export`'s own functions and detects with ONNX Runtime and the service's
pre- and post-processing. Two comparisons for each picture: torchvision given our resized pixels, and torchvision given
the picture, which it resizes without antialiasing. A detection of torchvision's (score > 0.2) counts as matched if
ours has one of the same label with IoU > 0.99 and a score within 1e-3. Without --images: photographs of scikit-image.
Exits with 1 if less than 99 % match on the same pixels.
"""

import argparse
import sys
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import skimage.data
import torch
from PIL import Image
from torchvision.models.detection import fcos_resnet50_fpn
from torchvision.ops import box_iou

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from app.canvas import fit
from app.detector import Detector
from app.postprocess import Detections, Parameters
from app.session import OnnxRunner
from benchmarks.command import as_command, write_csv
from export.convert import export
from model.backbone import read_weights
from model.torchvision_weights import CATEGORIES, USED, from_state_dict

# torchvision keeps 100. Which of two detections of equal score is the 100th is arbitrary: we keep a few more.
PARAMETERS = Parameters(score_threshold=0.2, iou_threshold=0.6, max_detections=110)


def lively_model() -> torch.nn.Module:
    """torchvision's FCOS with random weights and statistics, strong enough to detect something everywhere."""
    torch.manual_seed(0)
    model = fcos_resnet50_fpn(weights=None, weights_backbone=None, num_classes=len(CATEGORIES)).eval()
    head = model.head
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
            if isinstance(module, torch.nn.BatchNorm2d | torch.nn.GroupNorm):
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.1)
        for branch in (head.classification_head, head.regression_head):
            for module in branch.conv:
                if isinstance(module, torch.nn.Conv2d):
                    torch.nn.init.normal_(module.weight, std=0.03)
        for conv in (
            head.classification_head.cls_logits,
            head.regression_head.bbox_reg,
            head.regression_head.bbox_ctrness,
        ):
            torch.nn.init.normal_(conv.weight, std=0.045)
        head.regression_head.bbox_reg.bias.fill_(3.0)
        head.classification_head.cls_logits.bias.fill_(-4.0)
        # Trained weights never predict the ids that COCO does not use.
        unused = [index for index in range(len(CATEGORIES)) if index not in USED]
        head.classification_head.cls_logits.bias[unused] = -100.0
    return model


def matched(ours: Detections, theirs: dict[str, torch.Tensor]) -> tuple[int, int]:
    """How many of torchvision's detections are among ours, and how many there are."""
    labels = torch.tensor([USED[class_id] for class_id in ours.class_ids.tolist()], dtype=torch.long)
    overlap = box_iou(theirs["boxes"], torch.from_numpy(ours.boxes)) > 0.99
    same_label = theirs["labels"][:, None] == labels[None]
    same_score = (theirs["scores"][:, None] - torch.from_numpy(ours.scores)[None]).abs() < 1e-3
    return int((overlap & same_label & same_score).any(1).sum()), len(theirs["boxes"])


def photographs(folder: Path | None, count: int) -> list[tuple[str, Image.Image]]:
    if folder is None:
        names = ("astronaut", "cat", "coffee", "rocket")[:count]
        return [(name, Image.fromarray(getattr(skimage.data, name)())) for name in names]
    files = sorted(folder.glob("*.jpg"))
    if not files:
        raise ValueError(f"no .jpg files in {folder}")
    chosen = files[:: max(1, len(files) // count)][:count]
    return [(file.name, Image.open(file).convert("RGB")) for file in chosen]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, help="folder of .jpg files")
    parser.add_argument("--count", type=int, default=4)
    parser.add_argument("--weights", type=Path, help="torchvision's file; random weights if not given")
    parser.add_argument("--csv", type=Path)
    options = parser.parse_args()
    if options.count < 1:
        parser.error("--count must be at least 1")

    pictures = photographs(options.images, options.count)
    theirs = lively_model()
    if options.weights:
        theirs.load_state_dict(read_weights(options.weights))
    checkpoint = from_state_dict(theirs.state_dict(), "torchvision")
    metadata = checkpoint.metadata("fcos-resnet50-coco")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "coco.onnx"
        print(export(checkpoint.model(), metadata, file))
        runner = OnnxRunner.load(file)
    detector = Detector(metadata, runner)

    rows: list[dict[str, str]] = []
    found: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    for name, picture in pictures:
        canvas, placement = fit(picture, metadata)
        pixels = canvas[: placement.resized.height, : placement.resized.width]
        ours = detector.detect(picture, PARAMETERS)
        # In the frame of the resized picture, which is what torchvision is given.
        scale = np.array([*placement.resized[::-1]] * 2) / np.array([*placement.picture[::-1]] * 2)
        resized = Detections((ours.boxes * scale).astype(np.float32), ours.scores, ours.class_ids)
        with torch.inference_mode():
            (same,) = theirs([torch.from_numpy(pixels.copy()).permute(2, 0, 1) / 255])
            (own,) = theirs([torch.from_numpy(np.array(picture)).permute(2, 0, 1) / 255])
        rows.append({"picture": name})
        for way, (number, count) in {"same pixels": matched(resized, same), "own resizing": matched(ours, own)}.items():
            found[way] += number
            counts[way] += count
            rows[-1][way] = f"{number}/{count}"
        print("  ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
    for way, count in counts.items():
        print(f"{way}: {found[way]} of {count} matched")
    if options.csv:
        write_csv(options.csv, rows)
    return 0 if found["same pixels"] >= 0.99 * counts["same pixels"] > 0 else 1


if __name__ == "__main__":
    as_command(main)
