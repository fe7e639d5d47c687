"""What is wrong with a data set is found, named and left out."""

import copy
import math
import operator
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from model.checks import check, check_classes
from model.coco import Document
from model.data import Annotations
from model.problems import ADVICE, SHOWN, UNREADABLE, Problems
from tests.toy import write_pictures


def spoil(change: Callable[[Document], Any]) -> Callable[[Document, Path], Any]:
    return lambda document, images: change(document)


def set_of(entries: str, position: int, **values: Any) -> Callable[[Document, Path], Any]:
    return spoil(lambda document: document[entries][position].update(values))


def replaced(entries: str, position: int) -> Callable[[Document, Path], Any]:
    return spoil(lambda document: operator.setitem(document[entries], position, 7))


def cut_off(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-30])


def save_as(kind: str, mode: str, images: Path) -> None:
    Image.new(mode, (64, 96)).save(images / "picture-1.png", kind)


SPOILT = [
    ("missing picture", "image 10", lambda _, images: (images / "picture-1.png").unlink()),
    ("missing picture", "image 10", set_of("images", 1, file_name="")),
    ("unreadable picture", "image 10", set_of("images", 1, file_name="x" * 300)),
    ("unreadable picture", "image 10", lambda _, images: (images / "picture-1.png").write_bytes(b"no picture")),
    ("unreadable picture", "image 10", lambda _, images: cut_off(images / "picture-1.png")),
    ("unreadable picture", "image 10", lambda _, images: save_as("PPM", "RGB", images)),  # not of the service's
    ("unreadable picture", "image 10", lambda _, images: save_as("TIFF", "F", images)),
    ("wrong size", "image 10", set_of("images", 1, width=65)),
    ("unknown image id", "annotation 3 of image 11", set_of("annotations", 2, image_id=11)),
    ("unknown category id", "annotation 3 of image 10 (picture-1.png): 4", set_of("annotations", 2, category_id=4)),
    ("degenerate box", "annotation 3 of image 10", set_of("annotations", 2, bbox=[5, 5, 0, 9])),
    ("degenerate box", "annotation 3 of image 10", set_of("annotations", 2, bbox=[5, 5, float("nan"), 9])),
    ("degenerate box", "annotation 3 of image 10", set_of("annotations", 2, bbox=[64, 5, 1, 9])),
    ("box outside", "annotation 3 of image 10", set_of("annotations", 2, bbox=[50, 50, 60, 60])),
    ("box outside", "annotation 3 of image 10", set_of("annotations", 2, bbox=[-20, 5, 30, 30])),
    ("unreadable entry", "annotation 3 of image 10", set_of("annotations", 2, bbox=[1, 2, 3])),
    ("unreadable entry", "annotation 3 of image 10", set_of("annotations", 2, bbox=[10**400, 5, 9, 9])),
    ("unreadable entry", "annotation 3 of image 10", set_of("annotations", 2, iscrowd="0")),
    ("unreadable entry", "image at position 1", set_of("images", 1, width=math.inf)),
    ("unreadable entry", "image at position 1", spoil(lambda document: document["images"][1].pop("width"))),
    ("unreadable entry", "image at position 1", spoil(lambda document: document["images"][1].pop("file_name"))),
    ("unreadable entry", "image at position 1", set_of("images", 1, file_name="a\0.png")),
    ("unreadable entry", "category at position 1", spoil(lambda document: document["categories"][1].pop("name"))),
    ("unreadable entry", "category at position 1", set_of("categories", 1, name=" ")),
    ("unreadable entry", "category at position 1", set_of("categories", 1, name="x" * 201)),
    ("unreadable entry", "image at position 1", replaced("images", 1)),
    ("unreadable entry", "category at position 1", replaced("categories", 1)),
    ("unreadable entry", "annotation at position 2", replaced("annotations", 2)),
    ("duplicate id", "image 10", set_of("images", 2, id=10)),
    ("duplicate id", "picture-1.png", set_of("images", 2, file_name="picture-1.png")),
    ("duplicate id", "green", set_of("categories", 2, name="green")),
]


@pytest.mark.parametrize(("kind", "where", "change"), SPOILT)
def test_every_kind_of_bad_data_is_found_named_and_left_out(
    tmp_path: Path, kind: str, where: str, change: Callable[[Document, Path], Any]
) -> None:
    document = write_pictures(tmp_path, 4)
    before = check(copy.deepcopy(document), "it", tmp_path)[0]
    change(document, tmp_path)
    clean, problems = check(document, "it", tmp_path)

    assert (kind, True) in [(found, where in text) for found, text in problems.errors]
    message = problems.describe(problems.errors)
    advice = UNREADABLE["COCO"] if kind == "unreadable entry" else ADVICE[kind]
    assert where in message and advice in message
    assert clean != before
    again, problems = check(clean, "it", tmp_path)
    assert again == clean and not problems.errors


def test_all_problems_are_counted_and_the_first_ten_shown(tmp_path: Path) -> None:
    document = write_pictures(tmp_path, 8)
    for annotation in document["annotations"]:
        annotation["bbox"] = [0, 0, 0, 0]
    _, problems = check(document, "it", tmp_path)
    message = problems.describe(problems.errors)
    assert "16 x degenerate box" in message and "and 6 more" in message
    assert message.count("\n  degenerate box: ") == SHOWN


