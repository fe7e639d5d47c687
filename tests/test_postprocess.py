"""L: levels. P: points. C: classes. Boxes are xyxy."""

import dataclasses
from functools import cache

import numpy as np
import pytest
import torch
from torchvision.models.detection import FCOS, fcos_resnet50_fpn
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import batched_nms

from app.artifact import Metadata, Size, grids
from app.canvas import Placement
from app.postprocess import Detections, Heads, Parameters, PictureHeads, nms, point_centres, postprocess
from tests.support import metadata

STRIDES = (8, 16, 32, 64, 128)
PARAMETERS = Parameters(score_threshold=0.2, iou_threshold=0.6, max_detections=100)


def like_torchvision(classes: int, top_k: int = 1000) -> Metadata:
    return metadata(
        classes=[f"class {index}" for index in range(classes)], points={"offset": 0, "step": "canvas"}, top_k=top_k
    )


def placed(canvas: Size, resized: Size | None = None) -> Placement:
    resized = resized or canvas
    return Placement(resized, resized, canvas)


def random_heads(seed: int, canvas: Size, classes: int, level_of_background: float = -4.0) -> PictureHeads:
    """Neighbouring points agree on their boxes, nearly, so that the NMS has work to do."""
    rng = np.random.default_rng(seed)
    logits, distances, centerness = [], [], []
    for stride, (height, width) in zip(STRIDES, grids(STRIDES, canvas), strict=True):
        logits.append(rng.normal(level_of_background, 2, (height * width, classes)))
        distances.append(np.maximum(rng.normal(2, 1, (height * width, 4)), 0) * stride)
        centerness.append(rng.normal(0, 2, height * width))
    return PictureHeads(*(np.concatenate(one).astype(np.float32) for one in (logits, distances, centerness)))


@cache
def torchvision_model(classes: int) -> FCOS:
    return fcos_resnet50_fpn(weights=None, weights_backbone=None, num_classes=classes).eval()


def having_area(found: Detections) -> Detections:
    return found.take(np.all(found.boxes[:, 2:] > found.boxes[:, :2], axis=1))


def by_torchvision(
    heads: PictureHeads, canvas: Size, resized: Size, parameters: Parameters, top_k: int = 1000
) -> Detections:
    classes = heads.class_logits.shape[1]
    model = torchvision_model(classes)
    model.score_thresh, model.nms_thresh = parameters.score_threshold, parameters.iou_threshold
    model.detections_per_img, model.topk_candidates = parameters.max_detections, top_k
    levels = grids(STRIDES, canvas)
    counts = [level.height * level.width for level in levels]
    strides = np.repeat(np.array(STRIDES, np.float32), counts)[:, None]
    anchors = model.anchor_generator(
        ImageList(torch.zeros(1, 3, *canvas), [tuple(resized)]), [torch.zeros(1, 1, *level) for level in levels]
    )
    outputs = {
        "cls_logits": torch.from_numpy(heads.class_logits)[None].split(counts, dim=1),
        "bbox_regression": torch.from_numpy(heads.distances / strides)[None].split(counts, dim=1),
        "bbox_ctrness": torch.from_numpy(heads.centerness)[None, :, None].split(counts, dim=1),
    }
    found = model.postprocess_detections(
        {name: list(values) for name, values in outputs.items()}, [list(anchors[0].split(counts))], [tuple(resized)]
    )[0]
    return Detections(found["boxes"].numpy(), found["scores"].numpy(), found["labels"].numpy())


def test_a_score_must_be_above_the_threshold() -> None:
    canvas = Size(256, 256)
    heads, model = random_heads(0, canvas, 3), like_torchvision(3)
    found = postprocess(heads, placed(canvas), model, PARAMETERS)
    middle = len(found) // 2
    at = Parameters(float(found.scores[middle]), 0.6, 100)
    assert len(postprocess(heads, placed(canvas), model, at)) == np.searchsorted(-found.scores, -found.scores[middle])


