"""A training run: what it learns with and from, how far it has got, and its saves."""

import dataclasses
import platform
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console

from app.artifact import Metadata
from model import checkpoint as checkpoints
from model import plots, report
from model.backbone import load_imagenet_weights
from model.checkpoint import Checkpoint
from model.coco import Document
from model.config import SCORE_THRESHOLD
from model.console import waiting
from model.data import Annotations, Batch
from model.distributed import Processes
from model.evaluation import detect, torch_runner
from model.fcos import FCOS
from model.files import make_folder, write_json
from model.finetune import adopt, restate_statistics
from model.learner import Learner
from model.loading import Feed, make_loader, plain_canvases
from model.sampling import CanvasBatches, canvas_indices, epoch_draws
from model.scoring import Evaluation, Found, score
from model.settings import Settings
from model.start import fingerprint, read_data, require_same_run, short_name
from model.stopping import Stop

STATISTICS_BATCHES = 12
"""To measure BatchNorm's statistics on at the start."""
BOARD_EVERY = 20
"""Iterations between TensorBoard's points within an epoch."""
SAVE_AFTER_S = 30.0
"""Since the last save, before an epoch's end saves again: if epochs take seconds, a save is expensive."""


@dataclasses.dataclass
class Position:
    """How far a run has got."""

    epoch: int = 0
    """Finished epochs."""
    done: int = 0
    """Finished iterations of the next epoch."""
    best: float = -1.0
    """The highest AP on val."""
    sums: dict[str, float] = dataclasses.field(default_factory=dict)
    """Of this epoch's losses so far."""


