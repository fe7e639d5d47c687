"""model/amp.py: what a forward pass is computed in while it learns."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.layers.blur_pool import BlurPool2d
from torch import Tensor, nn

from model.amp import mixed_precision, precision_of
from model.settings import Amp

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def test_a_gpu_that_only_emulates_half_precision_is_left_in_full(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert precision_of("auto", CUDA) is None


@pytest.mark.parametrize(
    ("able", "expected"),
    [({"avx512_bf16": True}, torch.bfloat16), ({"amx_bf16": True}, torch.bfloat16), ({"avx512_f": True}, None)],
    ids=["avx512_bf16", "amx", "avx512"],
)
def test_a_cpu_learns_in_bf16_where_it_has_it(
    monkeypatch: pytest.MonkeyPatch, able: dict[str, bool], expected: Any
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able)
    assert precision_of("auto", CPU) == expected


@pytest.mark.parametrize(("amp", "expected"), [("bf16", torch.bfloat16), ("fp16", torch.float16), ("off", None)])
def test_what_is_asked_for_is_taken(monkeypatch: pytest.MonkeyPatch, amp: Amp, expected: Any) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    assert precision_of(amp, CPU) == expected


def gradients(conv: nn.Conv2d, x: Tensor, precision: torch.dtype | None) -> tuple[Tensor, Tensor, Tensor]:
    """Returns: The output, and the gradients of the input and of the weights where the output's sum is the loss."""
    x, conv.weight.grad = x.clone().requires_grad_(), None
    with mixed_precision(CPU, precision):
        out = conv(x)
    out.float().sum().backward()
    assert x.grad is not None and conv.weight.grad is not None
    return out.detach(), x.grad, conv.weight.grad


def test_on_a_cpu_gradients_of_grouped_convolutions_are_those_of_float32() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 8, 16, 16)
    for groups, exact in ((1, False), (2, True), (8, True)):
        conv = nn.Conv2d(8, 8, 5, padding=2, groups=groups)
        full, half = gradients(conv, x, None), gradients(conv, x, torch.bfloat16)
        assert half[0].dtype == torch.bfloat16  # what comes after it is as fast as ever
        for expected, found in zip(full[1:], half[1:], strict=True):
            assert torch.allclose(found, expected, rtol=0.02, atol=0.2)
            # A sum's gradient is 1 everywhere, in bf16 too: in float32 nothing at all is lost.
            assert torch.allclose(found, expected, rtol=1e-6, atol=1e-5) == exact, groups


@pytest.mark.parametrize("size", [(1, 1), (1, 6), (6, 1), (2, 2)])
def test_on_a_cpu_a_kernel_larger_than_the_map_has_the_gradient_of_float32(size: tuple[int, int]) -> None:
    """What only ever met padding learns nothing; oneDNN gives it what the memory held before."""
    torch.manual_seed(0)
    conv = nn.Conv2d(64, 64, 3, padding=1, stride=2)
    x = torch.randn(4, 64, *size)
    full = gradients(conv, x, None)
    for _ in range(5):
        memory = torch.full((conv.weight.numel(),), 1e30, dtype=torch.bfloat16)
        del memory
        half = gradients(conv, x, torch.bfloat16)
        for expected, found in zip(full[1:], half[1:], strict=True):
            assert torch.allclose(found, expected, rtol=1e-6, atol=1e-5)


def test_grouped_convolutions_that_do_not_learn_are_as_fast_as_the_others() -> None:
    conv = nn.Conv2d(8, 8, 3, padding=1, groups=8).requires_grad_(False)
    dtypes = []
    conv.register_forward_hook(lambda module, given, out: dtypes.append(out.dtype))
    x = torch.randn(1, 8, 8, 8)
    with mixed_precision(CPU, torch.bfloat16):
        frozen = conv(x)
        with torch.no_grad():
            unasked = conv.requires_grad_(True)(x)
    with torch.autocast("cpu", torch.bfloat16):
        expected = conv(x)
    assert dtypes == [torch.bfloat16] * 3
    assert frozen.equal(expected) and unasked.equal(expected)


@pytest.mark.parametrize("precision", [None, torch.bfloat16])
def test_a_pointwise_convolution_at_a_stride_is_the_same_on_the_pixels_it_takes(precision: Any) -> None:
    torch.manual_seed(0)
    conv, x = nn.Conv2d(3, 48, 1, stride=2), torch.randn(8, 3, 97, 128)
    with torch.autocast("cpu", precision, enabled=precision is not None):
        expected = conv(x)
    found = gradients(conv, x.contiguous(memory_format=torch.channels_last), precision)
    assert torch.allclose(found[0].float(), expected.float(), atol=1e-2 if precision else 1e-6)
    _, of_input, _ = gradients(nn.Conv2d(3, 48, 1, stride=2).requires_grad_(), x, precision)
    assert of_input[..., 1::2, :].eq(0).all() and of_input[..., 1::2].eq(0).all(), "pixels that are passed over"


def test_a_pointwise_convolution_at_a_stride_may_be_padded() -> None:
    conv, x = nn.Conv2d(3, 48, 1, stride=2, padding=1), torch.randn(2, 3, 9, 8)
    assert torch.allclose(gradients(conv, x, None)[0], conv(x), atol=1e-6)


@pytest.mark.parametrize("precision", [None, torch.bfloat16])
def test_layers_that_give_parameters_by_name_are_computed_too(precision: Any) -> None:
    pool, x = BlurPool2d(8), torch.randn(2, 8, 16, 16, requires_grad=True)
    with mixed_precision(CPU, precision):
        found = pool(x)
    assert torch.allclose(found.float(), pool(x), atol=2e-2 if precision else 1e-6)


def test_a_pointwise_convolution_at_a_stride_leaves_the_memory_whole() -> None:
    """In a process of its own: without its detour oneDNN's gradient ends it (torch 2.15)."""
    script = """
import torch
from model.amp import mixed_precision
conv = torch.nn.Conv2d(3, 48, 1, stride=2, bias=False).to(memory_format=torch.channels_last)
for _ in range(10):
    x = torch.randn(8, 3, 96, 128).contiguous(memory_format=torch.channels_last).requires_grad_()
    with mixed_precision(torch.device("cpu"), None):
        y = conv(x)
    beside = [torch.randn(97 + j * 13) for j in range(50)]
    y.square().sum().backward()
    del beside
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=Path(__file__).parents[1], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
