"""Annotations of three formats say the same; what is wrong with them is found; batches leave nothing out."""

import copy
import json
import math
import operator
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from app.artifact import Size
from model.checkpoint import metadata_of
from model.checks import check, check_classes
from model.config import FCOSConfig, InputConfig
from model.data import (
    Annotations,
    CanvasBatches,
    Draw,
    Plans,
    TrainingPictures,
    canvas_indices,
    open_picture,
    read_checked,
    repeat_factors,
)
from model.formats import read_document
from model.layout import Augmentation
from model.pictures import upright_size
from model.presets import data_folder
from model.problems import ADVICE, SHOWN, Problems
from tests.toy import IDS, read_annotations, write_coco, write_pictures

Document = dict[str, Any]
CANVASES = (Size(64, 96), Size(96, 64), Size(96, 96))


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_coco(tmp_path_factory.mktemp("toy"), 7)


def metadata() -> Any:
    config = InputConfig(short=96, long=96, canvases=tuple(tuple(canvas) for canvas in CANVASES))
    return metadata_of(FCOSConfig(classes=tuple(IDS)), config)


# --- formats


def write_voc(folder: Path, document: Document) -> None:
    names = {category["id"]: category["name"] for category in document["categories"]}
    folder.mkdir()
    for image in document["images"]:
        root = ElementTree.Element("annotation")
        ElementTree.SubElement(root, "filename").text = image["file_name"]
        size = ElementTree.SubElement(root, "size")
        for key in ("width", "height"):
            ElementTree.SubElement(size, key).text = str(image[key])
        for annotation in document["annotations"]:
            if annotation["image_id"] == image["id"]:
                x, y, w, h = annotation["bbox"]
                found = ElementTree.SubElement(root, "object")
                ElementTree.SubElement(found, "name").text = names[annotation["category_id"]]
                box = ElementTree.SubElement(found, "bndbox")
                corners = {"xmin": x + 1, "ymin": y + 1, "xmax": x + w, "ymax": y + h}
                for key, value in corners.items():
                    ElementTree.SubElement(box, key).text = str(value)
        ElementTree.ElementTree(root).write(folder / f"{Path(image['file_name']).stem}.xml")


def write_yolo(folder: Path, document: Document) -> None:
    folder.mkdir()
    position = {category["id"]: i for i, category in enumerate(document["categories"])}
    for image in document["images"]:
        lines = []
        for annotation in document["annotations"]:
            if annotation["image_id"] == image["id"]:
                x, y, w, h = annotation["bbox"]
                width, height = image["width"], image["height"]
                numbers = ((x + w / 2) / width, (y + h / 2) / height, w / width, h / height)
                lines.append(
                    f"{position[annotation['category_id']]} " + " ".join(f"{number:.9f}" for number in numbers)
                )
        if lines:
            (folder / f"{Path(image['file_name']).stem}.txt").write_text("\n".join(lines))


def content(annotations: Annotations) -> dict[str, list[tuple[str, list[float]]]]:
    """Per file, its class names and boxes, whatever the ids."""
    found = {}
    for index, name in enumerate(annotations.file_names.tolist()):
        boxes, labels = annotations.of(index)
        found[name] = [
            (annotations.classes[label], box)
            for label, box in zip(labels.tolist(), boxes.round(3).tolist(), strict=True)
        ]
    return found


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


@pytest.mark.parametrize("labels", ["labels/train", "train/labels"])
def test_yolos_usual_folders_are_read(tmp_path: Path, labels: str) -> None:
    """Ultralytics' and Roboflow's: data.yaml lies two folders up."""
    document = write_pictures(tmp_path / "pictures", 2)
    (tmp_path / labels).parent.mkdir()
    write_yolo(tmp_path / labels, document)
    (tmp_path / "data.yaml").write_text(f"names: {list(IDS)}")
    assert len(read_annotations(tmp_path / labels, tmp_path / "pictures").boxes) == 4


