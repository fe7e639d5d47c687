"""Toy data, coloured rectangles on grey noise, as COCO json, Pascal VOC xml and YOLO txt; and tiny runs on them."""

import csv
import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import torch
from PIL import Image
from rich.console import Console

from model.checkpoint import Checkpoint
from model.coco import Document
from model.data import Annotations, Batch, read_checked
from model.distributed import Processes, choose_device
from model.fcos import FCOS
from model.layout import Augmentation
from model.learner import Learner
from model.settings import Settings

COLOURS = {"blue": (0, 0, 255), "green": (0, 200, 0), "red": (255, 0, 0)}
IDS = {"red": 3, "green": 7, "blue": 90}  # sparse, and not in alphabetical order
ALONE = Processes(0, 1, choose_device("cpu"))
QUIET = Console(quiet=True)
Data = tuple[Path, Path]
"""The json, and the folder of pictures."""
EVERYTHING: dict[str, Any] = {
    "augmentation": Augmentation(mosaic=0.5, mixup=0.3),
    "zooms": (1.0, 1.34),
    "repeat_thin": 0.9,
    "accumulate": 2,
    "epochs": 3,
    "plain_epochs": 1,
    "iou_threshold": 0.4,
    "norm": "bn",
}
"""Settings of a run in which as much as possible can go wrong."""


