"""Train the detector on COCO-format annotations.

    python model/train.py --train-annotations data/train.json --train-images data/train \
        --val-annotations data/val.json --val-images data/val --output runs/first
    python model/train.py ... --output runs/first --resume        # go on where that run stopped
    python -m export runs/first/best.pt --output first.onnx       # then serve it: FCOS_MODEL=first.onnx python -m app

The run's folder gets `config.json` (every option, resolved), `last.pt` (resumable), `best.pt` (highest AP on val, averaged
weights), `metrics.csv` (a line an epoch) and, at the end, `metrics.json` (COCO's 12 numbers, AP per class).
"""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import platform
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

if not __package__:  # run as a script: the repository's packages lie one level up
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from timm.utils import ModelEmaV3
from torch import nn
from torch.utils.data import DataLoader

from model import checkpoint as checkpoints
from model.backbone import load_imagenet_weights
from model.config import FCOSConfig, InputConfig
from model.data import Annotations, Batch, CanvasBatches, TrainingPictures, canvas_indices, collate, read_coco
from model.evaluate import evaluate_model
from model.fcos import FCOS
from model.transforms import Augmentation

NOMINAL_BATCH = 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Train FCOS on COCO-format annotations."""

    train_annotations: Path
    """COCO json of the training pictures."""
    train_images: Path
    """Folder that its file names are relative to."""
    val_annotations: Path
    val_images: Path
    output: Path
    """The run's folder."""
    resume: bool = False
    """Go on from the run's last.pt."""

    backbone: str = "tf_efficientnet_lite0"
    """Any timm model with features at strides 8, 16 and 32."""
    weights: str = "auto"
    """Of the backbone: auto (ImageNet), none, or a file."""
    channels: int = 96
    """Of the pyramid and of the head."""
    head_convs: int = 2
    head_conv: Literal["full", "separable"] = "separable"
    head_kernel: int = 5
    norm: Literal["gn", "bn"] = "gn"
    size: int = 416
    """Longest side of a picture, in pixels, a multiple of 32. It gets a 4:3, 3:4 or square canvas."""

    epochs: int = 24
    batch_size: int = 16
    optimizer: Literal["adamw", "sgd"] = "adamw"
    lr: float = 1e-3
    """At a batch of 16; scaled with the batch."""
    backbone_lr_factor: float = 0.2
    weight_decay: float = 0.05
    """Not on norms and biases."""
    warmup_iterations: int = 300
    final_lr_factor: float = 0.01
    """What the cosine ends at."""
    clip_norm: float = 10.0
    """Largest norm of the gradient; 0 for none."""
    freeze: Literal["none", "c3", "all"] = "none"
    """Of the backbone: nothing, the layers up to C3, everything."""
    backbone_norm: Literal["frozen", "trained"] = "trained"
    """Statistics of the backbone's BatchNorm."""
    ema_decay: float = 0.9998
    augmentation: Augmentation = Augmentation()

    evaluate_every: int = 1
    """Epochs between evaluations on val; the last epoch is always evaluated."""
    seed: int = 0
    workers: int = 4
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 ..."""
    amp: Literal["auto", "bf16", "off"] = "auto"
    """auto: bf16 on a GPU that has it, else off."""
    name: str = "fcos"
    """Of the model, as the service will show it."""

    def __post_init__(self) -> None:
        if self.size % 32 or self.size < 64:
            raise ValueError(f"--size must be a multiple of 32 and at least 64, but got {self.size}")
        for key in ("epochs", "batch_size", "evaluate_every", "head_convs"):
            if getattr(self, key) < 1:
                raise ValueError(f"--{key.replace('_', '-')} must be at least 1, but got {getattr(self, key)}")


def train(settings: Settings, console: Console) -> dict[str, float]:
    """One run, from the settings to `metrics.json`.

    Returns:
        The last evaluation's COCO numbers.

    Raises:
        ValueError: something the user can mend: a missing file, annotations that do not fit, a non-finite loss.
    """
    device = _device(settings.device)
    amp = settings.amp == "bf16" or (settings.amp == "auto" and device.type == "cuda" and torch.cuda.is_bf16_supported())
    random.seed(settings.seed)
    np.random.seed(settings.seed)
    torch.manual_seed(settings.seed)

    # data
    annotations = read_coco(settings.train_annotations)
    validation = read_coco(settings.val_annotations)
    if validation.classes != annotations.classes:
        raise ValueError(
            f"train has classes {', '.join(annotations.classes)}, but val has {', '.join(validation.classes)}: "
            "both files need the same categories"
        )
    config = FCOSConfig(
        classes=annotations.classes,
        backbone=settings.backbone,
        channels=settings.channels,
        head_convs=settings.head_convs,
        head_conv=settings.head_conv,
        head_kernel=settings.head_kernel,
        norm=settings.norm,
    )
    input_config = input_of(settings)
    metadata = checkpoints.metadata_of(config, input_config, settings.name)
    dataset = TrainingPictures(annotations, settings.train_images, metadata, settings.augmentation)
    areas = [canvas.height * canvas.width for canvas in metadata.canvases]
    batches = CanvasBatches(
        canvas_indices(annotations, metadata), areas.index(max(areas)), settings.batch_size, settings.seed
    )
    loader: DataLoader[Batch] = DataLoader(
        dataset,
        batch_sampler=batches,
        collate_fn=collate,
        num_workers=settings.workers,
        persistent_workers=False,
        pin_memory=device.type == "cuda",
    )

    # model
    model = FCOS(config, input_config)
    origin = "the run's last.pt" if settings.resume else load_imagenet_weights(model.backbone, settings.backbone, settings.weights)
    model.to(device, memory_format=torch.channels_last)
    freeze(model, settings.freeze)
    optimizer = make_optimizer(model, settings)
    iterations = settings.epochs * len(batches)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: lr_factor(i, iterations, settings))
    ema = ModelEmaV3(model, decay=settings.ema_decay, use_warmup=True, warmup_gamma=20.0)

    # where a stopped run goes on
    step, best = 0, -1.0
    settings.output.mkdir(parents=True, exist_ok=True)
    last, best_path = settings.output / "last.pt", settings.output / "best.pt"
    if settings.resume:
        state = checkpoints.load(last).resume
        if state is None:
            raise ValueError(f"{last} is the end of a finished run: nothing to resume")
        model.load_state_dict(state["model"])
        ema.module.load_state_dict(state["ema"])
        optimizer.load_state_dict(state["optimizer"])
        scheduler.load_state_dict(state["scheduler"])
        step, best = state["step"], state["best"]
    elif last.exists():
        raise ValueError(f"{settings.output} already holds a run: add --resume, or choose another --output")
    (settings.output / "config.json").write_text(json.dumps(_plain(settings), indent=2) + "\n")

    console.print(
        f"{len(annotations)} pictures, {len(annotations.boxes)} boxes, {len(config.classes)} classes; "
        f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f} M parameters on {device}{' in bf16' if amp else ''}; "
        f"backbone from {origin}; learning rate {settings.lr * settings.batch_size / NOMINAL_BATCH:g}; "
        f"{settings.epochs} epochs of {len(batches)} batches"
    )
    metrics: dict[str, float] = {}
    started, seen, waited = time.monotonic(), 0, 0.0
    for epoch in range(step // len(batches), settings.epochs):
        batches.start(epoch, skip=step - epoch * len(batches))
        train_mode(model, settings)
        sums: dict[str, float] = {}
        counted = 0
        for batch, wait_s in _timed(_progress(loader, f"epoch {epoch + 1}/{settings.epochs}", len(batches) - batches.skip, console)):
            waited += wait_s
            batch = batch.to(device)
            images = batch.images.contiguous(memory_format=torch.channels_last)
            with torch.autocast(device.type, torch.bfloat16, enabled=amp):
                losses = model.losses(images, batch.boxes, batch.labels)
            loss = torch.stack(list(losses.values())).sum()
            if not loss.isfinite():
                names = ", ".join(annotations.file_names[batch.indices].tolist())
                raise ValueError(f"the loss is not finite at iteration {step}; the batch was: {names}")
            optimizer.zero_grad()
            loss.backward()
            if settings.clip_norm:
                nn.utils.clip_grad_norm_(model.parameters(), settings.clip_norm)
            optimizer.step()
            scheduler.step()
            step += 1
            ema.update(model, step=step)
            seen += len(batch.indices)
            counted += 1
            for key, value in losses.items():
                sums[key] = sums.get(key, 0.0) + float(value.detach())

        row: dict[str, Any] = {"epoch": epoch + 1, "lr": scheduler.get_last_lr()[-1]}
        row |= {f"{key}_loss": value / max(counted, 1) for key, value in sums.items()}
        finished = epoch + 1 == settings.epochs
        now = checkpoints.Checkpoint(
            config=config,
            input_config=input_config,
            weights=_cpu(ema.module.state_dict()),
            training=describe(settings, annotations, epoch + 1, origin),
        )
        state = {
            "model": model.state_dict(),
            "ema": ema.module.state_dict(),
            "optimizer": optimizer.state_dict(),
            "scheduler": scheduler.state_dict(),
            "step": step,
            "best": best,
        }
        # Before the evaluation: whatever happens there, the epoch is not lost.
        checkpoints.save(last, dataclasses.replace(now, resume=state))
        if finished or (epoch + 1) % settings.evaluate_every == 0:
            metrics, per_class = evaluate_model(
                ema.module, metadata, settings.val_annotations, settings.val_images, device, console
            )
            row |= metrics
            now = dataclasses.replace(now, metrics=metrics)
            if metrics["AP"] > best or not best_path.exists():
                best = state["best"] = metrics["AP"]
                checkpoints.save(best_path, now)
            checkpoints.save(last, dataclasses.replace(now, resume=None if finished else state))
            (settings.output / "metrics.json").write_text(
                json.dumps({"metrics": metrics, "per_class": per_class}, indent=2) + "\n"
            )
        _append_csv(settings.output / "metrics.csv", row)
        elapsed = time.monotonic() - started
        console.print(
            "  ".join(f"{key} {value:.4g}" for key, value in row.items() if not key.startswith(("AR", "APs", "APm", "APl")))
            + f"  ({seen / elapsed:.1f} pictures/s, {waited / elapsed:.0%} of the time waiting for data)",
            highlight=False,
        )
    console.print(f"best AP {best:.4f}: {best_path}")
    return metrics


def input_of(settings: Settings) -> InputConfig:
    """Canvases for a longest side: 4:3 both ways, and square. Normalisation as EfficientNet-Lite's, else ImageNet's."""
    size = settings.size
    short = math.ceil(size * 3 / 4 / 32) * 32
    canvases = ((short, size), (size, short), (size, size))
    if "efficientnet_lite" in settings.backbone:
        return InputConfig(short=size, long=size, canvases=canvases)
    return InputConfig(
        short=size, long=size, canvases=canvases, mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375)
    )


def freeze(model: FCOS, part: Literal["none", "c3", "all"]) -> None:
    """Stop the gradient in the backbone: nowhere, up to C3, or everywhere."""
    parameters = list(model.backbone.body.named_parameters())
    if part == "all":
        count = len(parameters)
    elif part == "c3":
        c3 = model.backbone.body.feature_info.module_name(0)
        prefixes = (f"{c3}.", f"{c3.replace('.', '_')}.")
        count = 1 + max(i for i, (name, _) in enumerate(parameters) if name.startswith(prefixes))
    else:
        count = 0
    for _, parameter in parameters[:count]:
        parameter.requires_grad_(False)


def train_mode(model: FCOS, settings: Settings) -> None:
    """Training mode, but BatchNorm with frozen statistics where the settings, or frozen weights, say so."""
    model.train()
    for module in model.backbone.modules():
        if isinstance(module, nn.BatchNorm2d) and (settings.backbone_norm == "frozen" or not module.weight.requires_grad):
            module.eval()


def make_optimizer(model: FCOS, settings: Settings) -> torch.optim.Optimizer:
    """Four groups: backbone or not, with weight decay or (norms, biases, scales) without."""
    lr = settings.lr * settings.batch_size / NOMINAL_BATCH
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((name.startswith("backbone."), parameter.ndim > 1), []).append(parameter)
    parameters = [
        {
            "params": members,
            "lr": lr * (settings.backbone_lr_factor if of_backbone else 1.0),
            "weight_decay": settings.weight_decay if decays else 0.0,
        }
        for (of_backbone, decays), members in groups.items()
    ]
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(parameters)
    return torch.optim.SGD(parameters, momentum=0.9)


def lr_factor(iteration: int, iterations: int, settings: Settings) -> float:
    """Linear warm-up, then a cosine down to `final_lr_factor`."""
    warmup = min(settings.warmup_iterations, iterations // 10)
    if iteration < warmup:
        return (iteration + 1) / (warmup + 1)
    progress = (iteration - warmup) / max(iterations - warmup, 1)
    return settings.final_lr_factor + (1 - settings.final_lr_factor) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


def describe(settings: Settings, annotations: Annotations, epochs: int, origin: str) -> dict[str, Any]:
    """What the model file will say of its training."""
    options = _plain(settings)
    hidden = {"train_annotations", "train_images", "val_annotations", "val_images", "output", "resume", "workers", "name", "epochs"}
    return {
        "pictures": len(annotations),
        "boxes": len(annotations.boxes),
        "epochs": epochs,
        "backbone_weights": origin,
        "options": {key: value for key, value in options.items() if key not in hidden},
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
    }


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"--device {name}: torch finds no CUDA GPU here; leave --device out to take what there is")
    return device


def _progress(loader: DataLoader[Batch], what: str, total: int, console: Console) -> Iterator[Batch]:
    """A bar on a terminal, a plain line every so often elsewhere."""
    if console.is_terminal:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console, transient=True) as progress:
            yield from progress.track(loader, total=total, description=what)
        return
    started = said = time.monotonic()
    for done, batch in enumerate(loader):
        if time.monotonic() - said > 30:
            said = time.monotonic()
            console.print(f"{what}: {done} of {total} batches, {(said - started) / done:.2f} s each", highlight=False)
        yield batch


def _timed(batches: Iterator[Batch]) -> Iterator[tuple[Batch, float]]:
    """Each batch with the seconds it was waited for."""
    while True:
        started = time.monotonic()
        try:
            batch = next(batches)
        except StopIteration:
            return
        yield batch, time.monotonic() - started


def _append_csv(path: Path, row: dict[str, Any]) -> None:
    """Epochs without an evaluation leave its columns empty."""
    rows: list[dict[str, Any]] = []
    if path.exists():
        with path.open(newline="") as file:
            rows = [old for old in csv.DictReader(file) if int(old["epoch"]) < row["epoch"]]
    rows.append(row)
    columns = list(dict.fromkeys(key for line in rows for key in line))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


def _cpu(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key: value.detach().cpu().clone() for key, value in state.items()}


def _plain(settings: Settings) -> dict[str, Any]:
    values = dataclasses.asdict(settings)
    return {
        key: str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value
        for key, value in values.items()
    }


def main() -> int:
    console = Console(soft_wrap=True)
    try:
        train(tyro.cli(Settings, description=__doc__), console)
    except ValueError as error:
        print(f"train: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("train: stopped; --resume goes on from the last finished epoch", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