def test_polygons_are_learnt_as_their_boxes(tmp_path: Path) -> None:
    """Among boxes, as Roboflow writes them into one file; and in a json that has no bbox."""
    document = write_pictures(tmp_path / "pictures", 1)  # 96 x 64
    write_yolo(tmp_path / "yolo", document)
    (tmp_path / "yolo" / "classes.txt").write_text("\n".join(IDS))
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
    "segmentation",
    [
        {"counts": "a0", "size": [64, 96]},  # run lengths
        [[1, 2, 3, 4]],
        [[1, 2, 3, 4, 5, 6, 7]],
        [[1, 2, 3, 4, 5, "6"]],
        [[1, 2, 3, 4, 5, math.nan]],
    ],
)
def test_what_is_no_polygon_is_no_box(tmp_path: Path, segmentation: Any) -> None:
    document = write_pictures(tmp_path, 1)
    document["annotations"][0] |= {"bbox": [], "segmentation": segmentation}
    (tmp_path / "boxes.json").write_text(json.dumps(document))
    assert [kind for kind, _ in read_checked(tmp_path / "boxes.json", tmp_path)[1].errors] == ["unreadable entry"]


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (
            "names: {'0': a, '1': b, '10': k, '2': c, '3': d, '4': e, '5': f, '6': g, '7': h, '8': i, '9': j}",
            "abcdefghijk",
        ),
        ("names: [0, 1, 2]", "012"),
    ],
)
def test_yolos_class_names_keep_their_order(tmp_path: Path, names: str, found: str) -> None:
    write_yolo(tmp_path / "yolo", write_pictures(tmp_path / "pictures", 1))
    (tmp_path / "data.yaml").write_text(names)
    document = read_document(tmp_path / "yolo", tmp_path / "pictures")
    assert "".join(category["name"] for category in document["categories"]) == found


@pytest.mark.parametrize(
    ("names", "says"),
    [("names: {1: a, 2: b}", "keys 0, 1, 2"), ("names: cat", "not a list"), ("nc: 3", "no readable list `names`")],
)
def test_class_names_without_a_sure_order_are_refused(tmp_path: Path, names: str, says: str) -> None:
    write_yolo(tmp_path / "yolo", write_pictures(tmp_path / "pictures", 1))
    (tmp_path / "data.yaml").write_text(names)
    with pytest.raises(ValueError, match=says):
        read_document(tmp_path / "yolo", tmp_path / "pictures")


def test_a_class_name_that_stands_twice_is_named(tmp_path: Path) -> None:
    write_yolo(tmp_path / "yolo", write_pictures(tmp_path / "pictures", 1))
    (tmp_path / "data.yaml").write_text("names: [a, a, b]")
    _, problems = read_checked(tmp_path / "yolo", tmp_path / "pictures")
    assert ("duplicate id", "category 1: another has the name a") in problems.errors


def test_pictures_that_differ_in_the_ending_alone_share_their_boxes(tmp_path: Path) -> None:
    write_yolo(tmp_path / "yolo", write_pictures(tmp_path / "pictures", 2))
    (tmp_path / "data.yaml").write_text(f"names: {list(IDS)}")
    Image.open(tmp_path / "pictures" / "picture-0.png").save(tmp_path / "pictures" / "picture-0.jpg")
    document = read_document(tmp_path / "yolo", tmp_path / "pictures")
    assert [image["file_name"] for image in document["images"]] == ["picture-0.jpg", "picture-0.png", "picture-1.png"]
    boxes = [[box["bbox"] for box in document["annotations"] if box["image_id"] == number] for number in (1, 2)]
    assert boxes[0] == boxes[1] != []


def test_a_text_file_of_yolo_may_begin_with_a_mark_and_must_be_utf8(tmp_path: Path) -> None:
    write_yolo(tmp_path / "yolo", write_pictures(tmp_path / "pictures", 1))
    (tmp_path / "yolo" / "classes.txt").write_text("\n".join(IDS))
    file = tmp_path / "yolo" / "picture-0.txt"
    file.write_bytes(b"\xef\xbb\xbf0 .5 .5 .2 .2")
    assert len(read_annotations(tmp_path / "yolo", tmp_path / "pictures").boxes) == 1
    file.write_bytes(b"0 .5 .5 .2 .2 \xe9")
    with pytest.raises(ValueError, match=r"picture-0\.txt cannot be read as UTF-8"):
        read_annotations(tmp_path / "yolo", tmp_path / "pictures")


def test_voc_boxes_that_count_from_0_are_taken_so(tmp_path: Path) -> None:
    document = write_pictures(tmp_path / "pictures", 1)
    document["annotations"][0]["bbox"] = [0, 5, 30, 40]
    write_voc(tmp_path / "voc", document)
    (file,) = (tmp_path / "voc").iterdir()
    tree = ElementTree.parse(file)
    for key in ("xmin", "ymin"):
        for number in tree.iter(key):
            number.text = str(float(number.text or "") - 1)
    tree.write(file)
    first = read_annotations(tmp_path / "voc", tmp_path / "pictures").boxes[0]
    assert first.tolist() == [0, 5, 30, 45]