def assert_matched(ours: Detections, theirs: Detections) -> None:
    """Every box has its own on the other side: same class, score within 1e-5, sides within 1e-3 px."""
    assert len(ours) == len(theirs)
    free = set(range(len(theirs)))
    for box, score, class_id in zip(ours.boxes, ours.scores, ours.class_ids, strict=True):
        match = [
            index
            for index in free
            if theirs.class_ids[index] == class_id
            and abs(theirs.scores[index] - score) < 1e-5
            and np.abs(theirs.boxes[index] - box).max() < 1e-3
        ]
        assert match, f"torchvision has no box {box} of class {class_id} and score {score}"
        free.remove(match[0])


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("canvas", "resized"), [((160, 160), (160, 131)), ((320, 416), (312, 416)), ((480, 640), (479, 639))]
)
@pytest.mark.parametrize(("score_threshold", "iou_threshold"), [(0.05, 0.5), (0.2, 0.6), (0.5, 0.3)])
def test_torchvision_gives_the_same_boxes(
    seed: int, canvas: tuple[int, int], resized: tuple[int, int], score_threshold: float, iou_threshold: float
) -> None:
    canvas, resized = Size(*canvas), Size(*resized)
    heads = random_heads(seed, canvas, classes=7)
    parameters = Parameters(score_threshold, iou_threshold, max_detections=100)
    ours = postprocess(heads, placed(canvas, resized), like_torchvision(7), parameters)
    all_of_them = dataclasses.replace(parameters, max_detections=10_000)
    theirs = having_area(by_torchvision(heads, canvas, resized, all_of_them))
    assert_matched(ours, theirs.take(np.arange(len(theirs)) < 100))
    assert len(ours) == 100 or score_threshold == 0.5


def test_what_lies_beyond_the_picture_takes_no_place_of_what_lies_in_it() -> None:
    canvas, resized = Size(160, 160), Size(80, 160)
    heads = random_heads(0, canvas, classes=3)
    beyond = point_centres(STRIDES, like_torchvision(3).points, canvas)[:, 1] > 120
    heads.distances[beyond] = 1
    heads.class_logits[beyond] = 9
    found = postprocess(heads, placed(canvas, resized), like_torchvision(3), Parameters(0.05, 0.5, 10))
    assert len(having_area(found)) == 10


def test_torchvision_gives_the_same_boxes_where_levels_overflow_top_k() -> None:
    canvas = Size(160, 160)
    heads = random_heads(11, canvas, classes=5, level_of_background=0)
    parameters = Parameters(0.1, 0.6, max_detections=1000)
    ours = postprocess(heads, placed(canvas), like_torchvision(5, top_k=50), parameters)
    assert_matched(ours, by_torchvision(heads, canvas, canvas, parameters, top_k=50))


def test_points_are_torchvisions_where_the_canvas_is_no_multiple_of_the_stride() -> None:
    """800 x 1344 has steps of (61, 64) and (114, 122) on the two last levels."""
    points = metadata(points={"offset": 0, "step": "canvas"}).points
    centres = point_centres(STRIDES, points, Size(800, 1344))
    assert centres[-1].tolist() == [10 * 122, 6 * 114]
    points = metadata(points={"offset": 0.5, "step": "stride"}).points
    assert point_centres(STRIDES, points, Size(800, 1344))[-1].tolist() == [10.5 * 128, 6.5 * 128], "but not our own"


def test_points_of_the_paper_are_the_middles_of_their_cells() -> None:
    points = metadata(points={"offset": 0.5, "step": "stride"}).points
    assert point_centres((8,), points, Size(16, 24)).tolist() == [
        [4, 4], [12, 4], [20, 4],
        [4, 12], [12, 12], [20, 12],
    ]  # fmt: skip


@pytest.mark.parametrize("limit", [1, 10, 10_000])
def test_nms_is_torchvisions_and_stops_at_the_limit(limit: int) -> None:
    rng = np.random.default_rng(3)
    corners = rng.uniform(0, 100, (1500, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(0, 60, (1500, 2))], axis=1).astype(np.float32)
    groups = rng.integers(0, 3, 1500)
    scores = torch.linspace(1, 0, 1500)
    theirs = batched_nms(torch.from_numpy(boxes), scores, torch.from_numpy(groups), 0.5).numpy()
    np.testing.assert_array_equal(nms(boxes, groups, 0.5, limit), theirs[:limit])


