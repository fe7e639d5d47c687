"""What a training run can be told, and what follows from it. Needs no torch, as `model/config.py`."""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import tyro

from app.artifact import LONGEST_CANVAS
from model.config import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    IOU_THRESHOLD,
    FCOSConfig,
    InputConfig,
    Objective,
    Quality,
    Rule,
    require_name,
)
from model.layout import Augmentation

if TYPE_CHECKING:
    from model.checkpoint import Checkpoint

NOMINAL_BATCH = 16
HELD_OUT = 0.1
"""Share of the training pictures to evaluate on, if there are no others."""

Freeze = Literal["none", "c2", "c3", "all"]
Amp = Literal["auto", "bf16", "fp16", "off"]

PATHS = ("train_annotations", "train_images", "output")
"""Options without a default."""
NOT_OF_THE_RESULT = (
    *PATHS, "val_annotations", "val_images", "resume", "from_", "name", "iou_threshold", "workers", "compile", "device",
    "evaluate_every", "save_every",
)  # fmt: skip
"""Options that a resumed run may change: what is learnt does not depend on them (the data themselves are compared)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Train FCOS on your own pictures. Options of the network and of what it learns, if not given, come from --from or
    have the default named."""

    train_annotations: Path
    """COCO json, a folder of Pascal VOC xml, or a folder of YOLO txt."""
    train_images: Path
    """Folder that the annotations' file names are relative to."""
    output: Path
    """The run's folder."""
    val_annotations: Path | None = None
    """Annotations to evaluate on, in any of these formats. Without them, some training pictures are held out."""
    val_images: Path | None = None
    """Folder of their pictures."""
    val_fraction: float = HELD_OUT
    """Share of the training pictures that is held out if there is no val."""
    resume: bool = False
    """Resume the run in --output where it stopped."""
    from_: Annotated[Path | None, tyro.conf.arg(name="from")] = None
    """Start from these weights; classes may differ. A .pt of this project, or torchvision's fcos_resnet50_fpn .pth."""
    bad_data: Literal["stop", "skip"] = "stop"
    """On problems in the data: stop and list them, or leave out what is wrong."""

    backbone: str | None = None
    """Any timm model with features at strides 8, 16 and 32; tf_efficientnet_lite0 by default."""
    weights: str = "auto"
    """Weights of the backbone: auto (ImageNet's), none, or a file. Not used with --from."""
    channels: int | None = None
    """Channels of the pyramid and the head; 96 by default."""
    head_convs: int | None = None
    """Convolutions in each of the two towers; 2 by default."""
    head_conv: Literal["full", "separable"] | None = None
    """Kind of the towers' convolutions; separable by default."""
    head_kernel: int | None = None
    """Kernel size of the towers' convolutions; 5 by default."""
    norm: Literal["gn", "bn"] | None = None
    """Norm of the head; gn by default."""
    size: int | None = None
    """Longest side of a picture in pixels, a multiple of 32; canvases are 4:3, 3:4 and square. 416 by default."""

    quality: Quality | None = None
    """What the centerness output learns; by default as in --from, else centerness."""
    assignment: Rule | None = None
    """Which points learn a box; by default as in --from, else fcos."""

    epochs: int = 24
    """Epochs to train for."""
    # AP from 60 pictures at 128 px, with each picture once per epoch, and with 20 iterations. From ImageNet: horses and
    # buses 0.090, 0.144; pasted dials and flags 0.156, 0.250. From the shipped model: 0.324, 0.312, on photographs that
    # it had seen; and 0.112, 0.235 (with 12). Batches of 4 instead of more iterations gained nothing.
    epoch_iterations: int = 20
    """Minimum per epoch: a small set is repeated to reach it. 0: each picture once, however few."""
    batch_size: int = 16
    """Pictures per iteration, over all processes."""
    accumulate: int = 1
    """Parts that a batch goes in, to save memory: the same gradient, but BatchNorm's statistics are each part's own."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """sgd has a momentum of 0.9."""
    lr: float | None = None
    """Learning rate at a batch of 16; it is scaled with the batch. By default 0.001 for adamw, 0.01 for sgd."""
    backbone_lr_factor: float = 0.2
    """The backbone's learning rate, relative to that of the rest."""
    weight_decay: float | None = None
    """Not applied to norms and biases. By default 0.05 for adamw, 0.0001 for sgd."""
    schedule: Literal["cosine", "steps"] = "cosine"
    """Of the learning rate, after the warm-up."""
    warmup_iterations: int = 300
    """Length of the linear warm-up, at most a tenth of the run."""
    final_lr_factor: float = 0.01
    """Where the cosine ends, relative to the learning rate."""
    lr_steps: tuple[float, ...] = (0.67, 0.89)
    """Where `steps` divides the learning rate by 10, as fractions of the run."""
    clip_norm: float = 10.0
    """Largest norm of the gradient; 0: no clipping."""
    freeze: Freeze = "none"
    """Frozen part of the backbone: nothing, the layers up to C2 (stride 4), those up to C3 (stride 8), or all."""
    backbone_norm: Literal["frozen", "trained"] = "trained"
    """Statistics of the backbone's BatchNorm."""
    ema_decay: float = 0.9998
    """Decay of the averaged weights, which are evaluated and saved. After t iterations it is 1 - t^-0.75, at most this
    value, which takes about 85,500 iterations to reach. 0: no averaging."""

    augmentation: Augmentation = dataclasses.field(default_factory=Augmentation)
    plain_epochs: int = 2
    """The last epochs, whose only augmentation is the flip and whose canvases are the served ones."""
    zooms: tuple[float, ...] = (1.0,)
    """Multi-scale training: canvas sizes relative to the served ones; every batch draws one of them."""
    repeat_thin: float = 0.0
    """Classes found in a smaller share of the pictures than this, such as 0.05, are drawn more often."""

    evaluate_every: int = 1
    """Epochs between evaluations on val; the last epoch is always evaluated."""
    save_every: int = 500
    """Iterations between saves within an epoch. An evaluation and a signal to stop save anyway, and so does an epoch's
    end if the last save is more than 30 seconds ago."""
    seed: int = 0
    """Seed of all random choices: new weights, the order of pictures, augmentation."""
    workers: int = 4
    """Processes that prepare pictures, for each process that trains; at most one per core."""
    loader: Literal["files", "resident"] = "files"
    """files: workers decode and augment pictures one by one. resident: all are decoded once into the device's memory
    and augmented there in batches; every process holds all of them."""
    compile: bool = False
    """Compile the network: takes minutes at the start, for faster iterations."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 ..."""
    amp: Amp = "auto"
    """Mixed precision. auto: bf16 on a GPU or a CPU that has it, else off."""
    name: str | None = None
    """Name of the model, as the service will show it; by default that of the exported file."""
    iou_threshold: float | None = None
    """IoU threshold of non-maximum suppression, the service's default; by default that of --from, else 0.6. Lower it
    if one object gets several boxes."""

    def __post_init__(self) -> None:
        if self.size is not None and (self.size % 32 or not 64 <= self.size <= LONGEST_CANVAS):
            raise ValueError(
                f"--size must be a multiple of 32, at least 64 and at most {LONGEST_CANVAS}, but got {self.size}"
            )
        for key in ("epochs", "batch_size", "accumulate", "evaluate_every", "save_every", "head_convs", "channels"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise ValueError(f"--{_option(key)} must be at least 1, but got {value}")
        for key in (
            "workers", "epoch_iterations", "plain_epochs", "warmup_iterations", "clip_norm", "repeat_thin",
            "weight_decay", "lr", "backbone_lr_factor", "final_lr_factor",
        ):  # fmt: skip
            value = getattr(self, key)
            if value is not None and not 0 <= value < math.inf:
                raise ValueError(f"--{_option(key)} must be finite and not negative, but got {value}")
        if (self.val_annotations is None) != (self.val_images is None):
            raise ValueError(
                "--val-annotations and --val-images go together: give both, or neither to hold out training pictures"
            )
        if not 0 < self.val_fraction < 1:
            raise ValueError(f"--val-fraction must be above 0 and under 1, such as 0.1, but got {self.val_fraction}")
        if not 0 <= self.seed < 2**31:
            raise ValueError(f"--seed must be between 0 and {2**31 - 1}, but got {self.seed}")
        if self.name is not None:
            require_name(self.name)
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"--ema-decay must be at least 0 and under 1, such as 0.9998, but got {self.ema_decay}")
        if self.iou_threshold is not None and not 0 <= self.iou_threshold <= 1:
            raise ValueError(f"--iou-threshold must be between 0 and 1, but got {self.iou_threshold}")
        if not self.zooms or not all(0.25 <= zoom <= 4 for zoom in self.zooms):
            raise ValueError(f"--zooms must be factors between 0.25 and 4, such as 0.75 1 1.25, but got {self.zooms}")
        if not all(0 < step < 1 for step in self.lr_steps):
            raise ValueError(f"--lr-steps must be between 0 and 1, such as 0.67 0.89, but got {self.lr_steps}")
        if self.batch_size % self.accumulate:
            raise ValueError(
                f"--batch-size {self.batch_size} cannot be divided into --accumulate {self.accumulate} parts"
            )

    @property
    def scored_images(self) -> Path:
        """The folder of the pictures to evaluate on."""
        return self.val_images or self.train_images

    @property
    def base_lr(self) -> float:
        """The head's learning rate for this batch size, before the schedule."""
        nominal = self.lr if self.lr is not None else {"adamw": 1e-3, "sgd": 1e-2}[self.optimizer]
        return nominal * self.batch_size / NOMINAL_BATCH

    @property
    def decay(self) -> float:
        """The weight decay."""
        return self.weight_decay if self.weight_decay is not None else {"adamw": 0.05, "sgd": 1e-4}[self.optimizer]

    def network(self, classes: tuple[str, ...], start: "Checkpoint | None") -> tuple[FCOSConfig, InputConfig]:
        """The network and its input: what is given, else what `start` has, else the defaults.

        Raises:
            ValueError: they do not fit together.
        """
        given = self._given(FCOSConfig)
        if start is None:
            config = FCOSConfig(classes=classes, **given)
            return config, _input(self.size or InputConfig().long, config.backbone)
        config = dataclasses.replace(start.config, classes=classes, **given)
        if self.size is None:
            return config, start.input_config
        old = start.input_config
        return config, dataclasses.replace(_input(self.size, config.backbone), mean=old.mean, std=old.std)

    @property
    def objective(self) -> Objective:
        """What is learnt; as in the paper if not given."""
        return Objective(**self._given(Objective))

    def settled(self, begun: "Checkpoint | None") -> Self:
        """A copy with what is learnt and the IoU threshold filled in, if not given: from the run that is resumed or
        whose weights this one starts from; without either, from the paper."""
        options, iou_threshold = (begun.options, begun.iou_threshold) if begun else ({}, IOU_THRESHOLD)
        learnt = {key: options.get(_option(key), value) for key, value in dataclasses.asdict(Objective()).items()}
        learnt |= self._given(Objective)
        return dataclasses.replace(
            self, **learnt, iou_threshold=iou_threshold if self.iou_threshold is None else self.iou_threshold
        )

    def _given(self, config: type[FCOSConfig | Objective]) -> dict[str, Any]:
        """The options that are called as fields of the config, as far as they are given."""
        values = {field.name: getattr(self, field.name, None) for field in dataclasses.fields(config)}
        return {key: value for key, value in values.items() if value is not None}

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, by the names of the options."""
        return {_option(key): _plain(value) for key, value in dataclasses.asdict(self).items()}

    def of_the_result(self) -> dict[str, Any]:
        """The options that the result depends on."""
        left_out = {_option(key) for key in NOT_OF_THE_RESULT}
        return {key: value for key, value in self.to_dict().items() if key not in left_out}


def _input(size: int, backbone: str) -> InputConfig:
    """Canvases for a longest side: 4:3 both ways, and square. Normalisation as the backbone's own weights have it."""
    short = math.ceil(size * 3 / 4 / 32) * 32
    canvases = tuple(dict.fromkeys(((short, size), (size, short), (size, size))))  # for a small size they are one
    config = InputConfig(short=size, long=size, canvases=canvases)
    if backbone.startswith("tf_efficientnet_lite"):  # 127 and 128, where timm rounds to 127.5
        return config
    import timm  # takes a second, and needs torch

    known = timm.get_pretrained_cfg(backbone)
    mean, std = (IMAGENET_MEAN, IMAGENET_STD) if known is None else (_bytes(known.mean), _bytes(known.std))
    return dataclasses.replace(config, mean=mean, std=std)


def _bytes(shares: Sequence[float]) -> tuple[float, float, float]:
    """RGB shares of 255, without the digits that floats add to it."""
    red, green, blue = (round(255 * share, 3) for share in shares)
    return red, green, blue


def _option(key: str) -> str:
    return key.rstrip("_").replace("_", "-")


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {_option(key): _plain(part) for key, part in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(part) for part in value]
    return str(value) if isinstance(value, Path) else value
