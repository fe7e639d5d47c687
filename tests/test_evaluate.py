"""What is measured is what the service finds; the numbers are COCO's."""

import asyncio
import dataclasses
import io
import itertools
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console

from app.errors import StartError
from app.postprocess import COCO_SCORE_THRESHOLD
from app.schemas import DetectQuery
from app.service import Service
from app.settings import Settings
from model import evaluate, evaluation, scoring
from model.checkpoint import load
from model.checks import check
from model.config import SCORE_THRESHOLD
from model.data import read_checked
from model.scoring import METRICS, Found, score
from tests.support import METADATA, rectangle_picture
from tests.toy import IDS, QUIET, write_coco, write_pictures

CLASSES = tuple(METADATA["classes"])


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_coco(tmp_path_factory.mktemp("toy"), 6)


def document_of(folder: Path, count: int = 4, **options: Any) -> dict[str, Any]:
    return check(write_pictures(folder, count, **options), "it")[0]


def truth_as_found(document: dict[str, Any], scores: float = 0.9) -> Found:
    names = {number: name for name, number in IDS.items()}
    annotations = document["annotations"]
    positions = {image["id"]: position for position, image in enumerate(document["images"])}
    boxes = np.array([a["bbox"] for a in annotations], dtype=np.float32)
    boxes[:, 2:] += boxes[:, :2]
    return Found(
        np.array([positions[a["image_id"]] for a in annotations]),
        boxes,
        np.full(len(boxes), scores, dtype=np.float32),
        np.array([CLASSES.index(names[a["category_id"]]) for a in annotations]),
    )


def run(monkeypatch: pytest.MonkeyPatch, *arguments: Any) -> int:
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *map(str, arguments)])
    return evaluate.main()


