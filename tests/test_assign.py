"""Which point learns which box, against assignments worked out by hand."""

import math
import statistics
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from model import assign as assigning
from model.assign import CENTER_RADIUS, LEVEL_RANGES, assign
from model.config import STRIDES, FCOSConfig, Rule
from model.points import canvas_points, decode, encode

CANVAS = (256, 320)
POINTS, POINT_STRIDES = canvas_points(CANVAS, FCOSConfig(classes=("thing",)))


def one(boxes: Tensor, rule: Rule = "fcos") -> Tensor:
    """Of a single picture: [G, 4] -> [P]."""
    return assign(POINTS, POINT_STRIDES, [boxes], rule)[0]


def learned(box_index: int, assigned: Tensor) -> set[tuple[float, float, int]]:
    """(x, y, stride) of the points that learn a box."""
    chosen = assigned == box_index
    return {(*point, int(s)) for point, s in zip(POINTS[chosen].tolist(), POINT_STRIDES[chosen].tolist(), strict=True)}


def test_a_small_box_is_learned_by_the_nine_points_around_its_centre_on_p3() -> None:
    # Centre (20, 20), which is a point of P3. Within 1.5 strides, 12 px and not on the edge: 12, 20 and 28 each way.
    assigned = one(torch.tensor([[4.0, 4.0, 36.0, 36.0]]))
    assert learned(0, assigned) == {(x, y, 8) for x in (12.0, 20.0, 28.0) for y in (12.0, 20.0, 28.0)}


def test_points_outside_a_narrow_box_learn_nothing() -> None:
    # 6 px wide: of the columns 12, 20 and 28 only 20 lies inside.
    assigned = one(torch.tensor([[17.0, 4.0, 23.0, 36.0]]))
    assert learned(0, assigned) == {(20.0, y, 8) for y in (12.0, 20.0, 28.0)}
    on_its_edge = one(torch.tensor([[20.0, 4.0, 26.0, 36.0]]))
    assert not learned(0, on_its_edge)


def test_size_decides_the_level() -> None:
    # Centre (160, 128). At the centre the largest distance is half the longer side: 100 -> P4 (64..128).
    # P4's points around it are 136, 152, 168, 184 across and 104, 120, 136, 152 down, of which 24 px on either side,
    # the edge not counted, leave 152 and 168, 120 and 136. Their largest distance is 108, P4's as well.
    assigned = one(torch.tensor([[60.0, 88.0, 260.0, 168.0]]))
    assert learned(0, assigned) == {(x, y, 16) for x in (152.0, 168.0) for y in (120.0, 136.0)}


def test_a_box_between_two_levels_is_learned_by_both() -> None:
    """The paper leaves out what lies beyond a level's range, not what lies on its ends."""
    assigned = one(
        torch.tensor([[36.0, 52.0, 164.0, 148.0]])
    )  # the centre, (100, 100), is a point of P3: 64 px left and right
    assert (100.0, 100.0, 8) in learned(0, assigned)
    assigned = one(torch.tensor([[40.0, 72.0, 168.0, 136.0]]))  # (104, 104), a point of P4
    assert (104.0, 104.0, 16) in learned(0, assigned)


def test_where_boxes_meet_the_smaller_wins() -> None:
    inner, outer = [8.0, 8.0, 40.0, 40.0], [0.0, 0.0, 48.0, 48.0]
    for boxes, smaller in ((torch.tensor([inner, outer]), 0), (torch.tensor([outer, inner]), 1)):
        assigned = one(boxes)
        assert (20.0, 20.0, 8) in learned(smaller, assigned)
        assert not learned(1 - smaller, assigned)  # the same centre: the larger box gets no point at all


def test_areas_that_differ_by_less_than_float32_can_add_to_a_large_number_are_told_apart() -> None:
    # 1000.0 and 1000.25 px: "1e8 - area" rounds both to the same float.
    boxes = torch.tensor([[10.0, 10.0, 30.0, 60.0125], [10.0, 10.0, 30.0, 60.0]])
    assigned = one(boxes)
    assert not learned(0, assigned)
    assert learned(1, assigned)


