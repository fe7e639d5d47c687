"""Where a run starts: its data, its initial weights, and whether a run to resume is the same."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from rich.console import Console

from model import checkpoint as checkpoints
from model.checkpoint import Checkpoint
from model.checks import check_classes
from model.coco import Document, box_count, hold_out
from model.data import Annotations, read_checked
from model.problems import Problems
from model.settings import PATHS, Settings
from model.torchvision_weights import load_torchvision


def find_start(settings: Settings) -> tuple[Checkpoint | None, Checkpoint | None]:
    """What a run starts from; if that is ImageNet's weights, both are None.

    Returns:
        The run to resume, or another one's weights to start from: a checkpoint of this project, or torchvision's file.

    Raises:
        ValueError: the folder holds a run that this one would overwrite, or none to resume.
    """
    folder, path = settings.output, settings.from_
    if settings.resume:
        stopped = checkpoints.load(folder / "last.pt")
        if path is not None and not stopped.training.get("start", "").startswith(f"{short_name(path)}: "):
            raise ValueError(
                f"--resume continues the run in {folder}, which did not begin --from {path}: leave --from out"
            )
        return stopped, None
    if (folder / "last.pt").exists():
        raise ValueError(f"{folder} already holds a run: add --resume, or choose another --output")
    if (folder / "best.pt").exists():
        raise ValueError(f"{folder} holds the best.pt of another run: move it, or choose another --output")
    if path is None:
        return None, None
    if path.suffix == ".pth":
        return None, load_torchvision(path)
    return None, checkpoints.load(path)


def short_name(path: Path) -> str:
    """A run's name and its file, however the path is written; what is not UTF-8 is replaced, as JSON could not hold
    it."""
    return os.fsencode("/".join(path.absolute().parts[-2:])).decode("utf-8", "replace")


def read_data(settings: Settings, console: Console) -> tuple[Annotations, Document]:
    """Train's annotations and val's document, checked.

    Raises:
        ValueError: there is something wrong with them, and `--bad-data skip` was not given.
    """
    document, problems = read_checked(settings.train_annotations, settings.train_images)
    if settings.val_annotations is None:
        _complain([problems], settings.bad_data == "skip", console)
        document, val_document = _held_out(document, settings, console)
        return Annotations.from_document(document), val_document
    assert settings.val_images is not None
    annotations = Annotations.from_document(document)
    val_document, val_problems = read_checked(settings.val_annotations, settings.val_images, annotations.classes)
    check_classes(annotations.classes, [category["name"] for category in val_document["categories"]], val_problems)
    _complain([problems, val_problems], settings.bad_data == "skip", console)
    _require_boxes(document, settings.train_annotations, "learn from")
    if not val_document["images"]:
        raise ValueError(f"{settings.val_annotations} has no pictures to evaluate on")
    _require_boxes(val_document, settings.val_annotations, "evaluate on")
    if settings.train_images.resolve() == settings.val_images.resolve():
        shared = set(annotations.file_names.tolist()) & {image["file_name"] for image in val_document["images"]}
        if shared:
            console.print(f"note: {len(shared)} pictures of val are trained on: AP will look better than it is")
    return annotations, val_document


def _held_out(document: Document, settings: Settings, console: Console) -> tuple[Document, Document]:
    """Train's document without the pictures to evaluate on, and one of these, where there is no val.

    Raises:
        ValueError: one of them has no boxes.
    """
    _require_boxes(document, settings.train_annotations, "learn from")
    learnt, held = hold_out(document, settings.val_fraction)
    share = f"{len(held['images'])} of {len(document['images'])} pictures"
    if not box_count(learnt) or not box_count(held):
        raise ValueError(
            f"holding out {share} leaves no boxes to {'evaluate on' if box_count(learnt) else 'learn from'}: "
            "choose another --val-fraction, or give --val-annotations and --val-images"
        )
    console.print(
        f"note: {share} are held out to evaluate on (--val-fraction). If they are near-copies of others, such as "
        "frames of the same film, AP will look better than it is: then give --val-annotations and --val-images"
    )
    return learnt, held


def _require_boxes(document: Document, source: Path, purpose: str) -> None:
    if not box_count(document):
        raise ValueError(f"{source} has no boxes to {purpose}")


def _complain(sets: list[Problems], skip: bool, console: Console) -> None:
    wrong = [problems.describe(problems.errors) for problems in sets if problems.errors]
    if wrong and not skip:
        raise ValueError("\n".join([*wrong, "or pass --bad-data skip to leave them out"]))
    for text in wrong:
        console.print(f"left out: {text}")
    if any(problems.objects_lost for problems in sets):
        console.print("note: what left-out annotations show counts as background in the pictures that stay")
    for problems in sets:
        if problems.warnings:
            console.print(f"note: {problems.describe(problems.warnings)}")


def require_same_options(began: dict[str, Any], settings: Settings) -> None:
    """Raises: ValueError: options differ from those that the run began with."""
    # An option that did not exist then gets the value that acts like its absence: the default, except epoch_iterations.
    before: dict[str, Any] = dict.fromkeys(PATHS, Path()) | {"epoch_iterations": 0}
    then, now = _flat(Settings(**before).of_the_result()) | _flat(began), _flat(settings.of_the_result())
    differ = [f"--{key} was {then[key]}, is {now[key]}" for key in now if then[key] != now[key]]
    if differ:
        raise ValueError(
            f"--resume keeps the options that the run began with, but {'; '.join(differ)}: "
            "give them as they were, or start another run --from this one's best.pt"
        )


def _flat(options: dict[str, Any]) -> dict[str, Any]:
    """Options by their names on the command line, as a checkpoint has them, in which a tuple is a list."""
    flat: dict[str, Any] = {}
    for key, value in json.loads(json.dumps(options)).items():
        flat |= {f"{key}.{part}": one for part, one in value.items()} if isinstance(value, dict) else {key: value}
    return flat


def require_same_run(stopped: Checkpoint, settings: Settings, annotations: Annotations) -> None:
    """Refuse to resume with other options or other data than the run began with.

    Raises:
        ValueError: they differ; the message names what does.
    """
    assert stopped.resume is not None
    require_same_options(stopped.resume["options"], settings)
    if stopped.resume["data"] != fingerprint(annotations):
        raise ValueError(
            f"the training data are not those that the run in {settings.output} began with: "
            "start another run --from its best.pt"
        )


def fingerprint(annotations: Annotations) -> str:
    """A hash of everything that is learnt from, except the pixels."""
    parts = (annotations.file_names, annotations.sizes, annotations.starts, annotations.boxes, annotations.labels)
    digest = hashlib.sha256("\0".join(annotations.classes).encode())
    for part in parts:
        digest.update(part.tobytes())
    return digest.hexdigest()
