"""Our head, points, assignment and losses against torchvision's `FCOS` class: same backbone, pyramid, data and loop.

    python benchmarks/training_parity.py --data data --output parity.csv                       # small, for a CPU
    python benchmarks/training_parity.py --data data --output parity.csv --pictures 0 --epochs 24 --size 416 \\
        --batch-size 16 --workers 8 --seeds 0 1 2                                              # full size, for a GPU

DATA holds train.json, val.json and the folders train and val. Both networks have four full 3x3 convolutions with
GroupNorm in each tower, start from the same ImageNet backbone and the same seed, see the same augmented batches in the
same order, and are measured through the service's post-processing. OUTPUT: a line for each network and seed.
"""

import argparse
import dataclasses
import sys
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn
from torchvision.models.detection import FCOS as TheirFCOS
from torchvision.models.detection.image_list import ImageList

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.command import as_command, write_csv
from model import checkpoint as checkpoints
from model.backbone import load_imagenet_weights
from model.coco import hold_out, with_images
from model.config import DEFAULT_OBJECTIVE, FCOSConfig, InputConfig, Objective
from model.console import plain_console
from model.data import Annotations, read_usable
from model.distributed import Processes, choose_device
from model.evaluation import detect, torch_runner
from model.fcos import FCOS
from model.head import Heads
from model.learner import Learner
from model.loading import end_workers, make_loader
from model.optim import keep_tensors_memory
from model.presets import data_folder
from model.sampling import CanvasBatches, canvas_indices
from model.scoring import score
from model.settings import Settings


class Torchvision(FCOS):
    """torchvision's head, anchors, matching and losses on our backbone and pyramid, trained as ours is."""

    def __init__(self, config: FCOSConfig, input_config: InputConfig) -> None:
        super().__init__(config, input_config)
        no_backbone: Any = nn.Identity()
        no_backbone.out_channels = config.channels
        self.theirs = TheirFCOS(no_backbone, num_classes=len(config.classes))
        del self.head

    def heads(self, images: Tensor) -> tuple[list[Tensor], dict[str, Tensor]]:
        features = self.fpn(self.backbone(self.normalize(images)))
        return features, self.theirs.head(features)

    def forward(self, images: Tensor) -> Heads:
        _, found = self.heads(images)
        _, strides = self.points_of(images)
        distances = found["bbox_regression"].float() * strides[:, None]
        return Heads(found["cls_logits"].float(), distances, found["bbox_ctrness"].float().flatten(1))

    def losses(
        self,
        images: Tensor,
        boxes: list[Tensor],
        labels: list[Tensor],
        objective: Objective = DEFAULT_OBJECTIVE,
        normalisers: Tensor | None = None,
    ) -> dict[str, Tensor]:
        assert normalisers is None, "torchvision's losses take only whole batches"
        features, found = self.heads(images)
        found = {key: value.float() for key, value in found.items()}
        sizes = [(images.shape[2], images.shape[3])] * len(images)
        anchors = self.theirs.anchor_generator(ImageList(images, sizes), features)
        per_level = [feature.shape[2] * feature.shape[3] for feature in features]
        targets = [{"boxes": b, "labels": c} for b, c in zip(boxes, labels, strict=True)]
        losses = self.theirs.compute_loss(targets, found, anchors, per_level)
        return {
            "class": losses["classification"],
            "box": losses["bbox_regression"],
            "centerness": losses["bbox_ctrness"],
        }


def run(which: str, settings: Settings, pictures: int, seed: int, console: Console) -> dict[str, Any]:
    """Train one of the two and measure it."""
    settings = dataclasses.replace(settings, seed=seed)
    processes = Processes(0, 1, choose_device(settings.device))
    document = read_usable(settings.train_annotations, settings.train_images, (), console.print)
    classes = [category["name"] for category in document["categories"]]
    if settings.val_annotations is None:
        document, val_document = hold_out(document, settings.val_fraction)
    else:
        val_document = read_usable(settings.val_annotations, settings.scored_images, classes, console.print)
    if pictures:  # the same every time, spread over the set
        document, val_document = thinned(document, pictures), thinned(val_document, max(pictures // 2, 1))
    annotations = Annotations.from_document(document)
    config, input_config = settings.network(annotations.classes, None)
    if which == "torchvision":
        config = dataclasses.replace(config, point_offset=0.0, point_step="canvas")
    metadata = checkpoints.metadata_of(config, input_config)
    batches = CanvasBatches(canvas_indices(annotations, metadata), metadata.canvases, settings.batch_size, seed)
    loader = make_loader(settings, annotations, metadata, batches, processes.device)
    torch.manual_seed(seed)
    model: Any = (Torchvision if which == "torchvision" else FCOS)(config, input_config)
    load_imagenet_weights(model.backbone, config.backbone, settings.weights)
    learner = Learner(model, settings, processes, settings.epochs * len(batches))
    started = time.monotonic()
    for epoch in range(settings.epochs):
        batches.start(epoch)
        for number, batch in enumerate(loader):
            values = learner.step([batch], epoch * len(batches) + number)
        console.print(f"{which}, seed {seed}, epoch {epoch + 1}: {values}")
    seconds = time.monotonic() - started
    end_workers(loader)
    runner = torch_runner(learner.ema.module, processes.device)
    found = detect(runner, metadata, val_document, settings.scored_images, console)
    metrics = score(found, val_document, metadata.classes).metrics
    return {
        "network": which,
        "seed": seed,
        "pictures": len(annotations),
        "epochs": settings.epochs,
        "size": settings.size,
        "seconds": round(seconds, 1),
        **{key: round(value, 4) for key, value in metrics.items()},
    }


def thinned(document: dict[str, Any], count: int) -> dict[str, Any]:
    return with_images(document, document["images"][:: max(len(document["images"]) // count, 1)][:count])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--pictures", type=int, default=480, help="of train, and half as many of val; 0 for all")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--backbone", default="tf_efficientnet_lite0")
    parser.add_argument("--weights", default="auto")
    parser.add_argument("--channels", type=int, default=96)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    options = parser.parse_args()
    keep_tensors_memory()
    folder: dict[str, Any] = data_folder(options.data)
    settings = Settings(
        **folder,
        output=options.output,
        backbone=options.backbone,
        weights=options.weights,
        channels=options.channels,
        head_convs=4,
        head_conv="full",
        head_kernel=3,
        size=options.size,
        epochs=options.epochs,
        batch_size=options.batch_size,
        workers=options.workers,
    )
    console = plain_console()
    rows = []
    for seed in options.seeds:
        for which in ("ours", "torchvision"):
            rows.append(run(which, settings, options.pictures, seed, console))
            write_csv(options.output, rows)
            console.print(rows[-1])


if __name__ == "__main__":
    as_command(main)
