"""Writing files: only into a folder that exists, and whole or not at all, as a service or another run may be watching
them."""

import contextlib
import json
import os
import re
from collections.abc import Generator
from pathlib import Path
from typing import Any


def require_folder(path: Path) -> None:
    """Check that a file can be written there, before the work whose result it will hold.

    Raises:
        ValueError: there is no folder to write the file to, or the path is a folder.
    """
    if not path.parent.is_dir():
        raise ValueError(f"there is no folder {path.parent} to write to")
    if path.is_dir():
        raise ValueError(f"{path} is a folder: name a file in it")


def make_folder(path: Path) -> None:
    """Raises: OSError: the folder cannot be made; the message names it."""
    with _saying(f"the folder {path} cannot be made"):
        path.mkdir(parents=True, exist_ok=True)


@contextlib.contextmanager
def replaced(path: Path) -> Generator[Path]:
    """A temporary file that takes the path's place once it is whole; a link stays a link. What exists but is not a
    file, such as /dev/stdout or a pipe, is written to directly.

    Raises:
        OSError: it cannot be written; the message names the path.
    """
    if path.exists() and not path.is_file():
        with _saying(f"{path} could not be written"):
            yield path
        return
    place = path.resolve()
    temporary = place.with_name(f".{place.name}.{os.getpid()}")
    try:
        with _saying(f"{path} could not be written"):
            yield temporary
            temporary.replace(place)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def _saying(what: str) -> Generator[None]:
    try:
        yield
    except OSError as error:
        raise OSError(f"{what} ({error.strerror or error})") from None


def write_bytes(path: Path, content: bytes) -> None:
    """Raises: OSError: as `replaced`."""
    with replaced(path) as temporary:
        temporary.write_bytes(content)


def write_json(path: Path, document: Any) -> None:
    """A list of numbers takes one line, or a matrix would take one for each. Raises: OSError: as `replaced`."""
    text = json.dumps(document, indent=2)  # in which no string has a line break
    text = re.sub(r'\[\n([^][{}"]*)\]', lambda numbers: f"[{' '.join(numbers[1].split())}]", text)
    write_bytes(path, f"{text}\n".encode())
