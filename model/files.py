"""What is written: only where there is a folder for it, and whole or not at all, as a service or another run may be
watching it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


def require_folder(path: Path) -> None:
    """Better before the work whose result is to be written there than after it.

    Raises:
        ValueError: there is no folder to write the file to.
    """
    if not path.parent.is_dir():
        raise ValueError(f"there is no folder {path.parent} to write to")


@contextlib.contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """A temporary file that takes the path's place once it is whole."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
