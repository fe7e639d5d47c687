"""The script says what is wrong in a sentence."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from model import train as script
from model.training import full_memory_as_one_error, train
from tests.toy import ALONE, QUIET, Data, settings, write_coco

pytestmark = pytest.mark.usefixtures("one_thread")


def command_line(monkeypatch: pytest.MonkeyPatch, data: Data, output: Path, *more: str) -> int:
    paths = ["--train-annotations", data[0], "--train-images", data[1], "--val-annotations", data[0]]
    paths += ["--val-images", data[1], "--output", output, "--device", "cpu", "--batch-size", 4, "--workers", 0]
    paths += ["--epoch-iterations", 0]
    monkeypatch.setattr(sys, "argv", ["train.py", *map(str, paths), *more])
    return script.main()


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--no-such-option", "1"], "no-such-option"),
        (["--epochs", "0"], "--epochs must be at least 1"),
        (["--iou-threshold", "1.5"], "--iou-threshold must be between 0 and 1"),
        (["--size", "100"], "--size must be a multiple of 32"),
        (["--size", "4128"], "--size must be a multiple of 32"),
        (["--lr", "inf"], "--lr must be finite"),
        (["--epoch-iterations", "-1"], "--epoch-iterations must be finite and not negative"),
        (["--weight-decay", "nan"], "--weight-decay must be finite"),
        (["--clip-norm", "inf"], "--clip-norm must be finite"),
        (["--repeat-thin", "inf"], "--repeat-thin must be finite"),
        (["--backbone-lr-factor", "-1"], "--backbone-lr-factor must be finite"),
        (["--final-lr-factor", "nan"], "--final-lr-factor must be finite"),
        (["--seed", "-1"], "--seed must be between 0 and 2147483647"),
        (["--lr-steps", "5", "8"], "--lr-steps must be between 0 and 1"),
        (["--val-fraction", "1"], "--val-fraction must be above 0 and under 1"),
        (["--val-fraction", "0"], "--val-fraction must be above 0 and under 1"),
        (["--ema-decay", "1"], "--ema-decay must be at least 0 and under 1"),
        (["--zooms", "0.2"], "--zooms must be factors between 0.25 and 4"),
        (["--zooms"], "--zooms must be factors between 0.25 and 4"),
        (["--val-images", "None"], "--val-annotations and --val-images go together"),
        (["--name", " "], "--name must have 1 to 200 characters"),
        (["--name", "x" * 201], "--name must have 1 to 200 characters"),
        (["--head-kernel", "-1"], "head_kernel must be odd and at least 1"),
        (["--augmentation.flip", "7"], "augmentation.flip must be a probability"),
        (["--augmentation.scale", "0.6", "inf"], "augmentation.scale must be a range of"),
        (["--backbone", "resnet5O"], "timm does not know the model 'resnet5O'"),
        (["--train-annotations", "gone.json"], "no annotations at gone.json"),
        (["--from", "gone.pt"], "no checkpoint at gone.pt"),
        (["--from", "gone.pth"], "no weights file at gone.pth"),  # torchvision's
        (["--resume"], "no checkpoint at"),
        (["--batch-size", "100"], "lower --batch-size"),
        (["--device", "abacus"], "--device must be"),
        (["--device", "meta"], "--device must be"),
        (["--weights", "gone.pth"], "no weights file at gone.pth"),
    ],
)
def test_what_a_user_can_get_wrong_is_said_and_exit_code_2(
    data: Data,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    more: list[str],
    says: str,
) -> None:
    try:
        code = command_line(monkeypatch, data, tmp_path / "run", *more)
    except SystemExit as error:  # tyro's own
        code = int(error.code or 0)
    output = capsys.readouterr()
    assert code == 2
    assert says in output.err + output.out and "Traceback" not in output.err


def test_bad_data_stop_a_run_or_are_left_out(
    data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    document = json.loads(data[0].read_text())
    document["annotations"][0]["bbox"] = [1, 1, 0, 0]
    (tmp_path / "boxes.json").write_text(json.dumps(document))
    bad = (tmp_path / "boxes.json", data[1])
    assert command_line(monkeypatch, bad, tmp_path / "run") == 2
    error = capsys.readouterr().err
    assert "degenerate box: annotation 1 of image 0" in error and "--bad-data skip" in error
    assert not (tmp_path / "run").exists()
    assert train(settings(bad, tmp_path / "run", bad_data="skip"), ALONE, QUIET)


def test_a_picture_that_breaks_later_is_named_without_the_workers_traceback(tmp_path: Path) -> None:
    mine = write_coco(tmp_path, 8)
    broken = np.random.default_rng(0).integers(0, 255, 400, dtype=np.uint8).tobytes()
    file = mine[1] / "picture-3.png"
    file.write_bytes(file.read_bytes()[:60] + broken + b"IEND")  # what the check reads is whole
    with pytest.raises(ValueError, match=r"picture-3\.png") as error:
        train(settings(mine, tmp_path / "run"), ALONE, QUIET)
    assert "\n" not in str(error.value)


def test_a_cpus_full_memory_is_the_error_that_a_gpus_is(tmp_path: Path) -> None:
    huge = settings(write_coco(tmp_path), tmp_path / "run", channels=2**20, norm="bn", head_conv="full")
    with pytest.raises(torch.OutOfMemoryError):
        train(huge, ALONE, QUIET)


def test_another_error_is_not_taken_for_full_memory() -> None:
    with pytest.raises(RuntimeError, match="shapes") as error, full_memory_as_one_error():
        raise RuntimeError("shapes do not fit")
    assert not isinstance(error.value, torch.OutOfMemoryError)
