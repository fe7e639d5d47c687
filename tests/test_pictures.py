"""Of a picture its upright size is read, and what is none is said."""

import signal
import threading
import time
from pathlib import Path

import pytest
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo

from model.checks import check
from model.coco import Document
from model.formats import read_document
from model.pictures import for_each, open_picture, upright_size
from model.presets import data_folder
from tests.toy import write_coco


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tiff"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_picture_has_its_upright_size(tmp_path: Path, orientation: int, suffix: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    name = f"a.{suffix}"
    Image.new("RGB", (40, 30)).save(tmp_path / name, exif=exif)
    with Image.open(tmp_path / name) as picture:
        width, height = ImageOps.exif_transpose(picture).size
    document: Document = {"annotations": [], "categories": [], "images": [{"id": 1, "file_name": name}]}
    document["images"][0] |= {"width": width, "height": height}
    assert not check(document, "it", tmp_path)[1].errors
    document["images"][0] |= {"width": height, "height": width}
    assert [kind for kind, _ in check(document, "it", tmp_path)[1].errors] == ["wrong size"]


def test_more_pixels_than_pillow_reads_are_a_bad_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("1", (400, 400)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 70_000)  # it warns of more, and refuses twice as much
    with pytest.raises(OSError, match="more than"):
        upright_size(tmp_path / "a.png")


def test_a_header_that_pillow_refuses_is_a_bad_picture(tmp_path: Path) -> None:
    text = PngInfo()
    text.add_text("comment", "0" * 2**21, zip=True)  # more than Pillow unpacks
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png", pnginfo=text)
    with pytest.raises(OSError, match="too large"):
        upright_size(tmp_path / "a.png")


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


def test_a_missing_or_broken_picture_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"gone\.jpg"):
        open_picture(tmp_path / "gone.jpg")
    (tmp_path / "bad.jpg").write_bytes(b"bad")
    with pytest.raises(ValueError, match=r"bad\.jpg"):
        open_picture(tmp_path / "bad.jpg")


def test_a_picture_for_which_there_is_no_memory_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(_: Image.Image) -> None:
        raise MemoryError

    Image.new("RGB", (40, 30)).save(tmp_path / "large.png")
    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", load)
    with pytest.raises(ValueError, match=r"large\.png: there is no memory"):
        open_picture(tmp_path / "large.png")


@pytest.mark.parametrize("ends", [KeyboardInterrupt, OSError])
def test_a_ctrl_c_or_an_error_ends_the_looking_at_pictures(ends: type[BaseException]) -> None:
    looked = []
    main = threading.get_ident()

    def look(number: int) -> None:
        looked.append(number)
        if number == 20 and ends is KeyboardInterrupt:
            signal.pthread_kill(main, signal.SIGINT)
        elif number == 20:
            raise OSError
        time.sleep(0.01)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # it may be ignored where tests run
    try:
        with pytest.raises(ends):
            for_each(look, range(2000))
    finally:
        signal.signal(signal.SIGINT, before)
    assert len(looked) < 1000
