import asyncio
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faster_coco_eval import COCO
from PIL import Image

from app.detect_files import Progress, detect_files, pictures_in
from app.detector import Detector
from app.engine import Engine
from app.errors import StartError
from app.postprocess import Detections
from app.results import Outputs, drawings_of
from app.schemas import DetectQuery
from app.session import OnnxRunner
from app.settings import Settings
from model.data import read_usable
from tests.support import rectangle_picture

SURE = DetectQuery(score_threshold=0.3)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number, colour in enumerate(("red", "green", "blue")):
        rectangle_picture(colour=colour).save(folder / f"{number + 7:04}.png")
    return folder


def run(model_file: Path, *paths: Path, query: DetectQuery | None = None, **outputs: Any) -> int:
    settings = Settings(model=model_file, provider="cpu", threads=1)
    return asyncio.run(detect_files(settings, paths, Outputs(**outputs), query or DetectQuery()))


def output(kind: str, path: Path) -> dict[str, Any]:
    return {kind: path}


def test_lines_and_the_list_hold_the_same_in_the_files_order(model_file: Path, folder: Path, tmp_path: Path) -> None:
    files = sorted(folder.iterdir()) * 8  # more than are worked on at a time
    assert run(model_file, *files, json=tmp_path / "a.json", json_lines=tmp_path / "a.jsonl") == 0
    results = json.loads((tmp_path / "a.json").read_text())
    assert [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()] == results
    assert [Path(result["file"]) for result in results] == files
    assert [result["detections"][0]["label"] for result in results] == ["red", "green", "blue"] * 8


def test_coco_results_are_read_by_cocos_own_tools(model_file: Path, folder: Path, tmp_path: Path) -> None:
    """With the annotations' ids, which are neither the model's classes nor the files' numbers."""
    annotations = {
        "images": [{"id": 100 + i, "file_name": f"{i + 7:04}.png", "width": 160, "height": 120} for i in range(3)],
        "categories": [{"id": 30, "name": "blue"}, {"id": 20, "name": "green"}, {"id": 10, "name": "red"}],
        "annotations": [],
    }
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps(annotations))
    out, answers = tmp_path / "coco.json", tmp_path / "a.json"
    assert run(model_file, folder, coco=out, coco_annotations=path, json=answers, query=SURE) == 0
    rows = json.loads(out.read_text())
    assert {(row["image_id"], row["category_id"]) for row in rows} == {(100, 10), (101, 20), (102, 30)}
    box = json.loads(answers.read_text())[0]["detections"][0]["box"]
    sides = [box["xmin"], box["ymin"], box["xmax"] - box["xmin"], box["ymax"] - box["ymin"]]
    assert rows[0]["bbox"] == [round(side, 3) for side in sides]
    assert len(COCO(str(path)).loadRes(str(out)).anns) == len(rows)


def test_labels_are_annotations_to_train_on(model_file: Path, folder: Path, tmp_path: Path) -> None:
    """Of every picture that can be read, also one without objects; and only what is shown, even beside COCO results."""
    Image.new("RGB", (70, 50), "white").save(folder / "empty.png")
    (folder / "broken.png").write_bytes(b"no picture")
    labels, listed_in = tmp_path / "labels.json", tmp_path / "a.json"
    assert run(model_file, folder, labels=labels, json=listed_in, coco=tmp_path / "coco.json") == 1
    (folder / "broken.png").unlink()  # or training would refuse the folder
    document = read_usable(labels, folder, (), pytest.fail)
    assert [category["name"] for category in document["categories"]] == ["red", "green", "blue"]
    names = {image["id"]: image["file_name"] for image in document["images"]}
    assert list(names.values()) == ["0007.png", "0008.png", "0009.png", "empty.png"]
    classes = {category["id"]: category["name"] for category in document["categories"]}
    found = [(names[one["image_id"]], classes[one["category_id"]]) for one in document["annotations"]]
    assert set(found) == {("0007.png", "red"), ("0008.png", "green"), ("0009.png", "blue")}
    listed = json.loads(listed_in.read_text())
    above = [one for result in listed for one in result.get("detections", ()) if one["score"] > 0.3]
    assert len(found) == len(above) < sum(len(result.get("detections", ())) for result in listed)
    x, y, width, height = document["annotations"][0]["bbox"]
    assert (x, y, x + width, y + height) == pytest.approx(tuple(above[0]["box"].values()), abs=2e-3)


