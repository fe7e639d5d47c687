"""The files of pictures: which lie in a folder, how large they are, whether they are whole, and what they show."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from app.artifact import Metadata, Size
from app.canvas import resized_size
from app.errors import Refusal
from app.images import FORMATS, MOST_PIXELS, SUFFIXES, TURNED, Decoded, decode, orientation

UNREADABLE = (".heic", ".heif", ".avif", ".jxl", ".jp2", ".svg", ".psd", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".raw")
PACKED = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar")
_TAIL = 4096  # bytes searched for the end of a JPEG or PNG: some programs write a little after it


def require_unpacked(path: Path) -> None:
    """Raises: ValueError: the path is an archive's, as data sets are downloaded."""
    if path.suffix.lower() in PACKED:
        raise ValueError(f"{path} is packed: unpack it, and give what was in it")


def pictures_in(folder: Path) -> list[str]:
    """The names of the pictures in a folder."""
    return sorted(file.name for file in folder.iterdir() if file.suffix.lower() in SUFFIXES)


def unreadable_in(folder: Path) -> list[str]:
    """The names of the pictures in a folder whose formats cannot be read."""
    return sorted(file.name for file in folder.iterdir() if is_unreadable(file.name))


def is_unreadable(name: str) -> bool:
    """Whether a picture's format cannot be read, by its name."""
    return name.lower().endswith(UNREADABLE)


def is_there(path: Path) -> bool:
    """Whether there is a file; a name that no file can have is no error."""
    try:
        return path.is_file()
    except OSError:
        return False


def upright_size(path: Path) -> tuple[int, int]:
    """(height, width) of a picture with its EXIF orientation applied, read only from its header.

    Raises:
        OSError: there is no file, or it is not a picture that the service decodes.
    """
    try:
        with Image.open(path, formats=FORMATS) as picture:
            if picture.mode == "F":
                raise OSError("floating-point pixels")
            # If a PNG has no tag ahead of its pixels, Pillow would decode them all to look behind.
            tagged = picture.format != "PNG" or "exif" in picture.info
            turned = tagged and orientation(picture) in TURNED
            return (picture.width, picture.height) if turned else (picture.height, picture.width)
    except Image.DecompressionBombError:
        raise OSError(f"more than {MOST_PIXELS} pixels") from None
    except (SyntaxError, ValueError) as error:  # what some of Pillow's parsers raise on a broken header
        raise OSError(str(error)) from None


def size_entry(path: Path) -> dict[str, Any]:
    """A picture's `width` and `height` for its entry. If they cannot be read both are None, and `unreadable` says
    whether there is a file at all."""
    try:
        height, width = upright_size(path)
    except OSError:
        return {"width": None, "height": None, "unreadable": is_there(path)}
    return {"width": width, "height": height}


def require_whole(path: Path) -> None:
    """A truncated picture is detected by its last bytes or, if these are inconclusive, by decoding it.

    Raises:
        OSError: the picture is truncated, or cannot be decoded.
    """
    with path.open("rb") as file:
        file.seek(-min(_TAIL, path.stat().st_size), os.SEEK_END)
        tail = file.read()
    if b"\xff\xd9" in tail or b"IEND" in tail:
        return
    try:
        with Image.open(path, formats=FORMATS) as picture:
            picture.load()
    except (SyntaxError, ValueError) as error:
        raise OSError(str(error)) from None


def open_picture(path: Path) -> Image.Image:
    """An upright RGB picture in full size.

    Raises:
        ValueError: there is no file at the path, or it cannot be decoded.
    """
    return open_reduced(path, None).picture


def open_as_served(path: Path, metadata: Metadata) -> Decoded:
    """A picture as the service decodes it for this model: a large JPEG no larger than its canvas needs.

    Raises:
        ValueError: as `open_picture`.
    """
    return open_reduced(path, lambda size: resized_size(size, metadata.resize))


def open_reduced(path: Path, resized: Callable[[Size], Size] | None) -> Decoded:
    """A picture as the service decodes it, no larger than `resized` of its size; in full size if that is None.

    Raises:
        ValueError: as `open_picture`.
    """
    try:
        return decode(path.read_bytes(), MOST_PIXELS, resized=resized)
    except OSError as error:
        raise ValueError(f"no picture at {path} ({error.strerror})") from None
    except Refusal as refusal:
        raise ValueError(f"{path}: {refusal.message}") from None
