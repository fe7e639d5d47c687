"""The HTTP service: `create_app(settings)`."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request
from fastapi.openapi.utils import get_openapi
from starlette.concurrency import run_in_threadpool
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import PlainTextResponse, Response

from app import pages, problems, tracing
from app.addresses import BATCH, DETECT, KEYED, MODEL, PICTURES, RELOAD
from app.batch_route import detect_each
from app.body_limit import BodyLimit
from app.detect_route import Detect, in_time, while_connected
from app.errors import Refusal
from app.gate import DEADLINE_HEADER, Gate
from app.metrics import CONTENT_TYPE
from app.negotiation import JPEG, JSON, PNG
from app.problems import Failures, problem_docs
from app.record import record_of
from app.schemas import Alive, Answer, BatchAnswer, DetectQuery, ModelInfo, PictureQuery, Problem, Ready
from app.service import Service
from app.settings import Settings
from app.telemetry import REQUEST_ID_HEADER, Telemetry
from app.uploads import BINARY, PICTURE_BODY, PICTURES_BODY, pictures_bytes

_OF_BOTH = (
    "malformed_request", "body_too_large", "unsupported_media_type", "invalid_parameter", "unknown_class",
    "internal_error", "not_ready", "overloaded", "deadline_exceeded", "request_timeout", "unauthorized",
    "too_many_requests",
)  # fmt: skip
_BATCH_PROBLEMS = problem_docs(*_OF_BOTH)
_DETECT_PROBLEMS = problem_docs(
    *_OF_BOTH, "empty_body", "not_acceptable", "picture_too_large", "not_a_picture", "corrupt_picture"
)


def create_app(settings: Settings, service: Service | None = None) -> FastAPI:
    """Builds the application.

    Args:
        settings: What the operator chose.
        service: The model to serve; if None, it is loaded from `settings.model` at start-up.

    Returns:
        An application whose lifespan loads the model and warms it in the background. `StartError`s leave the lifespan
        unchanged.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
        served = await asyncio.to_thread(Service.load, settings) if service is None else service
        app.state.service = served
        warming = asyncio.create_task(served.warm_up())
        # Else the first one who reads the description or loads the page, whose files are read by these threads, too,
        # keeps all others waiting for 0.1 s.
        await run_in_threadpool(app.openapi)
        try:
            yield
        finally:
            await warming
            await served.finish()

    app = FastAPI(
        title="FCOS object detection",
        version="1",
        description="Pictures in, boxes out. Errors are problem documents (RFC 9457).",
        lifespan=lifespan,
        docs_url=None,  # FastAPI's own page loads its scripts from another host
        redoc_url=None,
        generate_unique_id_function=lambda route: route.name,  # the name in generated clients
        redirect_slashes=False,  # a redirect leads to the Host header's address, and without TLS behind a proxy
        # By default, FastAPI reads the environment at every request.
        telemetry={"tracing": tracing.endpoint() is not None, "metrics": False, "logs": False},
    )
    _add_middleware(app, settings)
    problems.install(app)
    _add_routes(app, settings)
    pages.install(app)
    app.openapi = partial(_openapi, app, settings)  # type: ignore[method-assign]
    return app


def _add_middleware(app: FastAPI, settings: Settings) -> None:
    # The last one added is the outermost.
    app.add_middleware(Detect)
    app.add_middleware(BodyLimit, max_bytes=settings.max_upload_bytes, max_held=settings.max_queue_bytes)
    app.add_middleware(Gate, settings=settings)
    app.add_middleware(Failures)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=sorted(settings.cors_origins),
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "X-API-Key", DEADLINE_HEADER.decode(), REQUEST_ID_HEADER.decode()],
            expose_headers=[REQUEST_ID_HEADER.decode(), "Server-Timing", "Retry-After"],
        )
    app.add_middleware(Telemetry, access_log=settings.access_log)