def test_labels_have_every_part_that_labelling_tools_ask_for(model_file: Path, folder: Path, tmp_path: Path) -> None:
    """Datumaro, which CVAT imports with, refuses what lacks one, even if it would be empty."""
    assert run(model_file, folder, labels=tmp_path / "labels.json") == 0
    document = json.loads((tmp_path / "labels.json").read_text())
    assert document.keys() == {"info", "licenses", "images", "annotations", "categories"}
    ids = [annotation["id"] for annotation in document["annotations"]]
    assert ids == list(range(1, len(ids) + 1)) and len(ids) >= 3, "COCO's evaluation takes 0 for none"
    for annotation in document["annotations"]:
        wanted = {"id", "image_id", "category_id", "segmentation", "area", "bbox", "iscrowd"}
        assert wanted <= annotation.keys() and annotation["segmentation"] == []
        assert annotation["area"] == round(annotation["bbox"][2] * annotation["bbox"][3], 3)


def test_two_pictures_of_one_name_have_no_labels(model_file: Path, folder: Path, tmp_path: Path) -> None:
    same = tmp_path / "same"
    same.mkdir()
    (same / "0007.png").write_bytes((folder / "0007.png").read_bytes())
    for others in (same, folder):
        with pytest.raises(StartError, match=r"0007\.png would be one picture in --labels"):
            run(model_file, folder, others, labels=tmp_path / "labels.json")


def test_two_pictures_of_one_id_stop_before_any_work(model_file: Path, folder: Path, tmp_path: Path) -> None:
    same = tmp_path / "same"
    same.mkdir()
    name = sorted(folder.iterdir())[0].name
    (same / name).write_bytes((folder / name).read_bytes())
    with pytest.raises(StartError, match="same image id"):
        run(model_file, folder, same, coco=tmp_path / "coco.json")
    assert run(model_file, folder, same, json=tmp_path / "a.json") == 0


def test_a_picture_that_the_model_fails_on_is_its_own_fault(
    model_file: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    finish, calls = Detector.finish, []

    def fails_once(*arguments: Any) -> Detections:
        calls.append(arguments)
        if len(calls) == 2:
            raise FloatingPointError("the model gave values that are not finite")
        return finish(*arguments)

    monkeypatch.setattr(Detector, "finish", fails_once)
    assert run(model_file, folder, json=tmp_path / "a.json") == 1
    results = json.loads((tmp_path / "a.json").read_text())
    (failed,) = [result["file"] for result in results if "problem" in result]
    assert f"The model failed on {failed}" in caplog.text and "values that are not finite" in caplog.text
    assert len(results) == 3


def test_without_annotations_ids_are_the_files_numbers_and_the_classes(
    model_file: Path, folder: Path, tmp_path: Path
) -> None:
    (folder / "0008.png").rename(folder / "cat.png")
    assert run(model_file, folder, coco=tmp_path / "coco.json", query=SURE) == 0
    rows = json.loads((tmp_path / "coco.json").read_text())
    assert {(row["image_id"], row["category_id"]) for row in rows} == {(7, 0), ("cat", 1), (9, 2)}


@pytest.mark.parametrize(
    ("annotations", "message"),
    [
        ("nothing", "not a COCO annotation file"),
        ({"images": [], "categories": []}, "has no image 0007.png"),
        ({"images": [{"id": 1, "file_name": "a/0007.png"}], "categories": []}, "no category 'red'"),
        ({"images": [{"id": i, "file_name": f"{i}/0007.png"} for i in (1, 2)]}, "several images called 0007.png"),
    ],
)
def test_annotations_that_do_not_fit_are_named(
    model_file: Path, folder: Path, tmp_path: Path, annotations: Any, message: str
) -> None:
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps(annotations))
    with pytest.raises(StartError, match=message):
        run(model_file, folder / "0007.png", coco=tmp_path / "coco.json", coco_annotations=path)


