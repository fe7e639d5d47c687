"""Where the points of P3..P7 lie on a canvas, and boxes as distances from them.

N pictures, P points, G ground-truth boxes, C classes.
"""

import numpy as np
import torch
from torch import Tensor

from app.artifact import Points, Size, grids
from app.postprocess import point_centres
from model.config import STRIDES, FCOSConfig


def canvas_points(
    canvas: tuple[int, int], config: FCOSConfig, device: torch.device | None = None
) -> tuple[Tensor, Tensor]:
    """Points of a canvas, level after level, row by row: those of the service.

    Returns:
        Points [P, 2] as (x, y) in canvas pixels, and the stride of each [P].
    """
    size = Size(*canvas)
    centres = point_centres(STRIDES, Points(offset=config.point_offset, step=config.point_step), size)
    strides = np.repeat(np.array(STRIDES, np.float32), [grid.area for grid in grids(STRIDES, size)])
    return torch.tensor(centres, device=device), torch.tensor(strides, device=device)


def encode(points: Tensor, boxes: Tensor) -> Tensor:
    """Boxes [..., 4] as distances l, t, r, b [..., 4] from points [..., 2]; negative if a point lies outside."""
    return torch.cat((points - boxes[..., :2], boxes[..., 2:] - points), -1)


def decode(points: Tensor, distances: Tensor) -> Tensor:
    """Undo `encode`: boxes [..., 4] as x1, y1, x2, y2."""
    return torch.cat((points - distances[..., :2], points + distances[..., 2:]), -1)
