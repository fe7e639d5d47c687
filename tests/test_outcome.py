"""What is found, as an answer."""

import json
from pathlib import Path

import numpy as np
import pytest

from app.artifact import Size
from app.outcome import Outcome
from app.postprocess import Detections
from app.schemas import Answer, ModelName
from tests.support import DEFAULTS, PICTURE, served


def test_an_answer_says_a_millionth_of_a_score_and_a_thousandth_of_a_pixel() -> None:
    boxes = np.array([[0.12345, 10.5, 123.45678, 200]], np.float32)
    found = Detections(boxes, np.array([0.7654321], np.float32), np.array([1]))
    timing_ms = {"decode": 1.5, "queue": 0.25, "inference": 20.125, "postprocess": 0.5}
    model = ModelName(name="pets", version="12345678", provider="CPUExecutionProvider")
    outcome = Outcome(Size(300, 400), found, ("cat", "dog"), model, timing_ms)
    assert json.loads(outcome.to_json()) == {
        "detections": [
            {
                "label": "dog",
                "class_id": 1,
                "score": 0.765432,
                "box": {"xmin": 0.123, "ymin": 10.5, "xmax": 123.457, "ymax": 200},
            }
        ],
        "image": {"width": 400, "height": 300},
        "model": model.model_dump(),
        "timing_ms": timing_ms,
    }
    assert outcome.answer.model_dump() == json.loads(outcome.to_json())


@pytest.mark.anyio
async def test_both_forms_of_an_answer_are_the_same(model_file: Path) -> None:
    async with served(model_file) as service:
        outcome = await service.detect(PICTURE, DEFAULTS)
    assert outcome.found
    assert Answer.model_validate_json(outcome.to_json()) == outcome.answer
