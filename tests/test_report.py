"""What a run says as it goes, on a terminal, in a log and in its folder."""

import io
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from model import report
from model.console import plain_console
from model.report import Report, progress


def test_a_log_has_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    file, clock = io.StringIO(), SimpleNamespace(now_s=1000.0)
    monkeypatch.setattr(report, "time", SimpleNamespace(monotonic=lambda: clock.now_s))
    with progress("epoch 1", 10, 20, plain_console(file)) as step:
        for _ in range(10):
            clock.now_s += 20
            step()
    said = [f"epoch 1: {done} of 20 iterations, 20.00 s each" for done in (12, 14, 16, 18, 20)]
    assert file.getvalue().splitlines() == said
    with progress("epoch 2", 0, 20, plain_console(file), quiet=True) as step:
        clock.now_s += 100
        step()
    assert file.getvalue().splitlines() == said


def test_a_terminal_has_a_bar_that_begins_where_the_run_does() -> None:
    terminal = io.StringIO()
    with progress("epoch 1", 10, 20, Console(file=terminal, force_terminal=True)) as step:
        for _ in range(9):
            step()
    assert "19/20" in terminal.getvalue()


def test_an_epochs_figures_are_there_at_once(tmp_path: Path) -> None:
    file = io.StringIO()
    log = Report(tmp_path, plain_console(file), 0)
    log.epoch(1, 7, {"loss": 1.23456, "AP": 0.5, "APs": 0.1, "AR1": 0.2}, {"cat": {"AP": 0.25, "AP50": 0.75}})
    assert file.getvalue() == "epoch 1  loss 1.235  AP 0.5\n"
    assert (tmp_path / "metrics.csv").read_text().split() == ["epoch,loss,AP,APs,AR1", "1,1.23456,0.5,0.1,0.2"]
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    shown = {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    assert shown["AP per class/cat"] == [(7, 0.25)] and shown["epoch/AP"] == [(7, 0.5)]
    assert shown.keys() == {"AP per class/cat", *(f"epoch/{name}" for name in ("loss", "AP", "APs", "AR1"))}
    log.close()