def test_boxes_in_fractions_are_an_error_and_one_tiny_box_a_warning(tmp_path: Path) -> None:
    document = write_pictures(tmp_path, 2)
    document["annotations"][0]["bbox"] = [3, 3, 0.5, 9]
    _, problems = check(document, "it", tmp_path)
    assert not problems.errors
    assert [kind for kind, _ in problems.warnings if kind != "class without boxes"] == ["box under 1 px"]
    for annotation in document["annotations"]:
        annotation["bbox"] = [0.1, 0.2, 0.5, 0.01 * annotation["id"]]
    _, problems = check(document, "it", tmp_path)
    assert problems.errors == [("fractions", "all 4 boxes are under 1 px")]


def test_difficult_objects_of_voc_are_neither_learnt_nor_errors(tmp_path: Path) -> None:
    document = write_pictures(tmp_path / "pictures", 1)
    write_voc(tmp_path / "voc", document)
    file = tmp_path / "voc" / "picture-0.xml"
    tree = ElementTree.parse(file)
    ElementTree.SubElement(tree.findall("object")[0], "difficult").text = "1"
    tree.write(file)
    found, problems = read_checked(tmp_path / "voc", tmp_path / "pictures")
    assert not problems.errors
    assert [annotation["iscrowd"] for annotation in found["annotations"]] == [1, 0]
    assert len(Annotations.from_document(found).boxes) == 1


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


# --- checks


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
    assert where in message and ADVICE[kind] in message
    assert clean != before
    again, problems = check(clean, "it", tmp_path)
    assert again == clean and not problems.errors


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


def test_all_problems_are_counted_and_the_first_ten_shown(tmp_path: Path) -> None:
    document = write_pictures(tmp_path, 8)
    for annotation in document["annotations"]:
        annotation["bbox"] = [0, 0, 0, 0]
    _, problems = check(document, "it", tmp_path)
    message = problems.describe(problems.errors)
    assert "16 x degenerate box" in message and "and 6 more" in message
    assert message.count("\n  degenerate box: ") == SHOWN


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


def test_classes_that_only_val_has_are_a_problem() -> None:
    problems = Problems("val")
    check_classes(["a", "b"], ["a", "c"], problems)
    assert problems.errors == [("unknown class", "val has 'c', train does not")]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_picture_has_its_upright_size(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (40, 30)).save(tmp_path / "a.jpg", exif=exif)
    with Image.open(tmp_path / "a.jpg") as picture:
        width, height = ImageOps.exif_transpose(picture).size
    document: Document = {"annotations": [], "categories": [], "images": [{"id": 1, "file_name": "a.jpg"}]}
    document["images"][0] |= {"width": width, "height": height}
    assert not check(document, "it", tmp_path)[1].errors
    document["images"][0] |= {"width": height, "height": width}
    assert [kind for kind, _ in check(document, "it", tmp_path)[1].errors] == ["wrong size"]


def test_sizes_that_a_json_lacks_are_the_pictures_own(tmp_path: Path) -> None:
    document = write_pictures(tmp_path, 3)
    sizes = [(image["width"], image["height"]) for image in document["images"]]
    document["images"][0] |= {"width": None, "height": None}
    document["images"][1] |= {"width": 0, "height": 0}
    document["images"][2] = {key: document["images"][2][key] for key in ("id", "file_name")}
    file = tmp_path / "boxes.json"
    file.write_text(json.dumps(document))
    found = read_document(file, tmp_path)
    assert [(image["width"], image["height"]) for image in found["images"]] == sizes
    assert not check(found, "it", tmp_path)[1].errors

    (tmp_path / document["images"][0]["file_name"]).unlink()
    problems = check(read_document(file, tmp_path), "it", tmp_path)[1]
    assert [kind for kind, _ in problems.errors if kind != "unknown image id"] == ["missing picture"]


# --- arrays


def test_sparse_ids_become_positions(toy: tuple[Path, Path]) -> None:
    annotations = read_annotations(*toy)
    document = json.loads(toy[0].read_text())
    names = {number: name for name, number in IDS.items()}
    assert annotations.classes == tuple(names[number] for number in sorted(names))
    ids = {image["file_name"]: image["id"] for image in document["images"]}
    for index, file_name in enumerate(annotations.file_names.tolist()):
        expected = [
            (names[a["category_id"]], [*a["bbox"][:2], a["bbox"][0] + a["bbox"][2], a["bbox"][1] + a["bbox"][3]])
            for a in document["annotations"]
            if a["image_id"] == ids[file_name]
        ]
        boxes, labels = annotations.of(index)
        assert [
            (annotations.classes[label], box) for label, box in zip(labels, boxes.tolist(), strict=True)
        ] == expected


def test_the_order_of_the_json_does_not_matter(toy: tuple[Path, Path], tmp_path: Path) -> None:
    document = json.loads(toy[0].read_text())
    for entries in document.values():
        entries.reverse()
    document["annotations"].sort(key=lambda annotation: annotation["id"])
    (tmp_path / "boxes.json").write_text(json.dumps(document))
    assert content(read_annotations(tmp_path / "boxes.json", toy[1])) == content(read_annotations(*toy))


