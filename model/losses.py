"""Focal, GIoU and centerness losses of FCOS (arXiv:1904.01355, 3.1 and 3.3).

N pictures, P points, C classes, K positive points. All in float32; the normalisers are averaged over the processes of a
distributed run, as otherwise a process's loss would depend on which pictures it happened to get (0.5 AP, according to
FCOS's authors).
"""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import box_area, generalized_box_iou_loss, sigmoid_focal_loss

from model.assign import assign
from model.config import DEFAULT_OBJECTIVE, Objective
from model.points import decode, encode


def fcos_losses(
    class_logits: Tensor,
    distances: Tensor,
    centerness: Tensor,
    points: Tensor,
    strides: Tensor,
    boxes: list[Tensor],
    labels: list[Tensor],
    objective: Objective = DEFAULT_OBJECTIVE,
    normalisers: Tensor | None = None,
) -> dict[str, Tensor]:
    """The three losses of a batch, or of a part of one, each a scalar; their sum is minimised.

    Args:
        class_logits: [N, P, C].
        distances: [N, P, 4], canvas pixels, >= 0.
        centerness: [N, P], logits.
        points: [P, 2].
        strides: [P].
        boxes: N tensors [G, 4], canvas pixels; G may be 0.
        labels: N tensors [G], class ids.
        objective: the quality that the centerness output learns, and the assignment.
        normalisers: `normalisers_of` the whole batch, so that the losses of its parts add up to its own; by default,
            this part's.

    Returns:
        `class`, `box` and `centerness`. Finite and differentiable even if no point is positive.
    """
    picture, point, learnt = _positives(points, strides, boxes, objective)  # [K] each
    target_boxes = torch.cat(boxes)[learnt]  # [K, 4]
    target_labels = torch.cat(labels)[learnt]  # [K]

    one_hot = torch.zeros_like(class_logits, dtype=torch.float32)
    one_hot[picture, point, target_labels] = 1.0
    # GIoU does not depend on the scale: in units of strides, the numbers stay near one.
    unit = strides[point, None]
    predicted = decode(points[point] / unit, distances[picture, point].float() / unit)
    giou = generalized_box_iou_loss(predicted, target_boxes / unit, reduction="none")  # [K]
    weight = _weights(points[point], target_boxes, objective)
    quality = paired_iou(predicted.detach(), target_boxes / unit) if objective.quality == "iou" else weight

    # Without positive points the terms are 0, but keep their graph: every parameter gets a gradient, and no process
    # waits for ever.
    positives, weights = average_over_processes(_sums(weight)) if normalisers is None else normalisers
    class_loss = sigmoid_focal_loss(class_logits.float(), one_hot, alpha=0.25, gamma=2.0, reduction="sum")
    quality_loss = F.binary_cross_entropy_with_logits(centerness[picture, point].float(), quality, reduction="sum")
    return {
        "class": class_loss / positives,
        "box": (giou * weight).sum() / weights,
        "centerness": quality_loss / positives,
    }


def normalisers_of(
    parts: Sequence[tuple[Tensor, Tensor, list[Tensor]]], objective: Objective = DEFAULT_OBJECTIVE
) -> Tensor:
    """The divisors of a batch's losses, known before the network has seen the batch.

    Args:
        parts: the points, strides and boxes of each part of the batch, as in `fcos_losses`.

    Returns:
        [2], averaged over the processes: the number of positive points, and the sum of their weights in the box loss.
    """
    sums = []
    for points, strides, boxes in parts:
        _, point, learnt = _positives(points, strides, boxes, objective)
        sums.append(_sums(_weights(points[point], torch.cat(boxes)[learnt], objective)))
    return average_over_processes(torch.stack(sums).sum(0))


def _positives(
    points: Tensor, strides: Tensor, boxes: list[Tensor], objective: Objective
) -> tuple[Tensor, Tensor, Tensor]:
    """Picture and point of each positive point, and its box among those of all pictures: [K] each."""
    matched = assign(points, strides, boxes, objective.assignment)  # [N, P]
    picture, point = (matched >= 0).nonzero(as_tuple=True)
    return picture, point, matched[picture, point]


def _weights(points: Tensor, boxes: Tensor, objective: Objective) -> Tensor:
    """[K], of positive points [K, 2] in the box loss: their centerness, as in the paper, if that is learnt; else 1."""
    if objective.quality == "iou":
        return torch.ones_like(points[:, 0])
    return centerness_target(encode(points, boxes))


def _sums(weight: Tensor) -> Tensor:
    return torch.stack((weight.new_tensor(len(weight)), weight.sum()))


def paired_iou(predicted: Tensor, target: Tensor) -> Tensor:
    """IoU of each predicted box with its own target: [K, 4] and [K, 4] -> [K] in 0..1."""
    left_top = torch.maximum(predicted[:, :2], target[:, :2])
    right_bottom = torch.minimum(predicted[:, 2:], target[:, 2:])
    intersection = (right_bottom - left_top).clamp(min=0).prod(1)
    union: Tensor = box_area(predicted) + box_area(target) - intersection
    return intersection / union.clamp(min=1e-7)


def centerness_target(distances: Tensor) -> Tensor:
    """sqrt(min(l, r) / max(l, r) * min(t, b) / max(t, b)) of positive points: distances [K, 4] > 0 -> [K] in (0, 1]."""
    left_right, top_bottom = distances[:, 0::2], distances[:, 1::2]
    ratio = left_right.amin(1) / left_right.amax(1) * (top_bottom.amin(1) / top_bottom.amax(1))
    return ratio.sqrt()


def average_over_processes(sums: Tensor) -> Tensor:
    """The number of positive points and the sum of their weights, [2]: summed over the processes of a distributed run,
    at least 1 and 1e-6, and divided by the number of processes.

    Gradients are averaged over the processes, so this makes them what one process with the whole batch would get.
    """
    least = sums.new_tensor((1.0, 1e-6))
    if not (dist.is_available() and dist.is_initialized()):
        return sums.maximum(least)
    sums = sums.clone()
    dist.all_reduce(sums)
    return sums.maximum(least) / dist.get_world_size()
