"""COCO annotations as arrays, the pictures behind them, and batches of pictures that share a canvas.

N pictures, G ground-truth boxes of one picture, B boxes of all. Boxes are xyxy pixels; xywh exists only in the json.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from app.artifact import Metadata, Size
from app.canvas import place
from model.transforms import Augmentation, augment


@dataclasses.dataclass(frozen=True)
class Annotations:
    """A COCO json as arrays: a forked worker reads them without copying a single page."""

    classes: tuple[str, ...]
    category_ids: NDArray[np.int64]  # [C] the json's ids, often with gaps; a class's label is its position
    image_ids: NDArray[np.int64]  # [N]
    file_names: NDArray[np.str_]  # [N]
    sizes: NDArray[np.int64]  # [N, 2] height, width
    starts: NDArray[np.int64]  # [N + 1] picture i owns boxes starts[i]:starts[i + 1]
    boxes: NDArray[np.float32]  # [B, 4]
    labels: NDArray[np.int64]  # [B]

    def __len__(self) -> int:
        return len(self.image_ids)

    def of(self, index: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Boxes [G, 4] and labels [G] of a picture."""
        part = slice(self.starts[index], self.starts[index + 1])
        return self.boxes[part], self.labels[part]


def read_coco(path: Path) -> Annotations:
    """Read a COCO detection json; crowd regions are left out, boxes are clipped to their picture.

    Raises:
        ValueError: the file is missing, is no COCO json, or refers to pictures or categories that it does not hold.
    """
    document = _read_json(path)
    categories = sorted(document["categories"], key=lambda category: category["id"])
    images = sorted(document["images"], key=lambda image: image["id"])
    category_ids = np.array([category["id"] for category in categories], dtype=np.int64)
    image_ids = np.array([image["id"] for image in images], dtype=np.int64)
    sizes = np.array([(image["height"], image["width"]) for image in images], dtype=np.int64).reshape(-1, 2)

    kept = [a for a in document["annotations"] if not a.get("iscrowd", 0)]
    picture = _positions(image_ids, [a["image_id"] for a in kept], "image_id", path)
    label = _positions(category_ids, [a["category_id"] for a in kept], "category_id", path)
    xywh = np.array([a["bbox"] for a in kept], dtype=np.float32).reshape(-1, 4)
    boxes = np.concatenate((xywh[:, :2], xywh[:, :2] + xywh[:, 2:]), axis=1)
    limits = sizes[picture][:, [1, 0, 1, 0]].astype(np.float32)
    boxes = np.clip(boxes, 0, limits)

    usable = (boxes[:, 2] - boxes[:, 0] > 0) & (boxes[:, 3] - boxes[:, 1] > 0)
    order = np.argsort(picture[usable], kind="stable")
    return Annotations(
        classes=tuple(str(category["name"]) for category in categories),
        category_ids=category_ids,
        image_ids=image_ids,
        file_names=np.array([str(image["file_name"]) for image in images]),
        sizes=sizes,
        starts=np.searchsorted(picture[usable][order], np.arange(len(image_ids) + 1)),
        boxes=boxes[usable][order],
        labels=label[usable][order],
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text())
    except FileNotFoundError:
        raise ValueError(f"no annotation file at {path}") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is not readable json: {error}") from None
    missing = [key for key in ("images", "annotations", "categories") if not isinstance(document, dict) or key not in document]
    if missing:
        raise ValueError(f"{path} is no COCO detection json: it has no {' and no '.join(missing)}")
    assert isinstance(document, dict)
    return document


def _positions(known: NDArray[np.int64], wanted: list[int], what: str, path: Path) -> NDArray[np.int64]:
    """Position of each wanted id in the sorted known ones."""
    values = np.array(wanted, dtype=np.int64)
    found = np.minimum(np.searchsorted(known, values), max(len(known) - 1, 0))
    strangers = values[known[found] != values] if len(known) else values
    if len(strangers):
        raise ValueError(
            f"{path}: {len(strangers)} annotations have a {what} that the file does not define, the first {strangers[0]}"
        )
    return found


class Draw(NamedTuple):
    """One picture of one batch: which, onto which canvas (an index), and the seed of its augmentation."""

    index: int
    canvas: int
    seed: int


class Sample(NamedTuple):
    image: Tensor  # uint8 [3, H, W]
    boxes: Tensor  # float32 [G, 4] canvas pixels
    labels: Tensor  # int64 [G]
    index: int


