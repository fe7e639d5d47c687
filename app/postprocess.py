"""Raw heads → detections: scores, the best points of each level, decode, NMS (FCOS, sections 3.1 to 3.3).

Gives what torchvision's `FCOS.postprocess_detections` gives on the same heads, but no boxes without area, and several
times faster: it looks for candidates among the logits and computes scores, boxes and overlaps only for those.

N: pictures. P: points of all levels, row-major, level after level. C: classes. K: boxes. Boxes are xyxy, float32.
"""

import itertools
import math
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from app.artifact import Metadata, Points, Size, grids
from app.canvas import Placement

Floats = NDArray[np.float32]
Indices = NDArray[np.intp]

# For AP, which needs the whole curve of precision over recall.
COCO_SCORE_THRESHOLD = 0.01
# Boxes are compared in blocks of this many: most pictures need one or two, and a block's overlaps stay in the cache.
NMS_BLOCK = 160
# From this many times `top_k` on, candidates are thinned out, level by level, before their scores are computed.
MANY_CANDIDATES = 2
# exp(-x) of a smaller logit overflows float32, and its sigmoid is 0 for any purpose.
LOWEST_LOGIT = np.float32(-87)


class Heads(NamedTuple):
    """What the graph gives for N pictures of one canvas, all float32."""

    class_logits: Floats  # [N, P, C]
    distances: Floats  # [N, P, 4] left, top, right, bottom of each point, canvas pixels, >= 0
    centerness: Floats  # [N, P] logits

    def of(self, index: int) -> "PictureHeads":
        """Returns: The heads of one picture, without copying."""
        return PictureHeads(self.class_logits[index], self.distances[index], self.centerness[index])


class PictureHeads(NamedTuple):
    """What the graph gives for one picture."""

    class_logits: Floats  # [P, C]
    distances: Floats  # [P, 4]
    centerness: Floats  # [P]


@dataclass(frozen=True)
class Parameters:
    """What a request may choose. `class_ids` lets only these classes compete; None lets all."""

    score_threshold: float  # in [0, 1]; a score must be above it
    iou_threshold: float  # in [0, 1]; of two boxes that overlap more, the lower score goes
    max_detections: int
    class_ids: tuple[int, ...] | None = None
    class_agnostic: bool = False  # boxes of different classes suppress one another too


@dataclass(frozen=True)
class Detections:
    """Found objects, best first."""

    boxes: Floats  # [K, 4]
    scores: Floats  # [K] in (0, 1]
    class_ids: Indices  # [K]

    def __len__(self) -> int:
        return len(self.scores)

    def take(self, chosen: NDArray[np.bool_] | Indices) -> "Detections":
        return Detections(self.boxes[chosen], self.scores[chosen], self.class_ids[chosen])