def test_a_missing_or_broken_picture_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"gone\.jpg"):
        open_picture(tmp_path / "gone.jpg")
    (tmp_path / "bad.jpg").write_bytes(b"bad")
    with pytest.raises(ValueError, match=r"bad\.jpg"):
        open_picture(tmp_path / "bad.jpg")


# --- batches


def drawn(batches: CanvasBatches, epoch: int = 0, skip: int = 0) -> list[list[Draw]]:
    batches.start(epoch, skip)
    return list(batches)


def test_every_leftover_batch_has_a_canvas_that_holds_its_pictures() -> None:
    """Also where no canvas holds all others, as torchvision's 83."""
    canvases = (Size(64, 128), Size(128, 64), Size(96, 96))
    canvas = np.random.default_rng(0).integers(0, 3, 20)
    for batch in drawn(CanvasBatches(canvas, canvases, 4, 0)):
        for draw in batch:
            own = canvases[canvas[draw.picture]]
            assert draw.canvas.height >= own.height
            assert draw.canvas.width >= own.width


canvas_lists = st.lists(st.integers(0, 2), min_size=8, max_size=60).map(lambda values: np.array(values, dtype=np.int64))


@given(canvas=canvas_lists, batch_size=st.sampled_from([2, 4, 8]), epoch=st.integers(0, 3))
def test_an_epoch_shows_every_picture_once_on_a_canvas_that_holds_it(
    canvas: np.ndarray, batch_size: int, epoch: int
) -> None:
    batches = CanvasBatches(canvas, CANVASES, batch_size, seed=1)
    found = drawn(batches, epoch)
    assert len(found) == len(batches) == len(canvas) // batch_size
    shown = [draw.picture for batch in found for draw in batch]
    assert len(shown) == len(set(shown))
    for batch in found:
        assert len(batch) == batch_size and len({draw.canvas for draw in batch}) == 1
        assert all(draw.canvas in (CANVASES[canvas[draw.picture]], CANVASES[2]) for draw in batch)


@given(canvas=canvas_lists, processes=st.sampled_from([2, 4]))
def test_processes_together_draw_what_one_would(canvas: np.ndarray, processes: int) -> None:
    alone = drawn(CanvasBatches(canvas, CANVASES, 8, seed=1, zooms=(0.5, 1.0)))
    shares = [
        drawn(CanvasBatches(canvas, CANVASES, 8, seed=1, rank=rank, processes=processes, zooms=(0.5, 1.0)))
        for rank in range(processes)
    ]
    together = [{draw for share in shares for draw in share[i]} for i in range(len(alone))]
    assert together == [set(batch) for batch in alone]


@given(canvas=canvas_lists, skip=st.integers(0, 10))
def test_a_resumed_epoch_goes_on_where_it_stopped(canvas: np.ndarray, skip: int) -> None:
    batches = CanvasBatches(canvas, CANVASES, 2, seed=1)
    assert drawn(batches, 2, skip) == drawn(batches, 2)[skip:]


def test_epochs_differ_and_repeat_by_seed() -> None:
    canvas = np.zeros(32, dtype=np.int64)
    one, same, other = (CanvasBatches(canvas, CANVASES, 4, seed=seed) for seed in (1, 1, 2))
    assert drawn(one, 0) == drawn(same, 0)
    assert drawn(one, 0) != drawn(one, 1) and drawn(one, 0) != drawn(other, 0)


def test_the_last_epochs_are_plain() -> None:
    batches = CanvasBatches(np.zeros(8, dtype=np.int64), CANVASES, 4, seed=0, zooms=(0.5,), plain_from=1)
    before, after = drawn(batches, 0), drawn(batches, 1)
    assert {(draw.plain, draw.canvas) for batch in before for draw in batch} == {(False, Size(32, 64))}
    assert {(draw.plain, draw.canvas) for batch in after for draw in batch} == {(True, CANVASES[0])}


def test_batches_are_cut_to_whole_accumulations() -> None:
    batches = CanvasBatches(np.zeros(27, dtype=np.int64), CANVASES, 4, seed=0, multiple=4)
    assert len(batches) == len(drawn(batches)) == 4


@given(st.lists(st.floats(1, 4), min_size=8, max_size=40), st.integers(0, 5))
def test_repeated_pictures_come_as_often_as_said(repeats: list[float], epoch: int) -> None:
    factors = np.array(repeats)
    batches = CanvasBatches(np.zeros(len(factors), dtype=np.int64), CANVASES, 1, seed=0, repeats=factors)
    shown = np.bincount([draw.picture for batch in drawn(batches, epoch) for draw in batch], minlength=len(factors))
    assert shown.sum() == round(factors.sum()) == len(batches)
    assert (np.abs(shown - factors) < 1.2).all()


