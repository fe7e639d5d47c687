"""Recipes are tried on train alone, and a run that is cut off leaves its row."""

import argparse
import io
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import redirect_stderr, redirect_stdout
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch

from model import recipes
from model.checkpoint import load
from model.layout import Augmentation
from model.presets import PRESETS, data_folder
from model.recipes import RECIPES, settings_of, split
from model.sampling import repeat_factors
from model.settings import Settings
from model.stopping import Stop
from model.training import train
from tests.toy import ALONE, QUIET, read_annotations, write_folder

ROOT = Path(__file__).resolve().parents[1]
TINY: dict[str, Any] = {
    "backbone": "test_efficientnet", "weights": "none", "channels": 64, "head_convs": 1, "size": 64,
    "batch_size": 4, "workers": 0, "device": "cpu", "epoch_iterations": 0,
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("data"), train=20)


@pytest.fixture(scope="module", autouse=True)
def torch_imported_once(torch_server: BaseContext) -> Iterator[None]:
    """One test starts the command itself, and so its runs as users do."""
    with patch.object(multiprocessing, "get_context", lambda method: torch_server):
        yield


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_is_the_preset_and_what_it_changes(recipe: str) -> None:
    path = Path()
    paths = dict.fromkeys(("train_annotations", "train_images", "val_annotations", "val_images", "output"), path)
    found = settings_of(recipe, 40, **paths)
    assert isinstance(found, Settings) and isinstance(found.augmentation, Augmentation)
    asked = PRESETS["everyday"] | RECIPES[recipe] | {"epochs": 40, "plain_epochs": 2, "evaluate_every": 40}
    assert {name: getattr(found, name) for name in asked} == asked
    assert settings_of(recipe, 40, size=64, **paths).size == 64


def test_recipes_learn_from_nine_tenths_of_train_and_are_scored_on_the_other(folder: Path, tmp_path: Path) -> None:
    paths = split(folder, tmp_path, QUIET)
    assert paths["train_images"] == paths["val_images"] == folder / "train"
    whole = read_annotations(folder / "train.json", folder / "train")
    learnt, scored = (
        read_annotations(paths[f"{part}_annotations"], paths[f"{part}_images"]) for part in ("train", "val")
    )
    assert set(learnt.file_names) | set(scored.file_names) == set(whole.file_names)
    assert (len(learnt), len(scored)) == (19, 1) and len(learnt.boxes) + len(scored.boxes) == len(whole.boxes)
    assert learnt.classes == scored.classes == whole.classes


def command(folder: Path, output: Path, *more: str, code: int = 0, why: str = "", **changes: Any) -> str:
    words = ["recipes", "--data", str(folder), "--output", str(output), *more, "--more", json.dumps(TINY | changes)]
    out, err = io.StringIO(), io.StringIO()
    with patch.object(sys, "argv", words), redirect_stdout(out), redirect_stderr(err):
        try:
            found: Any = recipes.main()
        except SystemExit as refused:
            found = refused.code
    assert found == code and why in err.getvalue(), err.getvalue()
    return out.getvalue()


def test_recipes_are_compared_and_the_chosen_one_is_left_small(folder: Path, tmp_path: Path) -> None:
    command(folder, tmp_path, "--only", "base", "fcos", "--epochs", "1", "--at-once", "2")
    rows = {row["recipe"]: row for row in json.loads((tmp_path / "recipes.json").read_text())}
    assert rows.keys() == {"base", "fcos"}
    for row in rows.values():
        assert row["state"] == "finished" and row["epochs"] == 1 and 0 <= row["AP"] <= row["AP50"] <= 1
    command(folder, tmp_path, "--only", "base", "--epochs", "1")  # goes on with what is there, and that is whole
    assert [row["state"] for row in json.loads((tmp_path / "recipes.json").read_text())] == ["finished"]
    start = ("--from", str(tmp_path / "base" / "best.pt"))
    command(folder, tmp_path, "--only", "base", *start, code=2, why="--from needs --final")
    command(folder, tmp_path, "--final", "base", "--epochs", "1", *start)
    small, large = load(tmp_path / "final.pt"), load(tmp_path / "final-base" / "best.pt")
    assert small.training["start"].startswith("base/best.pt: ")
    assert (tmp_path / "final.pt").stat().st_size < 0.7 * (tmp_path / "final-base" / "best.pt").stat().st_size
    for key, value in small.model().state_dict().items():
        assert (value - large.weights[key]).abs().max() <= 1e-3 * large.weights[key].abs().max()


def final(folder: Path, output: Path, **given: Any) -> argparse.Namespace:
    return argparse.Namespace(data=folder, output=output, final="base", start=None, epochs=None, more=TINY | given)


