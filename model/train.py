"""Train the detector on your own pictures.

    python model/train.py --train-annotations data/train.json --train-images data/train \
        --val-annotations data/val.json --val-images data/val --output runs/first
    python model/train.py --preset everyday-cpu --data data --output runs/everyday   # for two cores and some hours
    python model/train.py ... --output runs/first --resume        # go on where that run stopped, to the iteration
    python model/train.py ... --output runs/mine --from runs/first/best.pt          # fine-tune; classes may differ
    torchrun --nproc-per-node 4 model/train.py ...                # four GPUs; --batch-size stays that of all together
    python -m export runs/first/best.pt --output first.onnx       # then serve it: FCOS_MODEL=first.onnx python -m app

--data FOLDER stands for its train.json, train/, val.json and val/. --preset (everyday, everyday-cpu; model/presets.py)
stands for a set of options, of which those given beside it win.

Annotations are a COCO json, a folder of Pascal VOC xml, or a folder of YOLO txt; they are checked before any work.

The run's folder gets `config.json` (every option, the network), `last.pt` (resumable until the run is finished),
`best.pt` (highest AP on val, averaged weights), `metrics.csv` (a line an epoch), `tensorboard/`, `batches.jpg` (what
the network sees) and, with every evaluation, `metrics.json` (COCO's 12 numbers, AP per class); at the end
`precision_recall.png`, `confusion.png` and `predictions.jpg`. Ctrl-C or SIGTERM saves and stops; a second Ctrl-C stops
at once.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import platform
import sys
import time
from itertools import islice
from pathlib import Path
from typing import Any

if not __package__:  # run as a script: the repository's packages lie one level up
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from rich.console import Console

from app.artifact import Metadata
from model import checkpoint as checkpoints
from model import data, plots, report
from model.backbone import load_imagenet_weights
from model.checkpoint import Checkpoint
from model.checks import Problems, check_classes
from model.console import plain_console
from model.data import Annotations, Batch, CanvasBatches
from model.distributed import Processes, started
from model.evaluate import detect, torch_runner
from model.fcos import FCOS
from model.files import make_folder, write_json
from model.finetune import adopt, restate_statistics
from model.formats import Document
from model.learner import Learner
from model.loading import Feed, end_workers, make_loader
from model.optim import keep_tensors_memory
from model.presets import read_options
from model.scoring import Evaluation, Found, score
from model.settings import Settings
from model.stopping import stop_on_signals

STATISTICS_BATCHES = 12
"""From which the statistics of a start are measured."""
BOARD_EVERY = 20
"""Iterations between TensorBoard's points inside an epoch."""
SAVE_AFTER_S = 30.0
"""Since the last save, after which an epoch's end saves: beside an epoch of seconds, a save is no small thing."""
MENDABLE = (ValueError, OSError, torch.OutOfMemoryError)
"""What ends a run where the user can do something about it."""