def test_pictures_of_thin_classes_are_repeated(tmp_path: Path) -> None:
    document = write_pictures(tmp_path, 16, boxes=1)
    for position, annotation in enumerate(document["annotations"]):
        annotation["category_id"] = IDS["blue"] if position == 5 else IDS["red"]
    factors = repeat_factors(Annotations.from_document(check(document, "it")[0]), threshold=0.25)
    assert factors[5] == pytest.approx((0.25 / (1 / 16)) ** 0.5)
    assert (np.delete(factors, 5) == 1).all()


def test_too_few_pictures_for_a_batch_say_so() -> None:
    with pytest.raises(ValueError, match="lower --batch-size"):
        CanvasBatches(np.zeros(3, dtype=np.int64), CANVASES, 4, seed=0)
    with pytest.raises(ValueError, match="3 processes"):
        CanvasBatches(np.zeros(9, dtype=np.int64), CANVASES, 4, seed=0, processes=3)


def test_what_becomes_of_a_picture_depends_on_its_draw_alone(toy: tuple[Path, Path]) -> None:
    annotations = read_annotations(*toy)
    strong = Augmentation(mosaic=0.5, mixup=0.5, hue=0.1)
    pictures = TrainingPictures(Plans(annotations, metadata(), strong), toy[1])
    batches = CanvasBatches(canvas_indices(annotations, metadata()), CANVASES, 1, seed=3)
    draws = [draw for batch in drawn(batches) for draw in batch]
    there = [pictures[draw] for draw in draws]
    back = [pictures[draw] for draw in reversed(draws)][::-1]
    for one, other in zip(there, back, strict=True):
        assert one.image.equal(other.image) and one.boxes.equal(other.boxes) and one.labels.equal(other.labels)


def test_pictures_join_others_on_a_canvas_as_often_as_they_are_repeated(toy: tuple[Path, Path]) -> None:
    annotations = read_annotations(*toy)
    repeats = np.array([1.0, 1.0, 3.5, 1.0, 2.0, 1.0, 1.0])
    plans = Plans(annotations, metadata(), Augmentation(mosaic=1.0, mixup=1.0), repeats)
    counts = np.zeros(len(repeats))
    for seed in range(1000):
        plan = plans[Draw(0, CANVASES[2], 1.0, False, seed)]
        first, *others = (layer.picture for layout in plan.layouts for layer in layout.layers)
        assert first == 0 and len(others) == 7
        np.add.at(counts, others, 1)
    assert counts / counts.sum() == pytest.approx(repeats / repeats.sum(), abs=0.02)


def test_a_plain_draw_is_only_mirrored_and_a_zoom_reaches_its_picture(toy: tuple[Path, Path]) -> None:
    strong = Augmentation(scale=(0.3, 0.5), mosaic=1.0, mixup=1.0, color=0.5, flip=0.0)
    annotations = read_annotations(*toy)
    metadata = metadata_of(
        FCOSConfig(classes=annotations.classes), InputConfig(short=96, long=96, canvases=((96, 96),))
    )
    plans, still = (Plans(annotations, metadata, augmentation) for augmentation in (strong, strong.plain()))
    canvas, index = metadata.canvases[-1], 0
    plain, unplain = (plans[Draw(index, canvas, 1.0, flag, 1)] for flag in (True, False))
    assert len(plain.layouts) == 1 and len(unplain.layouts) == 2
    assert plain.share == 1 and 0.1 < unplain.share < 0.9
    np.testing.assert_array_equal(plain.boxes, still[Draw(index, canvas, 1.0, False, 1)].boxes)
    np.testing.assert_allclose(plans[Draw(index, canvas, 0.5, True, 1)].boxes, plain.boxes / 2, atol=1.5)


def test_mosaics_blends_and_flips_come_as_often_as_said_and_with_any_picture(toy: tuple[Path, Path]) -> None:
    plans = Plans(read_annotations(*toy), metadata(), Augmentation(flip=0.2, mosaic=0.4, mixup=0.7))
    found = [plans[Draw(0, CANVASES[2], 1.0, False, seed)] for seed in range(1000)]
    flipped = [plan.layouts[0].flipped for plan in found]
    mosaics = [len(plan.layouts[0].layers) == 4 for plan in found]
    blended = [len(plan.layouts) == 2 for plan in found]
    assert np.mean([flipped, mosaics, blended], axis=1) == pytest.approx([0.2, 0.4, 0.7], abs=0.05)
    beside = [layer.picture for plan in found for layer in plan.layouts[0].layers[1:]]
    under = [plan.layouts[1].layers[0].picture for plan in found if len(plan.layouts) == 2]
    for others in (beside, under):
        assert np.bincount(others) / len(others) == pytest.approx([1 / 7] * 7, abs=0.05)


