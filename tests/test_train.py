"""A run can be stopped, resumed, shared out among processes, and refined, and none of it changes what is learnt."""

import csv
import dataclasses
import io
import json
import math
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections import namedtuple
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn

from app.artifact import Metadata
from model import checkpoint as checkpoints
from model import run as runs
from model import train as script
from model.checkpoint import Checkpoint
from model.data import Annotations, Batch, Draw, Plans, TrainingPictures, collate, read_checked, repeat_factors
from model.fcos import FCOS
from model.layout import NO_AUGMENTATION, Augmentation
from model.learner import Learner
from model.losses import Objective
from model.optim import freeze, lr_factor, make_optimizer
from model.run import Run, evaluate_on_val
from model.settings import PATHS, Settings
from model.start import read_data
from model.stopping import Stop
from model.train import train
from tests.toy import ALONE, IDS, QUIET, read_annotations, settings, write_coco
from tests.two_processes import gradients

Data = tuple[Path, Path]
pytestmark = pytest.mark.usefixtures("one_thread")
ROOT = Path(__file__).resolve().parents[1]
EVERYTHING: dict[str, Any] = {
    "augmentation": Augmentation(mosaic=0.5, mixup=0.3),
    "zooms": (1.0, 1.34),
    "repeat_thin": 0.9,
    "accumulate": 2,
    "epochs": 3,
    "plain_epochs": 1,
    "iou_threshold": 0.4,
    "norm": "bn",
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    return write_coco(tmp_path_factory.mktemp("toy"), 8)


def difference(one: Checkpoint, other: Checkpoint) -> float:
    """The largest of all weights."""
    assert one.weights.keys() == other.weights.keys()
    return max(float((one.weights[key].double() - other.weights[key].double()).abs().max()) for key in one.weights)


def words(options: Settings) -> list[str]:
    """The command line that stands for settings with the usual augmentation."""
    assert options.augmentation == Augmentation()
    found: list[str] = []
    for name, value in options.to_dict().items():
        if value is not None and value is not False and not isinstance(value, dict):
            found += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return found


def rows(folder: Path) -> list[dict[str, str]]:
    """The CSV without what the clock says."""
    with (folder / "metrics.csv").open(newline="") as file:
        return [
            {k: v for k, v in row.items() if k not in ("pictures_per_s", "waiting")} for row in csv.DictReader(file)
        ]


# --- stopped and resumed


@pytest.fixture(scope="module")
def uninterrupted(data: Data, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "whole"
    assert train(settings(data, folder, **EVERYTHING), ALONE, QUIET)
    return folder


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


def assert_resumed_as(options: Settings, whole: Path) -> None:
    """Resumed, the run comes to its end with what the whole one did."""
    assert train(dataclasses.replace(options, resume=True), ALONE, QUIET)
    one, other = (checkpoints.load(folder / "last.pt") for folder in (options.output, whole))
    assert difference(one, other) == 0


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


@pytest.mark.parametrize("mean", [False, True], ids=["run", "mean of runs"])
def test_a_run_learns_what_its_first_weights_have_learnt(
    data: Data, uninterrupted: Path, tmp_path: Path, mean: bool
) -> None:
    taught: dict[str, Any] = {"quality": "iou", "assignment": "atss", "iou_threshold": 0.45}
    assert train(settings(data, tmp_path / "first", **taught), ALONE, QUIET)
    first = checkpoints.load(tmp_path / "first" / "best.pt")
    if mean:
        checkpoints.save(
            tmp_path / "first" / "best.pt", dataclasses.replace(first, training={"mean_of": [first.training] * 2})
        )
    second = settings(data, tmp_path / "second", from_=tmp_path / "first" / "best.pt")
    assert train(second, ALONE, QUIET)
    found = checkpoints.load(tmp_path / "second" / "best.pt")
    assert (found.options["quality"], found.options["assignment"], found.iou_threshold) == ("iou", "atss", 0.45)
    assert train(dataclasses.replace(second, resume=True), ALONE, QUIET)  # it is finished, and the same
    with pytest.raises(ValueError, match="--quality was iou, is centerness"):
        train(dataclasses.replace(second, resume=True, quality="centerness"), ALONE, QUIET)


def test_what_is_given_of_what_is_learnt_wins(uninterrupted: Path) -> None:
    begun = checkpoints.load(uninterrupted / "best.pt")
    left_open = Settings(**dict.fromkeys(PATHS, Path()))
    chosen = dataclasses.replace(left_open, quality="iou", assignment="atss", iou_threshold=0.0).settled(begun)
    assert (chosen.quality, chosen.assignment, chosen.iou_threshold) == ("iou", "atss", 0.0)
    for start, suppression in ((None, 0.6), (dataclasses.replace(begun, training={}, iou_threshold=0.5), 0.5)):
        settled = left_open.settled(start)
        assert (settled.quality, settled.assignment, settled.iou_threshold) == ("centerness", "fcos", suppression)
        assert settled.objective == left_open.objective == Objective()


def test_the_averaged_weights_are_those_of_about_the_last_tenth(data: Data, tmp_path: Path) -> None:
    """The window of the average, in iterations, grows with the run."""
    options = settings(data, tmp_path)
    learner = Learner(FCOS(*options.network(("a",), None)), options, ALONE, 10_000)
    for iterations in (1_000, 10_000):
        window = 1 / (1 - learner.ema.get_decay(iterations))
        assert window == pytest.approx(iterations**0.75) and 0.05 < window / iterations < 0.25


def test_a_signal_to_every_process_saves_the_run_as_well(
    data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Learner.step

    def step_and_signal(learner: Learner, parts: list[Batch], iteration: int) -> dict[str, float]:
        values = step(learner, parts, iteration)
        workers = [str(process.pid) for process in multiprocessing.active_children()]
        assert workers
        subprocess.run(["kill", *workers], check=True)  # torch lets a worker obey its parent alone
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


def test_the_averaged_weights_are_the_models_and_those_that_learn_are_beside_them(
    data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, key = Learner.step, "head.distances.weight"
    learnt: list[torch.Tensor] = []
    expected = torch.zeros(())

    def follow(learner: Learner, parts: list[Batch], iteration: int) -> dict[str, float]:
        nonlocal expected
        values = step(learner, parts, iteration)
        learnt.append(learner.model.state_dict()[key].clone())
        decay = learner.ema.get_decay(iteration + 1)
        expected = expected * decay + learnt[-1] * (1 - decay) if iteration else learnt[-1]
        return values

    monkeypatch.setattr(Learner, "step", follow)
    monkeypatch.setattr(Stop, "requested", lambda _: len(learnt) == 4)
    assert not train(settings(data, tmp_path, epochs=3), ALONE, QUIET)
    stopped = checkpoints.load(tmp_path / "last.pt")
    assert stopped.resume is not None
    assert stopped.resume["model"][key].equal(learnt[-1])
    torch.testing.assert_close(stopped.weights[key], expected)
    assert not torch.allclose(stopped.weights[key], learnt[-1])


def test_suppression_of_a_run_is_its_models_default(uninterrupted: Path) -> None:
    assert checkpoints.load(uninterrupted / "best.pt").metadata("model").defaults.iou_threshold == 0.4


def test_a_finished_run_says_so_and_is_left_alone(data: Data, uninterrupted: Path) -> None:
    before = (uninterrupted / "last.pt").read_bytes()
    assert train(settings(data, uninterrupted, resume=True, **EVERYTHING), ALONE, QUIET)
    assert (uninterrupted / "last.pt").read_bytes() == before
    longer = settings(data, uninterrupted, resume=True, **(EVERYTHING | {"epochs": 9}))
    with pytest.raises(ValueError, match="--epochs was 3, is 9"):
        train(longer, ALONE, QUIET)


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


def test_an_output_that_cannot_be_made_is_named(data: Data, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"the folder .*file/run cannot be made"):
        train(settings(data, tmp_path / "file" / "run", epochs=1), ALONE, QUIET)


def test_a_runs_folder_is_complete(data: Data, uninterrupted: Path) -> None:
    found = {file.name for file in uninterrupted.iterdir()}
    assert found == {
        "config.json", "last.pt", "best.pt", "metrics.csv", "metrics.json", "tensorboard",
        "batches.jpg", "precision_recall.png", "confusion.png", "predictions.jpg",
    }  # fmt: skip
    for name in ("batches.jpg", "precision_recall.png", "confusion.png", "predictions.jpg"):
        assert Image.open(uninterrupted / name).convert("RGB").getcolors(2) is None  # more than two colours
    config = json.loads((uninterrupted / "config.json").read_text())
    assert config["network"]["channels"] == 64 and config["augmentation"]["mosaic"] == 0.5
    assert [row["epoch"] for row in rows(uninterrupted)] == ["1", "2", "3"]


@pytest.mark.parametrize(("aps", "epoch"), [((0.2, 0.5, 0.3), 2), ((0.2, 0.5, 0.5), 3)])
def test_the_best_epoch_is_kept_of_equal_ones_the_later(
    data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, aps: tuple[float, ...], epoch: int
) -> None:
    found, values = runs.evaluate_on_val, iter(aps)

    def evaluated(*arguments: Any) -> Any:
        evaluation, detections = found(*arguments)
        return dataclasses.replace(evaluation, metrics=evaluation.metrics | {"AP": next(values)}), detections

    monkeypatch.setattr(runs, "evaluate_on_val", evaluated)
    assert train(settings(data, tmp_path, epochs=3), ALONE, QUIET)
    best = checkpoints.load(tmp_path / "best.pt")
    assert (best.metrics["AP"], best.training["epochs"]) == (0.5, epoch)
    assert best.resume is None and best.model() is not None
    assert isinstance(best.metadata("toy"), Metadata)


def test_a_model_file_names_no_path_of_the_machine(uninterrupted: Path) -> None:
    assert str(uninterrupted.parent.parent) not in json.dumps(checkpoints.load(uninterrupted / "best.pt").training)


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


def test_resuming_with_other_data_is_refused(data: Data, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(Stop, "requested", lambda _: True)
    options = settings(data, tmp_path / "run")
    train(options, ALONE, QUIET)
    other = write_coco(tmp_path / "other", 8, seed=1)
    changed = dataclasses.replace(options, resume=True, train_annotations=other[0], train_images=other[1])
    with pytest.raises(ValueError, match="training data are not those"):
        train(changed, ALONE, QUIET)


def test_a_run_is_not_overwritten(data: Data, uninterrupted: Path) -> None:
    with pytest.raises(ValueError, match="already holds a run"):
        train(settings(data, uninterrupted), ALONE, QUIET)


def test_the_best_of_a_run_is_not_overwritten(data: Data, tmp_path: Path) -> None:
    (tmp_path / "best.pt").write_bytes(b"precious")
    with pytest.raises(ValueError, match=r"holds the best\.pt of another run"):
        train(settings(data, tmp_path), ALONE, QUIET)
    assert (tmp_path / "best.pt").read_bytes() == b"precious"


# --- shared out


def test_parts_of_a_batch_have_the_gradient_of_the_whole(data: Data) -> None:
    whole, in_parts = gradients(data, ALONE), gradients(data, ALONE, accumulate=4)
    assert max(float((in_parts[key] - whole[key]).abs().max()) for key in whole) < 1e-5


@pytest.fixture(scope="module")
def of_two_processes(data: Data, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("two") / "out.pt"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += [str(ROOT / "tests" / "two_processes.py"), str(data[0].parent), str(out)]
    subprocess.run(command, check=True, timeout=300, env=os.environ | {"OMP_NUM_THREADS": "1"})
    found: dict[str, Any] = torch.load(out, weights_only=True)
    return found


def test_two_processes_have_the_gradient_of_one(data: Data, of_two_processes: dict[str, Any]) -> None:
    alone, shared = gradients(data, ALONE), of_two_processes["gradients"]
    assert shared.keys() == alone.keys()
    assert max(float((shared[key] - alone[key]).abs().max()) for key in alone) < 1e-5


def test_the_averaged_statistics_of_all_processes_are_the_firsts(of_two_processes: dict[str, Any]) -> None:
    (own, averaged), (others_own, others_averaged) = of_two_processes["statistics"]
    assert not own.equal(others_own)
    assert averaged.equal(own) and others_averaged.equal(own)


def test_what_is_drawn_inside_the_network_differs_between_processes(of_two_processes: dict[str, Any]) -> None:
    first, second = of_two_processes["drawn"]
    assert not first.equal(second)


def test_torchrun_trains_what_one_process_does(data: Data, tmp_path: Path) -> None:
    alone = settings(
        data, tmp_path / "alone", epochs=2, lr=0.01, optimizer="sgd", backbone_norm="frozen", ema_decay=0.0
    )
    shared = dataclasses.replace(alone, output=tmp_path / "shared")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["model/train.py", *words(shared)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert train(alone, ALONE, QUIET)
    one, other = (checkpoints.load(tmp_path / run / "last.pt") for run in ("shared", "alone"))
    assert difference(one, other) < 1e-4
    for mine, theirs in zip(rows(tmp_path / "shared"), rows(tmp_path / "alone"), strict=True):
        assert float(mine["class_loss"]) == pytest.approx(float(theirs["class_loss"]), rel=1e-3)
        assert float(mine["AP"]) == pytest.approx(float(theirs["AP"]), abs=1e-3)


def test_a_gradient_is_clipped(data: Data, tmp_path: Path) -> None:
    options = settings(data, tmp_path, optimizer="sgd", lr=1.0, clip_norm=1e-3, weight_decay=0.0, warmup_iterations=0)
    learner = Learner(FCOS(*options.network(tuple(IDS), None)), options, ALONE, 1)
    before = [parameter.detach().clone() for parameter in learner.model.parameters()]
    images = torch.zeros(4, 3, 96, 96, dtype=torch.uint8)
    boxes = [torch.tensor([[8.0, 8.0, 60.0, 60.0]])] * 4
    learner.step([Batch(images, boxes, [torch.tensor([0])] * 4, [0, 1, 2, 3])], 0)
    moved = [new.detach() - old for new, old in zip(learner.model.parameters(), before, strict=True)]
    length = torch.cat([part.flatten() for part in moved]).norm().item()
    assert 0 < length <= 1.01e-3 * options.base_lr


def test_batch_norm_of_one_picture_is_refused(data: Data, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--norm bn takes its statistics"):
        train(settings(data, tmp_path, norm="bn", batch_size=2, accumulate=2), ALONE, QUIET)


# --- what is learnt


def test_four_pictures_are_learnt_by_heart(tmp_path: Path) -> None:
    data = write_coco(tmp_path, 4)
    document, _ = read_checked(*data)
    options = settings(data, tmp_path, lr=0.02, ema_decay=0.9)
    torch.manual_seed(0)
    model = FCOS(*options.network(tuple(IDS), None))
    metadata = checkpoints.metadata_of(model.config, model.input_config)
    pictures = TrainingPictures(Plans(Annotations.from_document(document), metadata, NO_AUGMENTATION), data[1])
    square = metadata.canvases[-1]
    batch = collate([pictures[Draw(index, square, 1.0, True, 0)] for index in range(4)])
    learner = Learner(model, options, ALONE, 120)
    for iteration in range(120):
        learner.step([batch], iteration)
    evaluation, _ = evaluate_on_val(learner, metadata, document, options, QUIET)
    assert evaluation.metrics["AP"] > 0.9
    assert evaluation.f1 > 0.9 and 0.05 <= evaluation.score_threshold <= 0.95


@pytest.mark.parametrize("quality", ["centerness", "iou"])
@pytest.mark.parametrize("assignment", ["fcos", "atss"])
def test_batches_without_a_single_box_train(data: Data, tmp_path: Path, quality: Any, assignment: Any) -> None:
    options = settings(data, tmp_path, quality=quality, assignment=assignment)
    config, input_config = options.network(tuple(IDS), None)
    learner = Learner(FCOS(config, input_config), options, ALONE, 2)
    before = {key: value.clone() for key, value in learner.model.named_parameters()}
    images = torch.randint(256, (2, 3, 96, 96), dtype=torch.uint8)
    batch = Batch(images, [torch.zeros(0, 4)] * 2, [torch.zeros(0, dtype=torch.long)] * 2, [0, 1])
    for iteration in range(2):
        values = learner.step([batch], iteration)
        assert all(map(math.isfinite, values.values())) and values["box_loss"] == 0
    after = dict(learner.model.named_parameters())
    assert not after["head.class_logits.bias"].equal(before["head.class_logits.bias"])


def test_every_shape_that_a_run_has_is_compiled(data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = settings(data, tmp_path, compile=True, size=128, zooms=(0.5,))
    model = FCOS(*options.network(tuple(IDS), None))
    graphs: list[Any] = []

    def count(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return graph

    monkeypatch.setattr(
        FCOS, "compile", lambda model, dynamic: nn.Module.compile(model, backend=count, dynamic=dynamic)
    )
    canvases = (*model.input_config.canvases, (64, 64))
    with torch._dynamo.config.patch(recompile_limit=1):
        Learner(model, options, ALONE, 1)
        for canvas in canvases:
            model(torch.zeros(2, 3, *canvas, dtype=torch.uint8))
    assert len(graphs) == len(canvases) == 4


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_half_precision_learns_much_the_same(data: Data, tmp_path: Path, amp: Any) -> None:
    losses = {}
    for precision in ("off", amp):
        options = settings(data, tmp_path, amp=precision)
        torch.manual_seed(0)
        learner = Learner(FCOS(*options.network(tuple(IDS), None)), options, ALONE, 3)
        torch.manual_seed(0)
        images = torch.randint(256, (2, 3, 96, 96), dtype=torch.uint8)
        batch = Batch(images, [torch.tensor([[10.0, 10, 60, 70]])] * 2, [torch.tensor([1])] * 2, [0, 1])
        losses[precision] = [learner.step([batch], iteration)["class_loss"] for iteration in range(3)]
    assert losses[amp] == pytest.approx(losses["off"], rel=0.05)


def test_what_is_drawn_inside_the_network_depends_on_the_runs_seed_and_the_iteration_alone(
    data: Data, tmp_path: Path
) -> None:
    batch = Batch(
        torch.randint(256, (2, 3, 96, 96), dtype=torch.uint8), [torch.tensor([[10.0, 10, 60, 70]])] * 2,
        [torch.tensor([1])] * 2, [0, 1],
    )  # fmt: skip

    def losses(before: int, iteration: int, seed: int = 0) -> dict[str, float]:
        options = settings(data, tmp_path, seed=seed)
        torch.manual_seed(0)
        model = FCOS(*options.network(tuple(IDS), None))
        model.fpn.register_forward_pre_hook(
            lambda _, inputs: ([nn.functional.dropout(level, 0.5) for level in inputs[0]], *inputs[1:])
        )
        learner = Learner(model, options, ALONE, 10)
        torch.manual_seed(before)
        return learner.step([batch], iteration)

    assert losses(1, iteration=3) == losses(2, iteration=3)
    assert losses(1, iteration=3) != losses(1, iteration=4)
    assert losses(1, iteration=3) != losses(1, iteration=3, seed=1)


def test_a_loss_that_is_not_finite_names_the_pictures(data: Data, tmp_path: Path) -> None:
    options = settings(data, tmp_path / "run", lr=1e30, clip_norm=0.0, epochs=4, optimizer="sgd")
    with pytest.raises(ValueError, match=r"not finite at iteration \d+ .*picture-\d\.png"):
        train(options, ALONE, QUIET)


@pytest.mark.parametrize("clip_norm", [0.0, 10.0])
def test_a_gradient_that_is_not_finite_leaves_the_weights(data: Data, tmp_path: Path, clip_norm: float) -> None:
    options = settings(data, tmp_path, clip_norm=clip_norm)
    learner = Learner(FCOS(*options.network(tuple(IDS), None)), options, ALONE, 1)
    learner.model.head.class_logits.bias.register_hook(lambda gradient: gradient * math.inf)
    before = [parameter.detach().clone() for parameter in learner.model.parameters()]
    batch = Batch(
        torch.zeros(2, 3, 96, 96, dtype=torch.uint8), [torch.tensor([[10.0, 10, 60, 70]])] * 2,
        [torch.tensor([1])] * 2, [0, 1],
    )  # fmt: skip
    with pytest.raises(FloatingPointError, match="gradient"):
        learner.step([batch], 0)
    assert all(new.equal(old) for new, old in zip(learner.model.parameters(), before, strict=True))


def test_fine_tuning_starts_from_the_others_weights(data: Data, uninterrupted: Path, tmp_path: Path) -> None:
    document = json.loads(data[0].read_text())
    document["categories"][0]["name"] = "crimson"
    (tmp_path / "boxes.json").write_text(json.dumps(document))
    other = settings((tmp_path / "boxes.json", data[1]), tmp_path / "run", from_=uninterrupted / "best.pt", lr=0.0)
    other = dataclasses.replace(other, backbone_norm="frozen")
    # What --from has need not be said again.
    other = dataclasses.replace(other, channels=None, head_convs=None, head_kernel=None, size=None, backbone=None)
    assert train(other, ALONE, QUIET)
    old, new = (checkpoints.load(folder / "best.pt") for folder in (uninterrupted, tmp_path / "run"))
    assert new.config == dataclasses.replace(old.config, classes=("crimson", "green", "blue"))
    assert "classes kept: green, blue, new: crimson" in new.training["start"]
    assert new.training["before"] == old.training
    assert str(uninterrupted.parent) not in json.dumps(new.training)  # no path of this machine
    for key in old.weights:
        if "class_logits" not in key and "running" not in key and "num_batches" not in key:
            assert torch.allclose(new.weights[key], old.weights[key])


@pytest.mark.parametrize(("norm", "measured"), [("trained", [8]), ("frozen", [])])
def test_a_starts_statistics_are_measured_where_they_will_be_trained(
    data: Data,
    uninterrupted: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    norm: Literal["trained", "frozen"],
    measured: list[int],
) -> None:
    counts: list[int] = []

    def restate(_: FCOS, batches: Iterable[Tensor]) -> None:
        counts.append(sum(len(images) for images in batches))

    monkeypatch.setattr("model.run.restate_statistics", restate)
    options = settings(data, tmp_path / "run", from_=uninterrupted / "best.pt", epochs=1, backbone_norm=norm)
    assert train(options, ALONE, QUIET)
    assert counts == measured


def test_the_losses_are_those_of_the_objective_in_the_settings(data: Data, tmp_path: Path) -> None:
    options = settings(data, tmp_path, quality="iou", assignment="atss", amp="off")
    learner = Learner(FCOS(*options.network(tuple(IDS), None)), options, ALONE, 1)
    images = torch.randint(256, (2, 3, 96, 96), dtype=torch.uint8)
    boxes, labels = [torch.tensor([[10.0, 10, 60, 70]])] * 2, [torch.tensor([1])] * 2
    expected = learner.model.losses(images, boxes, labels, Objective(quality="iou", assignment="atss"))
    found = learner.backward([Batch(images, boxes, labels, [0, 1])])
    assert found == pytest.approx({key: value.item() for key, value in expected.items()}, rel=1e-4)


def test_a_run_zooms_repeats_and_ends_plainly_as_its_settings_say(
    data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sides: list[int] = []

    def noted(_: Learner, parts: list[Batch], __: int) -> dict[str, float]:
        sides.append(parts[0].images.shape[-1])
        return {}

    monkeypatch.setattr(Learner, "step", noted)
    options = settings(data, tmp_path, batch_size=1, epochs=3, plain_epochs=1, zooms=(2.0,), repeat_thin=1.0)
    assert train(options, ALONE, QUIET)
    length = round(repeat_factors(read_annotations(*data), 1.0).sum())
    assert length > 8
    assert sides == [192] * 2 * length + [96] * length


# --- few pictures


@pytest.mark.parametrize("accumulate", [1, 2])
def test_few_pictures_are_gone_through_several_times_an_epoch(
    data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, accumulate: int
) -> None:
    drawn: list[int] = []

    def noted(_: Learner, parts: list[Batch], iteration: int) -> dict[str, float]:
        assert iteration == len(drawn) // 4 and len(parts) == accumulate
        drawn.extend(picture for part in parts for picture in part.pictures)
        return {}

    monkeypatch.setattr(Learner, "step", noted)
    said = Console(file=io.StringIO(), width=200)
    options = settings(data, tmp_path, epochs=2, epoch_iterations=5, accumulate=accumulate)  # two without it
    assert train(options, ALONE, said)
    assert isinstance(said.file, io.StringIO) and "goes through them 2.5 times" in said.file.getvalue()
    for epoch in (drawn[:20], drawn[20:]):
        assert len(epoch) == 20 and {epoch.count(picture) for picture in range(8)} == {2, 3}


def test_fewer_pictures_than_a_batch_are_learnt_from(
    data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    monkeypatch.setattr(Learner, "step", lambda _, parts, __: sizes.append(len(parts[0].pictures)) or {})
    assert train(settings(data, tmp_path, batch_size=20, epoch_iterations=1), ALONE, QUIET)
    assert sizes == [20]


def test_many_pictures_are_gone_through_once_an_epoch(data: Data, tmp_path: Path) -> None:
    several, once = (
        Run(settings(data, tmp_path, epoch_iterations=least, **EVERYTHING), ALONE, QUIET, None, None)
        for least in (2, 0)
    )
    for run in (several, once):
        run.batches.start(1)
    assert list(several.batches) == list(once.batches)
    assert several.describe() == once.describe()


# --- options


@given(st.integers(1, 5000), st.sampled_from(["cosine", "steps"]), st.integers(0, 1000), st.data())
def test_the_learning_rate_rises_then_falls(iterations: int, schedule: Any, warmup: int, draw: st.DataObject) -> None:
    options = dataclasses.replace(
        settings((Path(), Path()), Path(), epochs=1), schedule=schedule, warmup_iterations=warmup
    )
    warm = min(warmup, iterations // 10)
    i = draw.draw(st.integers(0, iterations - 1))
    now, later = (lr_factor(j, iterations, options) for j in (i, i + 1))
    assert 0 < now <= 1
    assert now <= later if i < warm else later <= now + 1e-12


def test_the_learning_rate_at_known_moments(data: Data, tmp_path: Path) -> None:
    cosine = settings(data, tmp_path, warmup_iterations=9, final_lr_factor=0.2)
    factors = [lr_factor(iteration, 109, cosine) for iteration in (0, 4, 9, 34, 59, 109)]
    assert factors == pytest.approx([0.1, 0.5, 1, 0.2 + 0.8 * (1 + 0.5**0.5) / 2, 0.6, 0.2])
    steps = settings(data, tmp_path, schedule="steps", lr_steps=(0.5, 0.75), warmup_iterations=0)
    assert [lr_factor(iteration, 100, steps) for iteration in (0, 49, 50, 75)] == pytest.approx([1, 1, 0.1, 0.01])


def test_weight_decay_spares_norms_and_biases_and_the_backbone_is_slower(data: Data, tmp_path: Path) -> None:
    options = settings(data, tmp_path, lr=0.01, batch_size=32)
    model = FCOS(*options.network(tuple(IDS), None))
    group_of = {id(p): group for group in make_optimizer(model, options).param_groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        group = group_of[id(parameter)]
        assert (group["weight_decay"] > 0) == (parameter.ndim > 1)
        assert group["lr_factor"] == (0.2 if name.startswith("backbone.") else 1.0)
    assert options.base_lr == pytest.approx(0.02)  # scaled from the nominal 16


def test_sgd_goes_on_with_nine_tenths_of_its_last_step(data: Data, tmp_path: Path) -> None:
    options = settings(data, tmp_path, optimizer="sgd")
    model = FCOS(*options.network(tuple(IDS), None))
    optimizer, bias = make_optimizer(model, options), model.head.centerness.bias
    assert bias is not None
    bias.grad = torch.ones_like(bias)
    for steps in (1, 1 + 1.9, 1 + 1.9 + 2.71):
        optimizer.step()
        assert bias.item() == pytest.approx(-steps * options.base_lr)


@pytest.mark.parametrize("level", ["c2", "c3"])
def test_frozen_layers_do_not_move(data: Data, tmp_path: Path, level: Any) -> None:
    options = settings(data, tmp_path, freeze=level, backbone_norm="frozen")
    learner = Learner(FCOS(*options.network(tuple(IDS), None)), options, ALONE, 1)
    before = {key: value.clone() for key, value in learner.model.state_dict().items()}
    images = torch.randint(256, (2, 3, 96, 96), dtype=torch.uint8)
    learner.step([Batch(images, [torch.tensor([[10.0, 10, 60, 70]])] * 2, [torch.tensor([1])] * 2, [0, 1])], 0)
    moved = {key for key, value in learner.model.state_dict().items() if not value.equal(before[key])}
    frozen = {key for key, value in learner.model.named_parameters() if not value.requires_grad}
    assert frozen and not moved & frozen
    c3, c4, _ = learner.model.backbone(images.float())
    assert c3.requires_grad == (level == "c2") and c4.requires_grad  # all up to the level, and nothing above it
    assert not any("running" in key for key in moved)
    assert any(key.startswith("backbone.") for key in moved)  # what lies above the level


@pytest.mark.parametrize(
    ("backbone", "last", "next_"),
    [
        ("tf_efficientnet_lite0", "blocks.1.", "blocks.2."),
        ("resnet18", "layer1.", "layer2."),
        ("convnext_atto", "stages_0.", "stages_1."),
    ],
)
def test_c2_is_all_up_to_stride_4(data: Data, tmp_path: Path, backbone: str, last: str, next_: str) -> None:
    options = settings(data, tmp_path, freeze="c2", backbone=backbone)
    model = FCOS(*options.network(tuple(IDS), None))
    freeze(model, options)
    learning = {name: parameter.requires_grad for name, parameter in model.backbone.body.named_parameters()}
    assert not next(iter(learning.values()))
    assert not any(learns for name, learns in learning.items() if name.startswith(last))
    assert all(learns for name, learns in learning.items() if name.startswith(next_))
    assert list(learning.values()) == sorted(learning.values())  # no learning layer below a frozen one


@pytest.mark.parametrize("level", ["none", "c3", "all"])
def test_all_that_learns_has_a_gradient(data: Data, tmp_path: Path, level: Any) -> None:
    """Several processes wait for each of them; HRNet has features, and their parameters, that are not asked for."""
    options = settings(data, tmp_path, freeze=level, backbone="hrnet_w18_small", amp="off")
    learner = Learner(FCOS(*options.network(tuple(IDS), None)), options, ALONE, 1)
    images = torch.randint(256, (2, 3, 96, 96), dtype=torch.uint8)
    learner.backward([Batch(images, [torch.tensor([[10.0, 10, 60, 70]])] * 2, [torch.tensor([1])] * 2, [0, 1])])
    lacking = [key for key, p in learner.model.named_parameters() if p.requires_grad and p.grad is None]
    learning = [p.requires_grad for p in learner.model.backbone.parameters()]
    assert not lacking
    assert any(learning) == (level != "all")


def test_statistics_of_frozen_layers_do_not_move_and_all_others_do(data: Data, tmp_path: Path) -> None:
    options = settings(data, tmp_path, freeze="c3", backbone_norm="trained")
    learner = Learner(FCOS(*options.network(tuple(IDS), None)), options, ALONE, 1)
    norms = {key: part for key, part in learner.model.named_modules() if isinstance(part, nn.BatchNorm2d)}
    before = {key: norm.running_mean.clone() for key, norm in norms.items()}
    images = torch.randint(256, (2, 3, 96, 96), dtype=torch.uint8)
    learner.step([Batch(images, [torch.tensor([[10.0, 10, 60, 70]])] * 2, [torch.tensor([1])] * 2, [0, 1])], 0)
    still = {key for key, norm in norms.items() if norm.running_mean.equal(before[key])}
    frozen = {key for key, norm in norms.items() if not norm.weight.requires_grad}
    assert still == frozen and 0 < len(frozen) < len(norms)


def command_line(monkeypatch: pytest.MonkeyPatch, data: Data, output: Path, *more: str) -> int:
    paths = ["--train-annotations", data[0], "--train-images", data[1], "--val-annotations", data[0]]
    paths += ["--val-images", data[1], "--output", output, "--device", "cpu", "--batch-size", 4, "--workers", 0]
    paths += ["--epoch-iterations", 0]
    monkeypatch.setattr(sys, "argv", ["train.py", *map(str, paths), *more])
    return script.main()


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--no-such-option", "1"], "no-such-option"),
        (["--epochs", "0"], "--epochs must be at least 1"),
        (["--iou-threshold", "1.5"], "--iou-threshold must be between 0 and 1"),
        (["--size", "100"], "--size must be a multiple of 32"),
        (["--size", "4128"], "--size must be a multiple of 32"),
        (["--lr", "inf"], "--lr must be finite"),
        (["--epoch-iterations", "-1"], "--epoch-iterations must be finite and not negative"),
        (["--weight-decay", "nan"], "--weight-decay must be finite"),
        (["--clip-norm", "inf"], "--clip-norm must be finite"),
        (["--repeat-thin", "inf"], "--repeat-thin must be finite"),
        (["--backbone-lr-factor", "-1"], "--backbone-lr-factor must be finite"),
        (["--final-lr-factor", "nan"], "--final-lr-factor must be finite"),
        (["--seed", "-1"], "--seed must be between 0 and 2147483647"),
        (["--lr-steps", "5", "8"], "--lr-steps must be between 0 and 1"),
        (["--val-fraction", "1"], "--val-fraction must be above 0 and under 1"),
        (["--val-images", "None"], "--val-annotations and --val-images go together"),
        (["--name", " "], "--name must have 1 to 200 characters"),
        (["--name", "x" * 201], "--name must have 1 to 200 characters"),
        (["--head-kernel", "-1"], "head_kernel must be odd and at least 1"),
        (["--augmentation.flip", "7"], "augmentation.flip must be a probability"),
        (["--augmentation.scale", "0.6", "inf"], "augmentation.scale must be a range of"),
        (["--backbone", "resnet5O"], "timm does not know the model 'resnet5O'"),
        (["--train-annotations", "gone.json"], "no annotations at gone.json"),
        (["--from", "gone.pt"], "no checkpoint at gone.pt"),
        (["--from", "gone.pth"], "no weights file at gone.pth"),  # torchvision's
        (["--resume"], "no checkpoint at"),
        (["--batch-size", "100"], "lower --batch-size"),
        (["--device", "abacus"], "--device must be"),
        (["--device", "meta"], "--device must be"),
        (["--weights", "gone.pth"], "no weights file at gone.pth"),
    ],
)
def test_what_a_user_can_get_wrong_is_said_and_exit_code_2(
    data: Data,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    more: list[str],
    says: str,
) -> None:
    try:
        code = command_line(monkeypatch, data, tmp_path / "run", *more)
    except SystemExit as error:  # tyro's own
        code = int(error.code or 0)
    output = capsys.readouterr()
    assert code == 2
    assert says in output.err + output.out and "Traceback" not in output.err


def test_bad_data_stop_a_run_or_are_left_out(
    data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    document = json.loads(data[0].read_text())
    document["annotations"][0]["bbox"] = [1, 1, 0, 0]
    (tmp_path / "boxes.json").write_text(json.dumps(document))
    bad = (tmp_path / "boxes.json", data[1])
    assert command_line(monkeypatch, bad, tmp_path / "run") == 2
    error = capsys.readouterr().err
    assert "degenerate box: annotation 1 of image 0" in error and "--bad-data skip" in error
    assert not (tmp_path / "run").exists()
    assert train(settings(bad, tmp_path / "run", bad_data="skip"), ALONE, QUIET)


@pytest.mark.parametrize(("part", "lost"), [("annotations", True), ("images", False)])
def test_objects_whose_boxes_are_left_out_are_said_to_be_background(
    data: Data, tmp_path: Path, part: str, lost: bool
) -> None:
    document = json.loads(data[0].read_text())
    document[part][0] |= {"bbox": None, "width": "wide"}
    (tmp_path / "boxes.json").write_text(json.dumps(document))
    console = Console(file=io.StringIO(), width=200)
    read_data(settings((tmp_path / "boxes.json", data[1]), tmp_path / "run", bad_data="skip"), console)
    assert isinstance(console.file, io.StringIO)
    said = console.file.getvalue()
    assert "left out: " in said and ("counts as background" in said) == lost


@pytest.mark.parametrize("crowd", [False, True])
def test_a_val_without_boxes_is_refused(data: Data, tmp_path: Path, crowd: bool) -> None:
    document = json.loads(data[0].read_text())
    document["annotations"] = [one | {"iscrowd": 1} for one in document["annotations"]] if crowd else []
    (tmp_path / "val.json").write_text(json.dumps(document))
    with pytest.raises(ValueError, match=r"val\.json has no boxes to evaluate on"):
        train(settings(data, tmp_path / "run", val_annotations=tmp_path / "val.json"), ALONE, QUIET)


def test_a_picture_that_breaks_later_is_named_without_the_workers_traceback(data: Data, tmp_path: Path) -> None:
    mine = write_coco(tmp_path, 8)
    broken = np.random.default_rng(0).integers(0, 255, 400, dtype=np.uint8).tobytes()
    file = mine[1] / "picture-3.png"
    file.write_bytes(
        file.read_bytes()[:60] + broken + b"IEND"
    )  # its header and its end, which the check reads, are whole
    with pytest.raises(ValueError, match=r"picture-3\.png") as error:
        train(settings(mine, tmp_path / "run"), ALONE, QUIET)
    assert "\n" not in str(error.value)


def test_there_are_no_more_workers_than_cores(data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step, counts = Learner.step, set()

    def counted(learner: Learner, parts: list[Batch], iteration: int) -> dict[str, float]:
        counts.add(len(multiprocessing.active_children()))
        return step(learner, parts, iteration)

    monkeypatch.setattr(Learner, "step", counted)
    monkeypatch.setattr("model.loading.core_count", lambda: 1)
    assert train(settings(data, tmp_path / "run", epochs=1, workers=3), ALONE, QUIET)
    assert counts == {1}


def test_after_an_error_the_workers_end(data: Data, tmp_path: Path) -> None:
    mine = write_coco(tmp_path, 8)
    file = mine[1] / "picture-3.png"
    file.write_bytes(file.read_bytes()[:100])
    command = [sys.executable, "model/train.py", *words(settings(mine, tmp_path / "run", workers=2))]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2, done.stderr
    assert "picture-3.png" in done.stderr


def test_settings_name_their_options_as_the_command_line_does(data: Data, tmp_path: Path) -> None:
    values = settings(data, tmp_path).to_dict()
    assert {"train-annotations", "from", "batch-size", "ema-decay"} <= set(values)
    assert set(values["augmentation"]) >= {"flip", "mosaic"}
    assert set(settings(data, tmp_path).of_the_result()) < set(values)
    assert isinstance(Settings.__doc__, str)


def test_a_worker_that_the_system_ends_is_one_sentence(
    data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def killed(*_: Any) -> None:
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed.")

    monkeypatch.setattr(runs, "step", killed)
    monkeypatch.setattr(sys, "argv", ["train.py", *words(settings(data, tmp_path / "run"))])
    assert script.main() == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "fewer --workers" in line


def test_pictures_that_are_trained_on_are_said_to_flatter_val(data: tuple[Path, Path], tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=200)
    json_file, images = data
    same = settings(data, tmp_path / "run", val_annotations=json_file, val_images=images)
    read_data(same, console)
    assert "pictures of val are trained on" in console.file.getvalue()


def test_a_disk_without_room_for_checkpoints_is_told_before_the_first_epoch(
    data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")(10**9, 10**9 - 10**5, 10**5)
    monkeypatch.setattr("model.run.shutil.disk_usage", lambda _: usage)
    with pytest.raises(ValueError, match=r"take about \d+ MB, but .* has 0 MB free"):
        train(settings(data, tmp_path / "run"), ALONE, QUIET)


def test_a_cpus_full_memory_is_the_error_that_a_gpus_is(tmp_path: Path) -> None:
    huge = settings(write_coco(tmp_path), tmp_path / "run", channels=2**20, norm="bn", head_conv="full")
    with pytest.raises(torch.OutOfMemoryError):
        train(huge, ALONE, QUIET)


def test_without_val_the_same_pictures_are_held_out_in_every_run(tmp_path: Path) -> None:
    folder = write_coco(tmp_path, 30)
    console = Console(file=io.StringIO(), width=200)
    alone = settings(folder, tmp_path / "run", val_annotations=None, val_images=None, val_fraction=0.2)
    learnt, held = read_data(alone, console)
    names = {one["file_name"] for one in held["images"]}
    assert 0 < len(names) < 15 and names | set(learnt.file_names) == {f"picture-{i}.png" for i in range(30)}
    assert isinstance(console.file, io.StringIO)
    assert f"{len(names)} of 30 pictures are held out" in console.file.getvalue()

    document = json.loads(folder[0].read_text())
    document["images"] = [one for one in reversed(document["images"]) if one["file_name"] not in sorted(names)[:1]]
    kept = {one["id"] for one in document["images"]}
    document["annotations"] = [one for one in document["annotations"] if one["image_id"] in kept]
    folder[0].write_text(json.dumps(document))
    again, held = read_data(alone, QUIET)
    assert {one["file_name"] for one in held["images"]} == names - {min(names)}
    assert set(again.file_names) == set(learnt.file_names)


@pytest.mark.parametrize("fraction", [1e-9, 1 - 1e-9])
def test_at_least_one_picture_is_held_out_and_one_is_left(tmp_path: Path, fraction: float) -> None:
    alone = settings(write_coco(tmp_path, 2), tmp_path, val_annotations=None, val_images=None, val_fraction=fraction)
    learnt, held = read_data(alone, QUIET)
    assert len(learnt) == len(held["images"]) == 1


def test_a_single_picture_cannot_be_held_out(tmp_path: Path) -> None:
    alone = settings(write_coco(tmp_path, 1), tmp_path, val_annotations=None, val_images=None)
    with pytest.raises(ValueError, match="too few pictures to hold some out for an evaluation: 1"):
        read_data(alone, QUIET)


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