class Run:
    """What a run works with, and its steps: an epoch, an evaluation, a save.

    Args:
        stopped: the run to resume.
        start: the weights to start from. With neither, the backbone starts from ImageNet's.

    Attributes:
        length: iterations per epoch.

    Raises:
        ValueError: something that the user can fix: a missing file, annotations or options that do not fit.
    """

    def __init__(
        self,
        settings: Settings,
        processes: Processes,
        console: Console,
        stopped: Checkpoint | None,
        start: Checkpoint | None,
    ) -> None:
        settings = settings.settled(stopped or start)
        assert settings.iou_threshold is not None
        self.settings, self.processes, self.console = settings, processes, console
        with waiting("reading and checking the data", console):
            self.annotations, self.val_document = read_data(settings, console)
        if stopped is None:
            self.config, self.input_config = settings.network(self.annotations.classes, start)
        else:
            require_same_run(stopped, settings, self.annotations)
            self.config, self.input_config = stopped.config, stopped.input_config
        self._require_several_pictures()
        self.metadata = checkpoints.metadata_of(self.config, self.input_config, iou_threshold=settings.iou_threshold)
        repeats, self._times = epoch_draws(self.annotations, settings)
        self.batches = self._batches(repeats * self._times)
        with waiting("preparing the pictures", console):  # those of a resident loader are all decoded
            self.loader = make_loader(settings, self.annotations, self.metadata, self.batches, processes.device)
        self.length = len(self.batches) // settings.accumulate

        model = FCOS(self.config, self.input_config)
        self._origin = _origin_of(stopped) if stopped is not None else self._begin(model, start)
        self.learner = Learner(model, settings, processes, settings.epochs * self.length)
        self.position = Position()
        if stopped is not None:
            self._resume(stopped)
        self._same = {"options": settings.of_the_result(), "data": fingerprint(self.annotations)}
        self._saved_at = time.monotonic()

    def _require_several_pictures(self) -> None:
        """Raises: ValueError: BatchNorm would have a single picture to take its statistics from."""
        settings = self.settings
        if self.config.norm == "bn" and settings.batch_size == settings.accumulate * self.processes.count:
            raise ValueError(
                "--norm bn takes its statistics from the pictures that go through the network together, here only one: "
                "choose --norm gn, a larger --batch-size or a smaller --accumulate"
            )

    def _batches(self, repeats: NDArray[np.float64]) -> CanvasBatches:
        settings = self.settings
        return CanvasBatches(
            canvas_indices(self.annotations, self.metadata),
            self.metadata.canvases,
            settings.batch_size // settings.accumulate,
            settings.seed,
            rank=self.processes.rank,
            processes=self.processes.count,
            zooms=settings.zooms,
            repeats=repeats,
            multiple=settings.accumulate,
            plain_from=settings.epochs - settings.plain_epochs,
        )

    def _begin(self, model: FCOS, start: Checkpoint | None) -> dict[str, Any]:
        """Give a network its initial weights. Returns: What the model file will say about them."""
        settings = self.settings
        if start is None:
            weights = load_imagenet_weights(model.backbone, self.config.backbone, settings.weights)
            return {"start": f"backbone {weights}"}
        assert settings.from_ is not None
        adopted = adopt(model, start)
        if settings.backbone_norm == "trained":
            part = settings.batch_size // settings.accumulate // self.processes.count
            canvases = plain_canvases(self.annotations, settings.train_images, self.metadata, part, STATISTICS_BATCHES)
            restate_statistics(model.to(self.processes.device), canvases)
        return {"start": f"{short_name(settings.from_)}: {adopted.describe()}", "before": start.training}

    def _resume(self, stopped: Checkpoint) -> None:
        """Continue where a run stopped."""
        assert stopped.resume is not None
        self.learner.restore(stopped.resume, stopped.weights)
        names = (field.name for field in dataclasses.fields(Position))
        self.position = Position(**{name: stopped.resume[name] for name in names})

    @property
    def iteration(self) -> int:
        """The number of the next iteration in the whole run."""
        return self.position.epoch * self.length + self.position.done

    def describe(self) -> str:
        """What is about to be done, in words."""
        learner, settings = self.learner, self.settings
        objective = learner.objective
        millions = sum(p.numel() for p in learner.model.parameters()) / 1e6
        precision = "float32" if learner.precision is None else str(learner.precision).removeprefix("torch.")
        counts = [
            report.count(len(self.annotations), "picture", "pictures"),
            report.count(len(self.annotations.boxes), "box", "boxes"),
            report.count(len(self.annotations.classes), "class", "classes"),
        ]
        lines = [
            f"{', '.join(counts)}; {millions:.1f} M parameters on {self.processes.count} x {self.processes.device}, "
            f"{precision}",
            f"start: {self._origin['start']}",
            f"learns: the centerness output {objective.quality}, points assigned by {objective.assignment}",
            f"learning rate {settings.base_lr:g} for a batch of {settings.batch_size}; {settings.epochs} epochs of "
            f"{self.length} iterations",
        ]
        if settings.plain_epochs >= settings.epochs:
            lines.append("every epoch is plain: no augmentation but the flip, and no --zooms (--plain-epochs)")
        if self._times > 1:
            lines.append(f"few pictures: an epoch goes through them {self._times:.1f} times (--epoch-iterations)")
        if self.iteration:
            lines.append(f"resumes after {self.position.done} iterations of epoch {self.position.epoch + 1}")
        return "\n".join(lines)

    def open_folder(self) -> report.Report | None:
        """Make the run's folder and say what is about to be done; only in the first process."""
        if not self.processes.first:
            return None
        folder = self.settings.output
        make_folder(folder)
        self._require_disk(folder)
        network = {"network": self.config.to_dict(), "input": self.input_config.to_dict()}
        write_json(folder / "config.json", self.settings.to_dict() | network | {"learning-rate": self.settings.base_lr})
        log = report.Report(folder, self.console, self.iteration)
        self.console.print(self.describe())
        return log

    def _require_disk(self, folder: Path) -> None:
        """Raises: ValueError: there is no room for the checkpoints; better now than at the end of the first epoch."""
        # Of best.pt the weights; of last.pt these, averaged ones and AdamW's two moments, twice while it is replaced.
        needed = 9 * 4 * sum(parameter.numel() for parameter in self.learner.model.parameters())
        free = shutil.disk_usage(folder).free
        if free < needed:
            raise ValueError(
                f"the checkpoints take about {needed / 1e6:.0f} MB, but {folder} has {free / 1e6:.0f} MB free: "
                "make room, or choose another --output"
            )

    def train_epoch(self, stop: Stop, log: report.Report | None) -> bool:
        """Train to the end of the epoch, and evaluate if that is due. Returns: Whether no signal asked to stop."""
        settings, position = self.settings, self.position
        self.batches.start(position.epoch, skip=position.done * settings.accumulate)
        feed = Feed(self.loader)
        title = f"epoch {position.epoch + 1}/{settings.epochs}"
        with report.progress(title, position.done, self.length, self.console, quiet=log is None) as advance:
            while position.done < self.length:
                self._iterate(feed, log)
                advance()
                if stop.requested():
                    self.save("last.pt")
                    return False
                if self.iteration % settings.save_every == 0 and position.done < self.length:
                    self.save("last.pt")
        return self._end_epoch(feed.speed(self.processes.count), stop, log)

    def _iterate(self, feed: Feed, log: report.Report | None) -> None:
        iteration, position = self.iteration, self.position
        parts = [next(feed) for _ in range(self.settings.accumulate)]
        if iteration == 0 and self.processes.first:
            plots.draw_batch(parts[0], self.config.classes, self.settings.output / "batches.jpg")
        values = step(self.learner, parts, iteration, self.annotations)
        position.done += 1
        position.sums = {key: position.sums.get(key, 0.0) + value for key, value in values.items()}
        if log is not None and iteration % BOARD_EVERY == 0:
            log.iteration(iteration, values | {"lr": self.learner.lr(iteration)})

    def _end_epoch(self, speed: dict[str, float], stop: Stop, log: report.Report | None) -> bool:
        settings, position, folder = self.settings, self.position, self.settings.output
        number = position.epoch + 1
        last = number == settings.epochs
        row = {key: value / self.length for key, value in position.sums.items()}
        row |= {"lr": self.learner.lr(self.iteration - 1)} | speed
        evaluation = None
        if last or number % settings.evaluate_every == 0:
            self.save("last.pt")  # should the evaluation fail, the epoch is not lost, and resuming evaluates it
            evaluation, found = evaluate_on_val(self.learner, self.metadata, self.val_document, settings, self.console)
            row |= evaluation.metrics
            if evaluation.metrics["AP"] >= position.best or not (folder / "best.pt").exists():
                position.best = evaluation.metrics["AP"]
                self.save("best.pt", evaluation, resumable=False)
            if log is not None:
                write_json(folder / "metrics.json", evaluation.to_dict())
        if log is not None:
            log.epoch(number, self.iteration - 1, row, evaluation.per_class if evaluation else {})
        position.epoch, position.done, position.sums = number, 0, {}
        stopping = not last and stop.requested()
        if evaluation is not None or stopping or time.monotonic() - self._saved_at > SAVE_AFTER_S:
            self.save("last.pt", evaluation, resumable=not last)
        if last and log is not None:
            assert evaluation is not None
            images, classes = settings.scored_images, self.config.classes
            plots.draw_results(evaluation, found, self.val_document, images, classes, folder)
            self.console.print(f"best AP {position.best:.4f}: {folder / 'best.pt'}")
        return not stopping

    def save(self, name: str, evaluation: Evaluation | None = None, resumable: bool = True) -> None:
        """Write a checkpoint into the run's folder; only in the first process."""
        if not self.processes.first:
            return
        epochs = self.position.epoch + self.position.done / self.length
        state = dataclasses.asdict(self.position) | self._same | self.learner.state() if resumable else None
        checkpoint = Checkpoint(
            config=self.config,
            input_config=self.input_config,
            weights=self.learner.averaged_weights(),
            training=provenance(self.settings, self.annotations, epochs, self._origin),
            metrics=evaluation.metrics if evaluation else {},
            score_threshold=evaluation.score_threshold if evaluation else SCORE_THRESHOLD,
            iou_threshold=self.metadata.defaults.iou_threshold,
            resume=state,
        )
        checkpoints.save(self.settings.output / name, checkpoint)
        self._saved_at = time.monotonic()


