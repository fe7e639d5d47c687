"""Recipes for the everyday model, compared within a time limit, and the chosen one trained in full.

    python -m model.recipes --data data --output runs/recipes --minutes 9 --at-once 3
    python -m model.recipes --data data --output runs/recipes --minutes 9 --only base fcos --epochs 30
    python -m model.recipes --data data --output runs/final --minutes 9 --final base

A recipe is the preset `everyday` with some options changed. Each is trained on nine tenths of train, the same for all,
and scored on the held-out tenth; val is not used, so that nothing is chosen by it. `recipes.json` in the output gets a
row as each recipe ends: one cut off at the limit gets a row, too, and can be resumed; one that failed says why.

--final trains on all of train, scores once on val, and writes `final.pt`, with convolutions in fp16: `python -m export`
takes it like any other checkpoint. It trains for as many epochs as fit into --minutes, at most the preset's, so that
its learning rate comes down in time: a rehearsal of two epochs measures how many fit, and fails early if the run would.
"""

import argparse
import csv
import dataclasses
import json
import multiprocessing
import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from model import checkpoint as checkpoints
from model.coco import hold_out
from model.console import plain_console
from model.data import Annotations, read_usable
from model.distributed import started
from model.files import write_json
from model.layout import Augmentation
from model.presets import PRESETS, data_folder
from model.sampling import epoch_draws
from model.settings import HELD_OUT, Settings
from model.training import MENDABLE, in_words, train

EVERYDAY = PRESETS["everyday"]
AUGMENTATION: Augmentation = EVERYDAY["augmentation"]
# Overfitting takes longer than a comparison: its 40 epochs cannot show what prevents it in 200. Of two recipes that
# score alike in it, the one that regularises more is the better.
RECIPES: dict[str, dict[str, Any]] = {
    "base": {},
    "mild": {"augmentation": Augmentation(scale=(0.5, 2.0), color=0.3, hue=0.02, mosaic=0.5)},
    "frozen": {"freeze": "c3", "backbone_norm": "frozen"},
    "decay": {"weight_decay": 0.15},
    "fast-backbone": {"backbone_lr_factor": 0.2},
    "no-mosaic": {"augmentation": dataclasses.replace(AUGMENTATION, mosaic=0.0)},
    "small": {"size": 416},
    "fcos": {"assignment": "fcos"},
}
SHORT_EPOCHS = 40
"""In a comparison."""
PLAIN_SHARE = EVERYDAY["plain_epochs"] / EVERYDAY["epochs"]
"""Share of the epochs, at the end."""
REHEARSAL_EPOCHS = 2
SPARE = 1.1
"""Factor on an epoch's time in the rehearsal: saves come on top, and the machine may slow down."""
SAVING_S = 20.0
"""How long a run that is told to stop may take to save itself."""
REFUSED = 2
"""Exit code of a run that has said why it failed."""
STOPPED = 130
"""Exit code of a run that somebody else's signal stopped."""


def split(folder: Path, output: Path, console: Console) -> dict[str, Path]:
    """Write nine tenths of train's annotations, and the other tenth. Returns: Paths for `Settings`."""
    whole = data_folder(folder)
    document = read_usable(whole["train_annotations"], whole["train_images"], (), console.print)
    output.mkdir(parents=True, exist_ok=True)
    paths = {"train_images": whole["train_images"], "val_images": whole["train_images"]}
    for part, chosen in zip(("train", "val"), hold_out(document, HELD_OUT), strict=True):
        paths[f"{part}_annotations"] = output / f"{part}.json"
        write_json(output / f"{part}.json", chosen)
    return paths


def settings_of(recipe: str, epochs: int | None = None, **more: Any) -> Settings:
    """The preset, changed by a recipe; if `epochs` is given, plain epochs keep their share."""
    values = EVERYDAY | RECIPES[recipe] | more
    if epochs is not None:
        values |= {"epochs": epochs, "plain_epochs": round(epochs * PLAIN_SHARE), "evaluate_every": epochs}
    return Settings(**values)


def run(settings: Settings, until: float) -> dict[str, Any]:
    """Train in a separate process, which is told to stop at a given time. Returns: What is known of the run by then.

    Args:
        until: seconds of `time.monotonic`.
    """
    began = time.monotonic()
    process = multiprocessing.get_context("spawn").Process(target=_train, args=(settings,))
    process.start()
    process.join(max(until - time.monotonic(), 0.0))
    state = {None: "cut off", STOPPED: "cut off", 0: "finished"}.get(process.exitcode, "failed")
    if process.is_alive():
        process.terminate()  # SIGTERM: it saves what it has
        process.join(SAVING_S)
        process.kill()
    row: dict[str, Any] = {"state": state, "seconds": round(time.monotonic() - began, 1), "run": settings.output.name}
    if state == "failed":
        row["why"] = _last_words(_log(settings)) if process.exitcode == REFUSED else f"exit code {process.exitcode}"
    lines = _lines(settings.output / "metrics.csv")
    if lines:
        row["epochs"] = int(lines[-1]["epoch"])
        # An epoch that was resumed only for its evaluation has no speed.
        speeds = [float(line["pictures_per_s"]) for line in lines if line.get("pictures_per_s")]
        row["pictures_per_s"] = round(float(np.median(speeds)), 1) if speeds else None
    if state == "finished":
        row |= {key: round(float(lines[-1][key]), 4) for key in ("AP", "AP50")}
    return row


def _train(settings: Settings) -> None:
    settings.output.parent.mkdir(parents=True, exist_ok=True)
    with _log(settings).open("a", encoding="utf-8", errors="backslashreplace") as log:
        console = plain_console(log)
        try:
            with started(settings.device) as processes:
                if not train(settings, processes, console):
                    sys.exit(STOPPED)
        except MENDABLE as error:
            console.print(in_words(error))
            sys.exit(REFUSED)