def test_boxes_may_overlap_as_much_as_is_allowed() -> None:
    boxes = np.array([[0, 0, 2, 2], [0, 0, 2, 1], [2, 2, 4, 4], [0, 0, 2, 2]], np.float32)
    groups = np.zeros(4, np.intp)
    assert nms(boxes, groups, 0.5, 10).tolist() == [0, 1, 2]
    assert nms(boxes, groups, 0.0, 10).tolist() == [0, 2], "what only touches does not overlap"
    assert nms(boxes, groups, 1.0, 10).tolist() == [0, 1, 2, 3]


def test_class_agnostic_suppresses_across_classes() -> None:
    canvas = Size(160, 160)
    heads = one_object(canvas)
    heads.class_logits[0] = 3, 4, 5
    for class_agnostic, classes in ((False, [2, 1, 0]), (True, [2])):
        parameters = dataclasses.replace(PARAMETERS, class_agnostic=class_agnostic)
        assert postprocess(heads, placed(canvas), metadata(), parameters).class_ids.tolist() == classes


def one_object(canvas: Size, class_logit: float = 3.0, centerness: float = 3.0) -> PictureHeads:
    """Point 0 of class 1 sees an object; the rest is sure that there is nothing."""
    points = sum(level.height * level.width for level in grids(STRIDES, canvas))
    heads = PictureHeads(
        np.full((points, 3), -20, np.float32), np.full((points, 4), 8, np.float32), np.full(points, -20, np.float32)
    )
    heads.class_logits[0, 1] = class_logit
    heads.centerness[0] = centerness
    return heads


def test_nothing_is_found_where_nothing_is() -> None:
    canvas = Size(160, 160)
    found = postprocess(one_object(canvas, -20), placed(canvas), metadata(), PARAMETERS)
    assert len(found) == 0
    assert found.boxes.shape == (0, 4)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("head", ["class_logits", "distances", "centerness"])
@pytest.mark.parametrize("everywhere", [False, True])
def test_values_that_are_not_finite_make_no_boxes(value: float, head: str, everywhere: bool) -> None:
    canvas = Size(160, 160)
    heads = one_object(canvas)
    values = getattr(heads, head)
    values[... if everywhere else 0] = value
    assert len(postprocess(heads, placed(canvas), metadata(), PARAMETERS)) == 0


@pytest.mark.parametrize("side", range(4))
def test_a_box_without_end_on_one_side_is_none(side: int) -> None:
    canvas = Size(160, 160)
    heads = one_object(canvas)
    heads.distances[0, side] = np.inf
    assert len(postprocess(heads, placed(canvas), metadata(), PARAMETERS)) == 0


def test_a_broken_point_does_not_hide_a_good_one() -> None:
    canvas = Size(160, 160)
    heads = one_object(canvas)
    heads.class_logits[5], heads.centerness[6], heads.distances[7] = np.nan, np.nan, np.inf
    assert postprocess(heads, placed(canvas), metadata(), PARAMETERS).class_ids.tolist() == [1]


def test_the_threshold_is_on_the_score_that_is_shown() -> None:
    canvas = Size(160, 160)
    heads = one_object(canvas, 0.3, -0.4)
    score = float(np.sqrt(1 / (1 + np.exp(-0.3)) / (1 + np.exp(0.4))))
    for threshold, count in ((score - 1e-5, 1), (score + 1e-5, 0)):
        found = postprocess(heads, placed(canvas), metadata(), Parameters(threshold, 0.6, 100))
        assert len(found) == count


@pytest.mark.parametrize(("threshold", "found"), [(0.0, True), (1.0, False)])
def test_thresholds_at_their_ends(threshold: float, found: bool) -> None:
    canvas = Size(160, 160)
    result = postprocess(one_object(canvas), placed(canvas), metadata(), Parameters(threshold, 0.6, 100))
    assert (len(result) > 0) is found