def _origin_of(stopped: Checkpoint) -> dict[str, Any]:
    """What a stopped run's model file says about its initial weights."""
    return {key: stopped.training[key] for key in ("start", "before") if key in stopped.training}


def step(learner: Learner, parts: list[Batch], iteration: int, annotations: Annotations) -> dict[str, float]:
    """One iteration. Returns: Its losses. Raises: ValueError: they are not finite; the message names the pictures."""
    try:
        return learner.step(parts, iteration)
    except FloatingPointError as error:
        mine = annotations.file_names[[picture for part in parts for picture in part.pictures]].tolist()
        names = ", ".join(name for names in learner.processes.gather(mine) for name in names)
        raise ValueError(
            f"the loss or its gradient is not finite at iteration {iteration} ({error}), with the pictures {names}: "
            "check their boxes, or lower --lr"
        ) from None


def evaluate_on_val(
    learner: Learner, metadata: Metadata, document: Document, settings: Settings, console: Console
) -> tuple[Evaluation, Found]:
    """The averaged weights on val; every process detects on its share of the pictures."""
    processes = learner.processes
    runner = torch_runner(learner.averaged(), processes.device)
    mine = detect(runner, metadata, document, settings.scored_images, console, processes.rank, processes.count)
    found = Found.join(processes.gather(mine))
    return score(found, document, metadata.classes), found


def provenance(settings: Settings, annotations: Annotations, epochs: float, origin: dict[str, Any]) -> dict[str, Any]:
    """What the model file will say about its training and what it started from, without paths of this machine."""
    options = {key: value for key, value in settings.of_the_result().items() if key != "weights"}
    return {
        **({"name": settings.name} if settings.name else {}),
        "pictures": len(annotations),
        "boxes": len(annotations.boxes),
        "epochs": round(epochs, 3),
        **origin,
        "options": options,
        "versions": {"torch": str(torch.__version__), "python": platform.python_version()},
    }