def _log(settings: Settings) -> Path:
    return settings.output.with_suffix(".log")


def _last_words(log: Path) -> str:
    return f"\n{log.read_text('utf-8')}".rpartition("\ntrain: ")[2].strip()


def _begun(folder: Path) -> bool:
    return (folder / "last.pt").exists()


def _lines(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def compare(options: argparse.Namespace, until: float, console: Console) -> bool:
    """Run the recipes, with a row for each in `recipes.json`. Returns: Whether none failed."""
    paths = split(options.data, options.output / "split", console)
    rows: list[dict[str, Any]] = []

    def one(recipe: str) -> dict[str, Any]:
        if time.monotonic() > until:
            return {}
        folder = options.output / recipe
        epochs = options.epochs or SHORT_EPOCHS
        settings = settings_of(recipe, epochs, **paths, output=folder, resume=_begun(folder), **options.more)
        return {"recipe": recipe} | run(settings, until)

    pool = ThreadPoolExecutor(options.at_once)
    try:
        for done in as_completed([pool.submit(one, recipe) for recipe in options.only]):
            if row := done.result():
                rows.append(row)
                write_json(options.output / "recipes.json", rows)
                console.print("  ".join(f"{key} {value}" for key, value in row.items()))
    finally:
        pool.shutdown(cancel_futures=True)  # after Ctrl-C none is begun
    return all(row["state"] != "failed" for row in rows)


def finish(options: argparse.Namespace, until: float, console: Console) -> bool:
    """Train a recipe on all of train, and write its small checkpoint. Returns: Whether it did not fail.

    Raises:
        ValueError: there is no time for it, or its rehearsal failed.
    """
    folder = options.output / f"final-{options.final}"
    begun = _begun(folder)
    more = data_folder(options.data) | {"output": folder, "resume": begun, "from_": options.start} | options.more
    epochs = options.epochs
    if epochs is None and begun:
        epochs = int(checkpoints.load(folder / "last.pt").options["epochs"])
    elif epochs is None:
        epochs = _epochs_in_time(settings_of(options.final, **more), until, console)
    row = run(settings_of(options.final, epochs, **more), until)
    console.print("  ".join(f"{key} {value}" for key, value in row.items()))
    if row["state"] == "failed":
        return False
    last = folder / ("best.pt" if row["state"] == "finished" else "last.pt")
    if last.exists():
        checkpoint = checkpoints.load(last)
        checkpoints.save(options.output / "final.pt", checkpoint.small())
        write_json(options.output / "final.json", row | {"metrics": checkpoint.metrics})
    return True


def _epochs_in_time(settings: Settings, until: float, console: Console) -> int:
    """How many epochs of a run end before a given time, at most its own: a rehearsal measures it.

    Raises:
        ValueError: not even one does, or the rehearsal failed.
    """
    rehearsal = dataclasses.replace(
        settings,
        output=settings.output.with_name("rehearsal"),
        epochs=REHEARSAL_EPOCHS,
        plain_epochs=0,
        evaluate_every=REHEARSAL_EPOCHS,
    )
    shutil.rmtree(rehearsal.output, ignore_errors=True)
    row = run(rehearsal, until)
    if row["state"] != "finished":
        why = row.get("why", "give more --minutes")
        raise ValueError(f"rehearsal {row['state']} after {row['seconds']} s: {why}")
    document = read_usable(settings.train_annotations, settings.train_images, (), lambda _: None)
    if settings.val_annotations is None:
        document, _ = hold_out(document, settings.val_fraction)
    repeats, times = epoch_draws(Annotations.from_document(document), settings)
    speed = float(_lines(rehearsal.output / "metrics.csv")[-1]["pictures_per_s"])  # the first epoch's is not typical
    epoch_s = times * float(repeats.sum()) / speed
    rest_s = row["seconds"] - REHEARSAL_EPOCHS * epoch_s  # start, pictures into memory, evaluation: as in the run
    epochs = min(settings.epochs, int((until - time.monotonic() - rest_s) / (SPARE * epoch_s)))
    if epochs < 1:
        raise ValueError(f"an epoch takes {epoch_s:.0f} s, the rest {rest_s:.0f} s: give more --minutes")
    console.print(f"{epochs} epochs: one takes {epoch_s:.1f} s ({speed:.0f} pictures/s), the rest {rest_s:.0f} s")
    return epochs


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a folder, as for model/train.py")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=9.0, help="after which running recipes are told to stop")
    parser.add_argument("--only", nargs="+", choices=RECIPES, default=list(RECIPES), help="recipes in this order")
    parser.add_argument("--at-once", type=int, default=1, help="how many recipes share the device")
    parser.add_argument("--epochs", type=int, help=f"of each (default: {SHORT_EPOCHS}; with --final, what fits)")
    parser.add_argument("--final", choices=RECIPES, help="train this one in full; repeat to resume where it stopped")
    parser.add_argument("--from", dest="start", type=Path, help="with --final: a checkpoint to start from")
    parser.add_argument("--more", type=json.loads, default={}, help="options for all, as JSON: '{\"batch_size\": 128}'")
    options = parser.parse_args()
    console = plain_console()
    if options.minutes * 60 <= SAVING_S:
        parser.error(f"--minutes must be more than the {SAVING_S / 60:.2f} that saving may take")
    if options.start and not options.final:
        parser.error(
            "--from needs --final: a comparison's held-out pictures may be among those the checkpoint has learnt"
        )
    until = time.monotonic() + options.minutes * 60 - SAVING_S
    try:
        fine = (finish if options.final else compare)(options, until, console)
    except (ValueError, TypeError, OSError) as error:
        print(f"recipes: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
