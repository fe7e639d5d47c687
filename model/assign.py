"""Which point learns which box (FCOS, arXiv:1904.01355, 3.2; center sampling, arXiv:2006.09214, 3.1).

N pictures, P points, G ground-truth boxes. Distances and boxes are canvas pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from model.config import STRIDES
from model.points import encode

LEVEL_RANGES = ((0.0, 64.0), (64.0, 128.0), (128.0, 256.0), (256.0, 512.0), (512.0, float("inf")))
"""The largest of l, t, r, b that a level is responsible for, P3 to P7."""
CENTER_RADIUS = 1.5
"""Half side, in strides, of the square around a box's centre within which its points lie."""


def assign(points: Tensor, strides: Tensor, boxes: Tensor) -> Tensor:
    """The box that each point learns.

    A point takes a box if it lies within `CENTER_RADIUS` strides of the box's centre, inside the box, and the largest of
    its four distances falls into its level's range. Where several boxes qualify, the one of smallest area wins.

    Args:
        points: [P, 2], x and y.
        strides: [P].
        boxes: [G, 4]; G may be 0.

    Returns:
        [P], the index of the box, -1 for background.
    """
    if len(boxes) == 0:
        return torch.full((len(points),), -1, dtype=torch.long, device=points.device)
    distances = encode(points[:, None], boxes[None])  # [P, G, 4]
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2
    radius = (strides * CENTER_RADIUS)[:, None, None]
    # The square is clipped to the box: a point qualifies only if it lies in both.
    near_center = ((points[:, None] - centers[None]).abs() < radius).all(-1)
    inside = distances.amin(-1) > 0
    low, high = _ranges(strides)
    largest = distances.amax(-1)
    match = near_center & inside & (largest >= low[:, None]) & (largest <= high[:, None])

    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    smallest, index = torch.where(match, area[None], torch.inf).min(1)
    return torch.where(smallest.isinf(), -1, index)


def _ranges(strides: Tensor) -> tuple[Tensor, Tensor]:
    ranges = strides.new_tensor(LEVEL_RANGES)  # [5, 2]
    level = torch.log2(strides / STRIDES[0]).round().long()
    return ranges[level, 0], ranges[level, 1]
