"""VOC's xml: where boxes count from, difficult objects, whose picture a file is."""

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from PIL import Image

from model.data import Annotations, read_checked
from model.formats import read_document
from tests.toy import read_annotations, write_pictures, write_voc


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


def test_voc_boxes_with_fractions_of_pixels_count_from_0(tmp_path: Path) -> None:
    """As CVAT and Datumaro write them; in VOC's own files a few sides have fractions."""
    document = write_pictures(tmp_path / "pictures", 1)
    document["annotations"][0]["bbox"] = [2, 5, 30, 40]
    write_voc(tmp_path / "voc", document)
    (file,) = (tmp_path / "voc").iterdir()
    whole = file.read_text()
    file.write_text(whole.replace("<xmin>3<", "<xmin>3.5<"))
    assert read_annotations(tmp_path / "voc", tmp_path / "pictures").boxes[0].tolist() == [2.5, 5, 32, 45]
    file.write_text(re.sub(r"(\d+)</([xy])", r"\1.25</\2", whole))
    assert read_annotations(tmp_path / "voc", tmp_path / "pictures").boxes[0].tolist() == [3.25, 6.25, 32.25, 45.25]


def test_cvats_own_xml_is_told_from_vocs(tmp_path: Path) -> None:
    (tmp_path / "annotations.xml").write_text(
        '<annotations><version>1.1</version><image id="0" name="a.png" width="40" height="30">'
        '<box label="cat" xtl="1.00" ytl="2.00" xbr="9.00" ybr="8.00" z_order="0"/></image></annotations>'
    )
    with pytest.raises(ValueError, match=r"annotations\.xml is in CVAT's own format: export as COCO or Pascal VOC"):
        read_document(tmp_path, tmp_path)


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


def test_a_missing_picture_that_a_voc_file_does_not_name_has_the_files_name(tmp_path: Path) -> None:
    write_voc(tmp_path / "voc", write_pictures(tmp_path / "pictures", 2))
    file = tmp_path / "voc" / "picture-0.xml"
    file.write_text(re.sub("<filename>.*</filename>", "", file.read_text()))
    (tmp_path / "pictures" / "picture-0.png").unlink()
    _, problems = read_checked(tmp_path / "voc", tmp_path / "pictures")
    assert ("missing picture", "image 1 (picture-0.jpg)") in problems.errors


def test_a_voc_files_own_picture_wins_over_the_name_in_it(tmp_path: Path) -> None:
    for stem, other, size in (("a", "b", (40, 30)), ("b", "a", (60, 20))):
        Image.new("RGB", size).save(tmp_path / f"{stem}.png")
        (tmp_path / f"{stem}.xml").write_text(f"<annotation><filename>{other}.png</filename></annotation>")
    document = read_document(tmp_path, tmp_path)
    assert [(one["file_name"], one["width"]) for one in document["images"]] == [("a.png", 40), ("b.png", 60)]