def write_pictures(folder: Path, count: int, seed: int = 0, boxes: int = 2) -> dict[str, Any]:
    """Writes pictures of several shapes, each with `boxes` whole-pixel rectangles. Returns: Their COCO document."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    document: dict[str, Any] = {
        "images": [],
        "annotations": [],
        "categories": [{"id": number, "name": name} for name, number in IDS.items()],
    }
    for number in range(count):
        width, height = [(96, 64), (64, 96), (90, 90)][number % 3]
        pixels = rng.integers(100, 150, size=(height, width, 3)).astype(np.uint8)
        for slot in range(boxes):
            # Side by side, so that none hides another.
            w, h = rng.integers(20, width // boxes - 4), rng.integers(20, height - 4)
            x, y = slot * width // boxes + rng.integers(0, 4), rng.integers(0, height - h)
            name = list(COLOURS)[rng.integers(3)]
            pixels[y : y + h, x : x + w] = COLOURS[name]
            document["annotations"].append(
                {
                    "id": len(document["annotations"]) + 1,
                    "image_id": number * 10,
                    "category_id": IDS[name],
                    "bbox": [int(x), int(y), int(w), int(h)],
                    "area": int(w * h),
                    "iscrowd": 0,
                }
            )
        file = f"picture-{number}.png"
        Image.fromarray(pixels).save(folder / file)
        document["images"].append({"id": number * 10, "file_name": file, "width": width, "height": height})
    return document


def write_coco(folder: Path, count: int = 8, seed: int = 0, boxes: int = 2) -> Data:
    """Returns: The json and the folder of pictures."""
    document = write_pictures(folder / "pictures", count, seed, boxes)
    (folder / "boxes.json").write_text(json.dumps(document))
    return folder / "boxes.json", folder / "pictures"


def write_voc(folder: Path, document: Document) -> None:
    names = {category["id"]: category["name"] for category in document["categories"]}
    folder.mkdir()
    for image in document["images"]:
        root = ElementTree.Element("annotation")
        ElementTree.SubElement(root, "filename").text = image["file_name"]
        size = ElementTree.SubElement(root, "size")
        for key in ("width", "height"):
            ElementTree.SubElement(size, key).text = str(image[key])
        for annotation in document["annotations"]:
            if annotation["image_id"] == image["id"]:
                x, y, w, h = annotation["bbox"]
                found = ElementTree.SubElement(root, "object")
                ElementTree.SubElement(found, "name").text = names[annotation["category_id"]]
                box = ElementTree.SubElement(found, "bndbox")
                corners = {"xmin": x + 1, "ymin": y + 1, "xmax": x + w, "ymax": y + h}
                for key, value in corners.items():
                    ElementTree.SubElement(box, key).text = str(value)
        ElementTree.ElementTree(root).write(folder / f"{Path(image['file_name']).stem}.xml")


def write_yolo(folder: Path, document: Document) -> None:
    """With the names of the classes beside the folder."""
    folder.mkdir()
    (folder.parent / "data.yaml").write_text(f"names: {[category['name'] for category in document['categories']]}")
    position = {category["id"]: i for i, category in enumerate(document["categories"])}
    for image in document["images"]:
        lines = []
        for annotation in document["annotations"]:
            if annotation["image_id"] == image["id"]:
                x, y, w, h = annotation["bbox"]
                width, height = image["width"], image["height"]
                numbers = ((x + w / 2) / width, (y + h / 2) / height, w / width, h / height)
                lines.append(
                    f"{position[annotation['category_id']]} " + " ".join(f"{number:.9f}" for number in numbers)
                )
        if lines:
            (folder / f"{Path(image['file_name']).stem}.txt").write_text("\n".join(lines))


def read_annotations(path: Path, images: Path) -> Annotations:
    """Annotations in which nothing may be wrong. Raises: ValueError: Something is; the message names it."""
    document, problems = read_checked(path, images)
    if problems.errors:
        raise ValueError(problems.describe(problems.errors))
    return Annotations.from_document(document)


def content(annotations: Annotations) -> dict[str, list[tuple[str, list[float]]]]:
    """Per file, its class names and boxes, whatever the ids."""
    found = {}
    for index, name in enumerate(annotations.file_names.tolist()):
        boxes, labels = annotations.of(index)
        found[name] = [
            (annotations.classes[label], box)
            for label, box in zip(labels.tolist(), boxes.round(3).tolist(), strict=True)
        ]
    return found


def write_folder(folder: Path, train: int = 8, val: int = 4) -> Path:
    """Returns: `folder`, with what --data wants: train.json, train/, val.json and val/."""
    for part, count in (("train", train), ("val", val)):
        annotations, images = write_coco(folder / f"toy-{part}", count)
        annotations.rename(folder / f"{part}.json")
        images.rename(folder / part)
    return folder


def settings(data: Data, output: Path, **changes: Any) -> Settings:
    """A tiny network, trained for a moment on toy data that are also its val."""
    values: dict[str, Any] = {
        "train_annotations": data[0],
        "train_images": data[1],
        "val_annotations": data[0],
        "val_images": data[1],
        "output": output,
        "backbone": "test_efficientnet",
        "weights": "none",
        "channels": 64,
        "head_convs": 1,
        "head_kernel": 3,
        "size": 96,
        "epochs": 1,
        "epoch_iterations": 0,
        "batch_size": 4,
        "workers": 0,
        "device": "cpu",
        "augmentation": Augmentation(),
        "plain_epochs": 0,
    }
    return Settings(**{**values, **changes})


def network(options: Settings) -> FCOS:
    """New, and of the toy classes."""
    return FCOS(*options.network(tuple(IDS), None))


def learner_of(options: Settings, iterations: int = 1) -> Learner:
    return Learner(network(options), options, ALONE, iterations)


def noise_with_boxes() -> Batch:
    """Two pictures of 96 x 96 pixels, with the same box."""
    images = torch.randint(256, (2, 3, 96, 96), dtype=torch.uint8)
    return Batch(images, [torch.tensor([[10.0, 10, 60, 70]])] * 2, [torch.tensor([1])] * 2, [0, 1])


def words(options: Settings) -> list[str]:
    """The command line that stands for settings with the usual augmentation."""
    assert options.augmentation == Augmentation()
    found: list[str] = []
    for name, value in options.to_dict().items():
        if value is not None and value is not False and not isinstance(value, dict):
            found += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return found


def difference(one: Checkpoint, other: Checkpoint) -> float:
    """The largest of any weight."""
    assert one.weights.keys() == other.weights.keys()
    return max(float((one.weights[key].double() - other.weights[key].double()).abs().max()) for key in one.weights)


def rows(folder: Path) -> list[dict[str, str]]:
    """A run's metrics.csv, without what the clock says."""
    with (folder / "metrics.csv").open(newline="") as file:
        return [
            {k: v for k, v in row.items() if k not in ("pictures_per_s", "waiting")} for row in csv.DictReader(file)
        ]
