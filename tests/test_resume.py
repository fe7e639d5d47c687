"""A run that stops, whatever stops it, goes on as if nothing had happened; with other options or data it does not."""

import dataclasses
import io
import math
import multiprocessing
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from model import checkpoint as checkpoints
from model import run as runs
from model.console import plain_console
from model.data import Annotations, Batch
from model.layout import Augmentation
from model.learner import Learner
from model.report import Report
from model.settings import Settings
from model.start import fingerprint
from model.stopping import Stop
from model.training import train
from tests.toy import ALONE, EVERYTHING, QUIET, Data, difference, read_annotations, rows, settings, write_coco

pytestmark = pytest.mark.usefixtures("one_thread")


def assert_resumed_as(options: Settings, whole: Path) -> None:
    """Resumed, the run comes to its end with what the whole one did."""
    assert train(dataclasses.replace(options, resume=True), ALONE, QUIET)
    one, other = (checkpoints.load(folder / "last.pt") for folder in (options.output, whole))
    assert difference(one, other) == 0


@pytest.mark.parametrize("after", [1, 3])  # inside the first and the second epoch of two iterations
def test_a_run_stopped_by_a_signal_and_resumed_equals_an_uninterrupted_one(
    data: Data, uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    options = settings(data, tmp_path / "run", **EVERYTHING)
    step, calls = Learner.step, 0

    def step_and_signal(learner: Learner, parts: list[Batch], iteration: int) -> dict[str, float]:
        nonlocal calls
        calls += 1
        if calls == after:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(learner, parts, iteration)

    monkeypatch.setattr(Learner, "step", step_and_signal)
    assert not train(options, ALONE, QUIET)
    assert calls == after
    assert train(dataclasses.replace(options, resume=True), ALONE, QUIET)
    for name in ("last.pt", "best.pt"):
        one, other = (checkpoints.load(folder / name) for folder in (tmp_path / "run", uninterrupted))
        assert difference(one, other) == 0
        assert (one.metrics, one.score_threshold) == (other.metrics, other.score_threshold)
    assert rows(tmp_path / "run") == rows(uninterrupted)


def test_an_epochs_end_saves_where_the_last_save_is_some_time_ago(
    data: Data, uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = settings(data, tmp_path / "run", evaluate_every=3, **EVERYTHING)
    step = Learner.step

    def die_in_the_second_epoch(learner: Learner, parts: list[Batch], iteration: int) -> dict[str, float]:
        if iteration == 3:
            raise KeyboardInterrupt
        return step(learner, parts, iteration)

    for seconds, saved in ((math.inf, False), (0.0, True)):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(runs, "SAVE_AFTER_S", seconds)
            patch.setattr(Learner, "step", die_in_the_second_epoch)
            train(options, ALONE, QUIET)
        assert (tmp_path / "run" / "last.pt").exists() == saved
    assert_resumed_as(options, uninterrupted)


def test_a_run_stopped_at_an_epochs_end_is_saved_and_resumed(
    data: Data, uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = settings(data, tmp_path / "run", evaluate_every=3, **EVERYTHING)
    answers = iter([False, False, True])  # after each of the two iterations, and after the epoch
    with monkeypatch.context() as patch:
        patch.setattr(Stop, "requested", lambda _: next(answers))
        assert not train(options, ALONE, QUIET)
    stopped = checkpoints.load(tmp_path / "run" / "last.pt")
    assert stopped.resume is not None and (stopped.resume["epoch"], stopped.resume["done"]) == (1, 0)
    assert_resumed_as(options, uninterrupted)


def test_tensorboard_keeps_the_epochs_before_a_resumed_one(
    data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = settings(data, tmp_path / "run", epochs=2)
    answers = iter([False, False, True])  # after each of the two iterations, and after the epoch's evaluation
    with monkeypatch.context() as patch:
        patch.setattr(Stop, "requested", lambda _: next(answers))
        assert not train(options, ALONE, QUIET)
    assert train(dataclasses.replace(options, resume=True), ALONE, QUIET)
    events = EventAccumulator(str(options.output / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("epoch/class_loss")] == [
        (step, pytest.approx(float(row["class_loss"]))) for step, row in zip((1, 3), rows(options.output), strict=True)
    ]
    assert [event.step for event in events.Scalars("epoch/AP")] == [1, 3]
    assert [event.step for event in events.Scalars("iteration/lr")] == [0]


def test_tensorboard_drops_what_a_stopped_run_wrote_beyond_its_save(tmp_path: Path) -> None:
    for begins, steps in ((0, (0, 20, 40)), (30, (40, 60))):
        log = Report(tmp_path, QUIET, begins)
        for step in steps:
            log.iteration(step, {"lr": begins + step})
        log.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("iteration/lr")] == [
        (0, 0), (20, 20), (40, 70), (60, 90)
    ]  # fmt: skip


def test_a_fine_tuned_run_is_resumed_by_its_own_command(
    data: Data, uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = settings(data, tmp_path / "run", from_=uninterrupted / "best.pt", epochs=2)
    assert train(dataclasses.replace(options, output=tmp_path / "whole"), ALONE, QUIET)
    step = Learner.step

    def step_and_signal(learner: Learner, parts: list[Batch], iteration: int) -> dict[str, float]:
        if iteration == 1 and not options.output.joinpath("last.pt").exists():
            os.kill(os.getpid(), signal.SIGTERM)
        return step(learner, parts, iteration)

    monkeypatch.setattr(Learner, "step", step_and_signal)
    assert not train(options, ALONE, QUIET)
    assert train(dataclasses.replace(options, resume=True), ALONE, QUIET)
    one, other = (checkpoints.load(tmp_path / run / "last.pt") for run in ("run", "whole"))
    assert difference(one, other) == 0
    assert one.training["start"] == other.training["start"]


def test_a_run_without_val_is_resumed_by_its_own_command(
    data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = settings(data, tmp_path / "run", val_annotations=None, val_images=None)
    with monkeypatch.context() as patch:
        patch.setattr(Stop, "requested", lambda _: True)
        assert not train(options, ALONE, QUIET)
    again = dataclasses.replace(options, resume=True)
    with pytest.raises(ValueError, match=r"--val-fraction was 0\.1, is 0\.5: give"):
        train(dataclasses.replace(again, val_fraction=0.5), ALONE, QUIET)
    assert train(again, ALONE, QUIET)
    assert (tmp_path / "run" / "predictions.jpg").exists()


def test_a_signal_to_every_process_saves_the_run_as_well(
    data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Learner.step

    def step_and_signal(learner: Learner, parts: list[Batch], iteration: int) -> dict[str, float]:
        values = step(learner, parts, iteration)
        workers = [str(process.pid) for process in multiprocessing.active_children()]
        assert workers
        # Not os.kill: torch lets a worker obey its parent alone.
        subprocess.run(["sh", "-c", 'kill "$@"', "sh", *workers], check=True)
        time.sleep(1)  # for torch to notice a worker's end
        os.kill(os.getpid(), signal.SIGTERM)
        return values

    monkeypatch.setattr(Learner, "step", step_and_signal)
    assert not train(settings(data, tmp_path / "run", workers=1), ALONE, QUIET)
    assert checkpoints.load(tmp_path / "run" / "last.pt").resume is not None


def test_a_run_that_dies_in_an_evaluation_makes_up_for_it(
    data: Data, uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = settings(data, tmp_path / "run", **EVERYTHING)

    def die(*_: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(runs, "evaluate_on_val", die)
        train(options, ALONE, QUIET)
    assert (tmp_path / "run" / "last.pt").exists()
    assert train(dataclasses.replace(options, resume=True), ALONE, QUIET)
    assert rows(tmp_path / "run") == rows(uninterrupted)


def test_a_resumable_state_is_read_without_running_code(data: Data, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(Stop, "requested", lambda _: True)
    assert not train(settings(data, tmp_path / "run"), ALONE, QUIET)
    document = torch.load(tmp_path / "run" / "last.pt", weights_only=True)
    assert document["resume"]["done"] == 1


def test_a_finished_run_says_so_and_is_left_alone(data: Data, uninterrupted: Path) -> None:
    before, said = (uninterrupted / "last.pt").read_bytes(), io.StringIO()
    assert train(settings(data, uninterrupted, resume=True, **EVERYTHING), ALONE, plain_console(said))
    assert (uninterrupted / "last.pt").read_bytes() == before
    ap = checkpoints.load(uninterrupted / "last.pt").metrics["AP"]
    assert said.getvalue() == f"the run in {uninterrupted} is finished, with AP {ap:.4f}\n"
    longer = settings(data, uninterrupted, resume=True, **(EVERYTHING | {"epochs": 9}))
    with pytest.raises(ValueError, match="--epochs was 3, is 9"):
        train(longer, ALONE, QUIET)


# --- with something else


def test_resuming_from_something_else_is_refused(
    data: Data, uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    again = settings(data, uninterrupted, resume=True, **(EVERYTHING | {"from_": tmp_path / "other.pt"}))
    with pytest.raises(ValueError, match="did not begin --from"):
        train(again, ALONE, QUIET)
    begun = settings(data, tmp_path / "run", from_=uninterrupted / "best.pt", epochs=1)
    assert train(begun, ALONE, QUIET)
    assert train(dataclasses.replace(begun, resume=True), ALONE, QUIET)
    monkeypatch.chdir(uninterrupted)
    assert train(dataclasses.replace(begun, resume=True, from_=Path("best.pt")), ALONE, QUIET)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"lr": 0.5}, "but --lr was None, is 0.5: give"),
        ({"seed": 1}, "but --seed was 0, is 1: give"),
        ({"size": 128}, "but --size was 96, is 128: give"),
        ({"augmentation": Augmentation(flip=0.25)}, "but --augmentation.flip was 0.5, is 0.25: give"),
    ],
)
def test_resuming_with_other_options_is_refused(
    data: Data, tmp_path: Path, monkeypatch: Any, changes: dict[str, Any], says: str
) -> None:
    monkeypatch.setattr(Stop, "requested", lambda _: True)
    options = settings(data, tmp_path / "run")
    train(options, ALONE, QUIET)
    with pytest.raises(ValueError, match=says):
        train(dataclasses.replace(options, resume=True, **changes), ALONE, QUIET)


def test_a_run_goes_on_in_a_version_with_further_options(data: Data, tmp_path: Path, monkeypatch: Any) -> None:
    """What was done without an option is what its default does."""
    with monkeypatch.context() as stopping:
        stopping.setattr(Stop, "requested", lambda _: True)
        options = settings(data, tmp_path)
        assert not train(options, ALONE, QUIET)
    stopped = checkpoints.load(tmp_path / "last.pt")
    assert stopped.resume is not None
    del stopped.resume["options"]["repeat-thin"], stopped.resume["options"]["augmentation"]["hue"]
    del stopped.resume["options"]["epoch-iterations"]
    checkpoints.save(tmp_path / "last.pt", stopped)
    again = dataclasses.replace(options, resume=True)
    with pytest.raises(ValueError, match=r"--repeat-thin was 0\.0, is 0\.1: give"):
        train(dataclasses.replace(again, repeat_thin=0.1), ALONE, QUIET)
    with pytest.raises(ValueError, match="--epoch-iterations was 0, is 20: give"):
        train(dataclasses.replace(again, epoch_iterations=20), ALONE, QUIET)
    assert train(again, ALONE, QUIET)


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Annotations)])
def test_all_that_is_learnt_from_counts_as_the_data(data: Data, field: str) -> None:
    annotations = read_annotations(*data)
    value = getattr(annotations, field)
    other = value[::-1] if field == "classes" else np.roll(value, 1, 0)
    assert fingerprint(dataclasses.replace(annotations, **{field: other})) != fingerprint(annotations)


def test_resuming_with_other_data_is_refused(data: Data, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(Stop, "requested", lambda _: True)
    options = settings(data, tmp_path / "run")
    train(options, ALONE, QUIET)
    other = write_coco(tmp_path / "other", 8, seed=1)
    changed = dataclasses.replace(options, resume=True, train_annotations=other[0], train_images=other[1])
    with pytest.raises(ValueError, match="training data are not those"):
        train(changed, ALONE, QUIET)
