import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import ExifTags, Image
from PIL.PngImagePlugin import PngInfo
from skimage import data

from app.artifact import Resize, Size
from app.bombs import MOST_COPIED, MOST_SCANS, MOST_STRIPS, MOST_VALUES, SEARCHED, BoundedFile, occurrences
from app.canvas import resized_size
from app.errors import Refusal
from app.images import DRAFT_GAP, decode
from model.pictures import upright_size
from tests.support import encoded

MAX_PIXELS = 1_000_000


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def quarters() -> Image.Image:
    """Four colours, one in each quarter: any wrong turn shows."""
    picture = Image.new("RGB", (64, 48), "red")
    picture.paste("lime", (32, 0, 64, 24))
    picture.paste("blue", (0, 24, 32, 48))
    picture.paste("white", (32, 24, 64, 48))
    return picture


def opened(content: bytes, max_pixels: int) -> Image.Image:
    return decode(content, max_pixels).picture


def refused(content: bytes, max_pixels: int = MAX_PIXELS) -> str:
    with pytest.raises(Refusal) as caught:
        opened(content, max_pixels)
    assert 400 <= caught.value.kind.status < 500
    return caught.value.code


# How the upright picture is stored for each EXIF orientation.
STORED = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", STORED)
def test_pictures_come_out_upright(orientation: int, kind: str) -> None:
    method = STORED[orientation]
    stored = quarters() if method is None else quarters().transpose(method)
    given: dict[str, dict[str, Any]] = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}
    picture, size, box = decode(encoded(stored, kind, exif=turned(orientation), **given.get(kind, {})), MAX_PIXELS)
    assert picture.size == (64, 48)
    assert (size, box) == (Size(48, 64), (0, 0, 64, 48))
    assert np.abs(np.asarray(picture).astype(int) - np.asarray(quarters())).max() <= 3


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("exif", [{}, {ExifTags.Base.Make: "A camera's"}, {ExifTags.Base.Orientation: 3}])
def test_what_xmp_says_of_the_orientation_does_not_count(tmp_path: Path, kind: str, exif: dict[int, Any]) -> None:
    """Browsers, and clients that turn their boxes themselves, go by EXIF alone."""
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    texts = PngInfo()
    texts.add_itxt("XML:com.adobe.xmp", xmp.decode())
    given: dict[str, dict[str, Any]] = {"PNG": {"pnginfo": texts}, "TIFF": {"tiffinfo": {700: xmp}}}
    options = given.get(kind, {"xmp": xmp})
    if kind == "TIFF":
        options["tiffinfo"] |= exif
    elif exif:
        options["exif"] = Image.Exif()
        options["exif"].update(exif)
    content = encoded(quarters(), kind, **options)
    assert b'tiff:Orientation="6"' in content
    picture = opened(content, MAX_PIXELS)
    assert picture.size == (64, 48)
    method = STORED[exif.get(ExifTags.Base.Orientation, 1)]
    expected = quarters() if method is None else quarters().transpose(method)
    assert np.abs(np.asarray(picture).astype(int) - np.asarray(expected)).mean() < 15
    path = tmp_path / "picture"
    path.write_bytes(content)
    assert upright_size(path) == (48, 64)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_every_listed_format_is_read(kind: str) -> None:
    picture = opened(encoded(Image.fromarray(data.cat()), kind), MAX_PIXELS)
    assert (picture.mode, picture.size) == ("RGB", (451, 300))


@pytest.mark.parametrize("kind", ["PPM", "ICO", "PCX", "TGA", "EPS", "PDF"])
def test_formats_beyond_the_list_are_not_opened(kind: str) -> None:
    assert refused(encoded(quarters(), kind)) == "not_a_picture"


