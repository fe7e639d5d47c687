"""Detections against the ground truth: COCO's numbers, the score threshold of best F1, and the confusion of classes.

K detections, G ground-truth boxes, C classes. Boxes are xyxy pixels of the upright picture.
"""

import contextlib
import dataclasses
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster, mask
from numpy.typing import NDArray

from app.postprocess import Detections
from model.coco import Document
from model.config import SCORE_THRESHOLD

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
THRESHOLDS = np.arange(5, 96) / 100
"""Score thresholds from which the one of best F1 is chosen."""
MATCH_IOU = 0.5
"""IoU from which a box counts as found, for F1 and for the confusion matrix."""
RECALLS = np.linspace(0, 1, 101)
"""Recalls at which COCO takes the precision."""
PAIRS = 200_000
"""Pairs of a picture and a class that are compared together: each takes about a kilobyte, even if it has no boxes."""


@dataclasses.dataclass(frozen=True)
class Found:
    """All detections on a set of pictures."""

    pictures: NDArray[np.int64]  # [K] positions in the document's images
    boxes: NDArray[np.float32]  # [K, 4]
    scores: NDArray[np.float32]  # [K]
    class_ids: NDArray[np.int64]  # [K] of the model

    def __len__(self) -> int:
        return len(self.scores)

    def take(self, chosen: NDArray[Any]) -> "Found":
        return Found(self.pictures[chosen], self.boxes[chosen], self.scores[chosen], self.class_ids[chosen])

    @staticmethod
    def of(position: int, detections: Detections) -> "Found":
        """The detections on one picture, whose position in the document's images is given."""
        pictures = np.full(len(detections), position, dtype=np.int64)
        return Found(pictures, detections.boxes, detections.scores, detections.class_ids.astype(np.int64))

    @staticmethod
    def join(parts: Sequence["Found"]) -> "Found":
        """One after the other; without parts, no detections."""
        if not parts:
            return Found(
                np.zeros(0, np.int64), np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64)
            )
        fields = [field.name for field in dataclasses.fields(Found)]
        return Found(*(np.concatenate([getattr(part, name) for part in parts]) for name in fields))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """How good detections are."""

    metrics: dict[str, float]
    """COCO's 12 numbers, 0..1; -1 if there is no ground truth of that size."""
    per_class: dict[str, dict[str, float]]
    """AP and AP50 of each class that both the model and the document have; -1 if there is no ground truth of it."""
    curves: dict[str, NDArray[np.float64]]
    """Per class [101]: precision at IoU 0.5 at `RECALLS`; -1 if there is no ground truth of it."""
    score_threshold: float
    """The one of best F1 over all boxes."""
    f1: float
    confusion: NDArray[np.int64]
    """[C + 1, C + 1] at that threshold: truth (the last: nothing there) by detection (the last: missed)."""

    def to_dict(self) -> dict[str, Any]:
        """The json of `model/evaluate.py`."""
        best = {"f1": self.f1, "score_threshold": self.score_threshold, "confusion": self.confusion.tolist()}
        return {"metrics": self.metrics, "per_class": self.per_class, "best_f1": best}