def test_equal_scores_keep_the_order_of_their_points() -> None:
    canvas = Size(160, 160)
    heads = random_heads(0, canvas, 3)
    heads.class_logits[:], heads.centerness[:] = 2, 2
    heads.distances[:] = 0.25  # boxes that do not touch one another
    heads.class_logits[5, 2] = 3
    limited = metadata(top_k=5)
    found = postprocess(heads, placed(canvas), limited, Parameters(0.1, 0.6, 7))
    assert found.class_ids.tolist() == [2, 0, 1, 2, 0, 0, 1]  # five of the first level, then the second's
    assert found.boxes[1].tolist() == [3.75, 3.75, 4.25, 4.25]
    heads.class_logits[:, 1] = 4
    found = postprocess(heads, placed(canvas), metadata(), Parameters(0.1, 0.6, 500))
    assert set(found.class_ids) == {1}
    centres = point_centres(STRIDES, metadata().points, canvas)
    np.testing.assert_array_equal(found.boxes[:, :2] + 0.25, centres[:500])


def test_a_class_filter_gives_the_others_boxes_unchanged() -> None:
    canvas = Size(160, 160)
    heads = random_heads(5, canvas, 3)
    everything = postprocess(heads, placed(canvas), metadata(), Parameters(0.2, 0.6, 1000))
    only = postprocess(heads, placed(canvas), metadata(), Parameters(0.2, 0.6, 1000, class_ids=(0, 2)))
    assert 0 < len(only) < len(everything) < 1000
    kept = everything.take(everything.class_ids != 1)
    np.testing.assert_array_equal(only.boxes, kept.boxes)
    np.testing.assert_array_equal(only.class_ids, kept.class_ids)


def test_heads_of_another_model_are_refused() -> None:
    canvas = Size(160, 160)
    with pytest.raises(ValueError, match="must have the shapes"):
        postprocess(random_heads(0, canvas, 4), placed(canvas), metadata(), PARAMETERS)


def test_a_pictures_heads_are_views() -> None:
    heads = Heads(np.zeros((2, 5, 3), np.float32), np.zeros((2, 5, 4), np.float32), np.zeros((2, 5), np.float32))
    assert all(np.shares_memory(one, whole) for one, whole in zip(heads.of(1), heads, strict=True))


@pytest.mark.parametrize("seed", range(20))
def test_scores_next_to_1_lose_no_candidate(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    canvas = Size(320, 416)
    random = np.random.default_rng(seed)
    heads = random_heads(seed, canvas, 3)
    heads.class_logits[:] = random.normal(10, 3, heads.class_logits.shape)
    heads.centerness[:] = random.normal(12, 3, heads.centerness.shape)
    few = like_torchvision(3, top_k=20)
    thinned = postprocess(heads, placed(canvas), few, Parameters(0.0, 1.0, 1000))
    monkeypatch.setattr("app.postprocess.MANY_CANDIDATES", 10**9)
    np.testing.assert_array_equal(
        thinned.scores, postprocess(heads, placed(canvas), few, Parameters(0.0, 1.0, 1000)).scores
    )


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("class_ids", [None, (1,), (0, 3)])
@pytest.mark.parametrize("flat", [False, True])
def test_a_threshold_of_zero_gives_the_best_of_all_logits(
    seed: int, class_ids: tuple[int, ...] | None, flat: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same, in the same order, as where every logit is looked at; also where most are equal, huge or broken."""
    canvas = Size(320, 416)
    heads = random_heads(seed, canvas, 5)
    random = np.random.default_rng(seed)
    if flat:
        heads = PictureHeads(np.round(heads.class_logits), heads.distances, np.round(heads.centerness))
    for head in (heads.class_logits, heads.centerness):
        places = random.integers(0, head.size, (4, 30))
        for value, place in zip((np.nan, np.inf, 40, -90), places, strict=True):
            head.reshape(-1)[place] = value
    metadata = like_torchvision(5, top_k=200)
    parameters = Parameters(0.0, 0.6, 1000, class_ids)
    thinned = postprocess(heads, placed(canvas), metadata, parameters)
    monkeypatch.setattr("app.postprocess.MANY_CANDIDATES", 10**9)
    complete = postprocess(heads, placed(canvas), metadata, parameters)
    assert len(complete) > 0
    np.testing.assert_array_equal(thinned.scores, complete.scores)
    np.testing.assert_array_equal(thinned.class_ids, complete.class_ids)
    np.testing.assert_array_equal(thinned.boxes, complete.boxes)
