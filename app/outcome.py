"""What the pipeline found in one picture, before it becomes an answer of some form."""

from dataclasses import dataclass
from typing import Any

from pydantic_core import to_json

from app.artifact import Size
from app.budget import Share
from app.postprocess import Detections
from app.schemas import Answer, ModelName


@dataclass(frozen=True)
class Outcome:
    """One picture's detections.

    Attributes:
        size: Of the upright picture.
        found: Boxes in the upright picture's own pixels.
        classes: The model's class names.
        timing_ms: decode, queue, inference, postprocess; draw, if there is `drawn`.
        drawn: A picture file with the boxes, if one was asked for.
        held: The share of the pixel budget that `drawn` has until `let_go`.
    """

    size: Size
    found: Detections
    classes: tuple[str, ...]
    model: ModelName
    timing_ms: dict[str, float]
    drawn: bytes | None = None
    held: Share | None = None

    def let_go(self) -> None:
        """Once `drawn` is where it belongs, it no longer counts for the pixel budget."""
        if self.held is not None:
            self.held.shrink(0)

    @property
    def answer(self) -> Answer:
        """The answer of POST /detect."""
        return Answer.model_validate(self._document())

    def to_json(self) -> bytes:
        """Returns: `answer` as JSON. Built from the arrays: a model object per box would cost more than the boxes."""
        return to_json(self._document())

    def _document(self) -> dict[str, Any]:
        found, classes = self.found, self.classes
        rows = zip(found.class_ids.tolist(), found.scores.tolist(), found.boxes.tolist(), strict=True)
        return {
            "detections": [
                {
                    "label": classes[class_id],
                    "class_id": class_id,
                    "score": round(score, 6),
                    # To a thousandth of a pixel.
                    "box": {
                        "xmin": round(xmin, 3),
                        "ymin": round(ymin, 3),
                        "xmax": round(xmax, 3),
                        "ymax": round(ymax, 3),
                    },
                }
                for class_id, score, (xmin, ymin, xmax, ymax) in rows
            ],
            "image": {"width": self.size.width, "height": self.size.height},
            "model": {"name": self.model.name, "version": self.model.version, "provider": self.model.provider},
            "timing_ms": self.timing_ms,
        }
