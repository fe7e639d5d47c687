"""What a request may say and what an answer looks like: the service's HTTP contract."""

import difflib
import heapq
import operator
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Annotated, Literal
from unicodedata import normalize

from pydantic import BaseModel, ConfigDict, Field, JsonValue, WithJsonSchema
from typing_extensions import TypedDict  # pydantic wants this one before Python 3.12

from app.artifact import LONGEST_NAME, MOST_DETECTIONS, Defaults, Metadata, Resize, Size
from app.errors import Refusal
from app.negotiation import answer_type
from app.postprocess import Parameters

MOST_COMPARED = 100  # class names, with one that the model does not have


class DetectQuery(BaseModel):
    """What to look for. A parameter that is left out takes the model's default."""

    model_config = ConfigDict(extra="forbid")

    score_threshold: Annotated[
        float | None, Field(ge=0, le=1, description="Only detections with a score above it. Default: the model's.")
    ] = None
    iou_threshold: Annotated[
        float | None,
        Field(
            ge=0,
            le=1,
            description="Of two boxes whose IoU is above it, the better one is kept. Default: the model's.",
        ),
    ] = None
    max_detections: Annotated[
        int | None, Field(ge=1, le=MOST_DETECTIONS, description="At most this many, best first. Default: the model's.")
    ] = None
    classes: Annotated[
        list[str] | None, Field(description="Only these classes, by name; repeat it for several. Default: all.")
    ] = None
    class_agnostic: Annotated[
        bool, Field(description="Overlapping boxes of different classes suppress one another, too.")
    ] = False

    def parameters(self, metadata: Metadata) -> Parameters:
        """Fills in the model's defaults. Raises: Refusal: `unknown_class`."""
        defaults = metadata.defaults
        return Parameters(
            defaults.score_threshold if self.score_threshold is None else self.score_threshold,
            defaults.iou_threshold if self.iou_threshold is None else self.iou_threshold,
            defaults.max_detections if self.max_detections is None else self.max_detections,
            None if self.classes is None else tuple(_class_ids(self.classes, metadata.classes)),
            self.class_agnostic,
        )


class PictureQuery(DetectQuery):
    """The query of POST /detect."""

    draw: Annotated[
        Literal["png", "jpeg"] | None,
        Field(
            description="Answer with the picture and its boxes, like `Accept: image/...`, for when setting a header is "
            "awkward."
        ),
    ] = None

    def media_type(self, accept: str) -> str:
        """Returns: The answer's media type; `draw` overrides an Accept header. Raises: Refusal: `not_acceptable`."""
        return answer_type(accept) if self.draw is None else f"image/{self.draw}"


def _class_ids(names: Iterable[str], classes: tuple[str, ...]) -> Iterator[int]:
    """Raises: Refusal: `unknown_class`."""
    ids = _ids(classes)
    for name in names:
        number = ids.get(name)
        if number is None:
            number = ids.get(normalize("NFC", name))
        if number is None:
            raise _unknown(name, classes)
        yield number


def _unknown(name: str, classes: tuple[str, ...]) -> Refusal:
    several = [part.strip() for part in name.split(",")]
    if set(several) <= set(classes):
        near, hint = several, "Give each name as a value of its own"
    else:
        near = _nearest(name, classes) or list(classes[:3])
        hint = "The nearest it has"
    message = f"The model has no class {name[:100]!r}. {hint}: {', '.join(near)}."
    return Refusal("unknown_class", message, nearest=near)


@lru_cache(maxsize=2)  # a reloaded model beside the one before
def _ids(classes: tuple[str, ...]) -> dict[str, int]:
    """Returns: Class ids by names, and by names in which accents are a part of their letters: a request may write them
    after these.

    Kept, as a request may name a thousand classes, on the event loop.
    """
    composed = {normalize("NFC", classes[number]): number for number in reversed(range(len(classes)))}
    return composed | {name: number for number, name in enumerate(classes)}