def test_a_file_that_the_annotations_lack_stops_before_any_work(
    model_file: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps({"images": [{"id": 1, "file_name": "0007.png"}], "categories": []}))
    monkeypatch.setattr("app.detect_files.Service.load", lambda _: pytest.fail("the model was loaded"))
    with pytest.raises(StartError, match=r"has no image 0008\.png"):
        run(model_file, folder, coco=tmp_path / "coco.json", coco_annotations=path)


@pytest.mark.parametrize("kind", ["json", "json_lines", "coco", "labels"])
def test_a_place_that_cannot_be_written_is_named_before_the_work(kind: str, folder: Path, model_file: Path) -> None:
    with pytest.raises(StartError, match=r"nowhere.*cannot be written"):
        run(model_file, folder, **output(kind, folder / "nowhere" / "out.json"))


@pytest.mark.parametrize("kind", ["json", "json_lines", "coco", "labels"])
def test_no_output_takes_the_place_of_what_is_wanted(kind: str, folder: Path, model_file: Path, tmp_path: Path) -> None:
    """As where the option's own value was forgotten, and the first picture became it."""
    before = {path: path.read_bytes() for path in folder.iterdir()}
    bare, loud = folder / "picture", folder / "A.PNG"
    shutil.copy(folder / "0007.png", bare)
    shutil.copy(folder / "0007.png", loud)
    option = "--" + kind.replace("_", "-")
    for picture in (folder / "0007.png", loud):
        with pytest.raises(StartError, match=rf"{option} .*{picture.name} has a picture's suffix"):
            run(model_file, folder / "0008.png", **output(kind, picture))
    with pytest.raises(StartError, match=f"{option} .*picture is one of the pictures"):
        run(model_file, folder / ".." / folder.name / bare.name, **output(kind, bare))
    with pytest.raises(StartError, match=f"{option} .* is a folder"):
        run(model_file, folder, **output(kind, tmp_path))
    assert {path: path.read_bytes() for path in before} == before


def test_outputs_are_different_files(folder: Path, model_file: Path, tmp_path: Path) -> None:
    with pytest.raises(StartError, match=r"--coco .*out\.json is written to by --json, too"):
        run(model_file, folder, json=tmp_path / "out.json", coco=tmp_path / "pictures" / ".." / "out.json")
    with pytest.raises(StartError, match="--coco-annotations needs --coco"):
        run(model_file, folder, coco_annotations=tmp_path / "out.json")


def test_a_folder_stands_for_the_pictures_in_it_in_the_order_of_their_names(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("a.png", "b.JPG", "c.tiff")]
    for file in reversed(files):
        file.touch()
    (tmp_path / "0.txt").touch()
    (tmp_path / "folder.png").mkdir()
    assert pictures_in([files[1], tmp_path]) == [files[1], *files]


