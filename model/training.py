"""A training run from its options to the pictures of its results, and what can end it in words."""

import contextlib
from collections.abc import Generator

import torch
from rich.console import Console

from model.distributed import Processes
from model.loading import end_workers, naming_dead_workers
from model.run import Run
from model.settings import Settings
from model.start import find_start, require_same_options
from model.stopping import stop_on_signals

MENDABLE = (ValueError, OSError, torch.OutOfMemoryError)
"""Errors that end a run and that the user can fix."""


@contextlib.contextmanager
def full_memory_as_one_error() -> Generator[None]:
    """Raises: torch.OutOfMemoryError: for a CPU's full memory, too, which torch reports as a RuntimeError."""
    try:
        yield
    except RuntimeError as error:
        if "DefaultCPUAllocator: can't allocate memory" not in str(error):
            raise
        raise torch.OutOfMemoryError(str(error)) from None


@full_memory_as_one_error()
def train(settings: Settings, processes: Processes, console: Console) -> bool:
    """One run, from the settings to the pictures of its results.

    Returns:
        Whether it came to its end; otherwise a signal stopped it.

    Raises:
        ValueError: something the user can fix: a missing file, annotations that do not fit, a loss that is not finite.
    """
    torch.manual_seed(settings.seed)
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True  # a fixed set of canvases

    stopped, start = find_start(settings)
    if stopped is not None and stopped.resume is None:
        same = settings.settled(stopped)
        require_same_options(same.of_the_result() | stopped.options, same)
        console.print(f"the run in {settings.output} is finished, with AP {stopped.metrics.get('AP', -1):.4f}")
        return True
    run = Run(settings, processes, console, stopped, start)
    with contextlib.ExitStack() as stack:
        stack.enter_context(naming_dead_workers())
        stack.callback(end_workers, run.loader)
        stop = stack.enter_context(stop_on_signals(processes))
        log = run.open_folder()
        if log is not None:
            stack.callback(log.close)
        while run.position.epoch < settings.epochs:
            if not run.train_epoch(stop, log):
                return False
    return True


def in_words(error: Exception) -> str:
    """The last message of a run that one of `MENDABLE` ends."""
    if isinstance(error, torch.OutOfMemoryError):
        return "train: the device's memory is full: --accumulate 2, or more, splits a batch into parts"
    return f"train: {error}"
