"""Mixed precision: the data type that training computes in, and where autocast's own choice is too slow."""

import contextlib
from collections.abc import Generator
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from model.settings import Amp


def precision_of(amp: Amp, device: torch.device) -> torch.dtype | None:
    """The data type of convolutions; None for float32. `auto` takes bf16 if the device has it natively."""
    if amp == "auto":
        return torch.bfloat16 if _has_bf16(device) else None
    return {"bf16": torch.bfloat16, "fp16": torch.float16, "off": None}[amp]


@contextlib.contextmanager
def mixed_precision(device: torch.device, precision: torch.dtype | None) -> Generator[None]:
    """A forward pass in `precision`; a gradient through it may be taken outside."""
    with torch.autocast(device.type, precision, enabled=precision is not None):
        if device.type != "cpu":
            yield
            return
        with _SafeConvolutions():
            yield


class _SafeConvolutions(TorchFunctionMode):
    """Keeps a CPU's convolutions away from what oneDNN does badly in their gradients (torch 2.15).

    1 x 1 at a stride, channels last, with few input channels: the gradient is written beyond its memory, which ends the
    process, or changes other tensors (3 to 48 channels at stride 2, as in FastViT and RepVGG). Such a convolution gets
    only the pixels that it takes: the result is the same.

    In bf16, grouped ones: 4 to 60 times slower than in float32 (an EPYC with AVX512-BF16; 720 channels 5 x 5, gradient
    of the weights: 92 ms against 24; 288 channels 3 x 3 at stride 2, gradient of the input: 188 ms against 3). With
    them, an iteration took longer in bf16 than in float32; without them, two thirds of the time.

    In bf16, those on maps smaller than the kernel: the part of a kernel that only ever met padding gets whatever the
    memory held before as its gradient, up to NaN (3 x 3 at stride 2 on a map 1 wide, such as P7 of a canvas of 64).
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not torch.conv2d or not torch.is_grad_enabled():
            return func(*args, **(kwargs or {}))
        return _safe_conv2d(*args, **(kwargs or {}))


def _safe_conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | tuple[int, int] = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    """`torch.conv2d`, with its parameters: timm's layers give them by position or by name."""
    step_y, step_x = (stride, stride) if isinstance(stride, int) else stride
    if weight.shape[2:] == (1, 1) and (step_y, step_x) != (1, 1) and padding in (0, (0, 0)):
        input, stride = input[..., ::step_y, ::step_x], 1
    grouped = weight.shape[1] < input.shape[1]
    small = input.shape[2] < weight.shape[2] or input.shape[3] < weight.shape[3]
    learns = input.requires_grad or weight.requires_grad
    if not torch.is_autocast_enabled("cpu") or not (grouped or small) or not learns:
        return torch.conv2d(input, weight, bias, stride, padding, dilation, groups)
    precision = torch.get_autocast_dtype("cpu")
    with torch.autocast("cpu", enabled=False):
        return torch.conv2d(input.float(), weight.float(), bias, stride, padding, dilation, groups).to(precision)


def _has_bf16(device: torch.device) -> bool:
    """Whether the device computes in bf16 natively: emulated, as before Ampere or AVX512-BF16, it gains nothing."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    able = torch.cpu.get_capabilities()
    return bool(able.get("avx512_bf16") or able.get("amx_bf16"))
