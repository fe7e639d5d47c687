"""Pictures are found under the names that annotations give them, or the folder that has them is named."""

import json
from pathlib import Path

import pytest
from PIL import Image

from model.data import read_checked
from model.formats import read_document
from model.names import only_matches, pictures_of
from tests.toy import write_pictures, write_voc, write_yolo


@pytest.mark.parametrize("source", ["boxes.json", "yolo", "voc"])
def test_a_wrong_folder_of_pictures_is_one_sentence_and_the_right_one_is_named(tmp_path: Path, source: str) -> None:
    document = write_pictures(tmp_path / "pictures" / "train", 3)
    listed = [one | {"file_name": f"images\\{one['file_name'].upper()}"} for one in document["images"]]
    (tmp_path / "boxes.json").write_text(json.dumps(document | {"images": listed}))
    write_yolo(tmp_path / "yolo", document)
    write_voc(tmp_path / "voc", document)
    places = ("pictures/train", "pictures/val", "pictures/train/more", "far/away")
    right, beside, below, far = (tmp_path / name for name in places)
    for empty in (beside, below, far):
        empty.mkdir(parents=True)
    known, unknown = f"give {right}, which has them", "give the folder that has them"
    for wrong, hint in ((right.parent, known), (beside, known), (below, known), (far, unknown)):
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
        ("../../media/upload/1/0a1b2c3d-a.png", "a.png"),  # Label Studio's
        ("/data/local-files/?d=new/my%20%C3%A9.png", "my \u00e9.png"),
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


@pytest.mark.parametrize(
    ("listed", "files"),
    [
        (["x/a%20b.png", "x/a b.png"], ["a%20b.png", "a b.png"]),  # as a browser and a script save one address
        (["A.png", "0a1b2c3d-a.png"], ["a.png"]),
    ],
)
def test_a_name_as_it_stands_goes_before_what_a_tool_may_have_made_of_it(listed: list[str], files: list[str]) -> None:
    assert only_matches(listed, files) == dict(zip(listed, files, strict=False))


@pytest.mark.parametrize("source", ["yolo", "voc"])
def test_a_stem_in_another_writing_is_found(tmp_path: Path, source: str) -> None:
    document = write_pictures(tmp_path / "pictures", 2)
    (write_voc if source == "voc" else write_yolo)(tmp_path / source, document)
    suffix = {"voc": "xml", "yolo": "txt"}[source]
    (tmp_path / source / f"picture-0.{suffix}").rename(tmp_path / source / f"e\u0301.{suffix}")
    (tmp_path / "pictures" / "picture-0.png").rename(tmp_path / "pictures" / "\u00c9.png")
    found, problems = read_checked(tmp_path / source, tmp_path / "pictures")
    assert not problems.errors and {one["file_name"] for one in found["images"]} == {"\u00c9.png", "picture-1.png"}
    assert len(found["annotations"]) == 4


def test_a_stem_as_it_stands_goes_before_one_in_another_writing(tmp_path: Path) -> None:
    for name in ("a.png", "A.png"):
        (tmp_path / name).touch()
    assert pictures_of(["a"], tmp_path) == {"a": ["a.png"]}


@pytest.mark.parametrize("suffix", ["HEIC", "avif"])
@pytest.mark.parametrize("source", ["boxes.json", "sizeless.json", "yolo", "voc"])
def test_a_picture_in_a_format_that_cannot_be_read_is_not_missing(tmp_path: Path, source: str, suffix: str) -> None:
    document = write_pictures(tmp_path / "pictures", 2)
    write_yolo(tmp_path / "yolo", document)
    write_voc(tmp_path / "voc", document)
    (tmp_path / "boxes.json").write_text(json.dumps(document))
    sizeless = [{"id": one["id"], "file_name": one["file_name"]} for one in document["images"]]
    (tmp_path / "sizeless.json").write_text(json.dumps(document | {"images": sizeless}))
    (tmp_path / "pictures" / "picture-0.png").unlink()
    (tmp_path / "pictures" / f"picture-0.{suffix}").write_bytes(b"ftypheic")
    _, problems = read_checked(tmp_path / source, tmp_path / "pictures")
    ((kind, where),) = problems.errors
    assert kind == "unreadable picture" and f"(picture-0.{suffix})" in where
