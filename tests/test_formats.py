"""Annotations of three formats say the same; what is none of them is told what to give instead."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from model.data import Annotations, read_checked
from model.formats import read_document
from tests.toy import IDS, content, read_annotations, write_pictures, write_voc, write_yolo


@pytest.mark.parametrize("names", ["classes.txt", "data.yaml"])
def test_voc_and_yolo_say_what_coco_says(tmp_path: Path, names: str) -> None:
    document = write_pictures(tmp_path / "pictures", 5)
    document["annotations"] = [a for a in document["annotations"] if a["image_id"] != 20]  # one picture without a box
    (tmp_path / "boxes.json").write_text(json.dumps(document))
    write_voc(tmp_path / "voc", document)
    write_yolo(tmp_path / "yolo", document)
    if names == "classes.txt":
        (tmp_path / "yolo" / "classes.txt").write_text("\n".join(IDS))
    else:
        (tmp_path / "data.yaml").write_text("names:\n" + "".join(f"  {i}: {name}\n" for i, name in enumerate(IDS)))

    coco, voc, yolo = (
        read_annotations(tmp_path / source, tmp_path / "pictures") for source in ("boxes.json", "voc", "yolo")
    )
    assert len(coco) == 5
    assert content(voc) == content(yolo) == content(coco)


def test_accents_are_a_part_of_their_letter_wherever_names_come_from(tmp_path: Path) -> None:
    document = write_pictures(tmp_path / "pictures", 5)
    document["categories"][0]["name"] = "e\u0301toile"
    (tmp_path / "boxes.json").write_text(json.dumps(document))
    write_voc(tmp_path / "voc", document)
    coco = read_annotations(tmp_path / "boxes.json", tmp_path / "pictures")
    assert "\u00e9toile" in coco.classes
    voc, problems = read_checked(tmp_path / "voc", tmp_path / "pictures", coco.classes)
    assert not problems.errors
    assert content(Annotations.from_document(voc)) == content(coco)


def test_polygons_are_learnt_as_their_boxes(tmp_path: Path) -> None:
    """Among boxes, as Roboflow writes them into one file; and in a json that has no bbox."""
    document = write_pictures(tmp_path / "pictures", 1)  # 96 x 64
    write_yolo(tmp_path / "yolo", document)
    lines = "0 .5 .5 .5 .5\n1 .25 .75 .5 .25 .75 .5\n2 .125 .25 .5 .25 .5 .5 .125 .5\n"
    (tmp_path / "yolo" / "picture-0.txt").write_text(lines)
    polygons = [[[24, 16, 72, 16, 72, 48, 24, 48]], [[24, 48, 48, 16, 48, 32], [72, 20, 50, 20, 60, 30]]]
    document["annotations"] = [
        {"image_id": 0, "category_id": category, "segmentation": segmentation} | bbox
        for category, segmentation, bbox in zip((3, 7), polygons, ({}, {"bbox": None}), strict=True)
    ] + [{"image_id": 0, "category_id": 90, "bbox": [], "segmentation": [[12, 16, 48.0, 16, 48, 32, 12, 32]]}]
    (tmp_path / "boxes.json").write_text(json.dumps(document))
    expected = [("red", [24, 16, 72, 48]), ("green", [24, 16, 72, 48]), ("blue", [12, 16, 48, 32])]
    for source in ("yolo", "boxes.json"):
        assert content(read_annotations(tmp_path / source, tmp_path / "pictures"))["picture-0.png"] == expected


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda path: None, "no annotations at"),
        (lambda path: path.write_text("{"), "not readable json"),
        (lambda path: path.write_text('{"images": []}'), "not a COCO detection json"),
        (lambda path: path.write_text("[" * 100_000), "not readable json"),
        (lambda path: path.mkdir(), "neither VOC xml nor YOLO txt"),
        (lambda path: (path.mkdir(), (path / "a.xml").write_text("<a>")), "not readable xml"),
        (
            lambda path: (path.mkdir(), (path / "a.xml").write_text('<?xml version="1.0" encoding="gbk"?><a/>')),
            "as UTF-8",
        ),
        (
            lambda path: (path.mkdir(), (path / "a.xml").write_text('<?xml version="1.0" encoding="x"?><a/>')),
            "as UTF-8",
        ),
        (lambda path: (path.mkdir(), (path / "a.txt").write_text("0 1 1 1 1")), "no class names"),
    ],
)
def test_unreadable_annotations_are_one_sentence(tmp_path: Path, make: Callable[[Path], Any], says: str) -> None:
    (tmp_path / "pictures").mkdir()
    make(tmp_path / "annotations")
    with pytest.raises(ValueError, match=says) as error:
        read_annotations(tmp_path / "annotations", tmp_path / "pictures")
    assert "\n" not in str(error.value)


def test_yolos_file_of_class_names_is_told_from_annotations(tmp_path: Path) -> None:
    (tmp_path / "data.yaml").write_text("names: [cat]")
    with pytest.raises(ValueError, match=r"data\.yaml only names YOLO's classes: give the folder of its txt files"):
        read_document(tmp_path / "data.yaml", tmp_path)


@pytest.mark.parametrize("kind", ["txt", "xml"])
def test_one_file_of_a_set_is_told_from_all(tmp_path: Path, kind: str) -> None:
    (tmp_path / f"train.{kind}").touch()
    with pytest.raises(ValueError, match=f"is one file of a set: give the folder of its {kind} files"):
        read_document(tmp_path / f"train.{kind}", tmp_path)


@pytest.mark.parametrize("name", ["_annotations.coco.json", "boxes.json", "train/_annotations.coco.json"])
def test_a_json_is_named_where_its_folder_is_given(tmp_path: Path, name: str) -> None:
    (tmp_path / "README.roboflow.txt").write_text("Exported from ...")
    for file in (name, "Zebra.json") if name.startswith("_") else (name,):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text("{}")
    with pytest.raises(ValueError, match=f"holds neither VOC xml nor YOLO txt files: give {tmp_path / name} itself$"):
        read_document(tmp_path, tmp_path)


@pytest.mark.parametrize(
    ("above", "labels", "named"),
    [
        ({"labelmap.txt": "# label:color_rgb"}, ["Annotations/a.xml"], ["Annotations"]),  # CVAT's VOC
        (
            {"train.txt": "data/obj_train_data/a.jpg"},
            ["obj_test_data/b.txt", "obj_train_data/a.txt"],
            ["obj_train_data"],
        ),
        ({"README.roboflow.txt": "Exported"}, ["valid/labels/b.txt", "train/labels/a.txt"], ["train/labels"]),
        ({"notes.json": "{}", "classes.txt": "cat"}, ["labels/a.txt"], ["notes.json", "labels"]),  # Label Studio's
        (
            {"README.dataset.txt": "Exported"},
            [f"{part}/_annotations.coco.json" for part in ("test", "train")],
            ["train/_annotations.coco.json"],
        ),
        (
            {},
            [f"annotations/instances_{part}.json" for part in ("test", "train")],
            ["annotations/instances_train.json"],
        ),
    ],
)
def test_the_folder_that_holds_an_export_is_told_where_its_annotations_lie(
    tmp_path: Path, above: dict[str, str], labels: list[str], named: list[str]
) -> None:
    for file, text in (above | dict.fromkeys(labels, "0 .5 .5 .2 .2")).items():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(text)
    with pytest.raises(ValueError, match="holds neither VOC xml nor YOLO txt files: give ") as error:
        read_document(tmp_path, tmp_path)
    assert re.findall(f"{tmp_path}/([^ ,]+)", str(error.value)) == named


def test_what_cannot_be_read_is_shown_with_a_place_that_a_person_finds(tmp_path: Path) -> None:
    document = write_pictures(tmp_path / "pictures", 1)
    write_voc(tmp_path / "voc", document)
    xml = tmp_path / "voc" / "picture-0.xml"
    xml.write_text(re.sub("<xmin>[^<]*", "<xmin>left", xml.read_text(), count=1))
    document["annotations"][0]["bbox"] = [1, 2, "3"]
    document["annotations"][1]["image_id"] = "0"
    (tmp_path / "boxes.json").write_text(json.dumps(document))
    (tmp_path / "yolo").mkdir()
    (tmp_path / "data.yaml").write_text(f"names: {list(IDS)}")
    (tmp_path / "yolo" / "picture-0.txt").write_text(f"0 .5 .5 .2 .2\n\n0 .5 .5 {'.2 ' * 41}\n7 .5 .5 .2 .2\n")
    found = {}
    for source in ("boxes.json", "voc", "yolo"):
        problems = read_checked(tmp_path / source, tmp_path / "pictures")[1]
        found[source] = problems.errors
        advice = problems.describe(problems.errors).partition("(unreadable entry): ")[2]
        assert ("bndbox" in advice, "class cx" in advice) == (source == "voc", source == "yolo")
    assert found["boxes.json"] == [
        ("unreadable entry", "annotation 1 of image 0 (picture-0.png): [1, 2, '3']"),
        ("unknown image id", "annotation 2 of image '0'"),
    ]
    ((_, voc),) = found["voc"]
    assert voc.startswith("picture-0.xml: ['left', '")
    (_, line), unknown = found["yolo"]
    assert line == "picture-0.txt line 3: '0 .5 .5 " + ".2 " * 17 + "..."
    assert unknown == ("unknown category id", "picture-0.txt line 4: 7")
