"""Annotations as arrays, and what training makes of the pictures drawn: plans, samples, batches.

N pictures, G ground-truth boxes of one picture, B boxes of all. Boxes are xyxy pixels.
"""

import contextlib
import dataclasses
import gc
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from app.artifact import Metadata, Size
from app.images import Decoded
from model.checks import check
from model.coco import Document
from model.formats import read_document
from model.layout import Augmentation, Content, Layer, Layout, lay_out
from model.pictures import open_reduced
from model.problems import Problems
from model.transforms import mix, paint


@dataclasses.dataclass(frozen=True)
class Annotations:
    """What there is to learn, as arrays: a forked worker reads them without copying a single page."""

    classes: tuple[str, ...]
    file_names: NDArray[np.str_]  # [N]
    sizes: NDArray[np.int64]  # [N, 2] height, width
    starts: NDArray[np.int64]  # [N + 1] picture i owns boxes starts[i]:starts[i + 1]
    boxes: NDArray[np.float32]  # [B, 4]
    labels: NDArray[np.int64]  # [B]

    def __len__(self) -> int:
        return len(self.file_names)

    def of(self, index: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Boxes [G, 4] and labels [G] of a picture."""
        part = slice(self.starts[index], self.starts[index + 1])
        return self.boxes[part], self.labels[part]

    def size_of(self, index: int) -> Size:
        """Size of an upright picture."""
        return Size(*self.sizes[index].tolist())

    @classmethod
    def from_document(cls, document: Document) -> Self:
        """The arrays of a document that `model.checks.check` has cleaned. Crowds are left out, boxes clipped."""
        images, categories = document["images"], document["categories"]
        # Ids often have gaps; a class's label is its position.
        category_ids = np.array([category["id"] for category in categories], dtype=np.int64)
        image_ids = np.array([image["id"] for image in images], dtype=np.int64)
        sizes = np.array([(image["height"], image["width"]) for image in images], dtype=np.int64).reshape(-1, 2)

        kept = [a for a in document["annotations"] if not a["iscrowd"]]
        picture = np.searchsorted(image_ids, np.array([a["image_id"] for a in kept], dtype=np.int64))
        label = np.searchsorted(category_ids, np.array([a["category_id"] for a in kept], dtype=np.int64))
        xywh = np.array([a["bbox"] for a in kept], dtype=np.float64).reshape(-1, 4)
        boxes = np.concatenate((xywh[:, :2], xywh[:, :2] + xywh[:, 2:]), axis=1)
        clipped = np.clip(boxes, 0, sizes[picture][:, [1, 0, 1, 0]]).astype(np.float32)

        order = np.argsort(picture, kind="stable")
        return cls(
            classes=tuple(category["name"] for category in categories),
            file_names=np.array([image["file_name"] for image in images], dtype=np.str_),
            sizes=sizes,
            starts=np.searchsorted(picture[order], np.arange(len(image_ids) + 1)),
            boxes=clipped[order],
            labels=label[order].astype(np.int64),
        )


def read_checked(path: Path, images: Path, classes: Sequence[str] = ()) -> tuple[Document, Problems]:
    """Read annotations of any format and find what is wrong with them and their pictures; see `model.checks.check`.

    Args:
        classes: in order, for VOC folders.
    """
    with _without_collector():
        return check(read_document(path, images, classes), str(path), images)


def read_usable(path: Path, images: Path, classes: Sequence[str], say: Callable[[str], object]) -> Document:
    """Read annotations of any format, leaving out what is wrong. Pictures are looked at only if the annotations lack
    their sizes.

    Args:
        classes: in order, for VOC folders.
        say: called with what was left out and with what may be wrong, in words.

    Raises:
        ValueError: they cannot be read, or no picture is left.
    """
    with _without_collector():
        document, problems = check(read_document(path, images, classes), str(path))
    if problems.errors:
        say(f"left out: {problems.describe(problems.errors)}")
    if problems.warnings:
        say(f"note: {problems.describe(problems.warnings)}")
    if not document["images"]:
        raise ValueError(f"{path} has no pictures")
    return document


@contextlib.contextmanager
def _without_collector() -> Generator[None]:
    """Millions of entries are made, none of them garbage: looking for it took a third of the time."""
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


class Draw(NamedTuple):
    """One picture of one batch: which, onto which canvas, and the seed of its augmentation."""

    picture: int
    canvas: Size
    zoom: float
    """Size of the canvas, relative to the served one."""
    plain: bool
    """Without augmentation, except the flip."""
    seed: int


class Sample(NamedTuple):
    """A picture on its canvas, as a worker makes it; `picture` is its number among the annotations."""

    image: Tensor  # uint8 [H, W, 3]
    boxes: Tensor  # float32 [G, 4] canvas pixels
    labels: Tensor  # int64 [G]
    picture: int


class Plan(NamedTuple):
    """What a draw becomes: one layout, or two that are blended."""

    picture: int
    layouts: tuple[Layout, ...]
    share: float
    """The first layout's, in the blend."""
    boxes: NDArray[np.float32]  # [G, 4] canvas pixels
    labels: NDArray[np.int64]  # [G]


class Plans(Dataset[Plan]):
    """Draws, planned without looking at pixels. A plan depends only on its draw, not on the worker that makes it.

    Args:
        repeats: [N], how often each picture is drawn; the pictures that share its canvas are drawn in the same ratio.
    """

    def __init__(
        self,
        annotations: Annotations,
        metadata: Metadata,
        augmentation: Augmentation,
        repeats: NDArray[np.float64] | None = None,
    ) -> None:
        self.annotations, self.metadata, self.augmentation = annotations, metadata, augmentation
        self.ends = np.cumsum(np.ones(len(annotations)) if repeats is None else repeats)

    def __len__(self) -> int:
        return len(self.annotations)

    def __getitem__(self, draw: Draw) -> Plan:
        rng = np.random.default_rng(draw.seed)
        augmentation = self.augmentation.plain() if draw.plain else self.augmentation
        layouts, share = [self._lay_out(draw.picture, draw, augmentation, rng)], 1.0
        if rng.random() < augmentation.mixup:
            layouts.append(self._lay_out(self._other(rng), draw, augmentation, rng))
            share = rng.beta(8.0, 8.0)
        boxes = np.concatenate([layout.boxes for layout in layouts])
        labels = np.concatenate([layout.labels for layout in layouts])
        return Plan(draw.picture, tuple(layouts), share, boxes, labels)

    def _lay_out(self, index: int, draw: Draw, augmentation: Augmentation, rng: np.random.Generator) -> Layout:
        chosen = [index]
        if rng.random() < augmentation.mosaic:
            chosen += [self._other(rng) for _ in range(3)]
        contents = [Content(i, self.annotations.size_of(i), *self.annotations.of(i)) for i in chosen]
        return lay_out(contents, draw.canvas, self.metadata.resize, augmentation, rng, draw.zoom)

    def _other(self, rng: np.random.Generator) -> int:
        return int(np.searchsorted(self.ends, rng.random() * self.ends[-1], side="right"))


class TrainingPictures(Dataset[Sample]):
    """Plans, painted one at a time from the pictures' files."""

    def __init__(self, plans: Plans, images: Path) -> None:
        self.plans, self.images = plans, images

    def __len__(self) -> int:
        return len(self.plans)

    def __getitem__(self, draw: Draw) -> Sample:
        plan = self.plans[draw]
        filler = self.plans.metadata.mean_pixel
        canvas, *others = (paint(layout, self._open, filler) for layout in plan.layouts)
        for other in others:
            canvas = mix(canvas, other, plan.share)
        image, boxes, labels = map(torch.from_numpy, (canvas, plan.boxes, plan.labels))
        return Sample(image, boxes, labels, plan.picture)

    def _open(self, layer: Layer) -> Decoded:
        """A layer's picture; a large JPEG no larger than showing it needs, as the service decodes it."""
        scale = layer.target.width / (layer.source[2] - layer.source[0])
        path = self.images / self.plans.annotations.file_names[layer.picture]
        return open_reduced(path, lambda size: Size(*(round(side * scale) for side in size)))


class Batch(NamedTuple):
    """Pictures of one canvas, as the network takes them; `pictures` are their numbers among the annotations."""

    images: Tensor  # uint8 [N, 3, H, W]
    boxes: list[Tensor]  # N of [G, 4]
    labels: list[Tensor]  # N of [G]
    pictures: list[int]

    def to(self, device: torch.device) -> "Batch":
        def moved(parts: list[Tensor]) -> list[Tensor]:  # in one transfer
            return list(torch.split(torch.cat(parts).to(device, non_blocking=True), [len(part) for part in parts]))

        images = self.images.to(device, non_blocking=True)
        return Batch(images, moved(self.boxes), moved(self.labels), self.pictures)


def collate(samples: list[Sample]) -> Batch:
    images, boxes, labels, pictures = zip(*samples, strict=True)
    # In a worker, torch's own collating puts them into shared memory at once. Channels stay last, as the network wants
    # them.
    return Batch(default_collate(list(images)).permute(0, 3, 1, 2), list(boxes), list(labels), list(pictures))
