"""A checkpoint gives back the detector that was saved, and never half of one."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from model import checkpoint as checkpoints
from model.checkpoint import Checkpoint
from model.config import FCOSConfig, InputConfig
from model.fcos import FCOS
from model.finetune import adopt, restate_statistics

INPUT = InputConfig(short=64, long=64, canvases=((64, 64),))


def config(*classes: str, **changes: Any) -> FCOSConfig:
    values = {"backbone": "test_efficientnet", "channels": 64, "head_convs": 1, "head_kernel": 3}
    return FCOSConfig(classes=classes, **(values | changes))


def saved(path: Path, **changes: Any) -> Checkpoint:
    torch.manual_seed(0)
    model = FCOS(config("red", "green"), INPUT)
    values: dict[str, Any] = {
        "training": {"epochs": 3}, "metrics": {"AP": 0.25}, "score_threshold": 0.4, "iou_threshold": 0.55
    }  # fmt: skip
    checkpoint = Checkpoint(config=model.config, input_config=INPUT, weights=model.state_dict(), **(values | changes))
    checkpoints.save(path, checkpoint)
    return checkpoint


def test_what_is_loaded_detects_what_was_saved(tmp_path: Path) -> None:
    before = saved(tmp_path / "a.pt")
    after = checkpoints.load(tmp_path / "a.pt")
    images = torch.randint(256, (1, 3, 64, 64), dtype=torch.uint8)
    for one, other in zip(before.model()(images), after.model()(images), strict=True):
        assert one.equal(other)
    assert (after.training, after.metrics, after.score_threshold) == ({"epochs": 3}, {"AP": 0.25}, 0.4)
    described = after.metadata("a", "1" * 64)
    assert (described.name, described.checkpoint_sha256) == ("a", "1" * 64)
    assert (described.training, described.metrics) == ({"epochs": 3}, {"AP": 0.25})
    assert (described.defaults.score_threshold, described.defaults.iou_threshold) == (0.4, 0.55)


def test_padding_is_the_mean_to_the_nearest_grey_level() -> None:
    of_imagenet = dataclasses.replace(INPUT, mean=(123.675, 116.28, 103.53))
    assert checkpoints.metadata_of(config("red"), of_imagenet).mean_pixel == (124, 116, 104)


def test_a_checkpoint_is_read_without_running_code(tmp_path: Path) -> None:
    # torch's version is a class of its own, numpy's numbers too: both would be pickled as code.
    saved(tmp_path / "a.pt", training={"torch": torch.__version__}, score_threshold=np.float64(0.5))
    torch.load(tmp_path / "a.pt", weights_only=True)
    with pytest.raises(TypeError):
        saved(tmp_path / "b.pt", training={"path": Path()})


def test_what_is_no_plain_data_is_refused_and_not_run(tmp_path: Path) -> None:
    class Harmful:
        def __reduce__(self) -> Any:
            return Path.mkdir, (tmp_path / "it was run",)

    torch.save({"format_version": 1, "weights": Harmful()}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match="not a checkpoint that torch can read"):
        checkpoints.load(tmp_path / "a.pt")
    assert not (tmp_path / "it was run").exists()


def test_a_failed_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(tmp_path / "a.pt")
    before = (tmp_path / "a.pt").read_bytes()

    write = Path.write_bytes

    def full(path: Path, data: Any) -> int:
        write(path, b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space"):
        saved(tmp_path / "a.pt", training={"epochs": 4})
    assert (tmp_path / "a.pt").read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["a.pt"]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "no checkpoint at"),
        (b"not a checkpoint", "not a checkpoint that torch can read"),
        ({"weights": {}}, "not a checkpoint of this project"),
        ({"format_version": 99}, "has checkpoint format 99"),
        ({"format_version": 1, "config": {"colour": 1}}, "damaged checkpoint"),
        ({"format_version": 1, "config": []}, "damaged checkpoint: its config"),
        ({"format_version": 1, "weights": []}, "damaged checkpoint: its weights"),
        ({"format_version": 1, "training": 3}, "damaged checkpoint: its training"),
    ],
)
def test_other_files_are_refused_in_one_sentence(tmp_path: Path, content: Any, says: str) -> None:
    path = tmp_path / "a.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(ValueError, match=says) as error:
        checkpoints.load(path)
    assert "\n" not in str(error.value)


def test_an_exported_model_is_told_from_a_checkpoint(model_file: Path) -> None:
    with pytest.raises(ValueError, match=r"colours\.onnx is an exported model: give the \.pt that it was made from"):
        checkpoints.load(model_file)


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


def test_statistics_are_those_of_the_pictures_and_the_detector_stays_as_it_is() -> None:
    torch.manual_seed(0)
    model = FCOS(config("red", "green"), INPUT).eval()
    norms = [module for module in model.backbone.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:  # those of something else
        norm.running_mean.normal_()  # type: ignore[union-attr]
        norm.running_var.uniform_(0.01, 0.1)  # type: ignore[union-attr]
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


def test_where_nothing_can_be_written_the_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"nowhere/b\.pt could not be written"):
        checkpoints.save(tmp_path / "nowhere" / "b.pt", saved(tmp_path / "a.pt"))


def test_group_norms_weights_are_not_taken_for_batch_norms(tmp_path: Path) -> None:
    adopted = adopt(FCOS(config("red", norm="bn"), INPUT), saved(tmp_path / "a.pt"))
    assert any(".norms." in key for key in adopted.new) and not any(".norms." in key for key in adopted.kept)
