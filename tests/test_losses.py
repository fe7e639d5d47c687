"""The losses at inputs whose value is known, and where there is nothing to learn."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection import FCOS
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import box_iou, sigmoid_focal_loss

from app.artifact import Size, grids
from model import config
from model.assign import assign
from model.config import FCOSConfig, Objective
from model.losses import centerness_target, fcos_losses, paired_iou
from model.points import canvas_points, encode

CANVAS = (128, 160)
POINTS, STRIDES = canvas_points(CANVAS, FCOSConfig(classes=("cat", "dog", "bird")))
BOXES = [torch.tensor([[20.0, 20.0, 60.0, 52.0], [70.0, 30.0, 150.0, 120.0]]), torch.tensor([[8.0, 8.0, 120.0, 110.0]])]
LABELS = [torch.tensor([0, 2]), torch.tensor([1])]


def losses(class_logits: Tensor, distances: Tensor, centerness: Tensor) -> dict[str, Tensor]:
    return fcos_losses(class_logits, distances, centerness, POINTS, STRIDES, BOXES, LABELS)


def perfect() -> tuple[Tensor, Tensor, Tensor]:
    """Heads that say exactly what the targets are."""
    class_logits = torch.full((2, len(POINTS), 3), -30.0)
    distances = torch.ones(2, len(POINTS), 4)
    centerness = torch.full((2, len(POINTS)), -30.0)
    for picture, (boxes, labels) in enumerate(zip(BOXES, LABELS, strict=True)):
        assigned = assign(POINTS, STRIDES, [boxes])[0]
        chosen = assigned >= 0
        class_logits[picture, chosen, labels[assigned[chosen]]] = 30.0
        distances[picture, chosen] = encode(POINTS[chosen], boxes[assigned[chosen]])
        centerness[picture, chosen] = torch.logit(centerness_target(distances[picture, chosen]), eps=1e-6)
    return class_logits, distances, centerness


def test_perfect_heads_have_no_class_loss_and_no_box_loss() -> None:
    found = losses(*perfect())
    assert found["class"].item() == pytest.approx(0, abs=1e-6)
    assert found["box"].item() == pytest.approx(0, abs=1e-6)


def test_losses_are_taken_in_float32_whatever_the_heads_are_in() -> None:
    heads = [(head / 10).bfloat16() for head in perfect()]
    found, exact = losses(*heads), losses(*(head.float() for head in heads))
    assert all(found[name].dtype == torch.float32 and found[name].equal(exact[name]) for name in exact)


def test_the_centerness_loss_is_lowest_at_its_target() -> None:
    class_logits, distances, centerness = perfect()
    at_target = losses(class_logits, distances, centerness)["centerness"]
    for shift in (-0.5, 0.5):
        assert losses(class_logits, distances, centerness + shift)["centerness"] > at_target
    # Targets are no 0 or 1, so the entropy of a target is what cannot be learnt away.
    assert at_target > 0.1


def test_focal_loss_of_one_confident_mistake() -> None:
    # Everything is right but one background point that says "cat" with probability 0.9:
    # (1 - alpha) * p^2 * -ln(1 - p), over the number of positives.
    class_logits, distances, centerness = perfect()
    assigned = [assign(POINTS, STRIDES, [boxes])[0] for boxes in BOXES]
    background = int((assigned[0] < 0).nonzero()[0])
    class_logits[0, background, 0] = math.log(0.9 / 0.1)
    positives = sum(int((a >= 0).sum()) for a in assigned)
    expected = 0.75 * 0.9**2 * -math.log(0.1) / positives
    assert losses(class_logits, distances, centerness)["class"].item() == pytest.approx(expected, rel=1e-4)


def test_giou_loss_of_boxes_half_as_wide() -> None:
    # A prediction inside the truth with half its area: IoU 0.5, the hull is the truth, so GIoU is 0.5 too.
    class_logits, distances, centerness = perfect()
    distances[..., 0::2] /= 2
    assert losses(class_logits, distances, centerness)["box"].item() == pytest.approx(0.5, abs=1e-5)


def test_centerness_is_one_at_the_centre_and_falls_to_the_edges() -> None:
    distances = torch.tensor([[5.0, 5, 5, 5], [10, 3, 10, 3], [2, 5, 8, 5], [1, 1, 9, 9]])
    expected = [1.0, 1.0, 0.5, 1 / 9]
    torch.testing.assert_close(centerness_target(distances), torch.tensor(expected))


def test_a_batch_without_boxes_is_finite_and_every_head_still_has_a_gradient() -> None:
    heads = [torch.randn(2, len(POINTS), 3), torch.rand(2, len(POINTS), 4) * 40, torch.randn(2, len(POINTS))]
    class_logits, distances, centerness = (head.requires_grad_() for head in heads)
    none = [torch.zeros(0, 4), torch.zeros(0, 4)]
    found = fcos_losses(
        class_logits, distances, centerness, POINTS, STRIDES, none, [torch.zeros(0, dtype=torch.long)] * 2
    )
    assert found["box"].item() == 0
    assert found["centerness"].item() == 0
    no_class = torch.zeros_like(class_logits)
    assert found["class"].equal(sigmoid_focal_loss(class_logits, no_class, alpha=0.25, gamma=2, reduction="sum"))
    sum(found.values(), torch.zeros(())).backward()
    assert all(head.grad is not None and head.grad.isfinite().all() for head in heads)


def test_a_picture_without_boxes_adds_nothing_to_the_box_loss_of_its_batch() -> None:
    class_logits, distances, centerness = perfect()
    distances = distances * 1.3
    alone = fcos_losses(class_logits[:1], distances[:1], centerness[:1], POINTS, STRIDES, BOXES[:1], LABELS[:1])
    both = fcos_losses(
        class_logits, distances, centerness, POINTS, STRIDES,
        [BOXES[0], torch.zeros(0, 4)], [LABELS[0], torch.zeros(0, dtype=torch.long)],
    )  # fmt: skip
    torch.testing.assert_close(both["box"], alone["box"])
    torch.testing.assert_close(both["centerness"], alone["centerness"])


def test_predicted_boxes_without_area_give_finite_gradients() -> None:
    class_logits, distances, centerness = perfect()
    distances = torch.zeros_like(distances).requires_grad_()
    found = losses(class_logits, distances, centerness)["box"]
    found.backward()
    assert found.isfinite()
    assert distances.grad is not None
    assert distances.grad.isfinite().all()


def test_the_box_loss_weighs_points_by_their_centerness() -> None:
    class_logits, distances, centerness = perfect()
    weights = []
    for picture, boxes in enumerate(BOXES):
        chosen = assign(POINTS, STRIDES, [boxes])[0] >= 0
        weights.append(centerness_target(distances[picture, chosen]))
    half = int((assign(POINTS, STRIDES, BOXES[:1])[0] >= 0).nonzero()[0])
    share = weights[0][0] / torch.cat(weights).sum()
    distances[0, half, 0::2] /= 2  # of this point alone: GIoU 0.5
    assert 0.3 < weights[0][0] / torch.cat(weights).mean() < 0.9, "a mean without weights would be another number"
    assert losses(class_logits, distances, centerness)["box"].item() == pytest.approx(0.5 * share.item(), rel=1e-4)


def test_the_box_loss_of_points_far_from_the_centre_is_a_weighted_mean_too() -> None:
    boxes = torch.tensor([[19.5, 4.0, 25.0, 36.0]])  # of the columns of points only x = 20 lies inside, at its edge
    chosen = assign(POINTS, STRIDES, [boxes])[0] >= 0
    class_logits, distances, centerness = (head[:1] for head in perfect())
    distances[0, chosen] = encode(POINTS[chosen], boxes)
    assert 0 < centerness_target(distances[0, chosen]).sum() < 0.9
    distances[..., 0::2] /= 2  # GIoU 0.5
    found = fcos_losses(class_logits, distances, centerness, POINTS, STRIDES, [boxes], [torch.tensor([0])])
    assert found["box"].item() == pytest.approx(0.5, abs=1e-5)


def iou_losses(class_logits: Tensor, distances: Tensor, centerness: Tensor) -> dict[str, Tensor]:
    objective = Objective(quality="iou")
    return fcos_losses(class_logits, distances, centerness, POINTS, STRIDES, BOXES, LABELS, objective)


def test_paired_iou_is_torchvisions() -> None:
    corners = torch.rand(50, 2, 2, 2) * 100
    one, other = (torch.cat((pair.amin(1), pair.amax(1)), 1) for pair in corners.unbind(1))
    torch.testing.assert_close(paired_iou(one, other), box_iou(one, other).diagonal())


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_with_iou_as_quality_the_loss_is_lowest_where_the_output_is_the_boxes_iou(share: float) -> None:
    class_logits, distances, centerness = perfect()
    distances[..., 0::2] *= share  # inside the truth, with this share of its area: that is its IoU
    output = torch.full_like(centerness, torch.logit(torch.tensor(share), eps=1e-4).item())
    at_target = iou_losses(class_logits, distances, output)["centerness"]
    for shift in (-0.5, 0.5):
        moved = iou_losses(class_logits, distances, output + shift)["centerness"]
        assert moved > at_target or (share == 1.0 and shift > 0)


def test_the_quality_of_a_box_gives_it_no_gradient() -> None:
    class_logits, distances, centerness = perfect()
    distances = (distances * 0.8).requires_grad_()
    centerness.requires_grad_()
    iou_losses(class_logits, distances, centerness)["centerness"].backward()
    assert distances.grad is None or not distances.grad.any()


@pytest.fixture(scope="module")
def theirs() -> FCOS:
    no_backbone: Any = nn.Identity()
    no_backbone.out_channels = 32
    return FCOS(no_backbone, num_classes=3)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("canvas", [(256, 320), (1024, 1280)], ids=str)
def test_the_losses_are_torchvisions(theirs: Any, seed: int, canvas: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(seed)
    height, width = canvas
    points, strides = canvas_points(canvas, FCOSConfig.torchvision(("cat", "dog", "bird")))
    corners = torch.rand(2, 6, 2, 2, generator=generator) * torch.tensor([width, height])
    boxes = list(torch.cat((corners.amin(2), corners.amax(2)), 2))
    labels = list(torch.randint(3, (2, 6), generator=generator))
    class_logits, distances, centerness = (torch.randn(2, len(points), k, generator=generator) for k in (3, 4, 1))
    distances = distances.exp()  # in strides

    shapes = grids(config.STRIDES, Size(*canvas))
    features = [torch.zeros(2, 32, *shape) for shape in shapes]
    anchors = theirs.anchor_generator(ImageList(torch.zeros(2, 3, *canvas), [canvas] * 2), features)
    expected = theirs.compute_loss(
        [{"boxes": b, "labels": c} for b, c in zip(boxes, labels, strict=True)],
        {"cls_logits": class_logits, "bbox_regression": distances, "bbox_ctrness": centerness},
        anchors,
        [rows * columns for rows, columns in shapes],
    )
    heads = (class_logits, distances * strides[:, None], centerness.squeeze(2))
    ours = fcos_losses(*heads, points, strides, boxes, labels)
    torch.testing.assert_close(ours["class"], expected["classification"])
    torch.testing.assert_close(ours["centerness"], expected["bbox_ctrness"])
    # Theirs lacks the paper's weights in the box loss; so does ours with IoU as quality.
    unweighted = fcos_losses(*heads, points, strides, boxes, labels, Objective(quality="iou"))
    torch.testing.assert_close(unweighted["box"], expected["bbox_regression"])


def test_with_iou_as_quality_every_positive_point_counts_the_same() -> None:
    class_logits, distances, centerness = perfect()
    distances[..., 0::2] /= 2
    assert iou_losses(class_logits, distances, centerness)["box"].item() == pytest.approx(0.5, abs=1e-5)