def test_a_folder_without_pictures_is_named(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no picture")
    with pytest.raises(StartError, match="no pictures in the folder"):
        pictures_in([tmp_path])


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_is_for_people_only() -> None:
    log, terminal = io.StringIO(), Terminal()
    for out in (log, terminal):
        progress = Progress(2, out)
        for _ in range(2):
            progress.clear()
            progress.step()
        progress.clear()
    assert log.getvalue() == ""
    assert "1 of 2" in terminal.getvalue()
    assert terminal.getvalue().endswith("\r\x1b[K"), "nothing of it stays"


def test_progress_is_not_left_between_results(model_file: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setattr(sys, "stderr", terminal)
    assert run(model_file, folder) == 0
    assert "1 of 3" in terminal.getvalue()
    left = [line.rpartition("\r\x1b[K")[2] for line in terminal.getvalue().split("\n")]
    assert all(line.startswith(f"{folder}/") for line in left[:-1]) and left[-1] == ""


def test_coco_results_are_the_whole_curve_and_what_is_shown_is_not(
    model_file: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def rows(**query: Any) -> list[float]:
        assert run(model_file, folder, coco=tmp_path / "coco.json", query=DetectQuery(**query)) == 0
        return [row["score"] for row in json.loads((tmp_path / "coco.json").read_text())]

    assert min(rows()) < 0.3  # the model's threshold
    shown = [float(line.split()[2]) for line in capsys.readouterr().out.splitlines()]
    assert shown
    assert min(shown) >= 0.3
    assert run(model_file, folder, json=tmp_path / "a.json") == 0
    listed = json.loads((tmp_path / "a.json").read_text())
    assert min(one["score"] for result in listed for one in result["detections"]) > 0.3, "without them, so is no other"
    assert min(rows(score_threshold=0.5)) > 0.5


def test_a_class_the_model_does_not_know_stops_before_any_picture(model_file: Path, folder: Path) -> None:
    with pytest.raises(StartError, match=r"no class 'rde'\. The nearest it has: red\.$"):
        run(model_file, folder, query=DetectQuery(classes=["rde"]))


def test_no_drawing_is_written_over(tmp_path: Path) -> None:
    files = [Path(name) for name in ("x/a.jpg", "y/a.jpg", "x/a-2.jpg", "z/a.png")]
    names = [drawing.name for drawing in drawings_of(files, tmp_path)]
    assert names == ["a.png", "a-2.png", "a-2-2.png", "a-3.png"]


def test_each_name_of_a_drawing_is_tried_once(tmp_path: Path) -> None:
    """A thousand folders may each have a frame.jpg."""
    tried: list[str] = []

    class Folder(type(tmp_path)):  # type: ignore[misc]
        def joinpath(self, *names: str) -> Path:
            tried.extend(names)
            return tmp_path.joinpath(*names)

    files = [Path(f"{number}/frame.jpg") for number in range(100)]
    assert len(set(drawings_of(files, Folder(tmp_path)))) == len(tried) == 100


def test_drawings_that_are_written_leave_room_for_the_next(model_file: Path, folder: Path, tmp_path: Path) -> None:
    settings = Settings(model=model_file, provider="cpu", threads=1, max_queue_pixels=1)  # one picture at a time
    outputs = Outputs(drawings=tmp_path / "new" / "drawn")
    assert asyncio.run(asyncio.wait_for(detect_files(settings, [folder], outputs, DetectQuery()), 20)) == 0
    assert len(list((tmp_path / "new" / "drawn").iterdir())) == 3
    with pytest.raises(StartError, match=r"The folder .*0007\.png cannot be made: File exists\."):
        run(model_file, folder, drawings=folder / "0007.png")


def test_no_picture_is_drawn_over(model_file: Path, folder: Path) -> None:
    before = {path: path.read_bytes() for path in folder.iterdir()}
    assert any(path.suffix == ".png" for path in before)
    run(model_file, folder / ".." / folder.name, drawings=folder)
    assert {path: path.read_bytes() for path in before} == before
    assert len(list(folder.iterdir())) > len(before)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
@pytest.mark.parametrize("kind", ["json", "json_lines", "coco", "labels"])
def test_a_full_disk_is_named(model_file: Path, folder: Path, kind: str) -> None:
    with pytest.raises(StartError, match="/dev/full cannot be written: No space"):
        run(model_file, folder, **output(kind, Path("/dev/full")))


def test_names_that_are_no_text_are_shown_as_far_as_they_are(
    model_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / os.fsdecode(b"b\xfcld.png")
    try:
        rectangle_picture().save(file)
    except OSError:
        pytest.skip("this file system takes names in UTF-8 alone")
    assert run(model_file, file, json=tmp_path / "out.json", json_lines=tmp_path / "lines") == 0
    (result,) = json.loads((tmp_path / "out.json").read_text())
    assert result["file"].endswith("b\ufffdld.png")
    assert json.loads((tmp_path / "lines").read_text()) == result
    assert "b\ufffdld.png" in capsys.readouterr().out


def test_a_path_that_cannot_be_reached_is_its_own_fault(model_file: Path, folder: Path, tmp_path: Path) -> None:
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    unreachable = [tmp_path / f"{'x' * 300}.png", loop]
    assert run(model_file, *unreachable, folder, json=tmp_path / "a.json") == 1
    results = json.loads((tmp_path / "a.json").read_text())
    assert ["problem" in result for result in results] == [True, True, False, False, False]
    with pytest.raises(StartError, match="there is no folder"):
        run(model_file, folder, json=unreachable[0] / "a.json")


def test_a_folder_that_cannot_be_listed_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(StartError, match=f"The folder {folder} cannot be read: Permission denied"):
        pictures_in([folder])


@pytest.mark.parametrize(
    "text",
    ["no JSON", "{}", "[" * 100_000, '{"images": [{"file_name": "a.png", "id": [1]}], "categories": []}'],
)
def test_odd_annotations_are_named(text: str, folder: Path, model_file: Path, tmp_path: Path) -> None:
    annotations = tmp_path / "annotations.json"
    annotations.write_text(text)
    with pytest.raises(StartError, match="is not a COCO annotation file"):
        run(model_file, folder, coco=tmp_path / "coco.json", coco_annotations=annotations)


def test_names_beyond_the_terminals_letters_are_escaped(model_file: Path, folder: Path) -> None:
    (folder / "0007.png").rename(folder / "猫.png")
    done = subprocess.run(
        [sys.executable, "-m", "app", "detect", folder],
        env=os.environ | {"FCOS_MODEL": str(model_file), "FCOS_PROVIDER": "cpu", "PYTHONIOENCODING": "ascii"},
        cwd=Path(__file__).parents[1], capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert r"\u732b.png: red" in done.stdout and "0009.png: blue" in done.stdout


def test_annotations_that_are_not_there_are_named(folder: Path, model_file: Path, tmp_path: Path) -> None:
    gone = tmp_path / "gone.json"
    with pytest.raises(StartError, match=r"gone\.json cannot be read: No such file"):
        run(model_file, folder, coco=tmp_path / "coco.json", coco_annotations=gone)


def test_files_do_not_wait_for_canvases_that_none_of_them_has(
    folder: Path, model_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of torchvision's COCO model there are 83, each a second or more on a CPU."""
    run_graph, ran = OnnxRunner.__call__, set()

    def watched(runner: OnnxRunner, canvases: np.ndarray, cores: int) -> object:
        ran.add(canvases.shape[1:3])
        return run_graph(runner, canvases, cores)

    monkeypatch.setattr(OnnxRunner, "__call__", watched)
    assert run(model_file, folder) == 0
    assert ran == {(128, 160), (160, 160)}, "the pictures', and the largest, which tells the model's pace"


def test_a_model_that_fails_on_its_first_pictures_is_one_sentence_not_one_for_each_file(
    folder: Path, model_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(engine: Engine, *, every_shape: bool) -> None:
        raise RuntimeError

    monkeypatch.setattr(Engine, "warm_up", fail)
    with pytest.raises(StartError, match="failed on its first pictures"):
        run(model_file, folder, json=tmp_path / "a.json")
    assert not (tmp_path / "a.json").exists()