@pytest.mark.parametrize(
    ("name", "begins"),
    [
        *(("HEIC", b"\0\0\0\x18ftyp" + brand + b"\0\0\0\0") for brand in (b"heic", b"heix", b"hevc", b"mif1", b"msf1")),
        *(("AVIF", b"\0\0\0\x18ftyp" + brand + b"\0\0\0\0mif1") for brand in (b"avif", b"avis", b"mif1avif")),
        *(("a video", b"\0\0\0\x18ftyp" + brand + b"\0\0\2\0isomavc1") for brand in (b"isom", b"mp42", b"qt  ")),
        ("JPEG XL", b"\xff\x0a\xfa\x7f"),
        ("JPEG XL", b"\0\0\0\x0cJXL \r\n\x87\n"),
        ("PDF", b"%PDF-1.7\n"),
        ("SVG", b'<svg xmlns="http://www.w3.org/2000/svg">'),
        ("SVG", b'\xef\xbb\xbf<?xml version="1.0"?>\n<!-- a drawing -->\n<svg width="1">'),
    ],
)
def test_what_people_send_instead_of_a_picture_is_named(name: str, begins: bytes) -> None:
    with pytest.raises(Refusal, match=rf"^The file is {name}, .* Convert it to JPEG\.$") as caught:
        opened(begins + bytes(100), MAX_PIXELS)
    assert caught.value.code == "not_a_picture"


SPACES = b" " * 10_000  # of which megabytes would keep all threads waiting


@pytest.mark.parametrize(
    "begins", [b"x", b"\0\0\0\x18ftypcrx ", b"<!DOCTYPE html><p><svg>", b"it is %PDF-1.7", SPACES + b"<svg></svg>"]
)
def test_what_only_resembles_them_is_not(begins: bytes) -> None:
    with pytest.raises(Refusal, match="not a picture in a known format"):
        opened(begins + bytes(100), MAX_PIXELS)


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr"])
def test_modes_without_transparency_keep_their_look(mode: str) -> None:
    black_and_white = Image.new("RGB", (40, 40), "white")
    black_and_white.paste("black", (0, 0, 20, 40))
    kind = "PNG" if mode in ("1", "L", "P") else "TIFF"
    picture = opened(encoded(black_and_white.convert(mode), kind), MAX_PIXELS)
    assert np.abs(np.asarray(picture).astype(int) - np.asarray(black_and_white)).max() <= 3


def test_16_bits_are_scaled_not_clipped() -> None:
    deep = Image.fromarray(np.full((4, 4), 0x8000, np.uint16))
    for kind in ("PNG", "TIFF"):
        assert opened(encoded(deep, kind), MAX_PIXELS).getpixel((0, 0)) == (128, 128, 128)


