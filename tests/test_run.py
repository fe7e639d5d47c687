"""A run shows the pictures that its settings say, and its folder holds what came of it."""

import dataclasses
import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image
from rich.console import Console

from app.artifact import Metadata
from model import checkpoint as checkpoints
from model import run as runs
from model.data import Batch
from model.learner import Learner
from model.run import Run
from model.sampling import repeat_factors
from model.stopping import Stop
from model.training import train
from tests.toy import ALONE, EVERYTHING, QUIET, Data, read_annotations, rows, settings

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("accumulate", [1, 2])
def test_few_pictures_are_gone_through_several_times_an_epoch(
    data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, accumulate: int
) -> None:
    drawn: list[int] = []

    def noted(_: Learner, parts: list[Batch], iteration: int) -> dict[str, float]:
        assert iteration == len(drawn) // 4 and len(parts) == accumulate
        drawn.extend(picture for part in parts for picture in part.pictures)
        return {"class_loss": 1.0 + iteration % 5}

    monkeypatch.setattr(Learner, "step", noted)
    said = Console(file=io.StringIO(), width=200)
    options = settings(data, tmp_path, epochs=2, epoch_iterations=5, accumulate=accumulate)  # two without it
    assert train(options, ALONE, said)
    assert isinstance(said.file, io.StringIO) and "goes through them 2.5 times" in said.file.getvalue()
    for epoch in (drawn[:20], drawn[20:]):
        assert len(epoch) == 20 and {epoch.count(picture) for picture in range(8)} == {2, 3}
    assert [float(row["class_loss"]) for row in rows(tmp_path)] == [3, 3], "the mean of an epoch"


def test_fewer_pictures_than_a_batch_are_learnt_from(
    data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []

    def noted(parts: list[Batch]) -> dict[str, float]:
        sizes.append(len(parts[0].pictures))
        return {}

    monkeypatch.setattr(Learner, "step", lambda _, parts, __: noted(parts))
    assert train(settings(data, tmp_path, batch_size=20, epoch_iterations=1), ALONE, QUIET)
    assert sizes == [20]


def test_too_few_pictures_for_a_batch_in_parts_are_refused(data: Data, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="8 training pictures do not fill one batch of 16"):
        train(settings(data, tmp_path, batch_size=16, accumulate=4), ALONE, QUIET)


@pytest.mark.parametrize("plain_epochs", [1, 2])
def test_that_nothing_is_augmented_is_said(data: Data, tmp_path: Path, plain_epochs: int) -> None:
    run = Run(settings(data, tmp_path, epochs=2, plain_epochs=plain_epochs), ALONE, QUIET, None, None)
    assert ("every epoch is plain" in run.describe()) == (plain_epochs == 2)


def test_many_pictures_are_gone_through_once_an_epoch(data: Data, tmp_path: Path) -> None:
    several, once = (
        Run(settings(data, tmp_path, epoch_iterations=least, **EVERYTHING), ALONE, QUIET, None, None)
        for least in (2, 0)
    )
    for run in (several, once):
        run.batches.start(1)
    assert list(several.batches) == list(once.batches)
    assert several.describe() == once.describe()


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


def test_a_loss_that_is_not_finite_names_the_pictures(data: Data, tmp_path: Path) -> None:
    options = settings(data, tmp_path / "run", lr=1e30, clip_norm=0.0, epochs=4, optimizer="sgd")
    with pytest.raises(ValueError, match=r"not finite at iteration \d+ .*picture-\d\.png"):
        train(options, ALONE, QUIET)


def test_batch_norm_of_one_picture_is_refused(data: Data, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--norm bn takes its statistics"):
        train(settings(data, tmp_path, norm="bn", batch_size=2, accumulate=2), ALONE, QUIET)


# --- its folder


def test_a_runs_folder_is_complete(uninterrupted: Path) -> None:
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


def test_a_best_that_was_taken_away_is_made_again(data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found, values = runs.evaluate_on_val, iter((0.5, 0.2))

    def evaluated(*arguments: Any) -> Any:
        evaluation, detections = found(*arguments)
        (tmp_path / "best.pt").unlink(missing_ok=True)
        return dataclasses.replace(evaluation, metrics=evaluation.metrics | {"AP": next(values)}), detections

    monkeypatch.setattr(runs, "evaluate_on_val", evaluated)
    assert train(settings(data, tmp_path, epochs=2), ALONE, QUIET)
    assert checkpoints.load(tmp_path / "best.pt").metrics["AP"] == 0.2


def test_suppression_of_a_run_is_its_models_default(uninterrupted: Path) -> None:
    assert checkpoints.load(uninterrupted / "best.pt").metadata("model").defaults.iou_threshold == 0.4


def test_a_model_file_names_no_path_of_the_machine(uninterrupted: Path) -> None:
    assert str(uninterrupted.parent.parent) not in json.dumps(checkpoints.load(uninterrupted / "best.pt").training)


def test_an_output_that_cannot_be_made_is_named(data: Data, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"the folder .*file/run cannot be made"):
        train(settings(data, tmp_path / "file" / "run", epochs=1), ALONE, QUIET)


def test_a_disk_without_room_for_checkpoints_is_told_before_the_first_epoch(
    data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = SimpleNamespace(total=10**9, used=10**9 - 10**5, free=10**5)
    monkeypatch.setattr("model.run.shutil.disk_usage", lambda _: usage)
    with pytest.raises(ValueError, match=r"take about \d+ MB, but .* has 0 MB free"):
        train(settings(data, tmp_path / "run"), ALONE, QUIET)


def test_another_seed_is_other_new_weights(data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Stop, "requested", lambda _: True)
    for seed in ("0", "1"):
        assert not train(settings(data, tmp_path / seed, seed=int(seed), lr=1e-9), ALONE, QUIET)
    one, other = (checkpoints.load(tmp_path / seed / "last.pt").weights for seed in ("0", "1"))
    assert (one["head.class_logits.weight"] - other["head.class_logits.weight"]).abs().max() > 1e-3
