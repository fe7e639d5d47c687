"""What a detector is: its network and the pictures it takes, of which every checkpoint holds both; and what it learns.

Needs no torch: a command line is read before that is imported, which takes seconds.
"""

import dataclasses
from typing import Any, Literal, Self
from unicodedata import normalize

from pydantic import TypeAdapter, ValidationError

from app.artifact import CANVAS_MULTIPLE, LONGEST_CANVAS, LONGEST_NAME, Name

STRIDES = (8, 16, 32, 64, 128)  # P3..P7
IMAGENET_MEAN, IMAGENET_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
SCORE_THRESHOLD, IOU_THRESHOLD = 0.3, 0.6
"""The service's defaults unless others are given: for scores, and for non-maximum suppression as in the paper."""

Rule = Literal["fcos", "atss"]
Quality = Literal["centerness", "iou"]
_NAME: TypeAdapter[str] = TypeAdapter(Name)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Config:
    def to_dict(self) -> dict[str, Any]:
        """Plain lists, numbers and strings: loads with `weights_only=True` and dumps as JSON."""
        return {f.name: _plain(getattr(self, f.name)) for f in dataclasses.fields(self)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Raises `ValueError` for a key that this version does not know."""
        unknown = sorted(set(values) - {f.name for f in dataclasses.fields(cls)})
        if unknown:
            raise ValueError(f"{cls.__name__} does not know {', '.join(unknown)}: written by a newer version?")
        return cls(**{key: _frozen(value) for key, value in values.items()})


@dataclasses.dataclass(frozen=True, kw_only=True)
class InputConfig(_Config):
    """How a picture becomes the network's input.

    The picture is resized by `min(short / shorter side, long / longer side)` and laid at the top-left of the smallest
    canvas that holds it; the rest of the canvas is the mean pixel.
    """

    short: int = 416
    long: int = 416
    canvases: tuple[tuple[int, int], ...] = ((320, 416), (416, 320), (416, 416))
    """(height, width) each, multiples of 32."""
    mean: tuple[float, float, float] = (127.0, 127.0, 127.0)
    """RGB, 0..255."""
    std: tuple[float, float, float] = (128.0, 128.0, 128.0)

    def __post_init__(self) -> None:
        for height, width in self.canvases:
            for side in (height, width):
                if side % CANVAS_MULTIPLE or not CANVAS_MULTIPLE <= side <= LONGEST_CANVAS:
                    raise ValueError(
                        f"a canvas side must be a multiple of {CANVAS_MULTIPLE} from {CANVAS_MULTIPLE} to "
                        f"{LONGEST_CANVAS}, but got {height}x{width}"
                    )
        if not self.canvases:
            raise ValueError("at least one canvas is needed, such as 416x416")


@dataclasses.dataclass(frozen=True, kw_only=True)
class FCOSConfig(_Config):
    """The network. The defaults are sized for a CPU; the paper's are in `paper()`."""

    classes: tuple[str, ...]
    """Class names; a class's id is its position."""
    backbone: str = "tf_efficientnet_lite0"
    """Any timm model with `features_only` levels at strides 8, 16 and 32."""
    channels: int = 96
    """Of the pyramid and the head."""
    head_convs: int = 2
    """Convolutions in each of the two towers."""
    head_conv: Literal["full", "separable"] = "separable"
    """`separable`: depthwise, then pointwise."""
    head_kernel: int = 5
    norm: Literal["gn", "bn"] = "gn"
    """`bn` keeps statistics per level (the convolutions stay shared)."""
    norm_groups: int = 32
    point_offset: float = 0.5
    """A point lies at `(index + point_offset) * step`: 0.5 in the paper, 0 in torchvision."""
    point_step: Literal["stride", "canvas"] = "stride"
    """`canvas`: `canvas side // grid side`, torchvision's rule."""

    def __post_init__(self) -> None:
        if not self.classes or len(set(self.classes)) != len(self.classes):
            raise ValueError(f"class names must be unique, and at least one is needed, but got {list(self.classes)}")
        if self.norm == "gn" and self.channels % self.norm_groups:
            raise ValueError(
                f"channels must be a multiple of norm_groups ({self.norm_groups}), but got {self.channels}: "
                f"choose {self.channels // self.norm_groups * self.norm_groups or self.norm_groups}, or norm 'bn'"
            )
        if self.head_kernel < 1 or self.head_kernel % 2 == 0:
            raise ValueError(f"head_kernel must be odd and at least 1, but got {self.head_kernel}")

    @classmethod
    def paper(cls, classes: tuple[str, ...]) -> Self:
        """FCOS-R50 as published (arXiv:1904.01355): 256 channels, four full 3x3 convolutions, GroupNorm(32)."""
        return cls(classes=classes, backbone="resnet50", channels=256, head_convs=4, head_conv="full", head_kernel=3)

    @classmethod
    def torchvision(cls, classes: tuple[str, ...]) -> Self:
        """torchvision's `fcos_resnet50_fpn`: the paper's network, with the points where torchvision puts them."""
        return dataclasses.replace(cls.paper(classes), point_offset=0.0, point_step="canvas")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective:
    """What is learnt; the network and its outputs stay the same."""

    quality: Quality = "centerness"
    """What the centerness output predicts: how central a point is, or how good its box."""
    assignment: Rule = "fcos"
    """Which points learn a box."""


DEFAULT_OBJECTIVE = Objective()


def service_name(value: Any) -> str | None:
    """A model's or a class's name as the service will show it, without space around it and with accents composed into
    their letters; None if the service refuses it."""
    try:
        return normalize("NFC", _NAME.validate_python(value, strict=True))
    except ValidationError:
        return None


def require_name(name: str) -> None:
    """Raises: ValueError: the service does not accept --name."""
    if service_name(name) is None:
        raise ValueError(f"--name must have 1 to {LONGEST_NAME} characters, not only spaces, but got {name!r}")


def _plain(value: Any) -> Any:
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def _frozen(value: Any) -> Any:
    return tuple(_frozen(item) for item in value) if isinstance(value, list) else value