@pytest.mark.parametrize(("bits", "white_is_zero"), [(8, False), (8, True), (12, False), (16, False), (16, True)])
def test_greys_of_a_tiff_are_the_same_in_any_depth_and_either_way_round(bits: int, white_is_zero: bool) -> None:
    whole = 2**bits - 1
    values = [0, whole, whole // 4, whole]
    stored = [whole - value for value in values] if white_is_zero else values
    packed = int("".join(f"{value:0{bits}b}" for value in stored), 2).to_bytes(4 * bits // 8, "big")
    row = struct.pack("<4H", *stored) if bits == 16 else packed
    tags = {256: 4, 257: 1, 258: bits, 259: 1, 262: 0 if white_is_zero else 1, 273: 8, 277: 1, 278: 1, 279: len(row)}
    entries = b"".join(struct.pack("<HHIHH", tag, 3, 1, value, 0) for tag, value in tags.items())
    file = b"II*\0" + struct.pack("<I", 8 + len(row)) + row + struct.pack("<H", len(tags)) + entries + bytes(4)
    assert np.asarray(opened(file, MAX_PIXELS))[0, :, 0].tolist() == [0, 255, 63, 255]


@pytest.mark.parametrize(
    "content",
    [
        encoded(Image.new("RGBA", (8, 8), (255, 0, 0, 0)), "PNG"),
        encoded(Image.new("RGBA", (8, 8), (255, 0, 0, 0)), "WEBP", lossless=True),
        encoded(Image.new("LA", (8, 8), (0, 0)), "PNG"),
        encoded(Image.new("P", (8, 8), 0), "PNG", transparency=0),
        encoded(Image.new("P", (8, 8), 0), "GIF", transparency=0),
        encoded(Image.new("RGB", (8, 8), (1, 2, 3)), "PNG", transparency=(1, 2, 3)),
    ],
    ids=["RGBA", "WebP", "LA", "palette", "GIF", "colour key"],
)
def test_transparent_pixels_are_white(content: bytes) -> None:
    assert opened(content, MAX_PIXELS).getpixel((4, 4)) == (255, 255, 255)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_an_animation_gives_its_first_frame(kind: str) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    content = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    red, _, blue = opened(content, MAX_PIXELS).getpixel((8, 8))  # type: ignore[misc]
    assert red > 200 > 50 > blue


def test_greys_beyond_16_bits_are_black_or_white() -> None:
    content = encoded(Image.fromarray(np.array([[-5, 65_535, 70_000, 2**31 - 1]], np.int32)), "TIFF")
    assert np.asarray(opened(content, MAX_PIXELS))[0, :, 0].tolist() == [0, 255, 255, 255]


def test_floating_point_pixels_are_refused() -> None:
    assert refused(encoded(Image.new("F", (8, 8), 0.5), "TIFF")) == "not_a_picture"


def test_no_bytes() -> None:
    assert refused(b"") == "empty_body"


@pytest.mark.parametrize("content", [b"MM", b"II. In which a stranger comes to the house."])
def test_a_text_that_begins_as_a_tiff_is_no_damaged_picture(content: bytes) -> None:
    assert refused(content) == "not_a_picture"


@pytest.mark.parametrize("content", [b"hello, world", b"%PDF-1.7", b"<svg></svg>", b"\0" * 100, b"\xff\xd8\xff"])
def test_what_is_no_picture(content: bytes) -> None:
    assert refused(content) in ("not_a_picture", "corrupt_picture")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF"])
@pytest.mark.parametrize("share", [0.3, 0.7, 0.95])
def test_a_truncated_picture_is_refused(kind: str, share: float) -> None:
    content = encoded(Image.fromarray(data.cat()), kind)
    assert refused(content[: int(len(content) * share)]) in ("corrupt_picture", "not_a_picture")


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png_that_claims(width: int, height: int) -> bytes:
    """A PNG header of any size, with next to nothing behind it."""

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    )


def test_a_picture_for_which_there_is_no_memory_is_not_called_damaged(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(_: Image.Image) -> None:
        raise MemoryError

    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", load)
    with pytest.raises(MemoryError):
        opened(encoded(quarters()), MAX_PIXELS)


@pytest.mark.parametrize("side", [1001, 10_000, 15_000, 60_000])
def test_a_decompression_bomb_is_refused_by_its_header(side: int) -> None:
    assert refused(png_that_claims(side, side)) == "picture_too_large"


def test_the_pixel_limit_is_inclusive() -> None:
    content = encoded(quarters(), "PNG")
    assert opened(content, 64 * 48).size == (64, 48)
    assert refused(content, 64 * 48 - 1) == "picture_too_large"


def test_damaged_exif_does_not_cost_the_picture() -> None:
    content = encoded(quarters(), "JPEG", exif=b"Exif\0\0" + b"not a TIFF header at all")
    assert opened(content, MAX_PIXELS).size == (64, 48)


@given(st.binary(max_size=200), st.integers(0, 2000))
def test_any_damage_is_a_refusal_or_a_picture(noise: bytes, place: int) -> None:
    content = encoded(quarters(), "JPEG")
    place = min(place, len(content))
    try:
        assert opened(content[:place] + noise + content[place + len(noise) :], MAX_PIXELS).mode == "RGB"
    except Refusal as refusal:
        assert 400 <= refusal.kind.status < 500


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("size", [(1600, 1200), (1201, 1603), (1500, 701), (700, 500), (500, 340)])
def test_a_large_jpeg_is_decoded_no_larger_than_needed(size: tuple[int, int], orientation: int) -> None:
    photograph = Image.fromarray(data.astronaut()).resize(size, Image.Resampling.BICUBIC)
    content = encoded(photograph, "JPEG", quality=90, exif=turned(orientation))
    whole = opened(content, 10_000_000)
    reserved: list[int] = []

    resize = Resize(short=160, long=160)
    smaller = decode(content, 10_000_000, resized=lambda size: resized_size(size, resize), reserve=reserved.append)
    assert smaller.size == Size(whole.height, whole.width)
    assert reserved == [smaller.picture.width * smaller.picture.height * (1 if orientation == 1 else 2)]
    target = resized_size(smaller.size, resize)
    assert smaller.picture.width >= DRAFT_GAP * target.width
    assert smaller.picture.height >= DRAFT_GAP * target.height
    assert smaller.picture.width < 2 * DRAFT_GAP * target.width or smaller.picture.width <= whole.width / 8 + 1

    def resized(picture: Image.Image, box: tuple[float, float, float, float] | None = None) -> np.ndarray:
        small = picture.resize((target.width, target.height), Image.Resampling.BILINEAR, box, 2)
        return np.asarray(small).astype(int)

    assert np.abs(resized(whole) - resized(smaller.picture, smaller.box)).mean() < 1


@pytest.mark.parametrize("size", [(1, 5000), (5000, 1)])
def test_a_jpeg_one_pixel_wide_is_not_decoded_to_none(size: tuple[int, int]) -> None:
    content = encoded(Image.new("RGB", size), "JPEG")
    decoded = decode(content, MAX_PIXELS, resized=lambda size: resized_size(size, Resize(short=160, long=160)))
    assert decoded.picture.size == size
    assert decoded.box == (0, 0, *size)


def test_a_progressive_jpeg_holds_all_of_itself() -> None:
    """Its coefficients, of 2 bytes; and what is decoded, here at a quarter of its size."""
    for subsampling, coefficients in ((0, 3), (2, 1.5)):
        content = encoded(Image.new("RGB", (1600, 1200)), "JPEG", progressive=True, subsampling=subsampling)
        reserved: list[int] = []
        decode(content, 10_000_000, resized=lambda size: Size(150, 200), reserve=reserved.append)
        assert reserved == [1600 * 1200 * 2 * coefficients / 4 + 400 * 300]


def test_a_jpeg_of_countless_scans_is_refused_before_it_is_decoded() -> None:
    content = encoded(Image.linear_gradient("L"), "JPEG", progressive=True)
    last = content.rindex(b"\xff\xda")
    many = content[:last] + content[last:-2] * (MOST_SCANS + 1) + content[-2:]
    assert opened(content, MAX_PIXELS).size == (256, 256)
    with pytest.raises(Refusal, match="too many scans"):
        opened(many, MAX_PIXELS)


def tiff(length: int, values: int, order: str = "<", version: int = 42, size: int = 1, tiles: bool = False) -> bytes:
    """One column of grey pixels, each a strip or tile of its own, all of which are the same bytes of the file."""
    big = version == 43
    place, entry = ("Q", "HHQQ") if big else ("I", "HHII")
    head = 16 if big else 8
    left = 2**16 if order == ">" else 1  # where a number of two bytes lies in its place
    tags = [(256, 4, 1, 1), (257, 4, 1, length), (258, 3, 1, 8 * left), (259, 3, 1, left), (262, 3, 1, left)]
    if tiles:
        tags += [(322, 4, 1, 1), (323, 4, 1, 1), (324, 4, values, head), (325, 4, values, head + 4 * values)]
    else:
        tags += [(273, 4, values, head), (278, 4, 1, 1), (279, 4, values, head + 4 * values)]
    directory = b"".join(struct.pack(order + entry, *tag) for tag in tags)
    start = {"<": b"II", ">": b"MM"}[order] + struct.pack(f"{order}H", version)
    start += struct.pack(f"{order}HH", 8, 0) if big else b""
    numbers = struct.pack(f"{order}I", 1) * values + struct.pack(f"{order}I", size) * values
    counted = struct.pack(order + ("Q" if big else "H"), len(tags))
    return start + struct.pack(order + place, head + len(numbers)) + numbers + counted + directory + bytes(8)


@pytest.mark.parametrize("tiles", [False, True], ids=["strips", "tiles"])
@pytest.mark.parametrize(("order", "version"), [("<", 42), (">", 42), ("<", 43)])
def test_a_tiff_of_countless_strips_is_refused_before_it_is_read(order: str, version: int, tiles: bool) -> None:
    assert opened(tiff(100, 100, order, version, tiles=tiles), MAX_PIXELS).size == (1, 100)
    with pytest.raises(Refusal, match="too many strips or tiles"):
        opened(tiff(MOST_STRIPS + 1, MOST_STRIPS + 1, order, version, tiles=tiles), MAX_PIXELS)
    with pytest.raises(Refusal, match="values in a tag"):
        opened(tiff(100, MOST_VALUES + 1, order, version), MAX_PIXELS)


@pytest.mark.parametrize("tiles", [False, True], ids=["strips", "tiles"])
def test_strips_that_are_one_another_are_refused(tiles: bool) -> None:
    with pytest.raises(Refusal, match="too many strips or tiles"):
        opened(tiff(100, 100, size=1000, tiles=tiles), MAX_PIXELS)


def test_a_tiff_may_have_a_long_profile() -> None:
    content = encoded(quarters(), "TIFF", icc_profile=bytes(MOST_VALUES + 1))
    assert opened(content, MAX_PIXELS).size == (64, 48)


@pytest.mark.parametrize("compression", ["tiff_ccitt", "group3", "group4", "tiff_raw_16"])
def test_a_fax_is_refused(compression: str) -> None:
    assert refused(encoded(Image.new("1", (64, 64)), "TIFF", compression=compression)) == "not_a_picture"


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "packbits", "zstd"])
def test_a_tiff_that_libtiff_would_read_past_any_damage_is_refused(compression: str) -> None:
    """Of strips that could not be decoded the pixels were green, and the answer was as for any other picture."""
    content = encoded(quarters().convert("YCbCr"), "TIFF", compression=compression)
    assert refused(content) == "not_a_picture"


