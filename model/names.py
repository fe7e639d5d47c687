"""Which pictures are meant by the names that annotations give them."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path, PurePosixPath
from typing import Any

from model.pictures import is_there, pictures_in

FEW = 0.1
"""Share of the pictures that are there, up to which the folder is probably the wrong one."""


def find_pictures(entries: list[Any], source: Path, folder: Path) -> None:
    """Look for the pictures of a document's images.

    Raises:
        ValueError: none are in the folder, or few are, but most in another one nearby.
    """
    named = [entry for entry in entries if isinstance(entry, dict) and _is_name(entry.get("file_name"))]
    names = {entry["file_name"] for entry in named}
    require_some(names, {name for name in names if is_there(folder / name)}, source, folder)


def require_some(names: Collection[str], there: Collection[str], source: Path, folder: Path) -> None:
    """Raises: ValueError: none of the names are there, or few, but most in another folder nearby."""
    if not names or len(there) > FEW * len(names):
        return
    better = _folder_of(names, folder)
    if better is None and there:
        return
    few = f"only {len(there)}" if there else "none"
    way_out = f"give {better}, which has them" if better else "give the folder that has them"
    raise ValueError(f"{few} of the {len(names)} pictures of {source.name} is in {folder}: {way_out}")


def _folder_of(names: Collection[str], folder: Path) -> Path | None:
    """The folder below, above or beside this one that holds most of these pictures."""
    stems = {PurePosixPath(name.replace("\\", "/")).stem for name in names}
    above = folder.absolute().parent
    for place in (*_folders_in(folder), above, *_folders_in(above)):
        held = {Path(name).stem for name in pictures_in(place)}
        if len(stems & held) > len(stems) / 2:
            return place
    return None


def _folders_in(folder: Path) -> list[Path]:
    """Those that can be read, without programs' own."""
    found = (one for one in folder.iterdir() if one.is_dir() and os.access(one, os.R_OK | os.X_OK))
    return sorted(one for one in found if one.name[0] != ".")


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and "\0" not in value