def test_an_onnx_file_is_measured(
    model_file: Path, toy: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out.json"
    assert run(monkeypatch, model_file, "--annotations", toy[0], "--images", toy[1], "--json", out) == 0
    written = json.loads(out.read_text())
    assert set(written) == {"metrics", "per_class", "best_f1"}
    assert tuple(written["metrics"]) == METRICS
    assert set(written["per_class"]) == set(IDS)
    assert all(set(values) == {"AP", "AP50"} for values in written["per_class"].values())
    confusion = np.array(written["best_f1"].pop("confusion"))
    truth = json.loads(toy[0].read_text())
    for row, name in zip(confusion, written["per_class"], strict=False):
        assert row.sum() == sum(box["category_id"] == IDS[name] for box in truth["annotations"])
    assert set(written["best_f1"]) == {"f1", "score_threshold"}
    assert written["metrics"]["AR100"] > 0  # it finds rectangles, if not their exact size


def test_a_checkpoint_is_measured_as_its_run_measured_it(
    data: tuple[Path, Path], uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint, out = uninterrupted / "best.pt", tmp_path / "out.json"
    said = ["--annotations", data[0], "--images", data[1], "--json", out, "--device", "cpu"]
    assert run(monkeypatch, checkpoint, *said) == 0
    assert json.loads(out.read_text())["metrics"] == pytest.approx(load(checkpoint).metrics)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("kind", ["pt", "onnx"])
def test_a_gpu_that_is_not_there_is_not_replaced(model_file: Path, uninterrupted: Path, kind: str) -> None:
    with pytest.raises((ValueError, StartError), match="CUDA"):
        evaluation.open_model({"pt": uninterrupted / "best.pt", "onnx": model_file}[kind], "cuda")


def test_numbers_are_said_whatever_becomes_of_their_file(
    model_file: Path,
    toy: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = evaluation.evaluate

    def renamed(*arguments: Any) -> Any:
        (tmp_path / "out.json").mkdir()
        classes = {"[/b] [1, 2]": {"AP": 0.0, "AP50": 0.5}}
        return dataclasses.replace(found(*arguments), per_class=classes, f1=0.5, score_threshold=0.25)

    monkeypatch.setattr(evaluation, "evaluate", renamed)
    out = ["--json", tmp_path / "out.json"]
    assert run(monkeypatch, model_file, "--annotations", toy[0], "--images", toy[1], *out) == 2
    said = capsys.readouterr()
    assert "[/b] [1, 2]  AP 0.000  AP50 0.500" in said.out
    assert "best F1 0.500 at a score threshold of 0.25" in said.out
    assert "out.json could not be written" in said.err and said.err.count("\n") == 1
    assert [file.name for file in tmp_path.iterdir()] == ["out.json"]


def test_batching_does_not_change_what_is_found(
    model_file: Path, toy: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    runner, metadata = evaluation.open_model(model_file, "cpu")
    document, _ = read_checked(*toy)

    def alone(canvases: np.ndarray) -> Any:
        heads = [runner(canvas[None]) for canvas in canvases]
        return type(heads[0])(*(np.concatenate(parts) for parts in zip(*heads, strict=True)))

    one = evaluation.detect(runner, metadata, document, toy[1], QUIET)
    monkeypatch.setattr(evaluation, "AHEAD", 4)
    other = evaluation.detect(alone, metadata, document, toy[1], QUIET)
    assert len(one) > 0
    for a, b in zip(vars(one).values(), vars(other).values(), strict=True):
        assert np.allclose(a, b, atol=1e-4)


def groups_of(canvases: str) -> list[str]:
    """The batches of pictures that come with these canvases, one after the other; few of them wait at any time."""
    taken = 0

    def prepared() -> Iterator[Any]:
        nonlocal taken
        for canvas in canvases:
            taken += 1
            yield SimpleNamespace(placement=SimpleNamespace(canvas=canvas))

    groups: list[str] = []
    for group in evaluation._groups(prepared()):
        groups.append("".join(str(one.placement.canvas) for one in group))
        assert taken - len("".join(groups)) < evaluation.MOST_WAITING
    return groups


def test_batches_go_as_they_fill_up_and_no_picture_goes_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "BATCH", 2)
    assert groups_of("ababcb") == ["aa", "bb", "c", "b"]


def test_with_many_canvases_few_pictures_wait_and_the_fullest_batch_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "MOST_WAITING", 3)
    assert groups_of("abbcdd") == ["bb", "a", "dd", "c"]


@pytest.mark.parametrize(("terminal", "rank", "shown"), [(True, 0, True), (True, 1, False), (False, 0, False)])
def test_the_first_process_shows_on_a_terminal_how_far_it_is(
    model_file: Path, toy: tuple[Path, Path], terminal: bool, rank: int, shown: bool
) -> None:
    runner, metadata = evaluation.open_model(model_file, "cpu")
    document, _ = read_checked(*toy)
    file = io.StringIO()
    console = Console(file=file, force_terminal=terminal, width=80)
    evaluation.detect(runner, metadata, document, toy[1], console, rank)
    assert ("evaluating" in file.getvalue() and "100%" in file.getvalue()) is shown
    assert shown or not file.getvalue()


def test_a_picture_of_another_size_than_annotated_is_refused(model_file: Path, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # annotated as it is stored, but shown upright
    rectangle_picture().save(tmp_path / "turned.jpg", exif=exif)
    document = {"images": [{"file_name": "turned.jpg", "width": 160, "height": 120}]}
    runner, metadata = evaluation.open_model(model_file, "cpu")
    with pytest.raises(ValueError, match=r"turned\.jpg is 120 x 160 upright, but its annotations say 160 x 120"):
        evaluation.detect(runner, metadata, document, tmp_path, QUIET)


def test_a_large_jpeg_is_measured_as_it_is_served(model_file: Path, tmp_path: Path) -> None:
    # The service decodes it smaller than it is; so must what says how good the service is.
    picture = rectangle_picture().resize((2000, 1500))
    picture.save(tmp_path / "large.jpg", quality=90)
    document = {"images": [{"file_name": "large.jpg", "width": 2000, "height": 1500}]}
    runner, metadata = evaluation.open_model(model_file, "cpu")
    found = evaluation.detect(runner, metadata, document, tmp_path, QUIET)

    async def serve() -> Any:
        service = Service.load(Settings(model=model_file, provider="cpu"))
        await service.warm_up()
        query = DetectQuery(score_threshold=COCO_SCORE_THRESHOLD)
        assert query.parameters(metadata) == evaluation.parameters_for(metadata)
        try:
            return (await service.detect((tmp_path / "large.jpg").read_bytes(), query)).found
        finally:
            await asyncio.to_thread(service.close)

    served = asyncio.run(serve())
    assert len(served) > 0
    np.testing.assert_array_equal(found.boxes, served.boxes)
    np.testing.assert_array_equal(found.scores, served.scores)


def test_overlaps_are_suppressed_as_the_service_does_by_default(model_file: Path) -> None:
    _, metadata = evaluation.open_model(model_file, "cpu")
    defaults = metadata.defaults.model_copy(update={"iou_threshold": 0.4})
    other = metadata.model_copy(update={"defaults": defaults})
    assert DetectQuery(score_threshold=COCO_SCORE_THRESHOLD).parameters(other) == evaluation.parameters_for(other)


def test_processes_together_find_what_one_would(model_file: Path, toy: tuple[Path, Path]) -> None:
    runner, metadata = evaluation.open_model(model_file, "cpu")
    document, _ = read_checked(*toy)
    whole = score(evaluation.detect(runner, metadata, document, toy[1], QUIET), document, CLASSES)
    parts = [evaluation.detect(runner, metadata, document, toy[1], QUIET, rank, 2) for rank in range(2)]
    assert score(Found.join(parts), document, CLASSES).metrics == whole.metrics


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["gone.onnx"], "no model at gone.onnx"),
        (["gone.pt"], "no checkpoint at"),
        (["model.txt"], "neither"),
        (["MODEL", "--annotations", "gone.json"], "no annotations at"),
        (["MODEL", "--images", "gone"], "no folder of pictures at"),
        (["MODEL", "--device", "abacus"], "--device must be"),
        (["MODEL", "--device", "cuda:1"], "--device must be"),
        (["MODEL", "--json", "nowhere/out.json"], "there is no folder nowhere to write to"),
    ],
)
def test_bad_files_are_one_sentence_and_exit_code_2(
    model_file: Path,
    toy: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    says: str,
) -> None:
    model = model_file if arguments[0] == "MODEL" else Path(arguments[0])
    assert run(monkeypatch, model, "--annotations", toy[0], "--images", toy[1], *arguments[1:]) == 2
    error = capsys.readouterr().err
    assert says in error and "Traceback" not in error and error.count("\n") == 1