def test_a_tiff_of_jpegs_is_read_unless_it_is_damaged() -> None:
    content = encoded(quarters().convert("YCbCr"), "TIFF", compression="jpeg")
    assert np.abs(np.asarray(opened(content, MAX_PIXELS)).astype(int) - np.asarray(quarters())).mean() < 8
    assert refused(content.replace(b"\xff\xda", b"\xff\xd9")) == "corrupt_picture"


def test_a_jpeg_of_countless_colours_is_refused() -> None:
    content = grey("JPEG")
    frame = content.index(b"\xff\xc0")
    colours = b"\xff\xc0" + struct.pack(">HBHHB", 8 + 3 * 255, 8, 8, 8, 255) + bytes(3 * 255)
    with pytest.raises(Refusal, match="too many colours"):
        opened(content[:frame] + colours + content[frame:], MAX_PIXELS)


def grey(kind: str, **options: Any) -> bytes:
    return encoded(Image.new("L", (8, 8)), kind, **options)


@pytest.mark.parametrize(
    ("kind", "place", "piece"),
    [
        ("JPEG", 2, b"\xff\xfe\x00\x02"),  # comments
        ("JPEG", 2, b"\xff"),  # what may stand between two markers
        ("JPEG", 2, b"\xff\xe1\x00\x08Exif\0\0"),
        ("PNG", 33, chunk(b"prVt", b"")),
        ("PNG", 33, chunk(b"IDAT", b"")),
        ("PNG", 33, chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(100)))),
        ("GIF", 13 + 12, b"!\xfe\x01a\0"),
        ("GIF", 13 + 12, b"!\x01\x01a\0"),
    ],
)
def test_a_file_of_countless_pieces_is_refused(kind: str, place: int, piece: bytes) -> None:
    whole = grey(kind)
    few, many = (whole[:place] + piece * count + whole[place:] for count in (20, 300_000))
    assert opened(few, MAX_PIXELS).size == (8, 8)
    with pytest.raises(Refusal, match=r"^The picture's file has too many (pieces|markers)"):
        opened(many, MAX_PIXELS)


