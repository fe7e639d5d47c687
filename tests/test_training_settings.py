"""A training run's options; those of the service are in `test_settings.py`."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from model import checkpoint as checkpoints
from model.config import Objective
from model.settings import PATHS, Settings
from tests.toy import Data, settings


def test_settings_name_their_options_as_the_command_line_does(data: Data, tmp_path: Path) -> None:
    values = settings(data, tmp_path).to_dict()
    assert {"train-annotations", "from", "batch-size", "ema-decay"} <= set(values)
    assert set(values["augmentation"]) >= {"flip", "mosaic"}
    assert set(settings(data, tmp_path).of_the_result()) < set(values)
    assert isinstance(Settings.__doc__, str)


def test_what_is_given_of_what_is_learnt_wins(uninterrupted: Path) -> None:
    begun = checkpoints.load(uninterrupted / "best.pt")
    paths: dict[str, Any] = dict.fromkeys(PATHS, Path())
    left_open = Settings(**paths)
    chosen = dataclasses.replace(left_open, quality="iou", assignment="atss", iou_threshold=0.0).settled(begun)
    assert (chosen.quality, chosen.assignment, chosen.iou_threshold) == ("iou", "atss", 0.0)
    for start, suppression in ((None, 0.6), (dataclasses.replace(begun, training={}, iou_threshold=0.5), 0.5)):
        settled = left_open.settled(start)
        assert (settled.quality, settled.assignment, settled.iou_threshold) == ("centerness", "fcos", suppression)
        assert settled.objective == left_open.objective == Objective()


@pytest.mark.parametrize(("optimizer", "lr", "decay"), [("adamw", 0.001, 0.05), ("sgd", 0.01, 0.0001)])
def test_rates_not_given_are_those_that_the_help_names(optimizer: Any, lr: float, decay: float) -> None:
    options = Settings(**dict.fromkeys(PATHS, Path()), optimizer=optimizer, batch_size=32)  # type: ignore[arg-type]
    assert (options.base_lr, options.decay) == (2 * lr, decay), "the learning rate is a batch of 16's"


@pytest.mark.parametrize(
    ("name", "mean", "std"),
    [
        ("tf_efficientnet_lite0.in1k", (127.0, 127.0, 127.0), (128.0, 128.0, 128.0)),
        ("efficientnet_lite0", (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
        ("resnet50", (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
        ("tf_mobilenetv3_large_100", (127.5, 127.5, 127.5), (127.5, 127.5, 127.5)),
        ("mobilevit_xxs", (0.0, 0.0, 0.0), (255.0, 255.0, 255.0)),
    ],
)
def test_pictures_are_normalised_as_the_backbones_weights_have_it(
    name: str, mean: tuple[float, ...], std: tuple[float, ...]
) -> None:
    options = Settings(**dict.fromkeys(PATHS, Path()), backbone=name)  # type: ignore[arg-type]
    found = options.network(("cat",), None)[1]
    assert (found.mean, found.std) == (mean, std)
