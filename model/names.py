"""Which pictures are meant by the names that annotations give them."""

import os
import re
from collections import Counter
from collections.abc import Collection, Iterable
from pathlib import Path, PurePosixPath
from typing import Any
from unicodedata import normalize
from urllib.parse import unquote

from model.pictures import UNREADABLE, pictures_in

FEW = 0.1
"""Share of the pictures that are there, up to which the folder is probably the wrong one."""
UPLOADED = re.compile("^[0-9a-f]{8}-")
"""What Label Studio puts before the name of a picture that is uploaded to it."""


def find_pictures(entries: list[Any], source: Path, folder: Path) -> None:
    """Look for the pictures of a document's images. Where one is there under another name, its entry gets that, and
    `listed_as`.

    Raises:
        ValueError: none are in the folder, or few are, but most in another one nearby.
    """
    named = [entry for entry in entries if isinstance(entry, dict) and isinstance(entry.get("file_name"), str)]
    names = {entry["file_name"] for entry in named}
    # Unlike pathlib's, never an error, as for a name that no file can have.
    there = {name for name in names if os.path.isfile(folder / name)}  # noqa: PTH113
    others = _written_otherwise(names - there, there, folder) if names != there else {}
    require_some(names, there | others.keys(), source, folder)
    for entry in named:
        if (name := entry["file_name"]) in others:
            entry |= {"file_name": others[name], "listed_as": name}


def pictures_of(labels: Collection[str], folder: Path) -> dict[str, list[str]]:
    """The pictures that belong to the files of VOC or YOLO with these stems: those with the same stem, else the only
    one whose stem differs in writing alone, else one in a format that cannot be read."""
    found = _with_stems(labels, pictures_in(folder))
    return found | _with_stems({label for label in labels if not found[label]}, pictures_in(folder, UNREADABLE))


def only_matches(names: Iterable[str], there: Iterable[str]) -> dict[str, str]:
    """For a name the one of `there` that differs from it only in letter case, in how accents are put together (macOS
    takes them apart), in slashes or by leading folders; else the one that differs in what a URL escapes, too, or by
    Label Studio's prefix of an upload. Names that fit several are left out, and several that fit one.
    """
    names, there = set(names), set(there)
    found = _matches({name: _tails(_plain(name)) for name in names}, {one: _plain(one) for one in there})
    names, there = names - found.keys(), there - set(found.values())
    tails = {name: _tails(_plain(unquote(name))) for name in names}
    tails = {name: [*own, UPLOADED.sub("", own[-1])] for name, own in tails.items()}
    return found | _matches(tails, {one: _plain(unquote(one)) for one in there})


def _matches(tails: dict[str, list[str]], plain: dict[str, str]) -> dict[str, str]:
    index: dict[str, list[str]] = {}
    for one, written in plain.items():
        index.setdefault(written, []).append(one)
    found: dict[str, str] = {}
    for name, own in tails.items():
        fitting = next((index[tail] for tail in own if tail in index), [])
        if len(fitting) == 1:
            found[name] = fitting[0]
    claims = Counter(found.values())
    return {name: one for name, one in found.items() if claims[one] == 1}


def _tails(path: str) -> list[str]:
    parts = path.split("/")
    return ["/".join(parts[start:]) for start in range(len(parts))]


def _plain(name: str) -> str:
    return normalize("NFC", normalize("NFC", name).casefold()).replace("\\", "/")


def _written_otherwise(missing: set[str], taken: set[str], folder: Path) -> dict[str, str]:
    """What the missing names are called in the folder, as far as they are there."""
    files = {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}
    files -= {os.path.normpath(name) for name in taken}
    found = only_matches(missing, files)
    unreadable = {_stem(file): file for file in files - set(found.values()) if file.lower().endswith(UNREADABLE)}
    stems = {_stem(name): name for name in missing - found.keys()}
    return found | {stems[stem]: unreadable[one] for stem, one in only_matches(stems, unreadable).items()}


def _stem(name: str) -> str:
    return name.rpartition(".")[0] or name


def _with_stems(stems: Collection[str], files: Iterable[str]) -> dict[str, list[str]]:
    of_stem: dict[str, list[str]] = {}
    for file in files:
        of_stem.setdefault(_stem(file), []).append(file)
    others = only_matches(set(stems) - of_stem.keys(), of_stem.keys() - set(stems))
    return {stem: of_stem.get(others.get(stem, stem), []) for stem in stems}


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
    stems = {PurePosixPath(_plain(name)).stem for name in names}
    above = folder.absolute().parent
    for place in (*_folders_in(folder), above, *_folders_in(above)):
        held = {_stem(_plain(name)) for name in pictures_in(place)}
        if len(stems & held) > len(stems) / 2:
            return place
    return None


def _folders_in(folder: Path) -> list[Path]:
    """Those that can be read, without programs' own."""
    found = (one for one in folder.iterdir() if one.is_dir() and os.access(one, os.R_OK | os.X_OK))
    return sorted(one for one in found if one.name[0] != ".")