def test_the_pixels_may_come_in_more_pieces_than_what_is_before_them() -> None:
    whole = encoded(Image.fromarray(np.random.default_rng(0).integers(0, 256, (150, 150), np.uint8)), "PNG")
    begin, end = whole.index(b"IDAT") + 4, whole.index(b"IEND") - 8
    pieces = b"".join(chunk(b"IDAT", whole[place : place + 1]) for place in range(begin, end))
    in_pieces = whole[: begin - 8] + pieces + whole[end + 4 :]
    assert opened(in_pieces, MAX_PIXELS) == opened(whole, MAX_PIXELS)


@pytest.mark.parametrize(
    ("kind", "place", "piece"),
    [
        ("JPEG", 2, b"\xff\xe1\x00\x08Exif\0\0"),
        ("PNG", 33, chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(100)))),
    ],
)
def test_pieces_that_cost_more_the_more_there_are_have_a_bound_of_their_own(
    kind: str, place: int, piece: bytes
) -> None:
    whole = grey(kind)
    most, more = (whole[:place] + piece * count + whole[place:] for count in (MOST_COPIED, MOST_COPIED + 1))
    assert opened(most, MAX_PIXELS).size == (8, 8)
    with pytest.raises(Refusal, match="too many pieces"):
        opened(more, MAX_PIXELS)