def score(found: Found, document: Document, classes: Sequence[str]) -> Evaluation:
    """Compare detections with a document.

    Args:
        found: a model's, with these classes.
        document: cleaned by `model.checks.check`.
        classes: the model's. Classes that only the model or only the document has are not counted.

    Raises:
        ValueError: they have no class in common.
    """
    category_of = {category["name"]: category["id"] for category in document["categories"]}
    common = [name for name in classes if name in category_of]
    if not common:
        raise ValueError(
            f"the model's classes ({_some(classes)}) have nothing in common with those of the annotations "
            f"({_some(list(category_of))})"
        )
    # Positions among the common classes; -1 for the others.
    of_model = np.array([common.index(name) if name in category_of else -1 for name in classes], dtype=np.int64)
    found = found.take(of_model[found.class_ids] >= 0)
    found = dataclasses.replace(found, class_ids=of_model[found.class_ids])
    position_of = {category_of[name]: position for position, name in enumerate(common)}
    truth = _truth(document, position_of)

    threshold, f1 = _best_threshold(found, truth)
    metrics, per_class, curves = _coco(found, document, position_of, common)
    return Evaluation(
        metrics=metrics,
        per_class=per_class,
        curves=curves,
        score_threshold=threshold,
        f1=f1,
        confusion=_confusion(found.take(found.scores > threshold), truth, len(common)),
    )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _coco(
    found: Found, document: Document, position_of: dict[int, int], names: list[str]
) -> tuple[dict[str, float], dict[str, dict[str, float]], dict[str, NDArray[np.float64]]]:
    ids = list(position_of)  # in the order of `names`
    at_once = max(1, PAIRS // max(1, len(document["images"])))
    precisions, recalls = [], []
    with contextlib.redirect_stdout(io.StringIO()):
        for first in range(0, len(ids), at_once):
            group = {number: position for position, number in enumerate(ids[first : first + at_once])}
            own = found.take((first <= found.class_ids) & (found.class_ids < first + at_once))
            own = dataclasses.replace(own, class_ids=own.class_ids - first)
            coco = _compared(own, _numbered(document, group))
            precisions.append(coco.eval["precision"])
            recalls.append(coco.eval["recall"])
        # [IoU thresholds, recalls, classes, areas, max detections], -1: no ground truth
        precision = np.concatenate(precisions, axis=2)
        coco.eval = {"precision": precision, "recall": np.concatenate(recalls, axis=1)}
        coco.summarize()
    metrics = {key: float(value) for key, value in zip(METRICS, coco.stats, strict=False)}
    curves = {name: precision[:, :, position, 0, -1] for position, name in enumerate(names)}
    per_class = {name: {"AP": _mean(curve), "AP50": _mean(curve[0])} for name, curve in curves.items()}
    return metrics, per_class, {name: curve[0] for name, curve in curves.items()}


def _compared(found: Found, document: Document) -> Any:
    """COCO's comparison of detections with a document that is `_numbered`, for all of its classes."""
    boxes = _xywh(found.boxes)
    rows = zip(found.pictures.tolist(), boxes.tolist(), found.scores.tolist(), found.class_ids.tolist(), strict=True)
    results = [
        {"image_id": picture + 1, "category_id": label + 1, "bbox": box, "score": value}
        for picture, box, value, label in rows
    ]
    # An empty list is refused; one detection outside its picture stands for it.
    beside = {"image_id": 1, "category_id": 1, "bbox": [-2.0, -2.0, 1.0, 1.0], "score": 0.0}
    truth = COCO(document)
    coco = COCOeval_faster(truth, truth.loadRes(results or [beside]), iouType="bbox")
    coco.evaluate()
    coco.accumulate()
    return coco


def _numbered(document: Document, position_of: dict[int, int]) -> Document:
    """A copy with ids from 1 on and without the boxes of other classes: faster-coco-eval keeps ids as doubles, which
    cannot tell ids over 2^53 apart."""
    pictures = {image["id"]: number for number, image in enumerate(document["images"], 1)}
    wanted = [one for one in document["annotations"] if one["category_id"] in position_of]
    return {
        "images": [image | {"id": pictures[image["id"]]} for image in document["images"]],
        "annotations": [
            one
            | {"id": number, "image_id": pictures[one["image_id"]], "category_id": position_of[one["category_id"]] + 1}
            for number, one in enumerate(wanted, 1)
        ],
        "categories": [{"id": position + 1, "name": str(position)} for position in position_of.values()],
    }


def _mean(precision: NDArray[np.float64]) -> float:
    known = precision[precision > -1]
    return float(known.mean()) if known.size else -1.0


@dataclasses.dataclass(frozen=True)
class _Truth:
    """Ground truth of one picture."""

    boxes: NDArray[np.float64]  # [G, 4] xywh
    labels: NDArray[np.int64]  # [G]
    crowd: NDArray[np.bool_]  # [G]


def _truth(document: Document, label_of: dict[int, int]) -> list[_Truth]:
    of_image: dict[int, list[dict[str, Any]]] = {image["id"]: [] for image in document["images"]}
    for annotation in document["annotations"]:
        if annotation["category_id"] in label_of:
            of_image[annotation["image_id"]].append(annotation)
    truth = []
    for group in of_image.values():
        boxes = np.array([one["bbox"] for one in group], dtype=np.float64).reshape(-1, 4)
        labels = np.array([label_of[one["category_id"]] for one in group], dtype=np.int64)
        truth.append(_Truth(boxes, labels, np.array([bool(one["iscrowd"]) for one in group], dtype=np.bool_)))
    return truth


def _best_threshold(found: Found, truth: list[_Truth]) -> tuple[float, float]:
    """Returns: The score threshold of best F1, over the boxes of all classes together, and that F1."""
    found = found.take(found.scores > THRESHOLDS[0])
    right = np.zeros(len(found), dtype=np.bool_)
    ignored = np.zeros(len(found), dtype=np.bool_)
    for positions, picture in _by_picture(found, truth):
        same = found.class_ids[positions][:, None] == picture.labels[None]
        iou = np.where(same, _overlaps(found.boxes[positions], picture), 0)
        matched = _greedy(np.where(picture.crowd[None], 0, iou))
        right[positions] = matched >= 0
        ignored[positions] = (matched < 0) & (iou[:, picture.crowd] >= MATCH_IOU).any(1)
    boxes = sum(int((~picture.crowd).sum()) for picture in truth)
    best = (SCORE_THRESHOLD, 0.0)
    for threshold in THRESHOLDS.tolist():
        above = (found.scores > threshold) & ~ignored
        hits = int(right[above].sum())
        f1 = 2 * hits / max(int(above.sum()) + boxes, 1)
        if f1 > best[1]:
            best = (threshold, f1)
    return best


def _confusion(found: Found, truth: list[_Truth], classes: int) -> NDArray[np.int64]:
    matrix = np.zeros((classes + 1, classes + 1), dtype=np.int64)
    for positions, picture in _by_picture(found, truth):
        overlaps = _overlaps(found.boxes[positions], picture)
        predicted = found.class_ids[positions]
        real = np.where(picture.crowd[None], 0, overlaps)
        # A box of the right class comes before a better-fitting one of another class.
        same = predicted[:, None] == picture.labels[None]
        matched = _greedy(np.where(real >= MATCH_IOU, real + same, 0))
        in_crowd: NDArray[np.bool_] = np.any(overlaps[:, picture.crowd] >= MATCH_IOU, axis=1)
        for k, match in enumerate(matched.tolist()):
            if match >= 0:
                matrix[picture.labels[match], predicted[k]] += 1
            elif not in_crowd[k]:
                matrix[classes, predicted[k]] += 1
        for missed in np.setdiff1d(np.flatnonzero(~picture.crowd), matched).tolist():
            matrix[picture.labels[missed], classes] += 1
    return matrix


def _by_picture(found: Found, truth: list[_Truth]) -> list[tuple[NDArray[np.intp], _Truth]]:
    """Each picture's detections, best first, and its truth."""
    order = np.lexsort((-found.scores, found.pictures))
    bounds = np.searchsorted(found.pictures[order], np.arange(len(truth) + 1))
    return [(order[bounds[i] : bounds[i + 1]], picture) for i, picture in enumerate(truth)]


def _overlaps(boxes: NDArray[np.float32], picture: _Truth) -> NDArray[np.float64]:
    """[K, G]: IoU; with a crowd, the share of the detection that lies in it. What COCO's AP is computed from, too."""
    found = mask.iou(_xywh(boxes), picture.boxes, picture.crowd.tolist())
    return np.reshape(found, (len(boxes), len(picture.boxes)))  # without boxes it is an empty list


def _xywh(boxes: NDArray[np.float32]) -> NDArray[np.float64]:
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1, dtype=np.float64)


def _greedy(overlaps: NDArray[np.float64]) -> NDArray[np.int64]:
    """[K, G], best detection first -> [K], the box that each one takes, each box once; -1 for none."""
    free = overlaps.copy()
    matched = np.full(len(overlaps), -1, dtype=np.int64)
    if free.shape[1]:
        for k in np.flatnonzero((overlaps >= MATCH_IOU).any(1)).tolist():
            g = int(free[k].argmax())
            if free[k, g] >= MATCH_IOU:
                matched[k] = g
                free[:, g] = 0
    return matched
