"""COCO's json: sizes that it lacks, polygons, Roboflow's category."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from model.checks import check
from model.coco import hold_out
from model.data import read_checked
from model.formats import read_document
from model.problems import UNREADABLE
from tests.toy import IDS, read_annotations, write_pictures


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


def test_polygons_beside_their_boxes_are_not_kept(tmp_path: Path) -> None:
    """They are most of a large json, and all that is read from it stays in memory until it is checked."""
    document = write_pictures(tmp_path, 1)
    polygon = [[1, 2, 3, 4, 5, 6]]
    for annotation in document["annotations"]:
        annotation["segmentation"] = polygon
    document["annotations"][1].pop("bbox")
    boxes = [document["annotations"][0]["bbox"], [1, 2, 4, 4]]
    (tmp_path / "boxes.json").write_text(json.dumps(document))
    found = read_document(tmp_path / "boxes.json", tmp_path)["annotations"]
    assert [one["bbox"] for one in found] == boxes
    assert not any("segmentation" in one for one in found)


def test_a_json_that_names_a_format_of_its_own_is_cocos(tmp_path: Path) -> None:
    document = write_pictures(tmp_path, 1) | {"format": "coco", "info": {"year": 2026}}
    document["annotations"][0]["bbox"] = "here"
    (tmp_path / "boxes.json").write_text(json.dumps(document))
    problems = read_checked(tmp_path / "boxes.json", tmp_path)[1]
    assert UNREADABLE["COCO"] in problems.describe(problems.errors)


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


def test_pictures_are_held_out_by_their_names_however_accents_are_written() -> None:
    """macOS takes accents apart: the same pictures there must be the same set."""
    composed = [f"\u00e9-{number}.png" for number in range(40)] + ["\udce9.png"]  # the last is no UTF-8 on the disk
    held = []
    for names in (composed, [name.replace("\u00e9", "e\u0301") for name in composed]):
        images = [{"id": number, "file_name": name} for number, name in enumerate(names)]
        held.append([image["id"] for image in hold_out({"images": images, "annotations": []}, 0.3)[1]["images"]])
    assert held[0] == held[1] and 4 < len(held[0]) < 20


def test_roboflows_category_of_all_categories_is_no_class(tmp_path: Path) -> None:
    document = write_pictures(tmp_path, 4)
    document["categories"].append({"id": 100, "name": "None"})
    (tmp_path / "boxes.json").write_text(json.dumps(document))
    assert "None" in read_annotations(tmp_path / "boxes.json", tmp_path).classes
    document["categories"].pop()
    for category in document["categories"]:
        category["supercategory"] = "things"
    document["categories"].insert(0, {"id": 0, "name": "things", "supercategory": "none"})
    (tmp_path / "boxes.json").write_text(json.dumps(document))
    assert set(read_annotations(tmp_path / "boxes.json", tmp_path).classes) == set(IDS)
    document["annotations"][0]["category_id"] = 0
    (tmp_path / "boxes.json").write_text(json.dumps(document))
    assert set(read_annotations(tmp_path / "boxes.json", tmp_path).classes) == {"things", *IDS}