class Searched(bytes):
    """Notes how many bytes are searched at a time: meanwhile no other thread can work."""

    most = 0

    def count(self, what: Any, start: Any = 0, end: Any = None, /) -> int:
        self.most = max(self.most, min(len(self), len(self) if end is None else end) - start)
        return super().count(what, start, end)


@pytest.mark.parametrize("place", range(SEARCHED - 7, SEARCHED + 2))
def test_a_long_file_is_searched_in_steps_that_miss_nothing(place: int) -> None:
    data = Searched(bytes(place) + b"Exif\0\0" + bytes(3 * SEARCHED) + b"Exif\0\0")
    assert occurrences(b"Exif\0\0", data) == 2
    assert data.most < 2 * SEARCHED


@pytest.mark.parametrize("place", range(SEARCHED - 3, SEARCHED + 2))
def test_scans_are_counted_wherever_the_steps_of_the_search_end(place: int) -> None:
    assert BoundedFile(b"\xff\xd8" + b"\xff" * place + b"\xff\xda\x00\x02").scans == 1


def test_a_bmp_whose_lines_are_run_lengths_is_refused() -> None:
    run_lengths = b"\x08\x00\x00\x00" * 8
    head = struct.pack("<IiiHHIIiiII", 40, 8, 8, 1, 8, 1, len(run_lengths), 0, 0, 2, 0) + bytes(8)
    bmp = b"BM" + struct.pack("<IHHI", 14 + len(head) + len(run_lengths), 0, 0, 14 + len(head)) + head + run_lengths
    assert refused(bmp) == "not_a_picture"


def test_scans_over_many_pixels_are_bounded_together() -> None:
    content = encoded(Image.new("L", (6000, 6000)), "JPEG", progressive=True)
    last = content.rindex(b"\xff\xda")
    many = content[:last] + content[last:-2] * 60 + content[-2:]
    with pytest.raises(Refusal, match="too many scans"):
        opened(many, 36_000_000)


