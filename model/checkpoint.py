"""Checkpoints: everything needed to rebuild a detector, in one file of plain tensors (never a pickle of code)."""

import dataclasses
import hashlib
import io
import json
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from app.artifact import Defaults, Metadata, Points, Resize, Size
from model.config import IOU_THRESHOLD, SCORE_THRESHOLD, STRIDES, FCOSConfig, InputConfig
from model.fcos import FCOS
from model.files import write_bytes

FORMAT_VERSION = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A trained detector and where it comes from."""

    config: FCOSConfig
    input_config: InputConfig
    weights: dict[str, Tensor]
    training: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Data, schedule, versions: plain JSON values."""
    metrics: dict[str, float] = dataclasses.field(default_factory=dict)
    score_threshold: float = SCORE_THRESHOLD
    """The service's default."""
    iou_threshold: float = IOU_THRESHOLD
    """Of non-maximum suppression; the service's default."""
    resume: dict[str, Any] | None = None
    """State to resume the run from; None if it is finished."""

    def model(self) -> FCOS:
        """The detector, in eval mode, on the CPU.

        Raises:
            ValueError: the weights do not fit the configuration.
        """
        model = FCOS(self.config, self.input_config)
        try:
            model.load_state_dict(self.weights)
        except RuntimeError as error:
            raise ValueError(f"the checkpoint's weights do not fit its configuration: {error}") from error
        return model.eval()

    @property
    def options(self) -> dict[str, Any]:
        """Its run's options by their command-line names: for a mean, its first run's; for foreign weights, none."""
        training = self.training
        while "mean_of" in training:
            training = training["mean_of"][0]
        options: dict[str, Any] = training.get("options", {})
        return options

    def small(self) -> Self:
        """A copy to pass on: convolutions in fp16, half the size, and nothing to resume from."""
        weights = {
            key: value.half() if value.is_floating_point() and value.ndim > 1 else value
            for key, value in self.weights.items()
        }
        return dataclasses.replace(self, weights=weights, resume=None)

    def metadata(self, name: str, checkpoint_sha256: str = "0" * 64) -> Metadata:
        """The exported file's description of itself."""
        metadata = metadata_of(self.config, self.input_config, name, self.score_threshold, self.iou_threshold)
        return metadata.model_copy(
            update={
                "training": self.training,
                "metrics": self.metrics,
                "checkpoint_sha256": checkpoint_sha256,
            }
        )


def metadata_of(
    config: FCOSConfig,
    input_config: InputConfig,
    name: str = "unnamed",
    score_threshold: float = SCORE_THRESHOLD,
    iou_threshold: float = IOU_THRESHOLD,
) -> Metadata:
    """The service's description of a network, before anything is known about its training."""
    red, green, blue = (round(value) for value in input_config.mean)
    return Metadata(
        format_version=1,
        name=name,
        classes=config.classes,
        strides=STRIDES,
        points=Points(offset=config.point_offset, step=config.point_step),
        resize=Resize(short=input_config.short, long=input_config.long),
        canvases=tuple(Size(*canvas) for canvas in input_config.canvases),
        mean_pixel=(red, green, blue),
        defaults=Defaults(score_threshold=score_threshold, iou_threshold=iou_threshold, max_detections=100),
        top_k=1000,
        precision="fp32",
        variant="raw",
        training={},
        metrics={},
        checkpoint_sha256="0" * 64,
    )


def save(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint; if the run dies meanwhile, the old file stays whole.

    Raises:
        OSError: it cannot be written there.
        TypeError: `training` or `metrics` hold something that is not JSON, which could not be read back.
    """
    document = {
        "format_version": FORMAT_VERSION,
        "config": checkpoint.config.to_dict(),
        "input_config": checkpoint.input_config.to_dict(),
        "weights": checkpoint.weights,
        # torch.__version__ and numpy's numbers pass for plain values, but are pickled as code.
        "training": json.loads(json.dumps(checkpoint.training)),
        "metrics": json.loads(json.dumps(checkpoint.metrics)),
        "score_threshold": float(checkpoint.score_threshold),
        "iou_threshold": float(checkpoint.iou_threshold),
        "resume": checkpoint.resume,
    }
    whole = io.BytesIO()  # on a full disk, torch itself would report an unexpected position
    torch.save(document, whole)
    # getbuffer() would leave a view in a failure's traceback: collected at once with its buffer, it ends Python 3.12.
    write_bytes(path, whole.getvalue())


def load(path: Path) -> Checkpoint:
    """Read a checkpoint.

    Raises:
        ValueError: there is no file, or it is not a checkpoint of this project, or one of a newer version.
    """
    if not path.is_file():
        raise ValueError(f"no checkpoint at {path}")
    if path.suffix == ".onnx":
        raise ValueError(f"{path} is an exported model: give the .pt that it was made from")
    try:
        document = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(f"{path} is not a checkpoint that torch can read ({type(error).__name__})") from error
    if not isinstance(document, dict) or "format_version" not in document:
        raise ValueError(f"{path} is not a checkpoint of this project: train one with `python model/train.py`")
    version = document.pop("format_version")
    if version != FORMAT_VERSION:
        raise ValueError(f"{path} has checkpoint format {version}, but this release reads {FORMAT_VERSION}")
    try:
        for key in ("config", "input_config", "weights", "training", "metrics"):
            if not isinstance(document.get(key, {}), dict):
                raise TypeError(f"its {key} should be a dict")
        return Checkpoint(
            config=FCOSConfig.from_dict(document.pop("config")),
            input_config=InputConfig.from_dict(document.pop("input_config")),
            **document,
        )
    except (TypeError, KeyError, ValueError) as error:
        raise ValueError(f"{path} is a damaged checkpoint: {error}") from error


def sha256(path: Path) -> str:
    """Hexadecimal sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
