"""What is written: a file only where there is a folder for it, and whole or not at all, as a service or another run may
be watching it; on the console, every text as it is."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from rich.console import Console


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


def write_json(path: Path, document: Any) -> None:
    """Raises: OSError: it cannot be written; the message names the path."""
    try:
        with replaced(path) as temporary:
            temporary.write_text(json.dumps(document, indent=2) + "\n")
    except OSError as error:
        raise OSError(f"{path} could not be written ({error.strerror})") from None


def plain_console(file: IO[str] | None = None) -> Console:
    """Takes nothing for markup: a bbox is in brackets, and a class may be called `[/b]` or `:dog:`."""
    return Console(file=file, soft_wrap=True, highlight=False, markup=False, emoji=False)
