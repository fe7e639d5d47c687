"""An epoch's batches: from worker processes, or from a device's memory."""

import contextlib
import signal
import time
from collections.abc import Generator, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from app.artifact import Metadata
from app.cores import core_count
from app.open_files import allow_files
from model.data import Annotations, Batch, Plans, TrainingPictures, collate
from model.layout import NO_AUGMENTATION
from model.resident import ResidentBatches, ResidentPictures, largest_shown, pack
from model.sampling import CanvasBatches, canvas_indices
from model.settings import Settings


def make_loader(
    settings: Settings, annotations: Annotations, metadata: Metadata, batches: CanvasBatches, device: torch.device
) -> Iterable[Batch]:
    """The batches of an epoch, each time it is iterated over.

    Raises:
        ValueError: the pictures are to be resident, but do not fit into memory, or one cannot be decoded.
    """
    allow_files()  # a worker passes on every tensor of a batch as a file
    plans = Plans(annotations, metadata, settings.augmentation, batches.repeats)
    resident = settings.loader == "resident"
    workers = min(settings.workers, core_count())
    loader: DataLoader[Any] = DataLoader(
        plans if resident else TrainingPictures(plans, settings.train_images),
        batch_sampler=batches,
        collate_fn=pack if resident else collate,
        num_workers=workers,
        worker_init_fn=_leave_signals_to_the_parent,
        persistent_workers=workers > 0,
        pin_memory=device.type == "cuda",
    )
    if not resident:
        return loader
    largest = largest_shown(settings.augmentation, settings.zooms)
    pictures = ResidentPictures(annotations, settings.train_images, metadata, device, largest)
    return ResidentBatches(loader, pictures)


def plain_canvases(
    annotations: Annotations, images: Path, metadata: Metadata, size: int, count: int
) -> Iterator[Tensor]:
    """The pictures as they are served, uint8 [N, 3, H, W], in random order: at most `count` batches of this size, or of
    all if there are fewer."""
    size = min(size, len(annotations))
    batches = CanvasBatches(canvas_indices(annotations, metadata), metadata.canvases, size, seed=0)
    pictures = TrainingPictures(Plans(annotations, metadata, NO_AUGMENTATION), images)
    loader = DataLoader(pictures, batch_sampler=batches, collate_fn=collate)
    return (batch.images for batch in islice(loader, count))


def _leave_signals_to_the_parent(_: int) -> None:
    """They may be sent to every process of a group; a worker that obeyed would take down its parent, unsaved."""
    for name in ("SIGTERM", "SIGINT", "SIGHUP"):
        if hasattr(signal, name):  # Windows has no SIGHUP
            signal.signal(getattr(signal, name), signal.SIG_IGN)


def end_workers(loader: Iterable[Batch]) -> None:
    """Let the workers end. Python's own exit would send them SIGTERM, which they ignore, and wait for ever."""
    workers = getattr(loader.packs if isinstance(loader, ResidentBatches) else loader, "_iterator", None)
    if workers is not None:
        workers._shutdown_workers()


@contextlib.contextmanager
def naming_dead_workers() -> Generator[None]:
    """Raises: ValueError: in place of the RuntimeError that torch raises, wherever the process then is, when the system
    has ended a worker, or a worker found no shared memory for a batch."""
    try:
        yield
    except RuntimeError as error:
        if "</torch_" in str(error) and "No space left on device" in str(error):  # a batch's file there
            raise ValueError(
                "the shared memory (/dev/shm) is too small for the batches of --workers: give the container more "
                "(docker run --shm-size 2g), or choose fewer; --resume continues from the last save, if there was one"
            ) from None
        if not str(error).startswith("DataLoader worker"):
            raise
        raise ValueError(
            "the system ended a process that prepares pictures, probably for lack of memory (in a container, of "
            "/dev/shm): choose fewer --workers; --resume continues from the last save, if there was one"
        ) from None


class Feed:
    """The batches of an epoch, and the time spent waiting for them."""

    def __init__(self, loader: Iterable[Batch]) -> None:
        self.loader = iter(loader)
        self.count = 0
        self.waited_s = 0.0
        self.started = time.monotonic()

    def __next__(self) -> Batch:
        asked = time.monotonic()
        try:
            batch = next(self.loader)
        except ValueError as error:  # from a worker it comes with the worker's traceback in its text
            raise ValueError(str(error).strip().splitlines()[-1].removeprefix("ValueError: ")) from None
        self.waited_s += time.monotonic() - asked
        self.count += len(batch.pictures)
        return batch

    def speed(self, processes: int) -> dict[str, float]:
        """Pictures per second of all processes, and the share of the time spent waiting for them."""
        if not self.count:
            return {}
        elapsed = time.monotonic() - self.started
        return {"pictures_per_s": self.count * processes / elapsed, "waiting": self.waited_s / elapsed}
