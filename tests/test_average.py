"""The mean of several runs."""

import dataclasses
import io
import json
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import Tensor

from model import average as script
from model import checkpoint as checkpoints
from model.averaging import average, mean_weights, mixed, training_of
from model.checkpoint import Checkpoint
from model.coco import hold_out
from model.data import Annotations, Draw, Plans, TrainingPictures, collate, read_checked
from model.evaluation import evaluate, torch_runner
from model.layout import NO_AUGMENTATION
from model.presets import data_folder
from model.training import train
from tests.toy import ALONE, QUIET, settings, write_folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def runs(data: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A run, and another begun from it."""
    folder = tmp_path_factory.mktemp("runs")
    paths, options = (data / "train.json", data / "train"), {"norm": "bn", **data_folder(data)}
    assert train(settings(paths, folder / "first", **options), ALONE, QUIET)
    files = [folder / name / "best.pt" for name in ("first", "second")]
    from_first = settings(paths, folder / "second", **options, from_=files[0], seed=1, backbone_norm="frozen")
    assert train(from_first, ALONE, QUIET)
    return files


def test_weights_are_the_mean_and_statistics_are_measured(data: Path, runs: list[Path], tmp_path: Path) -> None:
    average(runs, data, tmp_path / "mean.pt", QUIET)
    first, second, mean = (checkpoints.load(file) for file in (*runs, tmp_path / "mean.pt"))
    model = mean.model()
    buffers = {name for name, _ in model.named_buffers()}
    for key, value in mean.weights.items():
        if key not in buffers:
            assert torch.allclose(value, (first.weights[key] + second.weights[key]) / 2, atol=1e-7), key

    # The statistics are those of what the norm gets to see: here one batch, of all pictures.
    norm = model.head.class_tower.norms[0][0]  # type: ignore[index]
    seen: list[Tensor] = []
    norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    document, _ = read_checked(data / "train.json", data / "train")
    annotations, metadata = Annotations.from_document(document), mean.metadata("mean")
    plans = Plans(annotations, metadata, NO_AUGMENTATION)
    largest = max(metadata.canvases, key=lambda canvas: canvas.height * canvas.width)
    pictures = TrainingPictures(plans, data / "train")
    batch = collate([pictures[Draw(number, largest, 1.0, True, 0)] for number in range(len(annotations))])
    model(batch.images)
    assert torch.allclose(norm.running_mean, seen[0].mean((0, 2, 3)), atol=1e-4)
    assert torch.allclose(norm.running_var, seen[0].var((0, 2, 3)), rtol=1e-3)

    assert set(mean.metrics) == set(first.metrics)
    assert second.training["before"] == first.training
    without = {key: value for key, value in second.training.items() if key != "before"}
    assert mean.training == {"mean_of": [first.training, without]}


def test_statistics_in_which_the_runs_agree_are_left_alone(data: Path, runs: list[Path], tmp_path: Path) -> None:
    """The second run began with the first one's backbone, whose statistics it kept."""
    average(runs, data, tmp_path / "mean.pt", QUIET)
    first, mean = checkpoints.load(runs[0]), checkpoints.load(tmp_path / "mean.pt")
    kept = [key for key in mean.weights if key.startswith("backbone.") and "running_" in key]
    assert kept
    assert all(mean.weights[key].equal(first.weights[key]) for key in kept)


def test_the_mean_has_the_name_that_all_have(runs: list[Path]) -> None:
    one = checkpoints.load(runs[0])
    named, other = (dataclasses.replace(one, training=one.training | {"name": name}) for name in ("cats", "dogs"))
    assert training_of([named, named])["name"] == "cats"
    for parts in ([one, one], [named, one], [named, other]):
        assert "name" not in training_of(parts)


def test_the_mean_of_one_run_is_that_run(data: Path, runs: list[Path], tmp_path: Path) -> None:
    one, unfinished = checkpoints.load(runs[0]), tmp_path / "last.pt"
    checkpoints.save(unfinished, dataclasses.replace(one, resume={"epoch": 1}, score_threshold=0.9))
    average([unfinished], data, tmp_path / "mean.pt", QUIET)
    mean = checkpoints.load(tmp_path / "mean.pt")
    assert mean.resume is None
    assert all(mean.weights[key].equal(value) for key, value in one.weights.items())
    assert (mean.metrics, mean.score_threshold) == (one.metrics, one.score_threshold)


def test_a_small_one_has_half_of_the_precision_and_was_scored_so(data: Path, runs: list[Path], tmp_path: Path) -> None:
    average(runs[:1], data, tmp_path / "small.pt", QUIET, small=True)
    one, small = checkpoints.load(runs[0]), checkpoints.load(tmp_path / "small.pt")
    for key, value in small.weights.items():
        assert value.dtype == (torch.float16 if value.ndim > 1 else one.weights[key].dtype), key
        assert torch.allclose(value.to(one.weights[key]), one.weights[key], rtol=1e-3, atol=1e-6), key
    document, _ = read_checked(data / "val.json", data / "val")
    runner = torch_runner(small.model(), torch.device("cpu"))
    assert evaluate(runner, small.metadata("small"), document, data / "val", QUIET).metrics == small.metrics
    assert all(value.dtype == torch.float32 for value in mean_weights([small, small]).values() if value.ndim)


def test_strangers_are_refused(runs: list[Path]) -> None:
    one = checkpoints.load(runs[0])
    other: Checkpoint = dataclasses.replace(one, config=dataclasses.replace(one.config, classes=("a", "b", "c")))
    with pytest.raises(ValueError, match="networks differ"):
        mean_weights([one, other])


@pytest.mark.parametrize("part", ["train", "val"])
def test_data_without_pictures_are_one_sentence(runs: list[Path], tmp_path: Path, part: str) -> None:
    folder = write_folder(tmp_path / "data")
    document = json.loads((folder / f"{part}.json").read_text())
    (folder / f"{part}.json").write_text(json.dumps(document | {"images": [], "annotations": []}))
    with pytest.raises(ValueError, match=rf"{part}\.json has no pictures"):
        average(runs, folder, tmp_path / "mean.pt", QUIET)


def test_what_is_wrong_with_the_data_is_left_out_and_said(runs: list[Path], tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "data")
    document = json.loads((folder / "train.json").read_text())
    document["annotations"].append(document["annotations"][0] | {"id": 999, "category_id": 77})
    (folder / "train.json").write_text(json.dumps(document))
    printed = io.StringIO()
    average(runs, folder, tmp_path / "mean.pt", Console(file=printed, width=200))
    said = printed.getvalue()
    assert "left out: " in said and "train.json has 1 x" in said and "val.json" not in said


def test_a_missing_checkpoint_is_one_sentence(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = str(tmp_path / "none.pt")
    monkeypatch.setattr(sys, "argv", ["average", missing, "--data", str(data), "--output", str(tmp_path / "o.pt")])
    assert script.main() == 2
    assert capsys.readouterr().err == f"average: no checkpoint at {missing}\n"


def test_a_folder_that_is_not_there_is_said_before_anything_is_done(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no folder"):
        average([tmp_path / "none.pt"], data, tmp_path / "nowhere" / "mean.pt", QUIET)


def test_the_mean_is_a_checkpoint_not_an_exported_model(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--output must end in \.pt, but is .*mean\.onnx"):
        average([tmp_path / "none.pt"], data, tmp_path / "mean.onnx", QUIET)


def test_only_frozen_statistics_of_the_backbone_beside_others_are_brought_together(runs: list[Path]) -> None:
    one = checkpoints.load(runs[0])
    frozen = dataclasses.replace(one, training={"options": one.options | {"backbone-norm": "frozen"}})
    of_backbone, of_head = (
        dataclasses.replace(one, weights=one.weights | {key: one.weights[key] + 1})
        for part in ("backbone.", "head.")
        for key in [next(key for key in one.weights if key.startswith(part) and key.endswith("running_mean"))]
    )
    assert mixed([frozen, of_backbone]) and mixed([of_backbone, frozen])
    assert not mixed([one, of_backbone]) and not mixed([frozen, of_head])


def test_frozen_statistics_and_measured_ones_are_brought_together_first(
    data: Path, runs: list[Path], tmp_path: Path
) -> None:
    """A run with measured statistics, and the same function with frozen ones far from them: their mean is it, too."""
    one = checkpoints.load(runs[0])
    model = one.model()
    with torch.no_grad():
        for norm in (module for module in model.backbone.modules() if isinstance(module, torch.nn.BatchNorm2d)):
            assert norm.running_mean is not None and norm.running_var is not None
            spread = (norm.running_var + norm.eps).sqrt()
            norm.bias.add_(norm.weight * norm.running_var.sqrt() / spread)
            norm.running_mean.add_(norm.running_var.sqrt())
            norm.running_var.mul_(16)
            norm.weight.mul_((norm.running_var + norm.eps).sqrt() / spread)
    frozen = one.training | {"options": one.options | {"backbone-norm": "frozen"}}
    checkpoints.save(tmp_path / "frozen.pt", dataclasses.replace(one, weights=model.state_dict(), training=frozen))
    average([tmp_path / "frozen.pt", runs[0]], data, tmp_path / "mean.pt", QUIET)

    x = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        expected, same, mean = (
            network.fpn(network.backbone(network.normalize(x)))
            for network in (one.model(), model, checkpoints.load(tmp_path / "mean.pt").model())
        )
    for of_one, of_same, of_mean in zip(expected, same, mean, strict=True):
        size = float(of_one.abs().max())
        assert torch.allclose(of_same, of_one, atol=1e-3 * size), "the test's own arithmetic"
        assert torch.allclose(of_mean, of_one, atol=0.05 * size)


def test_without_val_the_last_runs_held_out_pictures_are_scored_on(runs: list[Path], tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "data", train=12)
    (folder / "val.json").unlink()
    average(runs[:1], folder, tmp_path / "mean.pt", QUIET)
    _, held = hold_out(read_checked(folder / "train.json", folder / "train")[0], 0.1)
    mean = checkpoints.load(tmp_path / "mean.pt")
    runner = torch_runner(mean.model(), torch.device("cpu"))
    assert evaluate(runner, mean.metadata("mean"), held, folder / "train", QUIET).metrics == mean.metrics
