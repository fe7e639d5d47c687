"""The metadata inside the .onnx file: everything that the service must know about a model, in one JSON document.

The exporter writes it to `metadata_props["fcos"]`. Sizes are (height, width), in pixels.
"""

import hashlib
import json
from collections import Counter
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    JsonValue,
    StringConstraints,
    ValidationError,
    model_validator,
)

from app.errors import ArtifactError, first_fault

INPUT = "images"  # the graph's: canvases, uint8 [N, H, W, 3]
METADATA_KEY = "fcos"
FORMAT_VERSION = 1
CANVAS_MULTIPLE = 32
MOST_DETECTIONS = 1000  # that a request may ask for
LONGEST_CANVAS = 4096  # pixels of a side: a canvas too large for memory would end the service
LONGEST_NAME = 200  # characters of a class's or the model's


class Size(NamedTuple):
    """Height and width in pixels; in JSON `[height, width]`."""

    height: int
    width: int

    @property
    def area(self) -> int:
        return self.height * self.width


Positive = Annotated[int, Field(ge=1, le=65_536)]
Fraction = Annotated[FiniteFloat, Field(ge=0, le=1)]
Name = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=LONGEST_NAME)]


class Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Points(Part):
    """Where a level's points lie: point i at (i + offset) * step.

    `stride` is the level's nominal stride. `canvas` is canvas_size // grid_size per axis, as in torchvision's
    `AnchorGenerator` (with offset 0); it differs from the nominal stride if that does not divide the canvas.
    """

    offset: FiniteFloat
    step: Literal["stride", "canvas"]


class Resize(Part):
    """scale = min(short / shorter side, long / longer side); up as well as down."""

    short: Positive
    long: Positive


class Defaults(Part):
    score_threshold: Fraction
    iou_threshold: Fraction
    max_detections: Annotated[int, Field(ge=1, le=MOST_DETECTIONS)]


class Metadata(Part):
    """What a model file says about itself. A class's id is its index in `classes`.

    Files of before lack a new field, and releases of before refuse it: what the service itself does not need goes into
    `training`, which is free-form, and which `GET /model` shows.
    """

    format_version: Literal[1]
    name: Name
    classes: Annotated[tuple[Name, ...], Field(min_length=1)]
    strides: Annotated[tuple[Positive, ...], Field(min_length=1)]
    points: Points
    resize: Resize
    canvases: Annotated[tuple[Size, ...], Field(min_length=1)]
    mean_pixel: tuple[
        Annotated[int, Field(ge=0, le=255)], Annotated[int, Field(ge=0, le=255)], Annotated[int, Field(ge=0, le=255)]
    ]
    defaults: Defaults
    top_k: Positive  # candidates per level that reach the NMS
    precision: Literal["fp32", "fp16", "int8"]
    variant: Literal["raw"]
    training: dict[str, JsonValue]
    metrics: dict[str, FiniteFloat]
    checkpoint_sha256: Annotated[str, StringConstraints(pattern="^[0-9a-f]{64}$")]

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        repeated = sorted(name for name, count in Counter(self.classes).items() if count > 1)
        if repeated:
            raise ValueError(f"class names must be unique, but {repeated[0]!r} occurs more than once")
        if any(b <= a for a, b in zip(self.strides, self.strides[1:], strict=False)):
            raise ValueError(f"strides must rise from level to level, but are {list(self.strides)}")
        for canvas in self.canvases:
            if min(canvas) < CANVAS_MULTIPLE or canvas.height % CANVAS_MULTIPLE or canvas.width % CANVAS_MULTIPLE:
                raise ValueError(f"canvas {list(canvas)} is not a multiple of {CANVAS_MULTIPLE} on both sides")
            if max(canvas) > LONGEST_CANVAS:
                raise ValueError(f"canvas {list(canvas)} has a side of more than {LONGEST_CANVAS}")
        # No resized picture is larger than these two, and pictures of exactly these sizes exist.
        short, long = min(self.resize.short, self.resize.long), self.resize.long
        for height, width in ((short, long), (long, short)):
            if not any(height <= canvas.height and width <= canvas.width for canvas in self.canvases):
                raise ValueError(
                    f"no canvas holds a picture of {height} x {width} (height x width), "
                    f"which the resize rule {self.resize.short}/{self.resize.long} gives"
                )
        return self

    def to_json(self) -> str:
        """Returns: The text for `metadata_props["fcos"]`; `parse` reads it back to an equal object."""
        return self.model_dump_json()


def grids(strides: tuple[int, ...], canvas: Size) -> list[Size]:
    """Returns: One grid of points per level; a level of stride s has ceil(H / s) x ceil(W / s) points."""
    return [Size(-(-canvas.height // stride), -(-canvas.width // stride)) for stride in strides]


def parse(text: str | None, file: str) -> Metadata:
    """Reads the metadata of a model file.

    Args:
        text: What the file holds under `METADATA_KEY`; None if it holds nothing.
        file: The file's name, for the messages.

    Raises:
        ArtifactError: One sentence that names the file and the reason.
    """
    if text is None:
        raise ArtifactError(
            f"{file} holds no metadata under {METADATA_KEY!r}, so it is not a model of this project: "
            "write one with `python -m export`."
        )
    try:
        document: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{file} holds metadata that is not JSON ({error}): export the model again.") from None
    if not isinstance(document, dict):
        raise ArtifactError(f"{file} holds metadata that is not a JSON object: export the model again.")
    version = document.get("format_version")
    if version != FORMAT_VERSION:
        raise ArtifactError(
            f"{file} has metadata of format version {version!r}, but this release reads version {FORMAT_VERSION}: "
            "export the model again with this release, or run the release that wrote it."
        )
    try:
        return Metadata.model_validate(document)
    except ValidationError as error:
        raise ArtifactError(f"{file} has invalid metadata, {first_fault(error)}: export the model again.") from None


def file_version(file: bytes) -> str:
    """Returns: The first 8 hexadecimal digits of the file's sha256, which tell one served model from another."""
    return hashlib.sha256(file).hexdigest()[:8]
