"""What learns, one iteration at a time; and the averaged weights."""

import math
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import nn

from model import checkpoint as checkpoints
from model.config import Objective, Quality, Rule
from model.data import Annotations, Batch, Draw, Plans, TrainingPictures, collate, read_checked
from model.fcos import FCOS
from model.layout import NO_AUGMENTATION
from model.learner import Learner
from model.run import evaluate_on_val
from model.stopping import Stop
from model.training import train
from tests.toy import ALONE, QUIET, Data, learner_of, network, noise_with_boxes, settings, write_coco

pytestmark = pytest.mark.usefixtures("one_thread")


def test_four_pictures_are_learnt_by_heart(tmp_path: Path) -> None:
    data = write_coco(tmp_path, 4)
    document, _ = read_checked(*data)
    options = settings(data, tmp_path, lr=0.02, ema_decay=0.9)
    torch.manual_seed(0)
    model = network(options)
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


@pytest.mark.parametrize("quality", get_args(Quality))
@pytest.mark.parametrize("assignment", get_args(Rule))
def test_batches_without_a_single_box_train(data: Data, tmp_path: Path, quality: Any, assignment: Any) -> None:
    options = settings(data, tmp_path, quality=quality, assignment=assignment)
    learner = learner_of(options, 2)
    before = {key: value.clone() for key, value in learner.model.named_parameters()}
    images = torch.randint(256, (2, 3, 96, 96), dtype=torch.uint8)
    batch = Batch(images, [torch.zeros(0, 4)] * 2, [torch.zeros(0, dtype=torch.long)] * 2, [0, 1])
    for iteration in range(2):
        values = learner.step([batch], iteration)
        assert all(map(math.isfinite, values.values())) and values["box_loss"] == 0
    after = dict(learner.model.named_parameters())
    assert not after["head.class_logits.bias"].equal(before["head.class_logits.bias"])


def test_the_losses_are_those_of_the_objective_in_the_settings(data: Data, tmp_path: Path) -> None:
    options = settings(data, tmp_path, quality="iou", assignment="atss", amp="off")
    learner = learner_of(options)
    batch = noise_with_boxes()
    objective = Objective(quality="iou", assignment="atss")
    expected = learner.model.losses(batch.images, batch.boxes, batch.labels, objective)
    found = learner.backward([batch])
    assert found == pytest.approx({key: value.item() for key, value in expected.items()}, rel=1e-4)


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_half_precision_learns_much_the_same(data: Data, tmp_path: Path, amp: Any) -> None:
    losses = {}
    for precision in ("off", amp):
        options = settings(data, tmp_path, amp=precision)
        torch.manual_seed(0)
        learner = learner_of(options, 3)
        torch.manual_seed(0)
        batch = noise_with_boxes()
        losses[precision] = [learner.step([batch], iteration)["class_loss"] for iteration in range(3)]
    assert losses[amp] == pytest.approx(losses["off"], rel=0.05)


@pytest.mark.filterwarnings("ignore:Guards may run slower on Python 3.13.0")
def test_every_shape_that_a_run_has_is_compiled(data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = settings(data, tmp_path, compile=True, size=128, zooms=(0.5,))
    model = network(options)
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


def test_what_is_drawn_inside_the_network_depends_on_the_runs_seed_and_the_iteration_alone(
    data: Data, tmp_path: Path
) -> None:
    batch = noise_with_boxes()

    def losses(before: int, iteration: int, seed: int = 0) -> dict[str, float]:
        options = settings(data, tmp_path, seed=seed)
        torch.manual_seed(0)
        model = network(options)
        model.fpn.register_forward_pre_hook(
            lambda _, inputs: ([nn.functional.dropout(level, 0.5) for level in inputs[0]], *inputs[1:])
        )
        learner = Learner(model, options, ALONE, 10)
        torch.manual_seed(before)
        return learner.step([batch], iteration)

    assert losses(1, iteration=3) == losses(2, iteration=3)
    assert losses(1, iteration=3) != losses(1, iteration=4)
    assert losses(1, iteration=3) != losses(1, iteration=3, seed=1)


def test_a_gradient_is_clipped(data: Data, tmp_path: Path) -> None:
    options = settings(data, tmp_path, optimizer="sgd", lr=1.0, clip_norm=1e-3, weight_decay=0.0, warmup_iterations=0)
    learner = learner_of(options)
    before = [parameter.detach().clone() for parameter in learner.model.parameters()]
    learner.step([noise_with_boxes()], 0)
    moved = [new.detach() - old for new, old in zip(learner.model.parameters(), before, strict=True)]
    length = torch.cat([part.flatten() for part in moved]).norm().item()
    assert 0 < length <= 1.01e-3 * options.base_lr


@pytest.mark.parametrize("clip_norm", [0.0, 10.0])
def test_a_gradient_that_is_not_finite_leaves_the_weights(data: Data, tmp_path: Path, clip_norm: float) -> None:
    options = settings(data, tmp_path, clip_norm=clip_norm)
    learner = learner_of(options)
    learner.model.head.class_logits.bias.register_hook(lambda gradient: gradient * math.inf)
    before = [parameter.detach().clone() for parameter in learner.model.parameters()]
    with pytest.raises(FloatingPointError, match="gradient"):
        learner.step([noise_with_boxes()], 0)
    assert all(new.equal(old) for new, old in zip(learner.model.parameters(), before, strict=True))


def test_the_scale_of_a_half_precision_loss_is_resumed(data: Data, tmp_path: Path) -> None:
    options = settings(data, tmp_path, amp="fp16")
    one, other = (learner_of(options) for _ in range(2))
    one.scaler.scale(torch.ones(()))  # sets it up
    one.scaler.update(1024.0)
    other.restore(one.state(), one.averaged_weights())
    assert other.scaler.get_scale() == 1024


def test_the_averaged_weights_are_those_of_about_the_last_tenth(data: Data, tmp_path: Path) -> None:
    """The window of the average, in iterations, grows with the run."""
    options = settings(data, tmp_path)
    learner = learner_of(options, 10_000)
    for iterations in (1_000, 10_000):
        window = 1 / (1 - learner.ema.get_decay(iterations))
        assert window == pytest.approx(iterations**0.75) and 0.05 < window / iterations < 0.25


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