def test_without_boxes_everything_is_background() -> None:
    assigned = one(torch.zeros(0, 4))
    assert assigned.shape == (len(POINTS),)
    assert (assigned == -1).all()


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(1, 12))
def test_every_assignment_keeps_the_papers_conditions(seed: int, count: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(count, 2, 2, generator=generator) * torch.tensor([CANVAS[1], CANVAS[0]])
    boxes = torch.cat((corners.amin(1), corners.amax(1)), 1)
    assigned = one(boxes)
    chosen = assigned >= 0
    points, strides, box = POINTS[chosen], POINT_STRIDES[chosen], boxes[assigned[chosen]]
    distances = encode(points, box)
    assert (distances > 0).all()
    low, high = torch.tensor([LEVEL_RANGES[STRIDES.index(int(s))] for s in strides]).reshape(-1, 2).T
    assert (distances.amax(1) >= low).all()
    assert (distances.amax(1) <= high).all()
    center = (box[:, :2] + box[:, 2:]) / 2
    assert ((points - center).abs() < CENTER_RADIUS * strides[:, None]).all()
    torch.testing.assert_close(decode(points, distances), box, atol=1e-4, rtol=0)


def atss_by_hand(boxes: list[list[float]]) -> list[int]:
    """ATSS as the paper's algorithm 1 tells it, k = 9 and squares of 8 strides, one point and one box at a time."""
    points, strides = POINTS.tolist(), POINT_STRIDES.tolist()
    best: list[tuple[float, int]] = [(-1.0, -1)] * len(points)
    for g, (x1, y1, x2, y2) in enumerate(boxes):
        candidates: list[int] = []
        for stride in STRIDES:
            level = [p for p, s in enumerate(strides) if s == stride]
            level.sort(key=lambda p: math.dist(points[p], ((x1 + x2) / 2, (y1 + y2) / 2)))
            candidates += level[:9]
        ious = []
        for p in candidates:
            (x, y), half = points[p], strides[p] * 8 / 2
            shared = max(0, min(x + half, x2) - max(x - half, x1)) * max(0, min(y + half, y2) - max(y - half, y1))
            ious.append(shared / ((2 * half) ** 2 + (x2 - x1) * (y2 - y1) - shared))
        threshold = statistics.mean(ious) + statistics.stdev(ious)
        for p, iou in zip(candidates, ious, strict=True):
            x, y = points[p]
            if iou >= threshold and x1 < x < x2 and y1 < y < y2 and iou > best[p][0]:
                best[p] = (iou, g)
    return [g for _, g in best]


@pytest.mark.parametrize("seed", range(4))
def test_atss_is_the_papers_algorithm(seed: int) -> None:
    # Off the grid, so that no two points are equally near.
    corners = torch.rand(40, 2, 2, generator=torch.Generator().manual_seed(seed))
    boxes = torch.cat((corners.amin(1), corners.amax(1)), 1) * torch.tensor([CANVAS[1], CANVAS[0]] * 2)
    assert one(boxes, "atss").tolist() == atss_by_hand(boxes.tolist())


def test_atss_without_boxes_is_background() -> None:
    assert (one(torch.zeros(0, 4), "atss") == -1).all()


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(1, 12))
def test_points_lie_inside_the_boxes_that_atss_gives_them_and_the_order_of_boxes_does_not_matter(
    seed: int, count: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(count, 2, 2, generator=generator) * torch.tensor([CANVAS[1], CANVAS[0]])
    boxes = torch.cat((corners.amin(1), corners.amax(1)), 1)
    assigned = one(boxes, "atss")
    chosen = assigned >= 0
    assert (encode(POINTS[chosen], boxes[assigned[chosen]]) > 0).all()
    turned = one(boxes.flip(0), "atss")
    assert torch.where(turned < 0, turned, count - 1 - turned).equal(assigned)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**32 - 1), counts=st.lists(st.integers(0, 6), min_size=1, max_size=4))
def test_a_pictures_assignment_does_not_depend_on_its_batch_mates(seed: int, counts: list[int]) -> None:
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(sum(counts), 2, 2, generator=generator) * torch.tensor([CANVAS[1], CANVAS[0]])
    boxes = torch.cat((corners.amin(1), corners.amax(1)), 1).split(counts)
    for rule in get_args(Rule):
        first = 0
        for together, mine in zip(assign(POINTS, POINT_STRIDES, boxes, rule), boxes, strict=True):
            alone = one(mine, rule)
            assert together.equal(torch.where(alone < 0, alone, alone + first))
            first += len(mine)


@pytest.mark.parametrize("rule", get_args(Rule))
def test_crowded_pictures_are_assigned_a_few_at_a_time(rule: Rule, monkeypatch: pytest.MonkeyPatch) -> None:
    corners = torch.rand(40, 2, 2, generator=torch.Generator().manual_seed(7)) * 200
    boxes = torch.cat((corners.amin(1), corners.amax(1)), 1).split([5, 0, 9, 12, 3, 1, 0, 10])
    expected = assign(POINTS, POINT_STRIDES, boxes, rule)
    compared: list[int] = []
    costs = getattr(assigning, f"{rule}_costs")

    def noted(points: Tensor, strides: Tensor, flat: Tensor) -> Tensor:
        compared.append(len(flat))
        found: Tensor = costs(points, strides, flat)
        return found

    monkeypatch.setattr(assigning, f"{rule}_costs", noted)
    for most, counts in ((1, [5, 9, 12, 3, 1, 10]), (11, [5, 9, 12, 4, 10]), (15, [14, 15, 11]), (40, [40])):
        monkeypatch.setattr(assigning, "PAIRS", most * len(POINTS))
        compared.clear()
        assert assign(POINTS, POINT_STRIDES, boxes, rule).equal(expected)
        assert compared == counts


def test_of_two_equal_boxes_the_first_is_learnt() -> None:
    boxes = torch.tensor([[20.0, 20.0, 80.0, 80.0]] * 2)
    for rule in get_args(Rule):
        assert learned(0, one(boxes, rule)) and not learned(1, one(boxes, rule))
