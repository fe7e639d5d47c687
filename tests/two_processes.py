"""The gradient of one batch: whole, in parts, or shared out: `torchrun tests/two_processes.py DATA OUT`.

DATA: the folder of toy data. OUT: where the first process saves the losses and gradients.
"""

import sys
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from torch import Tensor

from model.checkpoint import metadata_of
from model.data import CanvasBatches, Plans, TrainingPictures, canvas_indices, collate
from model.distributed import Processes, started
from model.fcos import FCOS
from model.learner import Learner
from model.optim import train_mode
from tests.toy import read_annotations, settings


def gradients(data: tuple[Path, Path], processes: Processes, accumulate: int = 1) -> dict[str, Tensor]:
    """The losses, and the gradient of every parameter, after a batch of eight pictures."""
    options = settings(data, Path("nowhere"), batch_size=8, backbone_norm="frozen", accumulate=accumulate)
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
    train_mode(model, options)
    draws = list(next(iter(batches)))
    size = len(draws) // accumulate
    parts = [collate([pictures[draw] for draw in draws[first : first + size]]) for first in range(0, len(draws), size)]
    losses = learner.backward(parts)
    found = {f"loss.{key}": value for key, value in losses.items()}
    return found | {key: p.grad.clone() for key, p in model.named_parameters() if p.grad is not None}


def main() -> None:
    folder, out = Path(sys.argv[1]), Path(sys.argv[2])
    with started("cpu") as processes:
        found = gradients((folder / "boxes.json", folder / "pictures"), processes, accumulate=2)
        if processes.first:
            torch.save(found, out)


if __name__ == "__main__":
    main()