def test_what_the_model_has_no_class_for_is_said(
    model_file: Path, toy: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    document = json.loads(toy[0].read_text())
    for category in document["categories"]:
        category["name"] = {"red": "Red"}.get(category["name"], category["name"])
    boxes = sum(box["category_id"] == IDS["red"] for box in document["annotations"])
    (tmp_path / "a.json").write_text(json.dumps(document))
    assert run(monkeypatch, model_file, "--annotations", tmp_path / "a.json", "--images", toy[1]) == 0
    assert f"no such class: Red ({boxes} boxes)" in capsys.readouterr().err
    assert run(monkeypatch, model_file, "--annotations", toy[0], "--images", toy[1]) == 0
    assert not capsys.readouterr().err


def test_what_may_be_wrong_with_the_data_is_said(
    model_file: Path, toy: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    document = json.loads(toy[0].read_text())
    document["annotations"].append(document["annotations"][0] | {"id": 100})
    (tmp_path / "a.json").write_text(json.dumps(document))
    assert run(monkeypatch, model_file, "--annotations", tmp_path / "a.json", "--images", toy[1]) == 0
    assert f"evaluate: note: {tmp_path / 'a.json'} has 1 x duplicate box" in capsys.readouterr().err


def test_that_there_is_nothing_to_be_found_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], model_file: Path, toy: tuple[Path, Path]
) -> None:
    empty = toy[0].with_name("empty.json")
    empty.write_text(json.dumps({**json.loads(toy[0].read_text()), "annotations": []}))
    assert run(monkeypatch, model_file, "--annotations", empty, "--images", toy[1], "--device", "cpu") == 0
    said = capsys.readouterr()
    assert "empty.json has no boxes to compare with, so there is no AP" in said.err
    assert "red  AP (no boxes)  AP50 (no boxes)" in said.out and "APs (no boxes)  APm (no boxes)" in said.out
    assert "-1" not in said.out


def test_the_truth_itself_is_perfect(tmp_path: Path) -> None:
    document = document_of(tmp_path)
    evaluation = score(truth_as_found(document), document, CLASSES)
    assert evaluation.metrics["AP"] == pytest.approx(1)
    assert [values["AP"] for values in evaluation.per_class.values()] == pytest.approx([1, 1, 1])
    assert evaluation.f1 == 1
    assert np.array_equal(evaluation.confusion, np.diag(np.diag(evaluation.confusion)))
    assert evaluation.confusion.sum() == len(document["annotations"])


