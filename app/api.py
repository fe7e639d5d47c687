"""The HTTP service: `create_app(settings)`."""

import asyncio
import io
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request
from fastapi.openapi.utils import get_openapi
from PIL import Image
from starlette.datastructures import UploadFile
from starlette.responses import Response

from app import pages, problems
from app.body_limit import BodyLimit
from app.draw import draw
from app.errors import Refusal
from app.problems import problem_docs
from app.schemas import Alive, Answer, DetectQuery, ModelInfo, Problem, Ready
from app.service import Outcome, Service
from app.settings import Settings

FIELD = "image"
JSON, JPEG, PNG = "application/json", "image/jpeg", "image/png"
ANSWERS = (JSON, JPEG, PNG)  # where an Accept header likes several equally, the first of these

_BINARY = {"schema": {"type": "string", "format": "binary"}}
_DETECT_BODY = {
    "requestBody": {
        "required": True,
        "description": "A picture: JPEG, PNG, WebP, GIF, BMP or TIFF; of an animated one the first frame is taken.",
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {FIELD: {"type": "string", "format": "binary", "description": "The picture file."}},
                    "required": [FIELD],
                }
            },
            "image/*": _BINARY,
            "application/octet-stream": _BINARY,
        },
    }
}
_DETECT_PROBLEMS = problem_docs(
    "empty_body", "malformed_request", "not_acceptable", "picture_too_large", "body_too_large",
    "unsupported_media_type", "not_a_picture", "corrupt_picture", "invalid_parameter", "unknown_class",
    "internal_error", "not_ready",
)  # fmt: skip


def create_app(settings: Settings, service: Service | None = None) -> FastAPI:
    """Builds the application.

    Args:
        settings: What the operator chose.
        service: The model to serve; loaded from `settings.model` at start-up where None.

    Returns:
        An application whose lifespan loads the model and warms it in the background. Its `StartError`s leave the
        lifespan as they are.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        served = await asyncio.to_thread(Service.load, settings) if service is None else service
        app.state.service = served
        warming = asyncio.create_task(served.warm_up())
        try:
            yield
        finally:
            await warming
            served.close()

    app = FastAPI(
        title="FCOS object detection",
        version="1",
        description="Pictures in, boxes out. Errors are problem documents (RFC 9457).",
        lifespan=lifespan,
        docs_url=None,  # FastAPI's own loads its scripts from another host
        redoc_url=None,
    )
    app.add_middleware(BodyLimit, max_bytes=settings.max_upload_bytes)
    problems.install(app)
    pages.install(app)

    @app.post(
        "/detect",
        summary="Find objects in a picture",
        response_model=Answer,
        openapi_extra=_DETECT_BODY,
        responses=_DETECT_PROBLEMS
        | {
            200: {
                "description": "What was found; for `Accept: image/png` or `image/jpeg` the picture with its boxes.",
                "content": {JPEG: _BINARY, PNG: _BINARY},
            }
        },
    )
    async def detect(request: Request, query: Annotated[DetectQuery, Query()]) -> Response:
        served = _service(request)
        served.require_ready()
        media_type = _answer_type(request.headers.get("accept", ""))
        parameters = query.parameters(served.runner.metadata)
        outcome = await served.detect(await _picture_bytes(request), parameters)
        if media_type == JSON:
            content = outcome.answer.model_dump_json().encode()
        else:
            content = await asyncio.to_thread(_drawn, outcome, media_type)
        return Response(content, media_type=media_type, headers={"Vary": "Accept"})

    @app.get("/model", summary="What is served")
    async def model(request: Request) -> ModelInfo:
        return _service(request).info()

    @app.get("/healthz", summary="Is the process alive?")
    async def healthz() -> Alive:
        return Alive()

    @app.get("/readyz", summary="Are requests answered?", responses=problem_docs("not_ready"))
    async def readyz(request: Request) -> Ready:
        served = _service(request)
        served.require_ready()
        return Ready(model=served.model, provider_note=served.runner.fallback)

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
            schemas = schema["components"]["schemas"]
            schemas[Problem.__name__] = Problem.model_json_schema()
            for unused in ("HTTPValidationError", "ValidationError"):
                schemas.pop(unused, None)
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]
    return app


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


async def _picture_bytes(request: Request) -> bytes:
    """Reads the picture from a multipart field or from the body.

    A body without a content type is taken as a picture: what it is, is decided by its bytes anyhow.

    Raises:
        Refusal: `empty_body`, `malformed_request` or `unsupported_media_type`.
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type == "multipart/form-data":
        data = await _field_bytes(request)
    else:
        data = await request.body()
        if not data:
            raise Refusal(
                "empty_body",
                f"The request has no body. Send the picture as the body, or in the multipart field `{FIELD}`.",
            )
        if media_type and media_type != "application/octet-stream" and not media_type.startswith("image/"):
            raise Refusal(
                "unsupported_media_type",
                f"The content type {media_type[:100]} is not taken. Send the picture's bytes as `image/*`, "
                f"`Content-Type: image/jpeg` say, or as multipart/form-data in the field `{FIELD}`.",
            )
    return data


async def _field_bytes(request: Request) -> bytes:
    async with request.form(max_files=1, max_fields=1) as form:
        unknown = [name for name in form if name != FIELD]
        if unknown:
            raise Refusal(
                "malformed_request",
                f"The form has {unknown[0][:100]!r}, but only `{FIELD}` is taken; parameters go into the query.",
            )
        upload = form.get(FIELD)
        if upload is None:
            raise Refusal("malformed_request", f"The form has no field `{FIELD}`. Send the picture file in it.")
        if not isinstance(upload, UploadFile):
            raise Refusal(
                "malformed_request",
                f"The field `{FIELD}` is text, not a file. With curl: -F {FIELD}=@cat.jpg, with the @.",
            )
        return await upload.read()


def _answer_type(accept: str) -> str:
    """Returns: The one of `ANSWERS` that an Accept header likes best. Raises: Refusal: `not_acceptable`."""
    liked = {answer: _quality(answer, accept) for answer in ANSWERS}
    best = max(ANSWERS, key=lambda answer: liked[answer])
    if liked[best] <= 0:
        raise Refusal("not_acceptable", f"Accept: {accept[:100]} leaves none of {', '.join(ANSWERS)}.")
    return best


def _quality(media_type: str, accept: str) -> float:
    """Returns: How much an Accept header likes a media type, 0 to 1 (RFC 9110, section 12.5.1)."""
    if not accept.strip():
        return 1.0
    names = ("*/*", media_type.partition("/")[0] + "/*", media_type)  # the more exact range decides
    found = (-1, 0.0)
    for part in accept.split(","):
        name, *parameters = (piece.strip().lower() for piece in part.split(";"))
        if name not in names:
            continue
        quality = 1.0
        for parameter in parameters:
            if parameter.startswith("q="):
                try:
                    quality = float(parameter[2:])
                except ValueError:
                    quality = 0.0
        found = max(found, (names.index(name), quality))
    return found[1]


def _drawn(outcome: Outcome, media_type: str) -> bytes:
    drawn: Image.Image = draw(outcome.picture, outcome.answer.detections)
    out = io.BytesIO()
    drawn.save(out, "JPEG" if media_type == JPEG else "PNG", **({"quality": 90} if media_type == JPEG else {}))
    return out.getvalue()