@lru_cache(maxsize=128)  # more than a model has canvases
def point_centres(strides: tuple[int, ...], points: Points, canvas: Size) -> Floats:
    """Returns: The points of all levels on a canvas, float32 [P, 2], x and y in canvas pixels. Read-only."""
    levels = []
    for stride, grid in zip(strides, grids(strides, canvas), strict=True):
        steps = (
            (stride, stride) if points.step == "stride" else (canvas.width // grid.width, canvas.height // grid.height)
        )
        xs = (np.arange(grid.width) + points.offset) * steps[0]
        ys = (np.arange(grid.height) + points.offset) * steps[1]
        levels.append(np.stack(np.meshgrid(xs, ys), axis=-1).reshape(-1, 2))
    centres = np.concatenate(levels).astype(np.float32)
    centres.flags.writeable = False
    return centres


def postprocess(heads: PictureHeads, placement: Placement, metadata: Metadata, parameters: Parameters) -> Detections:
    """Turns one picture's heads into detections, best first, at most `max_detections`.

    Equal scores keep the order of level, point and class. Values that are not finite never become a detection.

    Returns:
        Boxes in canvas pixels, clipped to the picture as it lies on the canvas; `canvas.unfit` maps them back.

    Raises:
        ValueError: The heads do not have the points or the classes that the metadata says.
    """
    centres = point_centres(metadata.strides, metadata.points, placement.canvas)
    expected = ((len(centres), len(metadata.classes)), (len(centres), 4), (len(centres),))
    if tuple(head.shape for head in heads) != expected:
        raise ValueError(
            f"heads of canvas {list(placement.canvas)} must have the shapes {expected}, "
            f"but got {tuple(head.shape for head in heads)}"
        )

    point_ids, class_ids, scores = _candidates(heads, placement.canvas, metadata, parameters)
    distances = heads.distances[point_ids]
    order = np.argsort(-scores, kind="stable")
    order = order[np.isfinite(distances[order]).all(axis=1)]
    boxes = _decode(centres[point_ids[order]], distances[order], placement.resized)
    # Points beyond the picture, on the canvas's padding, give boxes that clipping leaves without area.
    has_area = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    found = Detections(boxes, scores[order], class_ids[order]).take(has_area)

    groups = np.zeros_like(found.class_ids) if parameters.class_agnostic else found.class_ids
    return found.take(nms(found.boxes, groups, parameters.iou_threshold, parameters.max_detections))


def _candidates(
    heads: PictureHeads, canvas: Size, metadata: Metadata, parameters: Parameters
) -> tuple[Indices, Indices, Floats]:
    """Returns: Point, class and score of the `top_k` best of each level above the threshold, in order of level."""
    classes = len(metadata.classes)
    allowed = None
    if parameters.class_ids is not None:
        allowed = np.zeros(classes, np.bool_)
        allowed[list(parameters.class_ids)] = True
    logits = heads.class_logits.reshape(-1)
    flat = np.flatnonzero(logits > _lowest_class_logit(heads.centerness, parameters.score_threshold))
    if len(flat) > MANY_CANDIDATES * metadata.top_k:
        flat = np.concatenate(
            [
                level.start * classes
                + _reaching_best(heads.class_logits[level], heads.centerness[level], allowed, metadata.top_k)
                for level in _levels(metadata.strides, canvas)
            ]
        )
    point_ids, class_ids = np.divmod(flat, classes)
    if allowed is not None:
        chosen = allowed[class_ids]
        flat, point_ids, class_ids = flat[chosen], point_ids[chosen], class_ids[chosen]

    class_logits, centerness = logits[flat], heads.centerness[point_ids]
    scores = np.sqrt(_sigmoid(class_logits) * _sigmoid(centerness))
    chosen = scores > parameters.score_threshold
    chosen &= np.isfinite(class_logits) & np.isfinite(centerness)
    point_ids, class_ids, scores = point_ids[chosen], class_ids[chosen], scores[chosen]
    if len(scores) > metadata.top_k:
        ends = [level.stop for level in _levels(metadata.strides, canvas)]
        bounds = [0, *np.searchsorted(point_ids, ends).tolist()]
        best = np.concatenate(
            [start + _best(scores[start:end], metadata.top_k) for start, end in itertools.pairwise(bounds)]
        )
        point_ids, class_ids, scores = point_ids[best], class_ids[best], scores[best]
    return point_ids, class_ids, scores


def _levels(strides: tuple[int, ...], canvas: Size) -> list[slice]:
    """Returns: Where each level's points are among all points."""
    ends = itertools.accumulate(grid.area for grid in grids(strides, canvas))
    return [slice(start, end) for start, end in itertools.pairwise([0, *ends])]


def _reaching_best(class_logits: Floats, centerness: Floats, allowed: NDArray[np.bool_] | None, count: int) -> Indices:
    """Returns: Flat indices of those of a level's logits [P, C] that may be among the `count` best, and few others.

    A threshold near 0 makes every logit of every point a candidate. Each point's best class is one of them, so the
    `count`-th best of the points is no better than the `count`-th best of all: what is worse need not be computed.
    """
    if len(centerness) < count:
        return np.arange(class_logits.size)
    of_points = class_logits if allowed is None else class_logits[:, allowed]
    best_logits = np.fmax.reduce(of_points, axis=1, initial=-np.inf)  # fmax ignores NaN
    centred = _sigmoid(centerness)
    squares = _sigmoid(best_logits) * centred  # of the scores
    squares[~(np.isfinite(best_logits) & np.isfinite(centerness))] = 0
    lowest = np.partition(squares, -count)[-count] / centred  # [P] the class probability that a point needs
    with np.errstate(divide="ignore", invalid="ignore"):
        lowest_logits = np.log(lowest / (1 - lowest)) - np.float32(1e-3)  # rounding must not cost a candidate
    lowest_logits = np.fmin(lowest_logits, np.float32(8))  # larger for probabilities nearer to 1; NaN from 1 on
    return np.flatnonzero(class_logits >= lowest_logits[:, None])


def _lowest_class_logit(centerness: Floats, score_threshold: float) -> np.float32:
    """Returns: A class logit below which no point can have a score above the threshold.

    sqrt(class * centerness) > t needs class > t² / centerness, and no point's centerness is above the best.
    """
    best = float(_sigmoid(np.fmax.reduce(centerness)))  # fmax ignores NaN
    lowest = score_threshold**2 / best
    if not lowest < 1:
        return np.float32(np.inf)
    if lowest == 0:
        return np.float32(-np.inf)
    return np.float32(math.log(lowest / (1 - lowest)) - 1e-3)  # rounding must not cost a candidate


def _sigmoid(logits: Floats) -> Floats:
    one = np.float32(1)
    return one / (one + np.exp(-np.maximum(logits, LOWEST_LOGIT)))


def _best(scores: Floats, count: int) -> Indices:
    """Returns: The indices of the `count` highest scores, ascending; of equal scores the first ones."""
    if len(scores) <= count:
        return np.arange(len(scores))
    lowest = np.partition(scores, -count)[-count]
    above, equal = np.flatnonzero(scores > lowest), np.flatnonzero(scores == lowest)
    return np.sort(np.concatenate([above, equal[: count - len(above)]]))


def _decode(centres: Floats, distances: Floats, resized: Size) -> Floats:
    """Returns: Boxes [K, 4] of points [K, 2] and their distances l, t, r, b [K, 4], clipped to the picture."""
    boxes = np.concatenate([centres - distances[:, :2], centres + distances[:, 2:]], axis=1)
    limits = np.array([resized.width, resized.height, resized.width, resized.height], np.float32)
    clipped: Floats = np.clip(boxes, np.float32(0), limits)
    return clipped


def nms(boxes: Floats, groups: Indices, iou_threshold: float, limit: int) -> Indices:
    """Greedy non-maximum suppression that stops as soon as `limit` boxes are kept.

    Args:
        boxes: [K, 4], best first.
        groups: [K]; only boxes of the same group suppress one another.
        iou_threshold: A box goes if its IoU with a kept one is above this, as in `torchvision.ops.nms`.

    Returns:
        The indices of the kept boxes, ascending.
    """
    sides = np.ascontiguousarray(boxes.T)  # [4, K]: each side's values together, which makes the comparisons fast
    kept: list[int] = []
    for start in range(0, len(boxes), NMS_BLOCK):
        block = np.arange(start, min(start + NMS_BLOCK, len(boxes)))
        if kept:  # comparing boxes with none takes as long as with a few
            block = block[~_overlap(sides, groups, np.array(kept, np.intp), block, iou_threshold).any(axis=0)]
        within = _overlap(sides, groups, block, block, iou_threshold)
        # One whole number per row, one bit per box: the greedy walk then costs next to nothing.
        rows = np.packbits(within, axis=1, bitorder="little")
        removed = 0
        for position, row in enumerate(rows):
            if removed >> position & 1:
                continue
            kept.append(int(block[position]))
            if len(kept) == limit:
                return np.array(kept, np.intp)
            removed |= int.from_bytes(row.tobytes(), "little")
    return np.array(kept, np.intp)


def _overlap(sides: Floats, groups: Indices, a: Indices, b: Indices, iou_threshold: float) -> NDArray[np.bool_]:
    """Returns: [A, B], whether boxes a and b, indices into `sides` [4, K], overlap and are of the same group."""
    a_left, a_top, a_right, a_bottom = sides[:, a]
    b_left, b_top, b_right, b_bottom = sides[:, b]
    shared = np.minimum.outer(a_right, b_right)
    shared -= np.maximum.outer(a_left, b_left)
    np.maximum(shared, 0, out=shared)  # of two negative sides the product would be positive
    height = np.minimum.outer(a_bottom, b_bottom)
    height -= np.maximum.outer(a_top, b_top)
    shared *= height
    union = np.add.outer((a_right - a_left) * (a_bottom - a_top), (b_right - b_left) * (b_bottom - b_top))
    union -= shared
    # Not shared / union: two boxes without area have 0 / 0, and suppress nothing.
    overlap: NDArray[np.bool_] = shared > np.float32(iou_threshold) * union
    overlap &= np.equal.outer(groups[a], groups[b])
    return overlap
