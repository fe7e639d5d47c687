"""What the scripts say of a user's data is said as it is."""

import io
import sys
import threading
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from rich.console import Console

from model import average, console, recipes, train
from model.console import plain_console
from tests.toy import settings

TEXT = "class [/b] :dog: bbox [1, 2, 3, 4]"


@pytest.mark.parametrize("terminal", ["", "1"])
def test_no_text_is_markup(monkeypatch: pytest.MonkeyPatch, terminal: str) -> None:
    monkeypatch.setenv("FORCE_COLOR", terminal)
    monkeypatch.setenv("TERM", "xterm")
    file = io.StringIO()
    plain_console(file).print(TEXT * 9)
    assert file.getvalue() == TEXT * 9 + "\n"


def test_a_letter_that_the_output_lacks_is_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Windows in a file or pipe; it ended the run."""
    out = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(out, "cp1252", write_through=True))
    plain_console().print("é 猫")
    assert out.getvalue().split() == ["é".encode("cp1252"), rb"\u732b"]


@pytest.mark.parametrize(
    ("script", "work", "words"),
    [
        (average, "model.averaging.average", "a.pt --data data --output b.pt"),
        (recipes, "model.recipes.compare", "--data data --output runs"),
        (train, "model.training.train", "--train-annotations a.json --train-images a --output runs --device cpu"),
    ],
)
def test_a_script_says_it_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], script: ModuleType, work: str, words: str
) -> None:
    def say(*arguments: Any, **_: Any) -> bool:
        next(one for one in arguments if isinstance(one, Console)).print(TEXT)
        return True

    monkeypatch.setattr(work, say)
    monkeypatch.setattr(sys, "argv", ["", *words.split()])
    assert script.main() == 0
    assert capsys.readouterr().out == TEXT + "\n"


def test_a_log_tells_long_work_from_none(monkeypatch: pytest.MonkeyPatch) -> None:
    file, said, threads = io.StringIO(), threading.Event(), threading.active_count()
    monkeypatch.setattr(file, "flush", said.set, raising=False)
    monkeypatch.setattr(console, "SAY_EVERY_S", 0.01)
    with console.waiting("reading", plain_console(file)):
        assert said.wait(10)
    lines = file.getvalue().splitlines()
    assert set(lines) == {"reading: 0 s so far"}
    monkeypatch.setattr(console, "SAY_EVERY_S", 30)
    with console.waiting("reading", plain_console(file)):
        pass
    assert file.getvalue().splitlines() == lines and threading.active_count() == threads


def test_a_terminal_shows_that_something_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    file = io.StringIO()
    with console.waiting("reading", plain_console(file)):
        pass
    assert "reading" in file.getvalue() and "so far" not in file.getvalue()


def test_so_does_the_log_of_a_recipe_after_what_it_said_before(tmp_path: Path) -> None:
    (tmp_path / "run.log").write_text("before\n")
    with pytest.raises(SystemExit):
        recipes._train(settings((tmp_path / "[red]\udcff.json", tmp_path), tmp_path / "run"))
    before, said = (tmp_path / "run.log").read_text().split("\n", 1)
    assert before == "before" and r"[red]\udcff.json" in said
