"""Train the detector on your own pictures.

    python model/train.py --train-annotations data/train.json --train-images data/train \\
        --val-annotations data/val.json --val-images data/val --output runs/first
    python model/train.py --preset everyday-cpu --data data --output runs/everyday   # for two cores and some hours
    python model/train.py ... --output runs/first --resume        # resume exactly where that run stopped
    python model/train.py ... --output runs/mine --from runs/first/best.pt          # fine-tune; classes may differ
    torchrun --nproc-per-node 4 model/train.py ...                # four GPUs; --batch-size is still the total
    python -m export runs/first/best.pt --output first.onnx       # then serve it: FCOS_MODEL=first.onnx python -m app

--data and --preset stand for several of the other options, which win over them if given as well (`model/presets.py`).
Annotations are checked before any work.

The run's folder gets `config.json` (every option, the network), `last.pt` (resumable until the run is finished),
`best.pt` (highest AP on val, averaged weights), `metrics.csv` (a line per epoch), `tensorboard/`, `batches.jpg` (what
the network sees) and, with every evaluation, `metrics.json` (as `model/evaluate.py --json`); at the end
`precision_recall.png`, `confusion.png` and `predictions.jpg`. Ctrl-C or SIGTERM saves and stops; a second Ctrl-C stops
at once.
"""

import contextlib
import sys
from collections.abc import Generator
from pathlib import Path

if not __package__:  # run as a script: the repository's packages lie one level up
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    import model  # noqa: F401  it says so if torch is not installed
if __name__ == "__main__":  # before what takes seconds to import
    from app.launch import end_at_once

    end_at_once()

import torch
from rich.console import Console

from app.launch import raise_again
from model.console import plain_console
from model.distributed import Processes, started
from model.loading import end_workers, naming_dead_workers
from model.optim import keep_tensors_memory
from model.presets import read_options
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


def main() -> int:
    console = plain_console()
    try:
        settings = read_options(sys.argv[1:], __doc__)
        keep_tensors_memory()
        with started(settings.device) as processes:
            console.quiet = not processes.first
            if not train(settings, processes, console):
                print("train: stopped and saved; --resume continues from there", file=sys.stderr)
                return 130
    except MENDABLE as error:
        print(in_words(error), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("train: stopped; --resume continues from the last save, if there was one", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    raise_again()
    sys.exit(main())
