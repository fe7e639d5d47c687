"""Focal, GIoU and centerness losses of FCOS (arXiv:1904.01355, 3.1 and 3.2).

N pictures, P points, C classes. All in float32; the normalisers are averaged over the processes of a distributed run,
without which the loss of a process depends on which pictures it happened to get (0.5 AP, FCOS's authors).
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import generalized_box_iou_loss, sigmoid_focal_loss

from model.assign import assign
from model.points import decode, encode


def fcos_losses(
    class_logits: Tensor,
    distances: Tensor,
    centerness: Tensor,
    points: Tensor,
    strides: Tensor,
    boxes: list[Tensor],
    labels: list[Tensor],
) -> dict[str, Tensor]:
    """The three losses of a batch, each a scalar; their sum is minimised.

    Args:
        class_logits: [N, P, C].
        distances: [N, P, 4], canvas pixels, >= 0.
        centerness: [N, P], logits.
        points: [P, 2].
        strides: [P].
        boxes: N tensors [G, 4], canvas pixels; G may be 0.
        labels: N tensors [G], class ids.

    Returns:
        `class`, `box` and `centerness`. Finite and differentiable also where no point is positive.
    """
    matched = torch.stack([assign(points, strides, b) for b in boxes])  # [N, P]
    positive = matched >= 0
    picture, point = positive.nonzero(as_tuple=True)  # [K] each
    offsets = torch.tensor([0, *[len(b) for b in boxes]], device=points.device).cumsum(0)
    flat = matched[positive] + offsets[picture]
    target_boxes = torch.cat(boxes)[flat]  # [K, 4]
    target_labels = torch.cat(labels)[flat]  # [K]

    one_hot = torch.zeros_like(class_logits, dtype=torch.float32)
    one_hot[picture, point, target_labels] = 1.0
    target_centerness = centerness_target(encode(points[point], target_boxes))  # [K]

    positives = average_over_processes(positive.sum().float()).clamp(min=1.0)
    weight = average_over_processes(target_centerness.sum()).clamp(min=1e-6)

    class_loss = sigmoid_focal_loss(class_logits.float(), one_hot, alpha=0.25, gamma=2.0, reduction="sum") / positives
    if len(point) == 0:
        # Still part of the graph: every parameter has a gradient, and a distributed run does not wait for ever.
        return {"class": class_loss, "box": distances.float().sum() * 0, "centerness": centerness.float().sum() * 0}
    # GIoU does not change with the scale: in strides the numbers stay near one.
    unit = strides[point, None]
    predicted = decode(points[point] / unit, distances[picture, point].float() / unit)
    giou = generalized_box_iou_loss(predicted, target_boxes / unit, reduction="none")
    box_loss = (giou * target_centerness).sum() / weight
    centerness_loss = F.binary_cross_entropy_with_logits(
        centerness[picture, point].float(), target_centerness, reduction="sum"
    )
    return {"class": class_loss, "box": box_loss, "centerness": centerness_loss / positives}


def centerness_target(distances: Tensor) -> Tensor:
    """sqrt(min(l, r) / max(l, r) * min(t, b) / max(t, b)) of positive points: distances [K, 4] > 0 -> [K] in (0, 1]."""
    left_right, top_bottom = distances[:, 0::2], distances[:, 1::2]
    ratio = left_right.amin(1) / left_right.amax(1) * (top_bottom.amin(1) / top_bottom.amax(1))
    return ratio.sqrt()


def average_over_processes(value: Tensor) -> Tensor:
    """Sum over the processes of a distributed run, divided by their number; the value itself in a single process."""
    if not (dist.is_available() and dist.is_initialized()):
        return value
    value = value.clone()
    dist.all_reduce(value)
    return value / dist.get_world_size()
