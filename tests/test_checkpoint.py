"""A checkpoint gives back the detector that was saved, and never half of one."""

import dataclasses
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from model import checkpoint as checkpoints
from model.checkpoint import Checkpoint
from model.config import FCOSConfig, InputConfig
from model.fcos import FCOS

INPUT = InputConfig(short=64, long=64, canvases=((64, 64),))


def config(*classes: str, **changes: Any) -> FCOSConfig:
    values: dict[str, Any] = {"backbone": "test_efficientnet", "channels": 64, "head_convs": 1, "head_kernel": 3}
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


def test_a_mean_of_means_has_the_options_of_the_first_run(tmp_path: Path) -> None:
    first, other = ({"options": {"size": size}} for size in (64, 96))
    mean = saved(tmp_path / "a.pt", training={"mean_of": [{"mean_of": [first, other]}, other]})
    assert mean.options == {"size": 64}


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


def test_where_nothing_can_be_written_the_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"nowhere/b\.pt could not be written") as caught:
        checkpoints.save(tmp_path / "nowhere" / "b.pt", saved(tmp_path / "a.pt"))
    # Collected at once with the buffer that it is of, a view ends Python 3.12, and later ones complain.
    frames = traceback.walk_tb(caught.tb)
    assert not [value for frame, _ in frames for value in frame.f_locals.values() if isinstance(value, memoryview)]
