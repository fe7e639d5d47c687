"""Files are written whole or not at all, and nothing but files is replaced."""

import json
import os
import threading
from pathlib import Path

import pytest

from model.files import make_folder, replaced, require_folder, write_json


def test_a_row_of_numbers_takes_one_line(tmp_path: Path) -> None:
    document = {"matrix": [[1, 2.5], [-3, None]], "texts": ["a", "[\n 1, 2\n]"], "empty": [], "pairs": [{"a": [1]}]}
    write_json(tmp_path / "a.json", document)
    text = (tmp_path / "a.json").read_text()
    assert json.loads(text) == document
    assert '"matrix": [\n    [1, 2.5],\n    [-3, null]\n  ]' in text


def test_a_link_stays_one(tmp_path: Path) -> None:
    real, link = tmp_path / "real.json", tmp_path / "link.json"
    real.write_text("old")
    link.symlink_to(real)
    write_json(link, [1])
    assert link.is_symlink() and real.read_text() == "[1]\n"
    assert sorted(tmp_path.iterdir()) == [link, real]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no named pipes in its file system")
def test_a_pipe_is_written_to_and_stays_one(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()))
    reader.start()
    write_json(pipe, [1])
    reader.join(10)
    assert read == ["[1]\n"] and pipe.is_fifo()


def test_what_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("old")
    with pytest.raises(OSError, match=r"a\.json could not be written \(full\)"), replaced(path) as temporary:
        temporary.write_text("half")
        raise OSError("full")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_folder_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=rf"{tmp_path.name} could not be written \([A-Z][a-z ]+\)$"):
        write_json(tmp_path, [])


def test_a_file_that_is_a_folder_is_named_before_the_work(tmp_path: Path) -> None:
    require_folder(tmp_path / "new.json")
    with pytest.raises(ValueError, match="is a folder: name a file in it"):
        require_folder(tmp_path)
    (tmp_path / "file").touch()
    for name in ("nowhere", "file"):
        with pytest.raises(ValueError, match=f"there is no folder .*{name} to write to"):
            require_folder(tmp_path / name / "new.json")


def test_a_folder_is_made_with_those_above_it_or_is_there_already(tmp_path: Path) -> None:
    for _ in range(2):
        make_folder(tmp_path / "runs" / "first")
    assert (tmp_path / "runs" / "first").is_dir()
