"""How well a lower precision agrees with fp32.

It is judged by what matters, the detections on real pictures: a precision that answers differently is refused.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torchvision.ops import box_iou

from app.detector import Detector
from app.postprocess import Detections, Parameters
from app.session import OnnxRunner
from model.pictures import open_as_served


class Bounds(NamedTuple):
    """What a precision must reach. AP is measured by model/evaluate.py."""

    share: float
    """Of fp32's detections that it must give, too, and of its own that fp32 must give."""
    iou: float
    """At least, for two detections to count as the same."""
    score: float
    """Largest difference between their scores."""


LOWER = {"fp16": Bounds(0.98, 0.95, 0.02), "int8": Bounds(0.80, 0.75, 0.15)}


def agreement(reference: OnnxRunner, other: OnnxRunner, pictures: Sequence[Path], bounds: Bounds) -> tuple[float, int]:
    """How far the detections of two files agree at the default threshold.

    Returns:
        Share of the reference's detections that the other gives too, or of the other's that the reference gives,
        whichever is less; and the number that it is a share of, 0 if the reference has none.

    Raises:
        ValueError: one of the pictures cannot be read.
    """
    detector, lower = Detector(reference.metadata, reference), Detector(other.metadata, other)
    parameters = detector.parameters()
    # A detection just above the threshold may fall just below it: that is not a disagreement.
    margin = max(0.0, parameters.score_threshold - bounds.score)
    with_margin = Parameters(margin, parameters.iou_threshold, 3 * parameters.max_detections)
    found, wanted = np.zeros(2, int), np.zeros(2, int)
    for picture in pictures:
        canvas, placement = detector.fit(open_as_served(picture, reference.metadata))
        heads = [(one, one.run(canvas[None]).of(0)) for one in (detector, lower)]
        sure = [one.finish(head, placement, parameters) for one, head in heads]
        likely = [one.finish(head, placement, with_margin) for one, head in heads]
        for way in (0, 1):
            found[way] += _matched(sure[way], likely[1 - way], bounds)
            wanted[way] += len(sure[way])
    if not wanted[0]:
        return 0.0, 0
    ways = [way for way in (0, 1) if wanted[way]]  # what is not sure of anything contradicts nothing
    return min((float(found[way] / wanted[way]), int(wanted[way])) for way in ways)


def _matched(expected: Detections, got: Detections, bounds: Bounds) -> int:
    iou = box_iou(torch.from_numpy(expected.boxes), torch.from_numpy(got.boxes)).numpy()
    same = expected.class_ids[:, None] == got.class_ids[None]
    close = np.abs(expected.scores[:, None] - got.scores[None]) <= bounds.score
    return int((same & close & (iou >= bounds.iou)).any(1).sum())
