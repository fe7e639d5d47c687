"""Which point learns which box: FCOS's rule (arXiv:1904.01355, 3.2; center sampling, arXiv:2006.09214, 3.1), or ATSS's.

N pictures, P points, G ground-truth boxes of one picture, B of all. Distances and boxes are canvas pixels.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torchvision.ops import box_area, box_iou

from model.config import STRIDES, Rule
from model.points import encode

LEVEL_RANGES = ((0.0, 64.0), (64.0, 128.0), (128.0, 256.0), (256.0, 512.0), (512.0, float("inf")))
"""The largest of l, t, r, b that a level is responsible for, P3 to P7."""
CENTER_RADIUS = 1.5
"""Half side, in strides, of the square around a box's centre within which its points lie."""

ATSS_CANDIDATES = 9
"""Per level and box: the paper's k."""
ATSS_SQUARE = 8
"""Side, in strides, of the square that stands for a point."""
PAIRS = 2**24
"""Pairs of a point and a box that are compared together, unless one picture has more: each takes about 40 bytes."""


def assign(points: Tensor, strides: Tensor, boxes: Sequence[Tensor], rule: Rule = "fcos") -> Tensor:
    """The box that each point of each picture learns.

    Args:
        points: [P, 2], x and y.
        strides: [P].
        boxes: N tensors [G, 4]; G may be 0.

    Returns:
        [N, P], the box's index among all pictures' boxes, -1 for background.
    """
    parts: list[Tensor] = []
    before = 0
    for group in _groups(boxes, PAIRS // len(points)):
        part = _assign(points, strides, group, rule)
        parts.append(torch.where(part < 0, part, part + before))
        before += sum(map(len, group))
    return torch.cat(parts)


def _groups(boxes: Sequence[Tensor], most: int) -> Iterator[list[Tensor]]:
    """Successive pictures that have at most this many boxes together, or are alone.

    If possible all at once: launching one picture's work on a GPU takes longer than the work itself.
    """
    group: list[Tensor] = []
    for part in boxes:
        if group and sum(map(len, group)) + len(part) > most:
            yield group
            group = []
        group.append(part)
    yield group


def _assign(points: Tensor, strides: Tensor, boxes: list[Tensor], rule: Rule) -> Tensor:
    costs_of = {"fcos": fcos_costs, "atss": atss_costs}[rule]
    flat = torch.cat(boxes)
    if len(flat) == 0:
        return torch.full((len(boxes), len(points)), -1, dtype=torch.long, device=points.device)
    costs = costs_of(points, strides, flat).T  # [B, P]
    counts = torch.tensor([len(part) for part in boxes], device=flat.device)
    picture = torch.repeat_interleave(counts, output_size=len(flat))[:, None].expand_as(costs)
    lowest = costs.new_full((len(boxes), len(points)), torch.inf).scatter_reduce_(0, picture, costs, "amin")
    # If costs are equal, the first box wins.
    number = torch.arange(len(flat), device=flat.device)[:, None].expand_as(costs)
    chosen = (costs == lowest.gather(0, picture)) & costs.isfinite()
    index = torch.where(chosen, number, len(flat))
    first = index.new_full(lowest.shape, len(flat)).scatter_reduce_(0, picture, index, "amin")
    return torch.where(first == len(flat), -1, first)


def fcos_costs(points: Tensor, strides: Tensor, boxes: Tensor) -> Tensor:
    """The cost at which each point may learn each box by FCOS's rule.

    A point takes a box if it lies within `CENTER_RADIUS` strides of the box's centre, inside the box, and the largest
    of its four distances falls into its level's range. If several boxes qualify, the one of smallest area wins.

    Args:
        points: [P, 2], x and y.
        strides: [P].
        boxes: [B, 4].

    Returns:
        [P, B], infinite where a point does not qualify.
    """
    distances = encode(points[:, None], boxes[None])  # [P, B, 4]
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2
    radius = (strides * CENTER_RADIUS)[:, None, None]
    # The square is clipped to the box: a point qualifies only if it lies in both.
    near_center = ((points[:, None] - centers[None]).abs() < radius).all(-1)
    inside = distances.amin(-1) > 0
    low, high = _ranges(strides)
    largest = distances.amax(-1)
    match = near_center & inside & (largest >= low[:, None]) & (largest <= high[:, None])
    return torch.where(match, box_area(boxes), torch.inf)


def atss_costs(points: Tensor, strides: Tensor, boxes: Tensor) -> Tensor:
    """The same by adaptive training sample selection (ATSS, arXiv:1912.02424, 3.1).

    A box's candidates are the `ATSS_CANDIDATES` points of each level nearest to its centre. Around each lies a square
    of `ATSS_SQUARE` strides; candidates whose square has an IoU with the box of at least the candidates' mean plus
    standard deviation, and that lie inside the box, learn it. If several boxes qualify, the one of largest IoU wins.
    """
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2
    apart = torch.cdist(points, centers, compute_mode="donot_use_mm_for_euclid_dist")  # [P, B]
    chosen = []
    first = 0
    # In the order of the levels, not of stride values: a level is a run of equal strides.
    for count in torch.unique_consecutive(strides, return_counts=True)[1].tolist():
        nearest = apart[first : first + count].topk(min(ATSS_CANDIDATES, count), dim=0, largest=False).indices
        chosen.append(nearest + first)
        first += count
    candidates = torch.cat(chosen)  # [K, B]

    half = (strides * (ATSS_SQUARE / 2))[:, None]
    iou = box_iou(torch.cat((points - half, points + half), 1), boxes)  # [P, B]
    of_candidates = iou.gather(0, candidates)  # [K, B]
    threshold = of_candidates.mean(0) + of_candidates.std(0)
    match = torch.zeros_like(iou, dtype=torch.bool).scatter_(0, candidates, of_candidates >= threshold)
    match &= encode(points[:, None], boxes[None]).amin(-1) > 0
    return torch.where(match, -iou, torch.inf)


def _ranges(strides: Tensor) -> tuple[Tensor, Tensor]:
    ranges = strides.new_tensor(LEVEL_RANGES)  # [5, 2]
    level = torch.log2(strides / STRIDES[0]).round().long()
    return ranges[level, 0], ranges[level, 1]
