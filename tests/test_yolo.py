"""YOLO's txt: where class names lie and how they are written, which files are labels."""

from pathlib import Path

import pytest
from PIL import Image

from model.checks import check
from model.data import read_checked
from model.formats import read_document
from tests.toy import read_annotations, write_pictures, write_yolo


def yolo(folder: Path, *stems: str, names: str = "data.yaml") -> tuple[Path, Path]:
    """Returns: A folder of labels, and one of pictures."""
    labels, images = folder / "set" / "labels", folder / "set" / "images"
    for stem in stems:
        for place in (labels, images):
            (place / stem).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (100, 50)).save(images / f"{stem}.png")
        (labels / f"{stem}.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    (folder / "set" / names).write_text("\ncat\n\n" if names == "obj.names" else "names: [cat]\n")
    return labels, images


def test_yolos_class_names_may_lie_two_folders_up(tmp_path: Path) -> None:
    """As Ultralytics and Roboflow have them, for labels/train and train/labels."""
    labels, images = yolo(tmp_path, "train/a")
    assert len(read_annotations(labels / "train", images / "train").boxes) == 1


@pytest.mark.parametrize("names", ["obj.names", "coco128.yaml", "dataset.yaml"])
def test_yolos_class_names_are_found_under_their_usual_names(tmp_path: Path, names: str) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "compose.yaml").write_text("services: {}")
    document = read_document(*yolo(tmp_path, "a", names=names))
    assert [one["name"] for one in document["categories"]] == ["cat"]


@pytest.mark.parametrize(
    ("names", "found"),
    [
        ("{'0': a, '1': b, '10': k, '2': c, '3': d, '4': e, '5': f, '6': g, '7': h, '8': i, '9': j}", [*"abcdefghijk"]),
        ("[yes, no, 0, 007, 12:30, 1e3]", ["yes", "no", "0", "007", "12:30", "1e3"]),
        ("{0: yes, 1: no, 2: 0, 3: 007, 4: 12:30, 5: 1e3}", ["yes", "no", "0", "007", "12:30", "1e3"]),
    ],
)
def test_yolos_class_names_keep_their_order_and_stay_text(tmp_path: Path, names: str, found: list[str]) -> None:
    labels, images = yolo(tmp_path, "a")
    (tmp_path / "set" / "data.yaml").write_text(f"names: {names}")
    assert [one["name"] for one in read_document(labels, images)["categories"]] == found