def test_the_final_run_has_as_many_epochs_as_fit_into_its_time(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[Settings] = []

    def fake(settings: Settings, until: float) -> dict[str, Any]:  # an epoch takes 1 s, but the first 5; the rest 6 s
        ran.append(settings)
        pictures = float(repeat_factors(read_annotations(folder / "train.json", folder / "train"), 0.05).sum())
        settings.output.mkdir(parents=True)
        report = [f"{epoch},{pictures / seconds}" for epoch, seconds in ((1, 5), (2, 1))]
        (settings.output / "metrics.csv").write_text("\n".join(["epoch,pictures_per_s", *report]))
        return {"state": "finished", "seconds": 8.0}

    monkeypatch.setattr(recipes, "run", fake)
    for given_s, fitting in ((6 + 50.5 * recipes.SPARE, 50), (1000, PRESETS["everyday"]["epochs"])):
        ran.clear()
        (tmp_path / str(fitting) / "rehearsal").mkdir(parents=True)  # as an earlier one left it
        assert recipes.finish(final(folder, tmp_path / str(fitting)), time.monotonic() + given_s, QUIET)
        assert [settings.epochs for settings in ran] == [recipes.REHEARSAL_EPOCHS, fitting]
        assert [settings.plain_epochs for settings in ran] == [0, round(fitting * recipes.PLAIN_SHARE)]
    with pytest.raises(ValueError, match="an epoch takes 1 s, the rest 6 s: give more --minutes"):
        recipes.finish(final(folder, tmp_path / "none"), time.monotonic() + 6.5, QUIET)


def test_a_final_run_that_is_gone_on_with_has_the_epochs_it_began_with(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as at_once:
        at_once.setattr(Stop, "requested", lambda _: True)
        begun = settings_of("base", 3, **data_folder(folder), output=tmp_path / "final-base", **TINY)
        assert not train(begun, ALONE, QUIET)
    assert recipes.finish(final(folder, tmp_path), time.monotonic() + 300, QUIET)
    assert json.loads((tmp_path / "final.json").read_text())["epochs"] == 3
    assert not (tmp_path / "rehearsal").exists()


def test_a_final_run_that_is_cut_off_leaves_its_last_state(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Stop, "requested", lambda _: True)
    assert not train(settings_of("base", output=tmp_path / "final-base", **TINY | data_folder(folder)), ALONE, QUIET)
    monkeypatch.setattr(recipes, "run", lambda *_: {"state": "cut off", "seconds": 1.0})
    assert recipes.finish(final(folder, tmp_path), time.monotonic() + 300, QUIET)
    assert json.loads((tmp_path / "final.json").read_text()) == {"state": "cut off", "seconds": 1.0, "metrics": {}}
    small, last = load(tmp_path / "final.pt"), load(tmp_path / "final-base" / "last.pt")
    assert small.weights.keys() == last.weights.keys()


def test_one_recipe_that_fails_is_no_success_and_none_is_begun_after_the_limit(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    states = {"base": "finished", "fcos": "failed", "small": "cut off"}
    monkeypatch.setattr(recipes, "run", lambda settings, _: {"state": states[settings.output.name]})
    for only, fine in ((["base", "small"], True), (["base", "fcos"], False)):
        options = argparse.Namespace(data=folder, output=tmp_path, only=only, epochs=None, at_once=1, more=TINY)
        assert recipes.compare(options, time.monotonic() + 60, QUIET) is fine
        rows = json.loads((tmp_path / "recipes.json").read_text())
        assert rows == [{"recipe": name, "state": states[name]} for name in only]
    monkeypatch.setattr(recipes, "run", lambda *_: pytest.fail("begun"))
    assert recipes.compare(options, time.monotonic() - 1, QUIET)


def test_as_many_recipes_as_asked_for_share_the_device(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = threading.Barrier(2)
    monkeypatch.setattr(recipes, "run", lambda *_: {"state": "finished", "place": both.wait(10)})
    command(folder, tmp_path, "--only", "base", "fcos", "--at-once", "2")


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_after_ctrl_c_no_further_recipe_is_begun(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[str] = []
    cancelled, cancel = threading.Event(), Future.cancel

    def noted(future: Future[Any]) -> bool:
        done = cancel(future)
        cancelled.set()
        return done

    def interrupted(settings: Settings, _: float) -> dict[str, Any]:
        begun.append(settings.output.name)
        if len(begun) == 1:
            cancelled.clear()  # by whom the data were read
            os.kill(os.getpid(), signal.SIGINT)
            cancelled.wait(5)  # it takes a moment to save itself
        return {"state": "cut off"}

    monkeypatch.setattr(recipes, "run", interrupted)
    monkeypatch.setattr(Future, "cancel", noted)
    command(folder, tmp_path / "runs" / "recipes", "--only", "base", "fcos", code=130)
    assert begun == ["base"]


@pytest.mark.parametrize(
    ("minutes", "changes", "why"),
    [("0.34", {"epoch_iterations": 10_000}, "cut off"), ("3", {"batch_size": 64}, "do not fill one batch of 64")],
)
def test_a_final_run_whose_rehearsal_fails_is_not_begun(
    folder: Path, tmp_path: Path, minutes: str, changes: dict[str, int], why: str
) -> None:
    command(folder, tmp_path, "--final", "base", "--minutes", minutes, code=2, why=why, **changes)
    assert not list(tmp_path.glob("final*"))


def test_a_run_that_fails_says_why_and_so_does_the_command(folder: Path, tmp_path: Path) -> None:
    why = "19 training pictures do not fill one batch of 64: lower --batch-size"
    words = [sys.executable, "-m", "model.recipes", "--data", str(folder), "--output", str(tmp_path), "--only", "base"]
    more = json.dumps(TINY | {"batch_size": 64})
    done = subprocess.run([*words, "--more", more], capture_output=True, text=True, cwd=ROOT, timeout=600)
    assert done.returncode == 1 and why in done.stdout, done.stderr
    rows = json.loads((tmp_path / "recipes.json").read_text())
    assert [(row["state"], row["why"]) for row in rows] == [("failed", why)]


def test_a_run_that_fails_leaves_no_final_model(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Stop, "requested", lambda _: True)
    assert not train(settings_of("base", output=tmp_path / "final-base", **TINY | data_folder(folder)), ALONE, QUIET)
    assert (tmp_path / "final-base" / "last.pt").exists()
    assert "--lr was 0.0005, is 0.5" in command(folder, tmp_path, "--final", "base", code=1, lr=0.5)
    assert not list(tmp_path.glob("final.*"))


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (ValueError("annotations are wrong:\n  here"), "annotations are wrong:\n  here"),
        (OSError("no space left"), "no space left"),
        (torch.OutOfMemoryError("CUDA"), "the device's memory is full: --accumulate 2, or more"),
    ],
)
def test_the_last_words_of_a_run_are_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, says: str
) -> None:
    def fail(*_: Any) -> bool:
        raise error

    monkeypatch.setattr(recipes, "train", fail)
    (tmp_path / "run.log").write_text("epoch 1\ntrain: what an earlier one said\n")
    paths = dict.fromkeys(("train_annotations", "train_images", "val_annotations", "val_images"), tmp_path)
    with pytest.raises(SystemExit) as exit_of:
        recipes._train(settings_of("base", 9, **paths, output=tmp_path / "run", **TINY))
    assert exit_of.value.code == recipes.REFUSED
    assert recipes._last_words(tmp_path / "run.log").startswith(says)


def nap(_: Settings) -> None:
    time.sleep(0.2)


def test_a_row_says_what_came_of_a_run(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipes, "_train", nap)
    (tmp_path / "run").mkdir()
    table = "epoch,pictures_per_s,AP,AP50\n1,50,0.1,0.2\n2,90,,\n3,100,0.30004,0.5\n"
    (tmp_path / "run" / "metrics.csv").write_text(table)
    options = settings_of("base", 9, **split(folder, tmp_path, QUIET), output=tmp_path / "run", **TINY)
    row = recipes.run(options, until=time.monotonic() + 600)
    assert row.pop("seconds") >= 0.2
    assert row == {"state": "finished", "run": "run", "epochs": 3, "pictures_per_s": 90, "AP": 0.3, "AP50": 0.5}


def test_a_run_that_dies_without_a_word_has_its_exit_code(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recipes, "_train", len)  # of settings, which have none
    options = settings_of("base", 9, **split(folder, tmp_path, QUIET), output=tmp_path / "run", **TINY)
    row = recipes.run(options, until=time.monotonic() + 600)
    assert (row["state"], row["why"]) == ("failed", "exit code 1")


def wait(_: Settings) -> None:
    time.sleep(600)


def stop(_: Settings) -> None:
    sys.exit(recipes.STOPPED)


def test_a_run_that_a_signal_stops_has_not_finished(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = settings_of("base", 9, **split(folder, tmp_path, QUIET), output=tmp_path / "run", **TINY)
    monkeypatch.setattr(recipes, "train", lambda *_: False)
    with pytest.raises(SystemExit) as exit_of:
        recipes._train(options)
    assert exit_of.value.code == recipes.STOPPED
    monkeypatch.setattr(recipes, "_train", stop)
    assert recipes.run(options, until=time.monotonic() + 600)["state"] == "cut off"


def test_what_is_cut_off_has_its_row(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipes, "_train", wait)
    paths = split(folder, tmp_path, QUIET)
    row = recipes.run(settings_of("base", 9, **paths, output=tmp_path / "run", **TINY), until=0.0)
    assert row["state"] == "cut off" and "AP" not in row


@pytest.mark.parametrize("table", ["epoch,pictures_per_s,AP,AP50\n1,,0.1,0.2\n", "epoch,AP,AP50\n1,0.1,0.2\n"])
def test_an_epoch_resumed_for_its_evaluation_alone_has_no_speed(
    table: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recipes, "_train", wait)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.csv").write_text(table)
    paths = split(folder, tmp_path, QUIET)
    row = recipes.run(settings_of("base", 9, **paths, output=tmp_path / "run", **TINY), until=0.0)
    assert (row["epochs"], row["pictures_per_s"]) == (1, None)


def test_a_time_that_leaves_nothing_is_refused(folder: Path, tmp_path: Path) -> None:
    command(
        folder, tmp_path, "--minutes", "0.3", code=2, why="--minutes must be more than the 0.33 that saving may take"
    )