def train(settings: Settings, processes: Processes, console: Console) -> bool:
    """One run, from the settings to the pictures of its results.

    Returns:
        Whether it came to its end; otherwise a signal stopped it.

    Raises:
        ValueError: something the user can mend: a missing file, annotations that do not fit, a loss that is not finite.
    """
    folder, device = settings.output, processes.device
    torch.manual_seed(settings.seed)
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True  # a closed set of canvases

    stopped, start = find_start(settings)
    if stopped is not None and stopped.resume is None:
        require_same_options(settings.of_the_result() | stopped.training.get("options", {}), settings)
        console.print(f"the run in {folder} is finished, with AP {stopped.metrics.get('AP', -1):.4f}")
        return True

    # data
    annotations, val_document = read_data(settings, console)
    if stopped is not None:
        check_same_run(stopped, settings, annotations)
        config, input_config = stopped.config, stopped.input_config
    else:
        config, input_config = settings.network(annotations.classes, start)
    if config.norm == "bn" and settings.batch_size == settings.accumulate * processes.count:
        raise ValueError(
            "--norm bn takes its statistics from the pictures that go through the network together, which is one: "
            "choose --norm gn, a larger --batch-size or a smaller --accumulate"
        )
    metadata = checkpoints.metadata_of(config, input_config, iou_threshold=settings.iou_threshold)
    batches = CanvasBatches(
        data.canvas_indices(annotations, metadata),
        metadata.canvases,
        settings.batch_size // settings.accumulate,
        settings.seed,
        rank=processes.rank,
        processes=processes.count,
        zooms=settings.zooms,
        repeats=data.repeat_factors(annotations, settings.repeat_thin) if settings.repeat_thin else None,
        multiple=settings.accumulate,
        plain_from=settings.epochs - settings.plain_epochs,
    )
    loader = make_loader(settings, annotations, metadata, batches, device)
    length = len(batches) // settings.accumulate  # iterations an epoch

    # model
    model = FCOS(config, input_config)
    if stopped is not None:
        origin: dict[str, Any] = {key: stopped.training[key] for key in ("start", "before") if key in stopped.training}
    elif start is not None:
        assert settings.from_ is not None
        origin = {"start": f"{_short(settings.from_)}: {adopt(model, start).describe()}", "before": start.training}
        if settings.backbone_norm == "trained":
            part = settings.batch_size // settings.accumulate // processes.count
            plain = data.plain_batches(annotations, settings.train_images, metadata, part)
            restate_statistics(model.to(device), (batch.images for batch in islice(plain, STATISTICS_BATCHES)))
    else:
        weights = load_imagenet_weights(model.backbone, config.backbone, settings.weights)
        origin = {"start": f"backbone {weights}"}
    learner = Learner(model, settings, processes, settings.epochs * length)
    position: dict[str, Any] = {"epoch": 0, "done": 0, "best": -1.0, "sums": {}}  # `done` iterations of this epoch
    if stopped is not None and stopped.resume is not None:
        learner.restore(stopped.resume, stopped.weights)
        position |= {key: stopped.resume[key] for key in position}
    run = {"options": settings.of_the_result(), "data": fingerprint(annotations)}
    saved_at = time.monotonic()

    def save(name: str, evaluation: Evaluation | None = None, resumable: bool = True) -> None:
        nonlocal saved_at
        if not processes.first:
            return
        checkpoint = Checkpoint(
            config=config,
            input_config=input_config,
            weights=learner.averaged_weights(),
            training=describe(settings, annotations, position["epoch"] + position["done"] / length, origin),
            metrics=evaluation.metrics if evaluation else {},
            score_threshold=evaluation.score_threshold if evaluation else checkpoints.SCORE_THRESHOLD,
            iou_threshold=settings.iou_threshold,
            resume=position | run | learner.state() if resumable else None,
        )
        checkpoints.save(folder / name, checkpoint)
        saved_at = time.monotonic()

    log = None
    with contextlib.ExitStack() as stack:
        stack.callback(end_workers, loader)
        stop = stack.enter_context(stop_on_signals(processes))
        if processes.first:
            make_folder(folder)
            network = {"network": config.to_dict(), "input": input_config.to_dict(), "learning-rate": settings.base_lr}
            write_json(folder / "config.json", settings.to_dict() | network)
            log = report.Report(folder, console, position["epoch"] * length + position["done"])
            stack.callback(log.close)
            console.print(
                f"{len(annotations)} pictures, {len(annotations.boxes)} boxes, {len(annotations.classes)} classes; "
                f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f} M parameters on {processes.count} x {device}, "
                f"{'float32' if learner.precision is None else str(learner.precision).removeprefix('torch.')}\n"
                f"start: {origin['start']}\nlearning rate {settings.base_lr:g} for a batch of {settings.batch_size}; "
                f"{settings.epochs} epochs of {length} iterations"
            )
            if stopped is not None:
                console.print(f"goes on after {position['done']} iterations of epoch {position['epoch'] + 1}")

        for epoch in range(position["epoch"], settings.epochs):
            position["epoch"] = epoch
            batches.start(epoch, skip=position["done"] * settings.accumulate)
            feed = Feed(loader)
            title = f"epoch {epoch + 1}/{settings.epochs}"
            with report.progress(title, position["done"], length, console, quiet=log is None) as advance:
                while position["done"] < length:
                    iteration = epoch * length + position["done"]
                    parts = [next(feed) for _ in range(settings.accumulate)]
                    if iteration == 0 and processes.first:
                        plots.draw_batch(parts[0], config.classes, folder / "batches.jpg")
                    values = step(learner, parts, iteration, annotations)
                    position["done"] += 1
                    sums = position["sums"]
                    position["sums"] = {key: sums.get(key, 0.0) + value for key, value in values.items()}
                    if log is not None and iteration % BOARD_EVERY == 0:
                        log.iteration(iteration, values | {"lr": learner.lr(iteration)})
                    advance()
                    if stop.requested():
                        save("last.pt")
                        return False
                    if (iteration + 1) % settings.save_every == 0 and position["done"] < length:
                        save("last.pt")

            row = {key: value / length for key, value in position["sums"].items()}
            row["lr"] = learner.lr((epoch + 1) * length - 1)
            row |= feed.speed(processes.count)
            evaluation = None
            if epoch + 1 == settings.epochs or (epoch + 1) % settings.evaluate_every == 0:
                save("last.pt")  # whatever happens in the evaluation, the epoch is not lost, and resuming evaluates it
                evaluation, found = evaluate(learner, metadata, val_document, settings, console)
                row |= evaluation.metrics
                if evaluation.metrics["AP"] >= position["best"] or not (folder / "best.pt").exists():
                    position["best"] = evaluation.metrics["AP"]
                    save("best.pt", evaluation, resumable=False)
                if log is not None:
                    write_json(folder / "metrics.json", evaluation.to_dict())
            if log is not None:
                log.epoch(epoch + 1, (epoch + 1) * length, row, evaluation.per_class if evaluation else {})
            position |= {"epoch": epoch + 1, "done": 0, "sums": {}}
            stopping = epoch + 1 < settings.epochs and stop.requested()
            if evaluation is not None or stopping or time.monotonic() - saved_at > SAVE_AFTER_S:
                save("last.pt", evaluation, resumable=epoch + 1 < settings.epochs)
            if stopping:
                return False

        if processes.first:
            assert evaluation is not None
            plots.draw_results(evaluation, found, val_document, settings.val_images, config.classes, folder)
            console.print(f"best AP {position['best']:.4f}: {folder / 'best.pt'}")
    return True


