"""Presets and --data stand for the options that they are said to; what is given by hand wins."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from model.presets import PRESETS, data_folder, read_options
from tests.serving import ROOT


def laid_out(folder: Path, *places: str) -> Path:
    """A folder with these files, or folders if they end in a slash, all of them empty."""
    for place in places:
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        (folder / place).mkdir() if place.endswith("/") else (folder / place).touch()
    return folder


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder `data` in the working directory."""
    laid_out(tmp_path, "data/train.json", "data/val.json")
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("places", "found"),
    [
        (["train.json", "val.json"], ["train.json", "train", "val.json", "val"]),
        (["train.json"], ["train.json", "train"]),
        (
            ["train/_annotations.coco.json", "valid/_annotations.coco.json"],
            ["train/_annotations.coco.json", "train", "valid/_annotations.coco.json", "valid"],
        ),
        (
            ["train/labels/", "train/images/", "valid/labels/", "valid/images/"],
            ["train/labels", "train/images", "valid/labels", "valid/images"],
        ),
        (["train/labels/", "val/labels/"], ["train/labels", "train/images", "val/labels", "val/images"]),
        (["labels/train/", "labels/val/"], ["labels/train", "images/train", "labels/val", "images/val"]),
        (["labels/train/"], ["labels/train", "images/train"]),
    ],
)
def test_the_usual_layouts_of_a_folder_are_known(tmp_path: Path, places: list[str], found: list[str]) -> None:
    keys = ("train_annotations", "train_images", "val_annotations", "val_images")
    expected = {key: tmp_path / place for key, place in zip(keys, found, strict=False)}
    assert data_folder(laid_out(tmp_path, *places)) == expected
    options = read_options(["--data", str(tmp_path), "--output", "run"], None)
    assert options.val_annotations == expected.get("val_annotations")


def test_a_folder_in_no_known_layout_is_told_which_are(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"train\.json and train/, train/_annotations\.coco\.json, .* and val"):
        data_folder(laid_out(tmp_path, "pictures/"))


@pytest.mark.usefixtures("data")
def test_the_cpu_preset_is_its_command_line() -> None:
    words = (
        "--epochs 24 --plain-epochs 4 --zooms 0.75 --augmentation.scale 0.7 2.0 --repeat-thin 0.05 --norm bn "
        "--freeze c3 --backbone-norm frozen --assignment atss --quality iou --evaluate-every 24 --workers 1 "
        "--backbone tf_efficientnet_lite2 --size 512 --iou-threshold 0.55 --name fcos-everyday --data data --output run"
    )
    by_hand = read_options(words.split(), None)
    assert by_hand == read_options(["--preset", "everyday-cpu", "--data", "data", "--output", "run"], None)


@pytest.mark.usefixtures("data")
def test_an_option_given_by_hand_wins_over_the_presets() -> None:
    words = "--preset everyday --epochs 7 --augmentation.hue 0.1 --data data --val-images elsewhere --output run"
    found = read_options(words.split(), None)
    preset = PRESETS["everyday"]
    assert (found.epochs, found.augmentation.hue, found.val_images) == (7, 0.1, Path("elsewhere"))
    assert (found.batch_size, found.augmentation.mosaic) == (preset["batch_size"], preset["augmentation"].mosaic)
    assert found.train_annotations == Path("data/train.json")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--preset none --output run", "--preset"),
        ("--preset everyday --output run", "--train-annotations"),
        ("--data data", "--output"),
    ],
)
@pytest.mark.usefixtures("data")
def test_what_is_lacking_or_unknown_is_said(words: str, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        read_options(words.split(), None)
    assert error.value.code == 2
    found = capsys.readouterr()
    assert says in found.err + found.out


def test_the_script_that_made_the_shipped_model_fits_together(tmp_path: Path) -> None:
    """Its commands are written down in place of being run: options exist, and what one reads another has written."""
    log, fake = tmp_path / "log", tmp_path / "python"
    noted = "import json, sys; print(json.dumps(sys.argv[1:]))"
    fake.write_text(f'#!/bin/sh\nexec "{sys.executable}" -c "{noted}" "$@" >>"{log}"\n')
    fake.chmod(0o755)
    script = ROOT / "model" / "weights" / "train.sh"
    path = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}

    def run() -> int:
        return subprocess.run(["sh", str(script), str(tmp_path), "runs"], env=os.environ | path, cwd=ROOT).returncode

    assert run() == 2 and not log.exists(), "there are no data"
    (tmp_path / "train.json").touch()
    assert run() == 0

    written: set[str] = set()
    commands = [json.loads(line) for line in log.read_text().splitlines()]
    for program, *words in commands:
        if program == "model/train.py":
            options = read_options(words, None)
            assert options.from_ is None or str(options.from_) in written
            written |= {f"{options.output}/best.pt", f"{options.output}/last.pt"}
        else:
            output = words[words.index("--output") + 1]
            read = [word for word in words if word.endswith(".pt") and word != output]
            assert read and set(read) <= written
            written.add(output)
    shipped = {f"runs/{file.name}" for file in script.parent.glob("fcos-everyday*")}
    assert len(shipped) == 3 and shipped <= written
