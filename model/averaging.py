"""The mean of related checkpoints' weights."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

from model import checkpoint as checkpoints
from model.checkpoint import Checkpoint
from model.coco import hold_out
from model.data import Annotations, read_usable
from model.distributed import choose_device
from model.evaluation import evaluate, torch_runner
from model.fcos import FCOS
from model.files import require_folder
from model.finetune import restate_statistics
from model.loading import plain_canvases
from model.presets import data_folder
from model.settings import HELD_OUT

BATCH = 16
STATISTICS_BATCHES = 40
"""To measure BatchNorm's statistics on: even P7's, with the fewest points, then come from some thousand points."""


def require_one_network(parts: Sequence[Checkpoint]) -> None:
    """Raises: ValueError: the parts are not the same network for the same classes."""
    first = parts[0]
    for part in parts[1:]:
        if (part.config, part.input_config) != (first.config, first.input_config):
            raise ValueError("the checkpoints' networks differ: classes, backbone, channels and input must agree")


def mean_weights(parts: Sequence[Checkpoint]) -> dict[str, Tensor]:
    """The mean of every tensor; counters are the first part's.

    Raises:
        ValueError: as `require_one_network`.
    """
    require_one_network(parts)
    return {
        key: torch.stack([part.weights[key].float() for part in parts]).mean(0) if value.is_floating_point() else value
        for key, value in parts[0].weights.items()
    }


def differing_norms(parts: Sequence[Checkpoint]) -> set[str]:
    """The names of the BatchNorms in whose statistics the parts differ."""
    end, first = ".running_mean", parts[0].weights
    return {
        key.removesuffix(end)
        for key in first
        if key.endswith(end) and any(not part.weights[key].equal(first[key]) for part in parts)
    }


def mixed(parts: Sequence[Checkpoint]) -> bool:
    """Whether some of the parts learnt with frozen statistics of the backbone, and others' statistics differ."""
    frozen = any(part.options.get("backbone-norm") == "frozen" for part in parts)
    return frozen and any(name.startswith("backbone.") for name in differing_norms(parts))


def restated(part: Checkpoint, annotations: Annotations, images: Path, device: torch.device) -> Checkpoint:
    """The same detector with its backbone's statistics measured on these pictures, and weights that go with them.

    Weights that learnt with frozen statistics, ImageNet's perhaps, mean something else than others do: their mean with
    weights that learnt with measured ones detects less than either.
    """
    model = part.model().to(device)
    restate_statistics(model, _pictures(part, annotations, images))
    return dataclasses.replace(part, weights=_weights_of(model))


def _weights_of(model: FCOS) -> dict[str, Tensor]:
    """On the CPU, as a checkpoint holds them."""
    return {key: value.cpu() for key, value in model.state_dict().items()}


def _pictures(part: Checkpoint, annotations: Annotations, images: Path) -> Iterator[Tensor]:
    """Canvases as they are served, a batch at a time, for statistics."""
    metadata = checkpoints.metadata_of(part.config, part.input_config)
    return plain_canvases(annotations, images, metadata, BATCH, STATISTICS_BATCHES)


def training_of(parts: Sequence[Checkpoint]) -> dict[str, Any]:
    """The mean's `training`: each part's own, what they all started from, once, and their name if it is the same."""
    before, names = parts[0].training.get("before"), {part.training.get("name") for part in parts}
    own = [{key: value for key, value in part.training.items() if key != "before"} for part in parts]
    name = names.pop() if len(names) == 1 else None
    return {**({"name": name} if name else {}), "mean_of": own, **({"before": before} if before else {})}


def measure_statistics(model: FCOS, parts: Sequence[Checkpoint], annotations: Annotations, images: Path) -> None:
    """Measure the BatchNorm statistics in which the parts differ, on pictures as they are served."""
    names = differing_norms(parts)
    differing = [
        module for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d) and name in names
    ]
    if not differing:
        return
    for module in differing:
        module.reset_running_stats()
        module.momentum = None  # the plain mean of all batches
        module.train()
    with torch.no_grad():
        for canvases in _pictures(parts[0], annotations, images):
            model(canvases.to(model.mean.device, memory_format=torch.channels_last))


def average(files: Sequence[Path], data: Path, output: Path, console: Console, *, small: bool = False) -> None:
    """Write the mean of checkpoints.

    Args:
        small: store convolutions in fp16.

    Raises:
        ValueError: a checkpoint cannot be read or is of another network, the data are faulty, or the output is no .pt.
    """
    if output.suffix != ".pt":
        raise ValueError(f"--output must end in .pt, but is {output}")
    require_folder(output)
    parts = [checkpoints.load(file) for file in files]
    require_one_network(parts)
    paths, classes = data_folder(data), parts[-1].config.classes
    document = read_usable(paths["train_annotations"], paths["train_images"], classes, console.print)
    if "val_annotations" in paths:
        val_document = read_usable(paths["val_annotations"], paths["val_images"], classes, console.print)
    else:
        document, val_document = hold_out(document, parts[-1].options.get("val-fraction", HELD_OUT))
    annotations, images = Annotations.from_document(document), paths["train_images"]
    device = choose_device("auto")
    if mixed(parts):
        parts = [restated(part, annotations, images, device) for part in parts]
    checkpoint = dataclasses.replace(parts[-1], weights=mean_weights(parts), training=training_of(parts), resume=None)

    model = checkpoint.model().to(device).to(memory_format=torch.channels_last)
    measure_statistics(model, parts, annotations, images)
    checkpoint = dataclasses.replace(checkpoint, weights=_weights_of(model))
    if small:
        checkpoint = checkpoint.small()
    runner = torch_runner(checkpoint.model(), device)
    evaluation = evaluate(runner, checkpoint.metadata("mean"), val_document, paths.get("val_images", images), console)
    scored = dataclasses.replace(checkpoint, metrics=evaluation.metrics, score_threshold=evaluation.score_threshold)
    checkpoints.save(output, scored)
    console.print(f"AP {evaluation.metrics['AP']:.4f}  AP50 {evaluation.metrics['AP50']:.4f}: {output}")