@pytest.mark.parametrize(
    ("part", "name", "of_annotation"), [("images", "file_name", "image_id"), ("categories", "name", "category_id")]
)
def test_an_id_of_two_things_is_left_out_with_its_boxes(
    tmp_path: Path, part: str, name: str, of_annotation: str
) -> None:
    document = write_pictures(tmp_path, 6)
    first, second = document[part][1:3]
    number = first["id"]
    second["id"] = number
    clean, problems = check(document, "it")
    assert [kind for kind, _ in problems.errors if kind == "duplicate id"] == ["duplicate id"] * 2
    assert {first[name], second[name]}.isdisjoint(one[name] for one in clean[part])
    assert clean["annotations"] and number not in {one[of_annotation] for one in clean["annotations"]}


@pytest.mark.parametrize("part", ["images", "categories"])
def test_of_an_entry_that_is_repeated_the_first_is_kept(tmp_path: Path, part: str) -> None:
    document = write_pictures(tmp_path, 4)
    before = check(document, "it")[0]
    document[part].append(dict(document[part][1]))
    clean, problems = check(document, "it")
    assert [kind for kind, _ in problems.errors] == ["duplicate id"]
    assert clean == before


def test_ids_that_are_no_ids_are_unreadable() -> None:
    images = [{"width": None}, {"id": 2**64, "file_name": "a.png", "width": 10, "height": 10}]
    _, problems = check({"images": images, "annotations": [], "categories": []}, "here", None)
    assert [kind for kind, _ in problems.errors] == ["unreadable entry"] * 2


def test_boxes_in_fractions_are_an_error_and_one_tiny_box_a_warning(tmp_path: Path) -> None:
    document = write_pictures(tmp_path, 2)
    document["annotations"][0]["bbox"] = [3, 3, 0.5, 9]
    _, problems = check(document, "it", tmp_path)
    assert not problems.errors
    assert [kind for kind, _ in problems.warnings if kind != "class without boxes"] == ["box under 1 px"]
    for annotation in document["annotations"]:
        annotation["bbox"] = [0.1, 0.2, 0.5, 0.01 * annotation["id"]]
    clean, problems = check(document, "it", tmp_path)
    assert problems.errors == [("fractions", "all 4 boxes are under 1 px")]
    assert not clean["annotations"]


def test_duplicate_boxes_and_classes_without_boxes_are_no_errors(tmp_path: Path) -> None:
    document = write_pictures(tmp_path, 2)
    document["annotations"].append(document["annotations"][0] | {"id": 99})
    document["categories"].append({"id": 1000, "name": "unicorn"})
    clean, problems = check(document, "it", tmp_path)
    assert not problems.errors
    assert {"duplicate box", "class without boxes"} <= {kind for kind, _ in problems.warnings}
    assert len(clean["annotations"]) == len(document["annotations"]) - 1


def test_a_little_overhang_is_clipped(tmp_path: Path) -> None:
    document = write_pictures(tmp_path, 1)
    document["annotations"][0]["bbox"] = [-0.4, 3, 30, 61.5]  # in a picture of 96 x 64
    clean, problems = check(document, "it", tmp_path)
    assert not problems.errors
    assert Annotations.from_document(clean).of(0)[0][0].tolist() == pytest.approx([0, 3, 29.6, 64])


@pytest.mark.parametrize(("area", "is_one"), [(12.5, True), (0, False), (1e12, False), ("12.5", False), (None, False)])
def test_an_annotations_own_area_is_kept_if_it_can_be_one(tmp_path: Path, area: Any, is_one: bool) -> None:
    document = write_pictures(tmp_path, 1)
    document["annotations"][0]["area"] = area
    annotation = check(document, "it")[0]["annotations"][0]
    assert annotation["area"] == (area if is_one else annotation["bbox"][2] * annotation["bbox"][3])


def test_boxes_of_a_class_that_was_taken_out_are_no_further_problems(tmp_path: Path) -> None:
    document = write_pictures(tmp_path, 4)
    document["categories"][1]["name"] = ""
    _, problems = check(document, "it")
    ((kind, where),) = problems.errors
    assert kind == "unreadable entry" and where.startswith("category at position 1: {")


def test_class_names_are_as_the_service_will_have_them(tmp_path: Path) -> None:
    document = write_pictures(tmp_path, 4)
    document["categories"][0]["name"] = " light red\n"
    clean, problems = check(document, "it")
    assert not problems.errors
    assert clean["categories"][0]["name"] == "light red"
    assert document["categories"][0]["name"] == " light red\n"  # the given one stays as it is


def test_classes_whose_names_differ_only_in_writing_are_named(tmp_path: Path) -> None:
    document = write_pictures(tmp_path, 4)
    for category, name in zip(document["categories"], ("Stop Sign", "stop_sign", "stop"), strict=True):
        category["name"] = name
    _, problems = check(document, "it")
    assert not problems.errors and ("class names alike", "'Stop Sign' and 'stop_sign'") in problems.warnings


def test_classes_that_only_val_has_are_a_problem() -> None:
    problems = Problems("val")
    check_classes(["a", "b"], ["a", "c"], problems)
    assert problems.errors == [("unknown class", "val has 'c', train does not")]