def test_a_large_picture_may_have_the_usual_scans(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.bombs.MOST_SCANNED_PIXELS", 256 * 256)
    assert opened(encoded(Image.linear_gradient("L"), "JPEG", progressive=True), MAX_PIXELS).size == (256, 256)


def test_what_lies_behind_a_jpeg_has_no_scans() -> None:
    """As in a telephone's moving photographs."""
    film = np.random.default_rng(0).integers(0, 256, 1_000_000, np.uint8).tobytes() + b"\xff\xda" * MOST_SCANS
    for options in ({}, {"progressive": True}, {"restart_marker_rows": 1}, {"comment": b"\xff\xda" * 200}):
        content = encoded(Image.linear_gradient("L"), "JPEG", **options)
        assert opened(content + film, MAX_PIXELS).size == (256, 256)


@pytest.mark.parametrize("hiding", [b"\xff\x02\xff\xff", b"\xff\xff", b"\xff\xd0", b"\xff\x00", b"\xff\x01\x7f\xff"])
def test_scans_are_not_hidden_behind_what_libjpeg_passes_over(hiding: bytes) -> None:
    content = encoded(Image.linear_gradient("L"), "JPEG", progressive=True)
    last = content.rindex(b"\xff\xda")
    many = content[:last] + (hiding + content[last:-2]) * (MOST_SCANS + 1) + content[-2:]
    with pytest.raises(Refusal, match="too many scans"):
        opened(many, MAX_PIXELS)


def test_a_jpeg_with_further_pictures_behind_it_is_decoded_as_small_as_one_without() -> None:
    picture = Image.linear_gradient("L").resize((1600, 1200)).convert("RGB")
    content = encoded(picture, "MPO", save_all=True, append_images=[picture])
    assert Image.open(io.BytesIO(content)).format == "MPO"
    decoded = decode(content, 10_000_000, resized=lambda _: Size(150, 200))
    assert decoded.size == Size(1200, 1600)
    assert decoded.picture.size == (400, 300)


@pytest.mark.parametrize(
    ("mode", "format", "options", "each"),
    [
        ("RGB", "JPEG", {}, 4),
        ("RGB", "JPEG", {"exif": turned(6)}, 8),
        ("CMYK", "JPEG", {}, 8),
        ("CMYK", "JPEG", {"exif": turned(6)}, 12),
        ("L", "PNG", {}, 5),
        ("L", "PNG", {"exif": turned(6)}, 9),
        ("P", "GIF", {}, 5),
        ("LA", "PNG", {}, 12),
        ("RGBA", "PNG", {}, 8),
        ("RGBA", "PNG", {"exif": turned(6)}, 12),
        ("I;16", "PNG", {}, 12),
        ("RGB", "TIFF", {}, 8),
        ("RGB", "TIFF", {"compression": "tiff_lzw"}, 11),  # in one strip
        ("I;16", "TIFF", {"compression": "tiff_lzw"}, 14),
        ("RGB", "WEBP", {}, 16),
        ("RGBA", "WEBP", {"exif": turned(6)}, 20),
    ],
)
def test_what_takes_more_memory_reserves_more(mode: str, format: str, options: dict[str, Any], each: int) -> None:
    """In bytes for each pixel, as measured; reserved are pixels of 4."""
    reserved: list[int] = []
    decode(encoded(Image.new(mode, (40, 20)), format, **options), MAX_PIXELS, reserve=reserved.append)
    assert reserved == [40 * 20 * each // 4]


def test_a_gifs_next_frame_takes_no_memory_before_its_size_is_judged_nor_after(monkeypatch: pytest.MonkeyPatch) -> None:
    """37 bytes took 179 MB, and 0.1 s in which nobody else was answered."""

    def gif(side: int) -> bytes:
        background_next = b"!\xf9\x04\x08\0\0\0\0"
        pixels = b"\x02\x02\x44\x01\0"
        size = struct.pack("<HH", side, side)
        return b"GIF89a" + size + bytes(3) + background_next + b"," + bytes(4) + size + b"\0" + pixels + b";"

    monkeypatch.setattr("PIL.Image.core.fill", None)
    assert opened(gif(1), MAX_PIXELS).size == (1, 1)
    assert refused(gif(13_377)) == "picture_too_large"


def test_a_png_that_says_behind_its_pixels_how_to_turn_it_reserves_as_much() -> None:
    whole = encoded(Image.new("L", (40, 20)), "PNG", exif=turned(6))
    at, end = whole.index(b"eXIf") - 4, whole.index(b"IDAT") - 4
    reserved: list[int] = []
    later = whole[:at] + whole[end:-12] + whole[at:end] + whole[-12:]
    assert decode(later, MAX_PIXELS, reserve=reserved.append).size == Size(40, 20)
    assert reserved == [40 * 20 * 9 / 4]


def test_a_png_whose_texts_unpack_to_much_is_refused() -> None:
    """62 texts of a MiB are 65 KB in the file, and took 265 MB of a thread that decoded 32 x 32 pixels."""
    whole = encoded(Image.new("L", (32, 32)))
    text = chunk(b"iTXt", b"key\0\1\0\0\0" + zlib.compress("😀".encode() + bytes(2**20 - 8)))
    assert opened(whole[:33] + text + whole[33:], MAX_PIXELS).size == (32, 32)
    assert refused(whole[:33] + text * 5 + whole[33:]) == "corrupt_picture"


def tiff_of_tiles(width: int, length: int, count: int = 1) -> bytes:
    """16 x 16 pixels for each tile of any size, all of which are the same."""
    pixels = zlib.compress(bytes(width * length * 3))
    tags = {256: 16 * count, 257: 16, 259: 8, 262: 2, 277: 3, 284: 1, 322: width, 323: length, 325: len(pixels), 339: 1}
    after = 8 + 2 + 12 * (len(tags) + 2) + 4
    entries = {tag: struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items()}
    entries[258] = struct.pack("<HHII", 258, 3, 3, after)
    places = sizes = b""
    entries[324] = struct.pack("<HHII", 324, 4, 1, after + 6)
    if count > 1:
        places = struct.pack("<I", after + 6 + 8 * count) * count
        sizes = struct.pack("<I", 1) * count
        entries[324] = struct.pack("<HHII", 324, 4, count, after + 6)
        entries[325] = struct.pack("<HHII", 325, 4, count, after + 6 + 4 * count)
    directory = struct.pack("<H", len(entries)) + b"".join(entries[tag] for tag in sorted(entries)) + bytes(4)
    return b"II*\0" + struct.pack("<I", 8) + directory + struct.pack("<HHH", 8, 8, 8) + places + sizes + pixels


def test_a_tiffs_tile_counts_in_full() -> None:
    reserved: list[int] = []
    assert decode(tiff_of_tiles(512, 256), MAX_PIXELS, reserve=reserved.append).size == Size(16, 16)
    assert reserved == [2 * 16 * 16 + 512 * 256 * 3 / 4]
    assert refused(tiff_of_tiles(2048, 512)) == "picture_too_large"
    assert refused(tiff_of_tiles(16, 40_000, 8)) == "picture_too_large"


@pytest.mark.parametrize(
    ("bits", "transparent", "pixels", "greys"),
    [
        (2, 1, bytes([0b00_01_10_11]), [0, 255, 170, 255]),
        (4, 3, bytes([0x35, 0x73]), [255, 85, 119, 255]),
        (8, 7, bytes([7, 8, 0, 200]), [255, 8, 0, 200]),
        (16, 0x8000, struct.pack(">4H", 0x8000, 0x8001, 0, 0xFFFF), [255, 128, 0, 255]),
    ],
)
def test_the_transparent_grey_of_a_png_is_white_in_any_depth(
    bits: int, transparent: int, pixels: bytes, greys: list[int]
) -> None:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">2I5B", 4, 1, bits, 0, 0, 0, 0)
    parts = (b"IHDR", header), (b"tRNS", struct.pack(">H", transparent)), (b"IDAT", zlib.compress(b"\0" + pixels))
    png = b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in (*parts, (b"IEND", b"")))
    assert np.asarray(decode(png, MAX_PIXELS).picture)[0, :, 0].tolist() == greys
