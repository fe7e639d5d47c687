"""Where a run starts: the data that it learns from and is scored on, and a folder without another run."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from model.start import read_data, short_name
from model.training import train
from tests.toy import ALONE, QUIET, Data, settings, write_coco

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(("part", "lost"), [("annotations", True), ("images", False)])
def test_objects_whose_boxes_are_left_out_are_said_to_be_background(
    data: Data, tmp_path: Path, part: str, lost: bool
) -> None:
    document = json.loads(data[0].read_text())
    document[part][0] |= {"bbox": None, "width": "wide"}
    (tmp_path / "boxes.json").write_text(json.dumps(document))
    console = Console(file=io.StringIO(), width=200)
    read_data(settings((tmp_path / "boxes.json", data[1]), tmp_path / "run", bad_data="skip"), console)
    assert isinstance(console.file, io.StringIO)
    said = console.file.getvalue()
    assert "left out: " in said and ("counts as background" in said) == lost


@pytest.mark.parametrize("crowd", [False, True])
def test_a_val_without_boxes_is_refused(data: Data, tmp_path: Path, crowd: bool) -> None:
    document = json.loads(data[0].read_text())
    document["annotations"] = [one | {"iscrowd": 1} for one in document["annotations"]] if crowd else []
    (tmp_path / "val.json").write_text(json.dumps(document))
    with pytest.raises(ValueError, match=r"val\.json has no boxes to evaluate on"):
        train(settings(data, tmp_path / "run", val_annotations=tmp_path / "val.json"), ALONE, QUIET)


def test_pictures_that_are_trained_on_are_said_to_flatter_val(data: tuple[Path, Path], tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=200)
    json_file, images = data
    same = settings(data, tmp_path / "run", val_annotations=json_file, val_images=images)
    read_data(same, console)
    assert isinstance(console.file, io.StringIO)
    assert "pictures of val are trained on" in console.file.getvalue()


def test_without_val_the_same_pictures_are_held_out_in_every_run(tmp_path: Path) -> None:
    folder = write_coco(tmp_path, 30)
    console = Console(file=io.StringIO(), width=200)
    alone = settings(folder, tmp_path / "run", val_annotations=None, val_images=None, val_fraction=0.2)
    learnt, held = read_data(alone, console)
    names = {one["file_name"] for one in held["images"]}
    assert 0 < len(names) < 15 and names | set(learnt.file_names) == {f"picture-{i}.png" for i in range(30)}
    assert isinstance(console.file, io.StringIO)
    assert f"{len(names)} of 30 pictures are held out" in console.file.getvalue()

    document = json.loads(folder[0].read_text())
    document["images"] = [one for one in reversed(document["images"]) if one["file_name"] not in sorted(names)[:1]]
    kept = {one["id"] for one in document["images"]}
    document["annotations"] = [one for one in document["annotations"] if one["image_id"] in kept]
    folder[0].write_text(json.dumps(document))
    again, held = read_data(alone, QUIET)
    assert {one["file_name"] for one in held["images"]} == names - {min(names)}
    assert set(again.file_names) == set(learnt.file_names)


@pytest.mark.parametrize("fraction", [1e-9, 1 - 1e-9])
def test_at_least_one_picture_is_held_out_and_one_is_left(tmp_path: Path, fraction: float) -> None:
    alone = settings(write_coco(tmp_path, 2), tmp_path, val_annotations=None, val_images=None, val_fraction=fraction)
    learnt, held = read_data(alone, QUIET)
    assert len(learnt) == len(held["images"]) == 1


def test_a_part_without_boxes_is_refused(tmp_path: Path) -> None:
    file, images = write_coco(tmp_path, 2)
    alone = settings((file, images), tmp_path, val_annotations=None, val_images=None)
    document = json.loads(file.read_text())
    found = []
    for image in document["images"]:
        boxes = [one for one in document["annotations"] if one["image_id"] == image["id"]]
        file.write_text(json.dumps(document | {"annotations": boxes}))
        with pytest.raises(ValueError, match="holding out 1 of 2 pictures leaves no boxes to") as error:
            read_data(alone, QUIET)
        found.append("evaluate on" in str(error.value))
    assert sorted(found) == [False, True]


def test_a_single_picture_cannot_be_held_out(tmp_path: Path) -> None:
    alone = settings(write_coco(tmp_path, 1), tmp_path, val_annotations=None, val_images=None)
    with pytest.raises(ValueError, match="too few pictures to hold some out for an evaluation: 1"):
        read_data(alone, QUIET)


def test_a_run_is_not_overwritten(data: Data, uninterrupted: Path) -> None:
    with pytest.raises(ValueError, match="already holds a run"):
        train(settings(data, uninterrupted), ALONE, QUIET)


def test_the_best_of_a_run_is_not_overwritten(data: Data, tmp_path: Path) -> None:
    (tmp_path / "best.pt").write_bytes(b"precious")
    with pytest.raises(ValueError, match=r"holds the best\.pt of another run"):
        train(settings(data, tmp_path), ALONE, QUIET)
    assert (tmp_path / "best.pt").read_bytes() == b"precious"


def test_a_runs_name_that_is_no_utf_8_can_be_exported() -> None:
    """It goes into the model file's json, which would not take it after all of the training."""
    name = short_name(Path("runs", "caf\udce9", "best.pt"))
    assert name.encode().startswith(b"caf") and name.endswith("/best.pt")
    assert short_name(Path("runs", "café", "best.pt")) == "café/best.pt"