def _add_routes(app: FastAPI, settings: Settings) -> None:
    @app.post(
        DETECT,
        summary="Find objects in a picture",
        openapi_extra=PICTURE_BODY,
        responses=_DETECT_PROBLEMS
        | {
            200: {
                "description": "What was found; for `Accept: image/png` or `image/jpeg`, the picture with its boxes.",
                "content": {JPEG: BINARY, PNG: BINARY},
            }
        },
    )
    async def detect(query: Annotated[PictureQuery, Query()]) -> Answer:
        raise NotImplementedError("`Detect` answers this address; this is its description")

    @app.post(
        BATCH,
        summary="Find objects in several pictures",
        response_model=BatchAnswer,
        openapi_extra=PICTURES_BODY,
        responses=_BATCH_PROBLEMS | {200: {"description": "For each picture, in order, its answer or its problem."}},
    )
    async def detect_batch(request: Request, query: Annotated[DetectQuery, Query()]) -> Response:
        served, record = _service(request), record_of(request.scope)
        query.parameters(served.runner.metadata)
        pictures = await in_time(served, record, pictures_bytes(request))
        answering = detect_each(served, pictures, query, record.deadline)
        return Response(await while_connected(served, request.receive, answering), media_type=JSON)

    @app.head(MODEL, include_in_schema=False)
    @app.get(MODEL, summary="The served model", responses=problem_docs("unauthorized"))
    async def model(request: Request) -> ModelInfo:
        return _service(request).info()

    @app.head("/healthz", include_in_schema=False)
    @app.get("/healthz", summary="Is the process alive?", responses=problem_docs("not_ready"))
    async def healthz(request: Request) -> Alive:
        await _service(request).require_working()
        return Alive()

    @app.head("/readyz", include_in_schema=False)
    @app.get("/readyz", summary="Are requests answered?", responses=problem_docs("not_ready"))
    async def readyz(request: Request) -> Ready:
        served = _service(request)
        served.require_ready()
        if served.draining:
            raise Refusal("not_ready", "The service is shutting down. Ask another one.")
        await served.require_working()
        return Ready(model=served.model, provider_note=served.runner.fallback)

    @app.head("/metrics", include_in_schema=False)
    @app.get("/metrics", summary="For Prometheus", response_class=PlainTextResponse)
    async def metrics(request: Request) -> Response:
        return Response(_service(request).metrics.text(), headers={"Content-Type": CONTENT_TYPE})

    @app.post(
        RELOAD,
        summary="Reload the model file",
        responses=problem_docs(
            "unauthorized", "forbidden", "body_too_large", "invalid_parameter", "reload_running", "model_refused"
        ),
    )
    async def reload(request: Request) -> ModelInfo:
        if request.query_params:
            raise Refusal("invalid_parameter", "This address takes no parameters: FCOS_MODEL says which file is read.")
        if not settings.api_keys and not settings.admin_key:
            raise Refusal("forbidden", "Set FCOS_ADMIN_KEY to reload over HTTP, or send the process SIGHUP.")
        return await _service(request).reload()


def _openapi(app: FastAPI, settings: Settings) -> dict[str, Any]:
    if app.openapi_schema is None:
        schema = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        schemas = schema["components"]["schemas"]
        schemas[Problem.__name__] = Problem.model_json_schema()
        for unused in ("HTTPValidationError", "ValidationError"):
            schemas.pop(unused, None)
        _add_headers(schema, settings)
        _drop_nulls(schema)
        app.openapi_schema = schema
    return app.openapi_schema


def _add_headers(schema: dict[str, Any], settings: Settings) -> None:
    """Adds to the description what the gate reads: keys, if any are set, and deadlines."""
    schema["components"]["securitySchemes"] = {
        "bearer": {"type": "http", "scheme": "bearer"},
        "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
    }
    deadline = {
        "name": DEADLINE_HEADER.decode(),
        "in": "header",
        "description": "Milliseconds after which the answer is of no use; at most the service's own deadline.",
        "schema": {"type": "integer", "minimum": 1},
    }
    for path in KEYED:
        for operation in schema["paths"][path].values():
            if settings.api_keys or (path == RELOAD and settings.admin_key):
                operation["security"] = [{"bearer": []}, {"key": []}]
            if path in PICTURES:
                operation.setdefault("parameters", []).append(deadline)


def _drop_nulls(schema: dict[str, Any]) -> None:
    """Removes null from the parameters' types: an omitted one is None in Python, but a null in a query is a word."""
    for operations in schema["paths"].values():
        for operation in operations.values():
            for parameter in operation.get("parameters", ()):
                described = parameter["schema"]
                kinds = [kind for kind in described.pop("anyOf", ()) if kind != {"type": "null"}]
                described |= kinds[0] if len(kinds) == 1 else {"anyOf": kinds} if kinds else {}


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service
