"""VOC's xml: where boxes count from, difficult objects, whose picture a file is."""

from pathlib import Path
from xml.etree import ElementTree

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


def test_a_voc_files_own_picture_wins_over_the_name_in_it(tmp_path: Path) -> None:
    for stem, other, size in (("a", "b", (40, 30)), ("b", "a", (60, 20))):
        Image.new("RGB", size).save(tmp_path / f"{stem}.png")
        (tmp_path / f"{stem}.xml").write_text(f"<annotation><filename>{other}.png</filename></annotation>")
    document = read_document(tmp_path, tmp_path)
    assert [(one["file_name"], one["width"]) for one in document["images"]] == [("a.png", 40), ("b.png", 60)]
