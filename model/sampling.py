"""Which pictures an epoch draws, and which of them share a batch and its canvas.

N pictures.
"""

import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

from app.artifact import CANVAS_MULTIPLE, Metadata, Size
from app.canvas import place
from model.data import Annotations, Draw
from model.settings import Settings


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


def epoch_draws(annotations: Annotations, settings: Settings) -> tuple[NDArray[np.float64], float]:
    """How often each picture is drawn when an epoch goes through them once [N], and how often it does: a small set more
    than once."""
    repeats = repeat_factors(annotations, settings.repeat_thin)
    return repeats, max(1.0, settings.epoch_iterations * settings.batch_size / float(repeats.sum()))


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
        full = self._full_batches(rng)
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

    def _full_batches(self, rng: np.random.Generator) -> list[tuple[Size, NDArray[np.int64]]]:
        """An epoch's batches, in no particular order: the canvas and the pictures [batch_size] of each."""
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
        return full + [(self._canvas_of_all(part), part) for part in leftover.reshape(-1, self.batch_size)]

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


def _zoomed(canvas: Size, zoom: float) -> Size:
    """The smallest allowed canvas that holds a given one at this zoom."""
    return Size(*(math.ceil(side * zoom / CANVAS_MULTIPLE) * CANVAS_MULTIPLE for side in canvas))