def test_nothing_found_is_zero(tmp_path: Path) -> None:
    document = document_of(tmp_path)
    evaluation = score(Found.join([]), document, CLASSES)
    assert evaluation.metrics["AP"] == 0 and evaluation.f1 == 0
    assert evaluation.score_threshold == SCORE_THRESHOLD
    assert evaluation.confusion[:, -1].sum() == len(document["annotations"])


def test_nothing_found_has_no_number_where_nothing_was_to_be_found(tmp_path: Path) -> None:
    document = document_of(tmp_path)  # with boxes of medium size only
    document["annotations"] = [one for one in document["annotations"] if one["category_id"] != IDS["green"]]
    nothing = score(Found.join([]), document, CLASSES)
    far = np.array([[900, 900, 950, 950]], np.float32)
    wrong = score(Found(np.zeros(1, np.int64), far, np.ones(1, np.float32), np.zeros(1, np.int64)), document, CLASSES)
    assert nothing.metrics == wrong.metrics and nothing.per_class == wrong.per_class
    assert {key for key, value in nothing.metrics.items() if value == -1} == {"APs", "APl", "ARs", "ARl"}
    assert nothing.per_class["green"] == {"AP": -1, "AP50": -1} and nothing.per_class["red"] == {"AP": 0, "AP50": 0}
    assert (nothing.curves["green"] == -1).all() and (nothing.curves["red"] == 0).all()


def test_the_order_of_the_models_classes_does_not_matter(tmp_path: Path) -> None:
    document = document_of(tmp_path)
    found = truth_as_found(document)
    turned = Found(found.pictures, found.boxes, found.scores, 2 - found.class_ids)
    assert score(turned, document, CLASSES[::-1]).metrics["AP"] == pytest.approx(1)
    for order in itertools.permutations(range(3)):
        classes = [CLASSES[position] for position in order]
        known = dataclasses.replace(found, class_ids=np.array([order.index(one) for one in found.class_ids]))
        evaluation = score(known.take(known.class_ids == classes.index("red")), document, classes)
        for name in classes:
            assert evaluation.per_class[name]["AP"] == pytest.approx(float(name == "red"), abs=1e-3)
            assert evaluation.curves[name].mean() == pytest.approx(float(name == "red"), abs=1e-3)


