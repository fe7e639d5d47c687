"""What a run prints and writes as it goes: console, CSV, TensorBoard."""

import contextlib
import csv
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch.utils.tensorboard import SummaryWriter

from model.console import SAY_EVERY_S
from model.files import replaced


def count(number: int, one: str, more: str) -> str:
    """A number of things in words."""
    return f"{number} {one if number == 1 else more}"


class Report:
    """Writes into the run's folder: `metrics.csv`, a line per epoch, and TensorBoard's events.

    Args:
        folder: the run's; it must exist.
        step: iterations done; what an earlier process wrote beyond them is dropped.
    """

    def __init__(self, folder: Path, console: Console, step: int) -> None:
        self.csv, self.console = folder / "metrics.csv", console
        self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=step or None)

    def iteration(self, step: int, values: dict[str, float]) -> None:
        for key, value in values.items():
            self.board.add_scalar(f"iteration/{key}", value, step)

    def epoch(self, epoch: int, step: int, row: dict[str, float], per_class: dict[str, dict[str, float]]) -> None:
        """One line of the CSV, and the scalars. Epochs without an evaluation leave its columns empty.

        Args:
            step: the epoch's last iteration: as the next one's first, it would be dropped by a run resumed there.
        """
        append_csv(self.csv, {"epoch": epoch, **row})
        for key, value in row.items():
            self.board.add_scalar(f"epoch/{key}", value, step)
        for name, values in per_class.items():
            self.board.add_scalar(f"AP per class/{name}", values["AP"], step)
        self.board.flush()
        shown = {key: value for key, value in row.items() if not key.startswith(("AR", "APs", "APm", "APl"))}
        self.console.print(f"epoch {epoch}  " + "  ".join(f"{key} {value:.4g}" for key, value in shown.items()))

    def close(self) -> None:
        self.board.close()


@contextlib.contextmanager
def progress(what: str, done: int, total: int, console: Console, quiet: bool = False) -> Generator[Callable[[], None]]:
    """A bar on a terminal, a plain line now and then elsewhere. Yields a function to call after every step."""
    if quiet:
        yield lambda: None
        return
    if console.is_terminal:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task(what, completed=done, total=total)
            yield lambda: bar.advance(task)
        return
    first = done
    started = said = time.monotonic()

    def step() -> None:
        nonlocal done, said
        done += 1
        now = time.monotonic()
        if now - said > SAY_EVERY_S:
            said = now
            console.print(f"{what}: {done} of {total} iterations, {(now - started) / (done - first):.2f} s each")

    yield step


def append_csv(path: Path, row: dict[str, Any]) -> None:
    """Add a row, replacing those of its epoch and later ones, which a stopped run may have left."""
    rows: list[dict[str, Any]] = []
    if path.exists():
        with path.open(newline="") as file:
            rows = [old for old in csv.DictReader(file) if int(old["epoch"]) < row["epoch"]]
    rows.append(row)
    columns = list(dict.fromkeys(key for line in rows for key in line))
    with replaced(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
