"""Where the points of P3..P7 lie on a canvas, and boxes as distances from them.

N pictures, P points, G ground-truth boxes, C classes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from app.artifact import Size, grids
from model.config import STRIDES, FCOSConfig


def canvas_points(
    canvas: tuple[int, int], config: FCOSConfig, device: torch.device | None = None
) -> tuple[Tensor, Tensor]:
    """Points of a canvas, level after level, row by row.

    Returns:
        Points [P, 2] as (x, y) in canvas pixels, and the stride of each [P].
    """
    points, strides = [], []
    for stride, (rows, columns) in zip(STRIDES, grids(STRIDES, Size(*canvas)), strict=True):
        step_y, step_x = (
            (stride, stride) if config.point_step == "stride" else (canvas[0] // rows, canvas[1] // columns)
        )
        y = (torch.arange(rows, dtype=torch.float32, device=device) + config.point_offset) * step_y
        x = (torch.arange(columns, dtype=torch.float32, device=device) + config.point_offset) * step_x
        grid_y, grid_x = torch.meshgrid(y, x, indexing="ij")
        points.append(torch.stack((grid_x.flatten(), grid_y.flatten()), 1))
        strides.append(torch.full((rows * columns,), float(stride), device=device))
    return torch.cat(points), torch.cat(strides)


def encode(points: Tensor, boxes: Tensor) -> Tensor:
    """Boxes [..., 4] as distances l, t, r, b [..., 4] from points [..., 2]; negative if a point lies outside."""
    return torch.cat((points - boxes[..., :2], boxes[..., 2:] - points), -1)


def decode(points: Tensor, distances: Tensor) -> Tensor:
    """Undo `encode`: boxes [..., 4] as x1, y1, x2, y2."""
    return torch.cat((points - distances[..., :2], points + distances[..., 2:]), -1)
