"""What is trained, and how fast: frozen layers, parameter groups, the learning rate."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from model.optim import freeze, lr_factor, make_optimizer
from tests.toy import Data, learner_of, network, noise_with_boxes, settings

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("level", ["c2", "c3"])
def test_frozen_layers_do_not_move(data: Data, tmp_path: Path, level: Any) -> None:
    options = settings(data, tmp_path, freeze=level, backbone_norm="frozen")
    learner = learner_of(options)
    before = {key: value.clone() for key, value in learner.model.state_dict().items()}
    batch = noise_with_boxes()
    learner.step([batch], 0)
    moved = {key for key, value in learner.model.state_dict().items() if not value.equal(before[key])}
    frozen = {key for key, value in learner.model.named_parameters() if not value.requires_grad}
    assert frozen and not moved & frozen
    c3, c4, _ = learner.model.backbone(batch.images.float())
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
    model = network(options)
    freeze(model, options)
    learning = {name: parameter.requires_grad for name, parameter in model.backbone.body.named_parameters()}
    assert not next(iter(learning.values()))
    assert not any(learns for name, learns in learning.items() if name.startswith(last))
    assert all(learns for name, learns in learning.items() if name.startswith(next_))
    assert list(learning.values()) == sorted(learning.values())  # no learning layer below a frozen one


def test_statistics_of_frozen_layers_do_not_move_and_all_others_do(data: Data, tmp_path: Path) -> None:
    options = settings(data, tmp_path, freeze="c3", backbone_norm="trained")
    learner = learner_of(options)
    norms = {key: part for key, part in learner.model.named_modules() if isinstance(part, nn.BatchNorm2d)}
    before = {key: norm.running_mean.clone() for key, norm in norms.items()}
    learner.step([noise_with_boxes()], 0)
    still = {key for key, norm in norms.items() if norm.running_mean.equal(before[key])}
    frozen = {key for key, norm in norms.items() if not norm.weight.requires_grad}
    assert still == frozen and 0 < len(frozen) < len(norms)


@pytest.mark.parametrize("level", ["none", "c3", "all"])
def test_all_that_learns_has_a_gradient(data: Data, tmp_path: Path, level: Any) -> None:
    """Several processes wait for each of them; HRNet has features, and their parameters, that are not asked for."""
    options = settings(data, tmp_path, freeze=level, backbone="hrnet_w18_small", amp="off")
    learner = learner_of(options)
    learner.backward([noise_with_boxes()])
    lacking = [key for key, p in learner.model.named_parameters() if p.requires_grad and p.grad is None]
    learning = [p.requires_grad for p in learner.model.backbone.parameters()]
    assert not lacking
    assert any(learning) == (level != "all")


def test_weight_decay_spares_norms_and_biases_and_the_backbone_is_slower(data: Data, tmp_path: Path) -> None:
    options = settings(data, tmp_path, lr=0.01, batch_size=32)
    model = network(options)
    group_of = {id(p): group for group in make_optimizer(model, options).param_groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        group = group_of[id(parameter)]
        assert (group["weight_decay"] > 0) == (parameter.ndim > 1)
        assert group["lr_factor"] == (0.2 if name.startswith("backbone.") else 1.0)
    assert options.base_lr == pytest.approx(0.02)  # scaled from the nominal 16


def test_sgd_goes_on_with_nine_tenths_of_its_last_step(data: Data, tmp_path: Path) -> None:
    options = settings(data, tmp_path, optimizer="sgd")
    model = network(options)
    optimizer, bias = make_optimizer(model, options), model.head.centerness.bias
    assert bias is not None
    bias.grad = torch.ones_like(bias)
    for steps in (1, 1 + 1.9, 1 + 1.9 + 2.71):
        optimizer.step()
        assert bias.item() == pytest.approx(-steps * options.base_lr)


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