def test_many_pictures_are_compared_a_few_classes_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The evaluation takes memory for each pair of a picture and a class."""
    document = document_of(tmp_path, 6)
    found = truth_as_found(document)
    found = dataclasses.replace(found, boxes=found.boxes + np.linspace(0, 6, len(found), dtype=np.float32)[:, None])
    found = found.take(found.class_ids > 0)  # of one class nothing
    whole = score(found, document, CLASSES)
    compared: list[int] = []
    compare = scoring._compared

    def noted(own: Found, part: dict[str, Any]) -> Any:
        compared.append(len(part["categories"]))
        return compare(own, part)

    monkeypatch.setattr(scoring, "_compared", noted)
    for pairs, sizes in ((1, [1, 1, 1]), (12, [2, 1]), (18, [3])):
        monkeypatch.setattr(scoring, "PAIRS", pairs)
        compared.clear()
        parts = score(found, document, CLASSES)
        assert compared == sizes
        assert 0 < parts.metrics["AP"] < 1
        assert parts.metrics == whole.metrics and parts.per_class == whole.per_class
        assert all(np.array_equal(parts.curves[name], whole.curves[name]) for name in CLASSES)


def test_ids_of_any_size_are_told_apart(tmp_path: Path) -> None:
    document = document_of(tmp_path)
    found = truth_as_found(document)
    before = score(found.take(found.class_ids > 0), document, CLASSES).metrics
    for part in ("images", "categories"):
        for entry in document[part]:
            entry["id"] += 2**60
    for annotation in document["annotations"]:
        annotation["image_id"] += 2**60
        annotation["category_id"] += 2**60
    assert score(found.take(found.class_ids > 0), document, CLASSES).metrics == before


def test_classes_that_one_side_lacks_are_not_counted(tmp_path: Path) -> None:
    document = document_of(tmp_path)
    found = truth_as_found(document)
    evaluation = score(found, document, ("red", "unicorn", "blue"))
    assert set(evaluation.per_class) == {"red", "blue"}
    assert evaluation.metrics["AP"] == pytest.approx(1)
    with pytest.raises(ValueError, match="nothing in common"):
        score(found, document, ("unicorn", "dragon", "elf"))


@given(threshold=st.integers(10, 90))
def test_the_threshold_parts_the_right_from_the_wrong(tmp_path_factory: pytest.TempPathFactory, threshold: int) -> None:
    document = document_of(tmp_path_factory.mktemp("toy"), 2)
    right = truth_as_found(document, threshold / 100 + 0.011)
    wrong = truth_as_found(document, threshold / 100 - 0.011)
    wrong = Found(wrong.pictures, wrong.boxes + 1000, wrong.scores, wrong.class_ids)
    evaluation = score(Found.join([right, wrong]), document, CLASSES)
    assert evaluation.f1 == 1
    assert wrong.scores[0] <= evaluation.score_threshold < right.scores[0]


def test_of_two_detections_of_one_object_the_surer_is_right(tmp_path: Path) -> None:
    document = document_of(tmp_path, 1, boxes=1)
    unsure, sure = (truth_as_found(document, confidence) for confidence in (0.3, 0.8))
    evaluation = score(Found.join([unsure, sure]), document, CLASSES)
    assert evaluation.f1 == 1
    assert 0.3 <= evaluation.score_threshold < 0.8


@pytest.mark.parametrize(("iou", "right"), [(0.48, 0), (0.52, 1)])
def test_a_box_counts_as_found_from_an_iou_of_one_half(tmp_path: Path, iou: float, right: int) -> None:
    document = document_of(tmp_path, 1, boxes=1)
    found = truth_as_found(document)
    found.boxes[:, 2] = found.boxes[:, 0] + iou * (found.boxes[:, 2] - found.boxes[:, 0])
    evaluation = score(found, document, CLASSES)
    assert evaluation.f1 == evaluation.confusion.trace() == right
    assert evaluation.confusion.sum() == 2 - right, "else one is missed, and one is found where nothing is"
    name = CLASSES[int(found.class_ids[0])]
    assert evaluation.metrics["AP50"] == evaluation.per_class[name]["AP50"] == pytest.approx(right)
    assert evaluation.curves[name].max() == pytest.approx(right)
    assert evaluation.metrics["AP75"] == 0


def test_what_is_found_in_a_crowd_is_no_error(tmp_path: Path) -> None:
    document = document_of(tmp_path)
    found = truth_as_found(document)
    sizes = {image["id"]: [image["width"], image["height"]] for image in document["images"]}
    for annotation in document["annotations"][2:]:
        annotation |= {"iscrowd": 1, "bbox": [0, 0, *sizes[annotation["image_id"]]]}
    evaluation = score(found, document, CLASSES)
    assert evaluation.f1 == 1
    assert evaluation.confusion.sum() == 2


def test_a_box_that_a_crowd_surrounds_is_found_all_the_same(tmp_path: Path) -> None:
    document = document_of(tmp_path, 1, boxes=1)
    found = truth_as_found(document)
    (picture,), (annotation,) = document["images"], document["annotations"]
    whole = [0.0, 0.0, picture["width"], picture["height"]]
    document["annotations"].append(annotation | {"id": 2, "bbox": whole, "iscrowd": 1})
    evaluation = score(found, document, CLASSES)
    assert evaluation.f1 == evaluation.confusion.trace() == evaluation.confusion.sum() == 1


def test_a_box_of_the_right_class_comes_before_a_better_fitting_one_of_another(tmp_path: Path) -> None:
    document = document_of(tmp_path, 1, boxes=1)
    found = truth_as_found(document)
    (annotation,) = document["annotations"]
    x, y, width, height = annotation["bbox"]
    fitting = annotation | {
        "id": 2,
        "category_id": next(number for number in IDS.values() if number != annotation["category_id"]),
    }
    annotation["bbox"] = [x, y, width * 0.7, height]  # an IoU of 0.7 in place of 1
    document["annotations"].append(fitting)
    confusion = score(found, document, CLASSES).confusion
    label = int(found.class_ids[0])
    assert confusion[label, label] == 1 and confusion[label].sum() == 1


def test_a_wrong_label_is_wrong_and_shows_in_the_confusion_matrix(tmp_path: Path) -> None:
    document = document_of(tmp_path, 1, boxes=1)
    found = truth_as_found(document)
    label = int(found.class_ids[0])
    wrong = (label + 1) % 3
    as_other = Found(found.pictures, found.boxes, found.scores, np.array([wrong]))
    evaluation = score(as_other, document, CLASSES)
    assert evaluation.confusion[label, wrong] == 1 and evaluation.confusion.sum() == 1
    assert evaluation.f1 == 0