class TrainingPictures(Dataset[Sample]):
    """Augmented pictures on canvases. Which augmentation a picture gets depends on its draw alone, not on the worker."""

    def __init__(self, annotations: Annotations, images: Path, metadata: Metadata, augmentation: Augmentation) -> None:
        self.annotations, self.images = annotations, images
        self.metadata, self.augmentation = metadata, augmentation

    def __len__(self) -> int:
        return len(self.annotations)

    def __getitem__(self, draw: Draw) -> Sample:
        boxes, labels = self.annotations.of(draw.index)
        canvas = self.metadata.canvases[draw.canvas]
        image, boxes, labels = augment(
            open_picture(self.images / self.annotations.file_names[draw.index]),
            boxes,
            labels,
            canvas,
            self.metadata,
            self.augmentation,
            np.random.default_rng(draw.seed),
        )
        channels_first = torch.from_numpy(image).permute(2, 0, 1)
        return Sample(channels_first, torch.from_numpy(boxes), torch.from_numpy(labels), draw.index)


class Batch(NamedTuple):
    images: Tensor  # uint8 [N, 3, H, W]
    boxes: list[Tensor]  # N of [G, 4]
    labels: list[Tensor]  # N of [G]
    indices: list[int]

    def to(self, device: torch.device) -> Batch:
        move = [[x.to(device, non_blocking=True) for x in part] for part in (self.boxes, self.labels)]
        return Batch(self.images.to(device, non_blocking=True), *move, self.indices)


def collate(samples: list[Sample]) -> Batch:
    images, boxes, labels, indices = zip(*samples, strict=True)
    return Batch(torch.stack(images), list(boxes), list(labels), list(indices))


def open_picture(path: Path) -> Image.Image:
    """An upright RGB picture.

    Raises:
        ValueError: there is none at the path, or it cannot be decoded.
    """
    try:
        with Image.open(path) as picture:
            return ImageOps.exif_transpose(picture).convert("RGB")
    except FileNotFoundError:
        raise ValueError(f"no picture at {path}") from None
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"{path} cannot be decoded: {error}") from None


def canvas_indices(annotations: Annotations, metadata: Metadata) -> NDArray[np.int64]:
    """[N], the canvas (an index into `metadata.canvases`) that each picture is served on."""
    found = [metadata.canvases.index(place(Size(*size), metadata).canvas) for size in annotations.sizes.tolist()]
    return np.array(found, dtype=np.int64)


class CanvasBatches(Sampler[list[Draw]]):
    """Batches of pictures that share a canvas; every picture once an epoch.

    What does not fill a batch on its own canvas rides on the largest one, which holds every picture; only what does not
    fill a last batch there is left out, other pictures every epoch.

    Args:
        canvas: [N], each picture's canvas.
        largest: the canvas that holds all.
        batch_size: of one process.
        rank: this process.
        processes: of the run. Together they draw what one process with the whole batch would.
    """

    def __init__(
        self, canvas: NDArray[np.int64], largest: int, batch_size: int, seed: int, rank: int = 0, processes: int = 1
    ) -> None:
        self.canvas, self.largest, self.batch_size, self.seed = canvas, largest, batch_size, seed
        self.rank, self.processes = rank, processes
        self.epoch = 0
        self.skip = 0
        if len(canvas) < batch_size * processes:
            raise ValueError(
                f"{len(canvas)} training pictures do not fill one batch of {batch_size * processes}: lower --batch-size"
            )

    def __len__(self) -> int:
        return len(self.canvas) // (self.batch_size * self.processes)

    def start(self, epoch: int, skip: int = 0) -> None:
        """Draw this epoch next, without its first `skip` batches."""
        self.epoch, self.skip = epoch, skip

    def __iter__(self) -> Iterator[list[Draw]]:
        rng = np.random.default_rng((self.seed, self.epoch))
        whole = self.batch_size * self.processes
        full: list[tuple[int, NDArray[np.int64]]] = []
        rest: list[NDArray[np.int64]] = []
        for canvas in np.unique(self.canvas).tolist():
            members = rng.permutation(np.flatnonzero(self.canvas == canvas))
            count = len(members) // whole
            full += [(canvas, part) for part in members[: count * whole].reshape(count, whole)]
            rest.append(members[count * whole :])
        leftover = rng.permutation(np.concatenate(rest))
        count = len(leftover) // whole
        full += [(self.largest, part) for part in leftover[: count * whole].reshape(count, whole)]
        seeds = rng.integers(2**62, size=(len(full), whole))
        mine = slice(self.rank, None, self.processes)
        for position in rng.permutation(len(full))[self.skip :].tolist():
            canvas, members = full[position]
            pairs = zip(members[mine].tolist(), seeds[position][mine].tolist(), strict=True)
            yield [Draw(index, canvas, seed) for index, seed in pairs]
