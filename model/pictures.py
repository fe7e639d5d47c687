"""The files of pictures: which lie in a folder, how large they are, whether they are whole, and what they show."""

import os
import threading
from collections.abc import Callable, Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image

from app.artifact import Metadata, Size
from app.canvas import resized_size
from app.cores import core_count
from app.errors import Refusal
from app.images import FORMATS, MOST_PIXELS, SUFFIXES, TURNED, Decoded, decode, orientation

UNREADABLE = (".heic", ".heif", ".avif", ".jxl", ".jp2", ".svg", ".psd", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".raw")
PACKED = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar")
NO_FILE = (FileNotFoundError, IsADirectoryError, NotADirectoryError)
"""What reading raises where there is no file."""
Item = TypeVar("Item")
Found = TypeVar("Found")
_TAIL = 4096  # bytes searched for the end of a JPEG or PNG: some programs write a little after it


def require_unpacked(path: Path) -> None:
    """Raises: ValueError: the path is an archive's, as data sets are downloaded."""
    if path.suffix.lower() in PACKED and path.is_file():
        raise ValueError(f"{path} is packed: unpack it, and give what was in it")


def pictures_in(folder: Path, suffixes: Collection[str] = SUFFIXES) -> list[str]:
    """The names of the pictures in a folder: of those that can be read, or with the given suffixes."""
    return sorted(file.name for file in folder.iterdir() if file.suffix.lower() in suffixes)


def for_each(look: Callable[[Item], Found], items: Iterable[Item]) -> list[Found]:
    """What `look` finds for each item, in order. Several are looked at once, as a disk on a network answers late."""
    threads = max(8, core_count())
    tasks = iter(list(enumerate(items)))  # threads may share a list's iterator
    found: dict[int, Found] = {}
    stopped = threading.Event()

    def work(_: int) -> None:
        for index, item in tasks:
            if stopped.is_set():
                break
            try:
                found[index] = look(item)
            except BaseException:
                stopped.set()
                raise

    with ThreadPoolExecutor(threads) as pool:
        try:
            # Not a task for each item: a Ctrl-C while one is handed in may leave a lock taken, for which all then wait.
            list(pool.map(work, range(threads)))
        finally:
            stopped.set()
    return [found[index] for index in range(len(found))]


def upright_size(path: Path) -> tuple[int, int]:
    """(height, width) of a picture with its EXIF orientation applied, read only from its header.

    Raises:
        OSError: there is no file, or it is not a picture that the service decodes.
    """
    try:
        with Image.open(path, formats=FORMATS) as picture:
            if picture.mode == "F":
                raise OSError("floating-point pixels")
            # Pillow gives a TIFF's size as it will be, upright. If a PNG has no tag ahead of its pixels, Pillow would
            # decode them all to look behind.
            as_stored = picture.format != "TIFF" and (picture.format != "PNG" or "exif" in picture.info)
            turned = as_stored and orientation(picture) in TURNED
            return (picture.width, picture.height) if turned else (picture.height, picture.width)
    except Image.DecompressionBombError:
        raise OSError(f"more than {MOST_PIXELS} pixels") from None
    except (SyntaxError, ValueError) as error:  # what some of Pillow's parsers raise on a broken header
        raise OSError(str(error)) from None


def add_sizes(entries: list[dict[str, Any]], images: Path) -> None:
    """Add the pictures' `width` and `height` to their entries. If they cannot be read both are None, and `unreadable`
    says whether there is a file at all."""

    def look(entry: dict[str, Any]) -> None:
        try:
            entry["height"], entry["width"] = upright_size(images / str(entry.get("file_name")))
        except OSError as error:
            entry |= {"width": None, "height": None, "unreadable": not isinstance(error, NO_FILE)}

    for_each(look, entries)


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
        ValueError: there is no file at the path, it cannot be decoded, or there is no memory for it.
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
    except MemoryError:
        raise ValueError(f"{path}: there is no memory left to decode it") from None