def find_start(settings: Settings) -> tuple[Checkpoint | None, Checkpoint | None]:
    """Where a run starts: neither is there where it is from ImageNet's weights.

    Returns:
        The run to go on with, or the weights of another to begin from: a checkpoint of ours, or torchvision's file.

    Raises:
        ValueError: the folder holds a run that this one would write over, or there is none to go on with.
    """
    folder, path = settings.output, settings.from_
    if settings.resume:
        stopped = checkpoints.load(folder / "last.pt")
        if path is not None and not stopped.training.get("start", "").startswith(f"{_short(path)}: "):
            raise ValueError(
                f"--resume goes on with the run in {folder}, which did not begin --from {path}: leave that out"
            )
        return stopped, None
    if (folder / "last.pt").exists():
        raise ValueError(f"{folder} already holds a run: add --resume, or choose another --output")
    if (folder / "best.pt").exists():
        raise ValueError(f"{folder} holds the best.pt of another run: move it, or choose another --output")
    if path is None:
        return None, None
    if path.suffix == ".pth":
        from model.torchvision_weights import load_torchvision

        return None, load_torchvision(path)
    return None, checkpoints.load(path)


def _short(path: Path) -> str:
    """A run's name and its file."""
    return "/".join(path.parts[-2:])


def read_data(settings: Settings, console: Console) -> tuple[Annotations, Document]:
    """Annotations of train, and the document of val, checked.

    Raises:
        ValueError: there is something wrong with them, and `--bad-data skip` was not given.
    """
    document, problems = data.read_checked(settings.train_annotations, settings.train_images)
    annotations = Annotations.from_document(document)
    val_document, val_problems = data.read_checked(settings.val_annotations, settings.val_images, annotations.classes)
    check_classes(annotations.classes, [category["name"] for category in val_document["categories"]], val_problems)
    _complain([problems, val_problems], settings.bad_data == "skip", console)
    if not annotations.classes or not len(annotations.boxes):
        raise ValueError(f"{settings.train_annotations} has no boxes to learn from")
    if not val_document["images"]:
        raise ValueError(f"{settings.val_annotations} has no pictures to evaluate on")
    if all(annotation["iscrowd"] for annotation in val_document["annotations"]):
        raise ValueError(f"{settings.val_annotations} has no boxes to evaluate on")
    return annotations, val_document