@pytest.mark.parametrize(
    ("names", "says"),
    [
        ("names: {1: a, 2: b}", "keys 0, 1, 2"),
        ("names: cat", "not a list"),
        ("nc: 3", "no readable list `names`"),
        ("a: &a [b, b]\nnames: [[*a, *a]]", "not text"),
        ("names: " + "[" * 2000, "no readable list `names`"),
    ],
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
    Image.open(tmp_path / "pictures" / "picture-0.png").save(tmp_path / "pictures" / "picture-0.jpg")
    document = read_document(tmp_path / "yolo", tmp_path / "pictures")
    assert [image["file_name"] for image in document["images"]] == ["picture-0.jpg", "picture-0.png", "picture-1.png"]
    boxes = [[box["bbox"] for box in document["annotations"] if box["image_id"] == number] for number in (1, 2)]
    assert boxes[0] == boxes[1] != []


def test_a_text_file_of_yolo_may_begin_with_a_mark_and_must_be_utf8(tmp_path: Path) -> None:
    write_yolo(tmp_path / "yolo", write_pictures(tmp_path / "pictures", 1))
    file = tmp_path / "yolo" / "picture-0.txt"
    file.write_bytes(b"\xef\xbb\xbf0 .5 .5 .2 .2")
    assert len(read_annotations(tmp_path / "yolo", tmp_path / "pictures").boxes) == 1
    file.write_bytes(b"0 .5 .5 .2 .2 \xe9")
    with pytest.raises(ValueError, match=r"picture-0\.txt cannot be read as UTF-8"):
        read_annotations(tmp_path / "yolo", tmp_path / "pictures")


def test_yolos_numbers_may_be_written_otherwise_and_lists_lie_beside_them(tmp_path: Path) -> None:
    labels, images = yolo(tmp_path, "a", "b")
    (labels / "a.txt").write_text("0.0 0.5 0.5 0.2 0.2\n0 0.5 0.5 0.2 0.2 0.93\n")
    (labels / "b.txt").write_text("0.5 0.5 0.5 0.2 0.2\n0 0.1 0.1 0.2 0.1 0.2 0.2 0.3\n")
    for name, first in enumerate(("images/a.png", "2007_000027", "000027", "000027 -1")):
        (labels / f"list-{name}.txt").write_text(f"{first}\nb\n")
    (labels / "gone.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    document, problems = check(read_document(labels, images), "labels", images)
    assert [one["bbox"] for one in document["annotations"]] == [[40.0, 20.0, 20.0, 10.0]]
    kinds = sorted(kind for kind, _ in problems.errors + problems.warnings)
    assert kinds == ["duplicate box", "missing picture", *["unreadable entry"] * 2], "a list is no annotation"


def test_class_names_of_several_words_are_no_boxes(tmp_path: Path) -> None:
    labels, images = yolo(tmp_path, "a")
    (labels / "classes.txt").write_text("2 euro coin\n")
    document, problems = read_checked(labels, images)
    assert not problems.errors
    assert [one["name"] for one in document["categories"]] == ["2 euro coin"] and len(document["annotations"]) == 1


def test_a_class_given_by_its_name_is_shown(tmp_path: Path) -> None:
    labels, images = yolo(tmp_path, "a")
    (labels / "a.txt").write_text("cat 0.5 0.5 0.2 0.2\n")
    assert read_checked(labels, images)[1].errors == [("unreadable entry", "a.txt line 1: 'cat 0.5 0.5 0.2 0.2'")]


@pytest.mark.parametrize("keypoints", ["0.45 0.5 0.55 0.5", "0.45 0.5 2 0.55 0.5 1"])
def test_of_a_pose_the_box_is_learnt(tmp_path: Path, keypoints: str) -> None:
    labels, images = yolo(tmp_path, "a")
    (tmp_path / "set" / "data.yaml").write_text("kpt_shape: [2, 2]\nnames: [cat]\n")
    (labels / "a.txt").write_text(f"0 0.5 0.5 0.2 0.2 {keypoints}\n")
    assert [one["bbox"] for one in read_document(labels, images)["annotations"]] == [[40.0, 20.0, 20.0, 10.0]]


def test_the_folder_of_pictures_is_found_where_their_names_have_dots(tmp_path: Path) -> None:
    labels, images = yolo(tmp_path, "a_jpg.rf.0a", "b_jpg.rf.1b")  # Roboflow's
    with pytest.raises(ValueError, match=f"none of the 2 pictures of labels is in {labels}: give {images}, which"):
        read_document(labels, labels)


def test_annotations_in_subfolders_are_not_passed_over(tmp_path: Path) -> None:
    labels, images = yolo(tmp_path, "a", "more/b")
    (labels / ".hidden").mkdir()
    (labels / ".hidden" / "a.txt").touch()
    with pytest.raises(ValueError, match=r"labels/more holds annotations, too"):
        read_document(labels, images)
    (labels / "a.txt").unlink()
    with pytest.raises(ValueError, match=r"neither VOC xml nor YOLO txt files: .* such as .*/labels/more$"):
        read_document(labels, images)


def test_labels_are_read_where_a_json_lies_beside_them(tmp_path: Path) -> None:
    labels, images = yolo(tmp_path, "a")
    (labels / "notes.json").write_text("{}")
    assert len(read_document(labels, images)["annotations"]) == 1
