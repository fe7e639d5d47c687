"""Weights of one detector as the start of another: what is kept, what is new, and what is learnt from then on."""

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from model import checkpoint as checkpoints
from model.fcos import FCOS
from model.finetune import adopt, restate_statistics
from model.training import train
from tests.test_checkpoint import INPUT, config, saved
from tests.toy import ALONE, QUIET, Data, settings

pytestmark = pytest.mark.usefixtures("one_thread")


def test_fine_tuning_keeps_what_fits_and_the_classes_of_the_same_name(tmp_path: Path) -> None:
    start = saved(tmp_path / "a.pt")
    start.weights["head.class_logits.bias"] = torch.tensor([1.0, 2.0])  # in a new network all are the same
    torch.manual_seed(1)
    model = FCOS(config("green", "blue"), INPUT)
    fresh = {key: value.clone() for key, value in model.state_dict().items()}
    adopted = adopt(model, start)

    assert adopted.classes_kept == ("green",) and adopted.classes_new == ("blue",) and not adopted.new
    for key, value in model.state_dict().items():
        if key.startswith("head.class_logits"):
            assert value[0].equal(start.weights[key][1])  # green
            assert value[1].equal(fresh[key][1])  # blue
        else:
            assert value.equal(start.weights[key])
    assert "classes kept: green, new: blue" in adopted.describe()


def test_fine_tuning_a_larger_head_says_what_is_new(tmp_path: Path) -> None:
    adopted = adopt(FCOS(config("red", head_convs=2), INPUT), saved(tmp_path / "a.pt"))
    assert adopted.new and all(key.startswith("head.") for key in adopted.new)
    assert f"{len(adopted.kept)} of {len(adopted.kept) + len(adopted.new)} tensors kept" in adopted.describe()


def test_fine_tuning_another_backbone_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="leave --backbone out"):
        adopt(FCOS(config("red", backbone="test_resnet"), INPUT), saved(tmp_path / "a.pt"))


def test_weights_in_half_precision_are_a_start_too(tmp_path: Path) -> None:
    start = saved(tmp_path / "a.pt")
    half = {key: value.half() if value.is_floating_point() else value for key, value in start.weights.items()}
    model = FCOS(config("green", "blue"), INPUT)
    assert adopt(model, dataclasses.replace(start, weights=half)).classes_kept == ("green",)
    assert all(value.dtype == torch.float32 for value in model.parameters())


def test_group_norms_weights_are_not_taken_for_batch_norms(tmp_path: Path) -> None:
    adopted = adopt(FCOS(config("red", norm="bn"), INPUT), saved(tmp_path / "a.pt"))
    assert any(".norms." in key for key in adopted.new) and not any(".norms." in key for key in adopted.kept)


def test_statistics_are_those_of_the_pictures_and_the_detector_stays_as_it_is() -> None:
    torch.manual_seed(0)
    model = FCOS(config("red", "green"), INPUT).eval()
    norms = [module for module in model.backbone.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:  # those of something else
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.01, 0.1)
        nn.init.uniform_(norm.weight, 0.05, 0.3)
    images = torch.randint(256, (8, 3, 64, 64), dtype=torch.uint8)

    def outputs(training: bool) -> list[Tensor]:
        model.backbone.train(training)
        state = {key: value.clone() for key, value in model.state_dict().items()}
        with torch.no_grad():
            heads = list(model(images))
        model.load_state_dict(state)  # training has moved the statistics
        return heads

    def apart(some: list[Tensor], others: list[Tensor]) -> float:
        return max(float((one - other).abs().max()) for one, other in zip(some, others, strict=True))

    before = outputs(training=False)
    assert apart(outputs(training=True), before) > 1
    restate_statistics(model, images.split(2))
    assert apart(outputs(training=False), before) < 1e-3
    assert apart(outputs(training=True), before) < 1e-3


# --- runs


def test_fine_tuning_starts_from_the_others_weights(data: Data, uninterrupted: Path, tmp_path: Path) -> None:
    document = json.loads(data[0].read_text())
    document["categories"][0]["name"] = "crimson"
    (tmp_path / "boxes.json").write_text(json.dumps(document))
    other = settings((tmp_path / "boxes.json", data[1]), tmp_path / "run", from_=uninterrupted / "best.pt", lr=0.0)
    other = dataclasses.replace(other, backbone_norm="frozen")
    # What --from has need not be said again.
    other = dataclasses.replace(other, channels=None, head_convs=None, head_kernel=None, size=None, backbone=None)
    assert train(other, ALONE, QUIET)
    old, new = (checkpoints.load(folder / "best.pt") for folder in (uninterrupted, tmp_path / "run"))
    assert new.config == dataclasses.replace(old.config, classes=("crimson", "green", "blue"))
    assert "classes kept: green, blue, new: crimson" in new.training["start"]
    assert new.training["before"] == old.training
    assert str(uninterrupted.parent) not in json.dumps(new.training)  # no path of this machine
    for key in old.weights:
        if "class_logits" not in key and "running" not in key and "num_batches" not in key:
            assert torch.allclose(new.weights[key], old.weights[key])


@pytest.mark.parametrize(("norm", "measured"), [("trained", [8]), ("frozen", [])])
def test_a_starts_statistics_are_measured_where_they_will_be_trained(
    data: Data,
    uninterrupted: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    norm: Literal["trained", "frozen"],
    measured: list[int],
) -> None:
    counts: list[int] = []

    def restate(_: FCOS, batches: Iterable[Tensor]) -> None:
        counts.append(sum(len(images) for images in batches))

    monkeypatch.setattr("model.run.restate_statistics", restate)
    options = settings(data, tmp_path / "run", from_=uninterrupted / "best.pt", epochs=1, backbone_norm=norm)
    assert train(options, ALONE, QUIET)
    assert counts == measured


@pytest.mark.parametrize("mean", [False, True], ids=["run", "mean of runs"])
def test_a_run_learns_what_its_first_weights_have_learnt(data: Data, tmp_path: Path, mean: bool) -> None:
    taught: dict[str, Any] = {"quality": "iou", "assignment": "atss", "iou_threshold": 0.45}
    assert train(settings(data, tmp_path / "first", **taught), ALONE, QUIET)
    first = checkpoints.load(tmp_path / "first" / "best.pt")
    if mean:
        checkpoints.save(
            tmp_path / "first" / "best.pt", dataclasses.replace(first, training={"mean_of": [first.training] * 2})
        )
    second = settings(data, tmp_path / "second", from_=tmp_path / "first" / "best.pt")
    assert train(second, ALONE, QUIET)
    found = checkpoints.load(tmp_path / "second" / "best.pt")
    assert (found.options["quality"], found.options["assignment"], found.iou_threshold) == ("iou", "atss", 0.45)
    assert train(dataclasses.replace(second, resume=True), ALONE, QUIET)  # it is finished, and the same
    with pytest.raises(ValueError, match="--quality was iou, is centerness"):
        train(dataclasses.replace(second, resume=True, quality="centerness"), ALONE, QUIET)
