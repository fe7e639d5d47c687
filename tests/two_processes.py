"""One batch, whole, in parts, or shared out among processes."""

import os
import signal
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model.checkpoint import metadata_of
from model.data import Batch, Plans, TrainingPictures, collate
from model.distributed import Processes, started
from model.fcos import FCOS
from model.learner import Learner
from model.optim import train_mode
from model.sampling import CanvasBatches, canvas_indices
from model.stopping import stop_on_signals
from tests.toy import Data, read_annotations, settings


def prepared(data: Data, processes: Processes, accumulate: int = 1, **changes: Any) -> tuple[Learner, list[Batch]]:
    """A learner, and its process's share of a batch of eight pictures, in parts."""
    options = settings(data, Path("nowhere"), batch_size=8, accumulate=accumulate, **changes)
    annotations = read_annotations(*data)
    config, input_config = options.network(annotations.classes, None)
    metadata = metadata_of(config, input_config)
    batches = CanvasBatches(
        canvas_indices(annotations, metadata),
        metadata.canvases,
        8,
        options.seed,
        rank=processes.rank,
        processes=processes.count,
    )
    pictures = TrainingPictures(Plans(annotations, metadata, options.augmentation), data[1])
    torch.manual_seed(0)
    model = FCOS(config, input_config)
    learner = Learner(model, options, processes, 1)
    draws = list(next(iter(batches)))
    size = len(draws) // accumulate
    parts = [collate([pictures[draw] for draw in draws[first : first + size]]) for first in range(0, len(draws), size)]
    return learner, parts


def gradients(data: Data, processes: Processes, accumulate: int = 1) -> dict[str, Tensor]:
    """The losses, and the gradient of every parameter, after a batch."""
    learner, parts = prepared(data, processes, accumulate, backbone_norm="frozen", amp="off")
    train_mode(learner.model, learner.settings)
    losses = learner.backward(parts)
    found = {f"loss.{key}": value for key, value in losses.items()}
    return found | {key: p.grad.clone() for key, p in learner.model.named_parameters() if p.grad is not None}


def statistics(learner: Learner) -> Tensor:
    """What BatchNorm's averaged statistics are."""
    return torch.cat([value.flatten() for key, value in learner.averaged_weights().items() if "running" in key])


def share(data: Data, out: Path, as_torchrun: dict[str, str]) -> None:
    """What one of the processes does.

    Args:
        out: where the first one saves the losses and gradients, and of every process BatchNorm's statistics, what it
            draws, and whether it stops at a signal that the second one got.
        as_torchrun: the variables that torchrun would set for it.
    """
    os.environ.update(as_torchrun)
    with started("cpu") as processes:
        found: dict[str, Any] = {"gradients": gradients(data, processes, accumulate=2)}
        learner, parts = prepared(data, processes, norm="bn")
        learner.step(parts, 0)
        found["drawn"] = processes.gather(torch.rand(8))
        own = statistics(learner)
        learner.averaged()
        found["statistics"] = processes.gather((own, statistics(learner)))
        with stop_on_signals(processes) as stop:
            if not processes.first:
                signal.raise_signal(signal.SIGTERM)
            found["stops"] = processes.gather(stop.requested())
        if processes.first:
            torch.save(found, out)