def test_more_pixels_than_pillow_reads_are_a_bad_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("1", (400, 400)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 70_000)  # it warns of more, and refuses twice as much
    with pytest.raises(OSError, match="more than"):
        upright_size(tmp_path / "a.png")


def test_ids_that_are_no_ids_are_unreadable(tmp_path: Path) -> None:
    images = [{"width": None}, {"id": 2**64, "file_name": "a.png", "width": 10, "height": 10}]
    _, problems = check({"images": images, "annotations": [], "categories": []}, "here", None)
    assert [kind for kind, _ in problems.errors] == ["unreadable entry"] * 2


def test_class_names_that_yaml_takes_for_other_things_stay_text(tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    (tmp_path / "labels").mkdir()
    Image.new("RGB", (32, 32)).save(images / "a.png")
    (tmp_path / "labels" / "a.txt").touch()
    for names in ("[yes, no, 007, 12:30, 1e3]", "{0: yes, 1: no, 2: 007, 3: 12:30, 4: 1e3}"):
        (tmp_path / "data.yaml").write_text(f"names: {names}")
        document = read_document(tmp_path / "labels", images)
        assert [one["name"] for one in document["categories"]] == ["yes", "no", "007", "12:30", "1e3"]


def test_yolos_file_of_class_names_is_told_from_annotations(tmp_path: Path) -> None:
    (tmp_path / "data.yaml").write_text("names: [cat]")
    with pytest.raises(ValueError, match=r"data\.yaml only names YOLO's classes: give the folder of its txt files"):
        read_document(tmp_path / "data.yaml", tmp_path)


def yolo(folder: Path, *stems: str, names: str = "data.yaml") -> tuple[Path, Path]:
    """Returns: A folder of labels, and one of pictures."""
    labels, images = folder / "set" / "labels", folder / "set" / "images"
    for stem in stems:
        for place in (labels, images):
            (place / stem).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (100, 50)).save(images / f"{stem}.png")
        (labels / f"{stem}.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    (folder / "set" / names).write_text("cat\n" if names == "obj.names" else "names: [cat]\n")
    return labels, images


@pytest.mark.parametrize("names", ["obj.names", "coco128.yaml", "dataset.yaml"])
def test_yolos_class_names_are_found_under_their_usual_names(tmp_path: Path, names: str) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "compose.yaml").write_text("services: {}")
    document = read_document(*yolo(tmp_path, "a", names=names))
    assert [one["name"] for one in document["categories"]] == ["cat"]