def _complain(sets: list[Problems], skip: bool, console: Console) -> None:
    wrong = [problems.describe(problems.errors) for problems in sets if problems.errors]
    if wrong and not skip:
        raise ValueError("\n".join([*wrong, "or let --bad-data skip leave all of it out"]))
    for text in wrong:
        console.print(f"left out: {text}")
    for problems in sets:
        if problems.warnings:
            console.print(f"note: {problems.describe(problems.warnings)}")


def require_same_options(began: dict[str, Any], settings: Settings) -> None:
    """Raises: ValueError: options differ from those that the run began with."""
    now = settings.of_the_result()
    differ = [
        f"--{key} was {began.get(key)}, is {now[key]}"
        for key in now
        if json.dumps(began.get(key)) != json.dumps(now[key])  # to which a tuple is a list, as to a checkpoint
    ]
    if differ:
        raise ValueError(
            f"--resume goes on with the options that the run began with, but {'; '.join(differ)}: "
            "give them as they were, or start another run --from this one's best.pt"
        )


def check_same_run(stopped: Checkpoint, settings: Settings, annotations: Annotations) -> None:
    """Refuse to go on with other options or other data than the run began with.

    Raises:
        ValueError: names what differs.
    """
    assert stopped.resume is not None
    if "options" not in stopped.resume:
        raise ValueError(
            f"the run in {settings.output} was begun by an older version: start another --from its best.pt"
        )
    require_same_options(stopped.resume["options"], settings)
    if stopped.resume["data"] != fingerprint(annotations):
        raise ValueError(
            f"the training data are not those that the run in {settings.output} began with: "
            "start another run --from its best.pt"
        )


def fingerprint(annotations: Annotations) -> str:
    """Of everything that is learnt from, but for the pixels."""
    parts = (annotations.file_names, annotations.sizes, annotations.starts, annotations.boxes, annotations.labels)
    digest = hashlib.sha256("\0".join(annotations.classes).encode())
    for part in parts:
        digest.update(part.tobytes())
    return digest.hexdigest()


def step(learner: Learner, parts: list[Batch], iteration: int, annotations: Annotations) -> dict[str, float]:
    """One iteration. Returns: Its losses. Raises: ValueError: They are not finite; names the pictures."""
    try:
        return learner.step(parts, iteration)
    except FloatingPointError as error:
        mine = annotations.file_names[[picture for part in parts for picture in part.pictures]].tolist()
        names = ", ".join(name for names in learner.processes.gather(mine) for name in names)
        raise ValueError(
            f"the loss or its gradient is not finite at iteration {iteration} ({error}), whose pictures were {names}: "
            "look at their boxes, or lower --lr"
        ) from None


def evaluate(
    learner: Learner, metadata: Metadata, document: Document, settings: Settings, console: Console
) -> tuple[Evaluation, Found]:
    """The averaged weights on val; every process detects on its share of the pictures."""
    processes = learner.processes
    runner = torch_runner(learner.averaged(), processes.device)
    mine = detect(runner, metadata, document, settings.val_images, console, processes.rank, processes.count)
    found = Found.join(processes.gather(mine))
    return score(found, document, metadata.classes), found


def describe(settings: Settings, annotations: Annotations, epochs: float, origin: dict[str, Any]) -> dict[str, Any]:
    """What the model file will say of its training, and of that which it began from: no path of this machine."""
    options = {key: value for key, value in settings.of_the_result().items() if key not in ("from", "weights")}
    return {
        **({"name": settings.name} if settings.name else {}),
        "pictures": len(annotations),
        "boxes": len(annotations.boxes),
        "epochs": round(epochs, 3),
        **origin,
        "options": options,
        "versions": {"torch": str(torch.__version__), "python": platform.python_version()},
    }


def in_words(error: Exception) -> str:
    """What a run says last that one of `MENDABLE` ends."""
    if isinstance(error, torch.OutOfMemoryError):
        return "train: the device's memory is full: --accumulate 2, or more, takes a batch in parts"
    return f"train: {error}"


def main() -> int:
    console = plain_console()
    try:
        settings = read_options(sys.argv[1:], __doc__)
        keep_tensors_memory()
        with started(settings.device) as processes:
            console.quiet = not processes.first
            if not train(settings, processes, console):
                print("train: stopped and saved; --resume goes on from there", file=sys.stderr)
                return 130
    except MENDABLE as error:
        print(in_words(error), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("train: stopped; --resume goes on from the last save, if there was one", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