def _nearest(name: str, classes: tuple[str, ...]) -> list[str]:
    """Returns: Up to three class names that resemble a name. Of many, only those that share most pairs of letters with
    it are compared: comparing 1,200 would keep the event loop busy for up to 0.1 s."""
    folded, name = _folded(classes), name[:LONGEST_NAME].casefold()
    pairs = _pairs(name)

    def shared(one: str) -> float:
        return len(pairs & folded[one][1]) / (1 + len(pairs) + len(folded[one][1]))

    alike = heapq.nlargest(MOST_COMPARED, folded, key=shared) if len(folded) > MOST_COMPARED else folded
    return [folded[one][0] for one in difflib.get_close_matches(name, alike, n=3)]


@lru_cache(maxsize=2)
def _folded(classes: tuple[str, ...]) -> dict[str, tuple[str, frozenset[str]]]:
    """Returns: By a name without upper case the class's own name, and the pairs of letters in the former."""
    return {name.casefold(): (name, _pairs(name.casefold())) for name in reversed(classes)}


def _pairs(text: str) -> frozenset[str]:
    return frozenset(map(operator.add, text, text[1:]))


class Answerable(BaseModel):
    model_config = ConfigDict(frozen=True)


class Box(Answerable):
    """Pixels of the upright picture, from its top-left corner."""

    xmin: float
    ymin: float
    xmax: float
    ymax: float


class Detection(Answerable):
    label: str
    class_id: int
    score: Annotated[float, Field(ge=0, le=1)]
    box: Box


class PictureSize(Answerable):
    """The upright picture's size (EXIF orientation applied): the frame of the boxes."""

    width: int
    height: int


class ModelName(Answerable):
    name: str
    version: Annotated[str, Field(description="The first 8 hexadecimal digits of the model file's sha256.")]
    provider: Annotated[str, Field(description="The execution provider of ONNX Runtime that did the work.")]


class Timing(Answerable):
    """Milliseconds: decoding and fitting the picture; waiting, for a thread or for the model; the batch it was in;
    post-processing."""

    decode: float
    queue: float
    inference: float
    postprocess: float


class Answer(Answerable):
    """What was found in one picture, best first."""

    detections: list[Detection]
    image: PictureSize
    model: ModelName
    timing_ms: Timing


# By itself, pydantic describes a tuple's values one by one, and clients generated for Ruby cannot read /model.
Canvas = Annotated[Size, WithJsonSchema({"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 2})]
ProviderNote = Annotated[
    str | None, Field(description="Why `auto` did not take CUDA; null if it did, or if a provider was named.")
]


class ModelInfo(ModelName):
    """What is served."""

    provider_note: ProviderNote
    classes: list[str]
    precision: str
    canvases: Annotated[list[Canvas], Field(description="[height, width] of what the model sees.")]
    resize: Resize
    defaults: Defaults
    metrics: Annotated[
        dict[str, float], Field(description="COCO metrics on the model's validation pictures; -1: no boxes.")
    ]
    training: dict[str, JsonValue]
    checkpoint_sha256: str


class Alive(Answerable):
    status: Literal["alive"] = "alive"


class Ready(Answerable):
    status: Literal["ready"] = "ready"
    model: ModelName
    provider_note: ProviderNote


class Problem(BaseModel):
    """Why there is no answer (RFC 9457). `code` is stable, `detail` is for people."""

    model_config = ConfigDict(extra="allow")

    type: str
    title: str
    status: int
    detail: str
    code: str


class BatchResult(TypedDict, total=False):
    """Of one picture of a batch: an answer's members, or only `problem`."""

    # Not `Answer | Refused`: in Kotlin, Rust and TypeScript, generated clients would want all members of both, and in
    # Java take a problem for an answer.
    detections: list[Detection]
    image: PictureSize
    model: ModelName
    timing_ms: Timing
    problem: Problem


class BatchAnswer(Answerable):
    """For each picture of a batch, in order, its answer or its problem."""

    results: list[BatchResult]
