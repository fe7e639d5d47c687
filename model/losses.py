"""Focal, GIoU and centerness losses of FCOS (arXiv:1904.01355, 3.1 and 3.2).

N pictures, P points, C classes, K positive points. All in float32; the normalisers are averaged over the processes of a
distributed run, without which the loss of a process depends on which pictures it happened to get (0.5 AP, by FCOS's
authors).
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import generalized_box_iou_loss, sigmoid_focal_loss

from model.assign import Rule, assign
from model.points import decode, encode


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective:
    """What is learnt; the network and its outputs stay the same."""

    quality: Literal["centerness", "iou"] = "centerness"
    """What the centerness output predicts: how central a point is, or how good its box."""
    assignment: Rule = "fcos"
    """Which points learn a box."""


DEFAULT_OBJECTIVE = Objective()


def fcos_losses(
    class_logits: Tensor,
    distances: Tensor,
    centerness: Tensor,
    points: Tensor,
    strides: Tensor,
    boxes: list[Tensor],
    labels: list[Tensor],
    objective: Objective = DEFAULT_OBJECTIVE,
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
        objective: the quality that the centerness output learns, and the assignment.

    Returns:
        `class`, `box` and `centerness`. Finite and differentiable also where no point is positive.
    """
    matched = assign(points, strides, boxes, objective.assignment)  # [N, P]
    positive = matched >= 0
    picture, point = positive.nonzero(as_tuple=True)  # [K] each
    learnt = matched[picture, point]
    target_boxes = torch.cat(boxes)[learnt]  # [K, 4]
    target_labels = torch.cat(labels)[learnt]  # [K]

    one_hot = torch.zeros_like(class_logits, dtype=torch.float32)
    one_hot[picture, point, target_labels] = 1.0
    # GIoU does not change with the scale: in strides the numbers stay near one.
    unit = strides[point, None]
    predicted = decode(points[point] / unit, distances[picture, point].float() / unit)
    giou = generalized_box_iou_loss(predicted, target_boxes / unit, reduction="none")  # [K]
    if objective.quality == "iou":
        quality, weight = paired_iou(predicted.detach(), target_boxes / unit), torch.ones_like(giou)
    else:
        quality = weight = centerness_target(encode(points[point], target_boxes))

    # Every process takes part in both sums, also one without a positive point, whose terms are 0 but keep their graph:
    # every parameter gets a gradient, and none waits for ever.
    positives = average_over_processes(positive.sum().float(), least=1.0)
    weights = average_over_processes(weight.sum(), least=1e-6)
    class_loss = sigmoid_focal_loss(class_logits.float(), one_hot, alpha=0.25, gamma=2.0, reduction="sum")
    quality_loss = F.binary_cross_entropy_with_logits(centerness[picture, point].float(), quality, reduction="sum")
    return {
        "class": class_loss / positives,
        "box": (giou * weight).sum() / weights,
        "centerness": quality_loss / positives,
    }


def paired_iou(predicted: Tensor, target: Tensor) -> Tensor:
    """IoU of each predicted box with its own target: [K, 4] and [K, 4] -> [K] in 0..1."""
    shared = (torch.minimum(predicted[:, 2:], target[:, 2:]) - torch.maximum(predicted[:, :2], target[:, :2])).clamp(
        min=0
    )
    intersection = shared.prod(1)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(1) for boxes in (predicted, target)]
    return intersection / (areas[0] + areas[1] - intersection).clamp(min=1e-7)


def centerness_target(distances: Tensor) -> Tensor:
    """sqrt(min(l, r) / max(l, r) * min(t, b) / max(t, b)) of positive points: distances [K, 4] > 0 -> [K] in (0, 1]."""
    left_right, top_bottom = distances[:, 0::2], distances[:, 1::2]
    ratio = left_right.amin(1) / left_right.amax(1) * (top_bottom.amin(1) / top_bottom.amax(1))
    return ratio.sqrt()


def average_over_processes(value: Tensor, least: float) -> Tensor:
    """The sum over the processes of a distributed run, at least `least`, divided by their number.

    Gradients are averaged over the processes, so that this makes them what one process with the whole batch would get.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return value.clamp(min=least)
    value = value.clone()
    dist.all_reduce(value)
    return value.clamp(min=least) / dist.get_world_size()