def test_yolos_numbers_may_be_written_otherwise_and_lists_lie_beside_them(tmp_path: Path) -> None:
    labels, images = yolo(tmp_path, "a", "b")
    (labels / "a.txt").write_text("0.0 0.5 0.5 0.2 0.2\n0 0.5 0.5 0.2 0.2 0.93\n")
    (labels / "b.txt").write_text("0.5 0.5 0.5 0.2 0.2\n0 0.1 0.1 0.2 0.1 0.2 0.2 0.3\n")
    (labels / "train.txt").write_text("images/a.png\nimages/b.png\n")
    (labels / "gone.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    document, problems = check(read_document(labels, images), "labels", images)
    assert [one["bbox"] for one in document["annotations"]] == [[40.0, 20.0, 20.0, 10.0]]
    kinds = sorted(kind for kind, _ in problems.errors + problems.warnings)
    assert kinds == ["duplicate box", "missing picture", *["unreadable entry"] * 2], "a list is no annotation"


def test_annotations_in_subfolders_are_not_passed_over(tmp_path: Path) -> None:
    labels, images = yolo(tmp_path, "a", "more/b")
    (labels / ".hidden").mkdir()
    (labels / ".hidden" / "a.txt").touch()
    with pytest.raises(ValueError, match=r"labels/more holds annotations, too"):
        read_document(labels, images)
    (labels / "a.txt").unlink()
    with pytest.raises(ValueError, match=r"neither VOC xml nor YOLO txt files: .* such as .*/labels/more$"):
        read_document(labels, images)


@pytest.mark.parametrize("kind", ["txt", "xml"])
def test_one_file_of_a_set_is_told_from_all(tmp_path: Path, kind: str) -> None:
    (tmp_path / f"train.{kind}").touch()
    with pytest.raises(ValueError, match=f"is one file of a set: give the folder of its {kind} files"):
        read_document(tmp_path / f"train.{kind}", tmp_path)


def test_a_voc_files_own_picture_wins_over_the_name_in_it(tmp_path: Path) -> None:
    for stem, other, size in (("a", "b", (40, 30)), ("b", "a", (60, 20))):
        Image.new("RGB", size).save(tmp_path / f"{stem}.png")
        (tmp_path / f"{stem}.xml").write_text(f"<annotation><filename>{other}.png</filename></annotation>")
    document = read_document(tmp_path, tmp_path)
    assert [(one["file_name"], one["width"]) for one in document["images"]] == [("a.png", 40), ("b.png", 60)]


@pytest.mark.parametrize("source", ["boxes.json", "yolo", "voc"])
def test_a_wrong_folder_of_pictures_is_one_sentence_and_the_right_one_is_named(tmp_path: Path, source: str) -> None:
    document = write_pictures(tmp_path / "pictures" / "train", 3)
    listed = [one | {"file_name": f"images\\{one['file_name'].upper()}"} for one in document["images"]]
    (tmp_path / "boxes.json").write_text(json.dumps(document | {"images": listed}))
    write_yolo(tmp_path / "yolo", document)
    write_voc(tmp_path / "voc", document)
    (tmp_path / "data.yaml").write_text(f"names: {list(IDS)}")
    right, beside, far = (tmp_path / name for name in ("pictures/train", "pictures/val", "far/away"))
    for empty in (beside, far):
        empty.mkdir(parents=True)
    known, unknown = f"give {right}, which has them", "give the folder that has them"
    for wrong, hint in ((right.parent, known), (beside, known), (far, unknown)):
        with pytest.raises(ValueError, match=f"^none of the 3 pictures of {source} is in {wrong}: {hint}"):
            read_document(tmp_path / source, wrong)
    with pytest.raises(ValueError, match=f"^no folder of pictures at {tmp_path}/gone$"):
        read_document(tmp_path / source, tmp_path / "gone")


def test_few_pictures_are_those_that_could_be_loaded_unless_another_folder_has_most(tmp_path: Path) -> None:
    document = write_pictures(tmp_path / "most", 12)
    (tmp_path / "boxes.json").write_text(json.dumps(document))
    (tmp_path / "few").mkdir()
    (tmp_path / "most" / "picture-0.png").rename(tmp_path / "few" / "picture-0.png")
    with pytest.raises(ValueError, match=f"^only 1 of the 12 .* is in {tmp_path}/few: give {tmp_path}/most, which"):
        read_document(tmp_path / "boxes.json", tmp_path / "few")
    for number in range(1, 12):
        (tmp_path / "most" / f"picture-{number}.png").unlink()
    _, problems = read_checked(tmp_path / "boxes.json", tmp_path / "few")
    assert [kind for kind, _ in problems.errors] == ["missing picture"] * 11


@pytest.mark.parametrize(
    ("listed", "file"),
    [
        ("images\\a.png", "a.png"),
        ("/home/alice/a.png", "a.png"),
        ("x/sub/a.png", "sub/a.png"),
        ("A.PNG", "a.png"),
        ("\u00e9.png", "e\u0301.png"),
        ("e\u0301.png", "\u00e9.png"),
    ],
)
def test_a_name_in_another_writing_is_found(tmp_path: Path, listed: str, file: str) -> None:
    images, document = tmp_path / "pictures", write_pictures(tmp_path / "pictures", 3)
    (images / file).parent.mkdir(exist_ok=True)
    (images / "picture-0.png").rename(images / file)
    document["images"][0] = {"id": 0, "file_name": listed}  # without a size, which is the picture's own
    (tmp_path / "boxes.json").write_text(json.dumps(document))
    clean, problems = read_checked(tmp_path / "boxes.json", images)
    assert clean["images"][0] == {"id": 0, "file_name": file, "width": 96, "height": 64}
    found = [where for kind, where in problems.warnings if kind == "name in another writing"]
    assert not problems.errors and found == [f"1 found, such as {file} for {listed}"]


@pytest.mark.parametrize(
    ("listed", "files"),
    [
        (["A.png"], ["a.png", "a.PNG"]),
        (["x/a.png", "y/a.png"], ["a.png"]),
        (["a.png", "A.png"], ["a.png"]),
    ],
)
def test_a_name_that_fits_several_pictures_is_not_guessed(tmp_path: Path, listed: list[str], files: list[str]) -> None:
    document = write_pictures(tmp_path, 4)
    for file in files:
        Image.new("RGB", (96, 64)).save(tmp_path / file)
    for image, name in zip(document["images"], listed, strict=False):
        image["file_name"] = name
    (tmp_path / "boxes.json").write_text(json.dumps(document))
    problems = read_checked(tmp_path / "boxes.json", tmp_path)[1]
    assert [kind for kind, _ in problems.errors] == ["missing picture"] * len(set(listed) - set(files))
    assert "name in another writing" not in dict(problems.warnings)


@pytest.mark.parametrize("source", ["yolo", "voc"])
def test_a_stem_in_another_writing_is_found(tmp_path: Path, source: str) -> None:
    document = write_pictures(tmp_path / "pictures", 2)
    (write_voc if source == "voc" else write_yolo)(tmp_path / source, document)
    (tmp_path / "data.yaml").write_text(f"names: {list(IDS)}")
    suffix = {"voc": "xml", "yolo": "txt"}[source]
    (tmp_path / source / f"picture-0.{suffix}").rename(tmp_path / source / f"e\u0301.{suffix}")
    (tmp_path / "pictures" / "picture-0.png").rename(tmp_path / "pictures" / "\u00c9.png")
    found, problems = read_checked(tmp_path / source, tmp_path / "pictures")
    assert not problems.errors and {one["file_name"] for one in found["images"]} == {"\u00c9.png", "picture-1.png"}
    assert len(found["annotations"]) == 4


@pytest.mark.parametrize("suffix", ["HEIC", "avif"])
@pytest.mark.parametrize("source", ["boxes.json", "sizeless.json", "yolo", "voc"])
def test_a_picture_in_a_format_that_cannot_be_read_is_not_missing(tmp_path: Path, source: str, suffix: str) -> None:
    document = write_pictures(tmp_path / "pictures", 2)
    write_yolo(tmp_path / "yolo", document)
    write_voc(tmp_path / "voc", document)
    (tmp_path / "data.yaml").write_text(f"names: {list(IDS)}")
    (tmp_path / "boxes.json").write_text(json.dumps(document))
    sizeless = [{"id": one["id"], "file_name": one["file_name"]} for one in document["images"]]
    (tmp_path / "sizeless.json").write_text(json.dumps(document | {"images": sizeless}))
    (tmp_path / "pictures" / "picture-0.png").unlink()
    (tmp_path / "pictures" / f"picture-0.{suffix}").write_bytes(b"ftypheic")
    _, problems = read_checked(tmp_path / source, tmp_path / "pictures")
    ((kind, where),) = problems.errors
    assert kind == "unreadable picture" and f"(picture-0.{suffix})" in where


def test_classes_whose_names_differ_only_in_writing_are_named(tmp_path: Path) -> None:
    document = write_pictures(tmp_path, 4)
    for category, name in zip(document["categories"], ("Stop Sign", "stop_sign", "stop"), strict=True):
        category["name"] = name
    _, problems = check(document, "it")
    assert not problems.errors and ("class names alike", "'Stop Sign' and 'stop_sign'") in problems.warnings


def test_roboflows_category_of_all_categories_is_no_class(tmp_path: Path) -> None:
    document = write_pictures(tmp_path, 4)
    for category in document["categories"]:
        category["supercategory"] = "things"
    document["categories"].insert(0, {"id": 0, "name": "things", "supercategory": "none"})
    (tmp_path / "boxes.json").write_text(json.dumps(document))
    assert set(read_annotations(tmp_path / "boxes.json", tmp_path).classes) == set(IDS)
    document["annotations"][0]["category_id"] = 0
    (tmp_path / "boxes.json").write_text(json.dumps(document))
    assert set(read_annotations(tmp_path / "boxes.json", tmp_path).classes) == {"things", *IDS}


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


@pytest.mark.parametrize("name", ["_annotations.coco.json", "boxes.json", "train/_annotations.coco.json"])
def test_a_json_is_named_where_its_folder_is_given(tmp_path: Path, name: str) -> None:
    (tmp_path / "README.roboflow.txt").write_text("Exported from ...")
    for file in (name, "zebra.json") if name.startswith("_") else (name,):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text("{}")
    with pytest.raises(ValueError, match=f"holds neither VOC xml nor YOLO txt files: give {tmp_path / name} itself$"):
        read_document(tmp_path, tmp_path)


def test_labels_are_read_where_a_json_lies_beside_them(tmp_path: Path) -> None:
    labels, images = yolo(tmp_path, "a")
    (labels / "notes.json").write_text("{}")
    assert len(read_document(labels, images)["annotations"]) == 1


def test_an_archive_is_to_be_unpacked(tmp_path: Path) -> None:
    file, packed = write_coco(tmp_path, 1)[0], tmp_path / "set.zip"
    packed.write_bytes(b"PK")
    for read in (
        lambda: read_document(packed, tmp_path),
        lambda: read_document(file, packed),
        lambda: data_folder(packed),
    ):
        with pytest.raises(ValueError, match=r"set\.zip is packed: unpack it"):
            read()
