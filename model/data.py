"""Annotations as arrays, the pictures behind them, and batches of pictures that share a canvas.

N pictures, G ground-truth boxes of one picture, B boxes of all. Boxes are xyxy pixels.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from app import images as service_images
from app.artifact import CANVAS_MULTIPLE, Metadata, Size
from app.canvas import place, resized_size
from app.errors import Refusal
from model.checks import check
from model.coco import Document
from model.formats import read_document
from model.layout import NO_AUGMENTATION, Augmentation, Content, Layout, lay_out
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
        height, width = self.sizes[index].tolist()
        return Size(height, width)

    @classmethod
    def from_document(cls, document: Document) -> Annotations:
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


def read_checked(
    path: Path, images: Path, classes: Sequence[str] = (), files: bool = True
) -> tuple[Document, Problems]:
    """Read annotations of any format and find what is wrong with them; see `model.checks.check`.

    Args:
        classes: in order, for VOC folders.
        files: look at every picture's header, too.
    """
    return check(read_document(path, images, classes), str(path), images if files else None)


def read_usable(path: Path, images: Path, classes: Sequence[str], say: Callable[[str], object]) -> Document:
    """Read annotations of any format, leaving out and reporting what is wrong. Pictures are looked at only if the
    annotations lack their sizes.

    Args:
        classes: in order, for VOC folders.
        say: called with what was left out, in words.

    Raises:
        ValueError: they cannot be read, or no picture is left.
    """
    document, problems = read_checked(path, images, classes, files=False)
    if problems.errors:
        say(f"left out: {problems.describe(problems.errors)}")
    if not document["images"]:
        raise ValueError(f"{path} has no pictures")
    return document


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
    image: Tensor  # uint8 [3, H, W]
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
        image = torch.from_numpy(canvas).permute(2, 0, 1)
        return Sample(image, torch.from_numpy(plan.boxes), torch.from_numpy(plan.labels), plan.picture)

    def _open(self, index: int) -> Image.Image:
        return open_picture(self.images / self.plans.annotations.file_names[index])


class Batch(NamedTuple):
    images: Tensor  # uint8 [N, 3, H, W]
    boxes: list[Tensor]  # N of [G, 4]
    labels: list[Tensor]  # N of [G]
    pictures: list[int]

    def to(self, device: torch.device) -> Batch:
        def moved(parts: list[Tensor]) -> list[Tensor]:  # in one transfer
            return list(torch.split(torch.cat(parts).to(device, non_blocking=True), [len(part) for part in parts]))

        images = self.images.to(device, non_blocking=True)
        return Batch(images, moved(self.boxes), moved(self.labels), self.pictures)


def collate(samples: list[Sample]) -> Batch:
    images, boxes, labels, pictures = zip(*samples, strict=True)
    return Batch(torch.stack(images), list(boxes), list(labels), list(pictures))


def open_picture(path: Path) -> Image.Image:
    """An upright RGB picture in full size.

    Raises:
        ValueError: there is no file at the path, or it cannot be decoded.
    """
    return decode(path, None).picture


def open_as_served(path: Path, metadata: Metadata) -> service_images.Decoded:
    """A picture as the service decodes it for this model: a large JPEG no larger than its canvas needs.

    Raises:
        ValueError: as `open_picture`.
    """
    return decode(path, lambda size: resized_size(size, metadata.resize))


def decode(path: Path, resized: Callable[[Size], Size] | None) -> service_images.Decoded:
    """A picture as the service decodes it, no larger than `resized` of its size; in full size if that is None.

    Raises:
        ValueError: as `open_picture`.
    """
    try:
        return service_images.decode(path.read_bytes(), service_images.MOST_PIXELS, resized=resized)
    except OSError as error:
        raise ValueError(f"no picture at {path} ({error.strerror})") from None
    except Refusal as refusal:
        raise ValueError(f"{path}: {refusal.message}") from None


def canvas_indices(annotations: Annotations, metadata: Metadata) -> NDArray[np.int64]:
    """[N], the canvas (an index into `metadata.canvases`) that each picture is served on."""
    found = [metadata.canvases.index(place(Size(*size), metadata).canvas) for size in annotations.sizes.tolist()]
    return np.array(found, dtype=np.int64)


def repeat_factors(annotations: Annotations, threshold: float) -> NDArray[np.float64]:
    """How often each picture is drawn per epoch, so that rare classes are seen more (LVIS, arXiv:1908.03195).

    A class found in a fraction f of the pictures repeats them max(1, sqrt(threshold / f)) times; a picture takes the
    largest of its classes' factors.

    Returns:
        [N], at least 1.
    """
    picture = np.repeat(np.arange(len(annotations)), np.diff(annotations.starts))
    pairs = np.unique(np.stack([picture, annotations.labels], axis=1), axis=0)
    counts = np.bincount(pairs[:, 1], minlength=len(annotations.classes))
    of_class = np.maximum(1.0, np.sqrt(threshold * len(annotations) / np.maximum(counts, 1)))
    factors = np.ones(len(annotations))
    np.maximum.at(factors, pairs[:, 0], of_class[pairs[:, 1]])
    return factors


class CanvasBatches(Sampler[list[Draw]]):
    """Batches of pictures that share a canvas; every picture once per epoch, or as often as it is repeated.

    Pictures that do not fill a batch on their own canvas are batched with others, on one that holds them all; only what
    does not fill the last batch is left out, different pictures every epoch. An epoch depends only on the seed and its
    number.

    Args:
        canvas: [N], each picture's canvas, an index into `canvases`.
        batch_size: of all processes together.
        seed: of the run.
        rank: this process.
        processes: how many the run has; together they draw what one process would.
        zooms: canvas sizes, relative to the given ones; every batch draws one of them.
        repeats: [N], how often each picture is drawn per epoch; once if None.
        multiple: an epoch's number of batches is rounded down to a multiple of this.
        plain_from: the first epoch without augmentation and zoom; if None, there is none.

    Raises:
        ValueError: there are too few pictures, or the batch cannot be divided evenly.
    """

    def __init__(
        self,
        canvas: NDArray[np.int64],
        canvases: Sequence[Size],
        batch_size: int,
        seed: int,
        *,
        rank: int = 0,
        processes: int = 1,
        zooms: Sequence[float] = (1.0,),
        repeats: NDArray[np.float64] | None = None,
        multiple: int = 1,
        plain_from: int | None = None,
    ) -> None:
        self.canvas, self.canvases, self.batch_size, self.seed = canvas, tuple(canvases), batch_size, seed
        self.rank, self.processes = rank, processes
        self.zooms, self.plain_from = tuple(zooms), plain_from
        self.repeats = np.ones(len(canvas)) if repeats is None else repeats
        self.epoch = 0
        self.skip = 0
        self.pictures = round(float(self.repeats.sum()))
        self.count = self.pictures // batch_size // multiple * multiple
        if batch_size % processes:
            raise ValueError(f"a batch of {batch_size} pictures cannot be divided among {processes} processes")
        if self.count == 0:
            raise ValueError(
                f"{len(canvas)} training pictures do not fill one batch of {batch_size * multiple}: lower --batch-size"
            )

    def __len__(self) -> int:
        return self.count

    def start(self, epoch: int, skip: int = 0) -> None:
        """Draw this epoch next, without its first `skip` batches."""
        self.epoch, self.skip = epoch, skip

    def __iter__(self) -> Iterator[list[Draw]]:
        rng = np.random.default_rng((self.seed, self.epoch))
        drawn = self._draw_pictures(rng)
        full: list[tuple[Size, NDArray[np.int64]]] = []
        rest: list[NDArray[np.int64]] = []
        for canvas in np.unique(self.canvas).tolist():
            members = rng.permutation(drawn[self.canvas[drawn] == canvas])
            count = len(members) // self.batch_size
            parts = members[: count * self.batch_size].reshape(-1, self.batch_size)
            full += [(self.canvases[canvas], part) for part in parts]
            rest.append(members[count * self.batch_size :])
        leftover = rng.permutation(np.concatenate(rest))
        leftover = leftover[: len(leftover) // self.batch_size * self.batch_size]
        leftover = leftover[np.argsort(self.canvas[leftover], kind="stable")]  # equal canvases are neighbours
        full += [(self._canvas_of_all(part), part) for part in leftover.reshape(-1, self.batch_size)]
        seeds = rng.integers(2**62, size=(len(full), self.batch_size))
        zooms = rng.choice(self.zooms, size=len(full))
        plain = self.plain_from is not None and self.epoch >= self.plain_from
        mine = slice(self.rank, None, self.processes)
        for position in rng.permutation(len(full))[self.skip : self.count].tolist():
            whole, members = full[position]
            zoom = 1.0 if plain else float(zooms[position])
            canvas = _zoomed(whole, zoom)
            for_me = zip(members[mine].tolist(), seeds[position][mine].tolist(), strict=True)
            yield [Draw(picture, canvas, zoom, plain, seed) for picture, seed in for_me]

    def _canvas_of_all(self, members: NDArray[np.int64]) -> Size:
        canvases = [self.canvases[index] for index in self.canvas[members].tolist()]
        return Size(max(canvas.height for canvas in canvases), max(canvas.width for canvas in canvases))

    def _draw_pictures(self, rng: np.random.Generator) -> NDArray[np.int64]:
        """Every picture as often as it is repeated, fractions by systematic sampling: the total is always the same."""
        order = rng.permutation(len(self.canvas))
        ends = np.cumsum(self.repeats[order]) * (self.pictures / self.repeats.sum())
        positions = np.arange(self.pictures) + rng.random()
        found = np.minimum(np.searchsorted(ends, positions, side="right"), len(order) - 1)
        return np.sort(order[found])


def plain_batches(annotations: Annotations, images: Path, metadata: Metadata, size: int) -> Iterable[Batch]:
    """The pictures as they are served, in random order, in batches of this size, or of all if there are fewer."""
    size = min(size, len(annotations))
    batches = CanvasBatches(canvas_indices(annotations, metadata), metadata.canvases, size, seed=0)
    pictures = TrainingPictures(Plans(annotations, metadata, NO_AUGMENTATION), images)
    return DataLoader(pictures, batch_sampler=batches, collate_fn=collate)


def _zoomed(canvas: Size, zoom: float) -> Size:
    """The smallest allowed canvas that holds a given one at this zoom."""
    return Size(*(math.ceil(side * zoom / CANVAS_MULTIPLE) * CANVAS_MULTIPLE for side in canvas))
