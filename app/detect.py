"""POST /detect: the address that is asked most, and so the one whose own cost counts.

FastAPI describes it in the documentation. At each request, its solver of parameters would take longer than all the rest
of the way to the model: a query is validated here, once for all requests that have the same.
"""

import asyncio
import io
from collections.abc import Callable, Coroutine
from functools import lru_cache, partial
from time import perf_counter
from typing import Any, TypeVar
from urllib.parse import parse_qsl

from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from PIL import Image
from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive

from app import tracing
from app.draw import draw
from app.errors import Refusal
from app.negotiation import JPEG, JSON
from app.outcome import Outcome
from app.schemas import PictureQuery
from app.service import Service
from app.telemetry import Record, record_of
from app.uploads import picture_bytes

T = TypeVar("T")


class QueryRoute(APIRoute):
    """A route whose endpoint is `endpoint(request, query: PictureQuery) -> Response`, without FastAPI's solver."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        async def handle(request: Request) -> Response:
            response: Response = await self.endpoint(request, picture_query(request.scope["query_string"]))
            return response

        return handle


@lru_cache(maxsize=256)
def picture_query(query_string: bytes) -> PictureQuery:
    """Reads a query; of a parameter that stands there more than once the last, of `classes` all.

    Raises:
        RequestValidationError: A value cannot be used, or a name is unknown.
    """
    values: dict[str, Any] = {}
    for name, value in parse_qsl(query_string.decode("latin-1"), keep_blank_values=True):
        if name == "classes":
            values.setdefault(name, []).append(value)
        else:
            values[name] = value
    try:
        return PictureQuery.model_validate(values)
    except ValidationError as error:
        faults = [{**fault, "loc": ("query", *fault["loc"])} for fault in error.errors(include_url=False)]
        raise RequestValidationError(faults) from None


async def detect_one(request: Request, query: PictureQuery) -> Response:
    """The endpoint. Raises: Refusal."""
    service: Service = request.app.state.service
    record = record_of(request.scope)
    media_type = query.media_type(request.headers.get("accept", ""))
    query.parameters(service.runner.metadata)  # a bad one is refused before the body is read
    data = await in_time(record, picture_bytes(request))
    outcome = await service.detect(
        data, query.parameters, deadline=record.deadline, gone=partial(disconnected, request.receive)
    )
    record.timing_ms |= outcome.timing_ms
    tracing.note(record.timing_ms)
    content = outcome.to_json() if media_type == JSON else await asyncio.to_thread(_drawn, outcome, media_type)
    return Response(content, media_type=media_type, headers={"Vary": "Accept"})


async def in_time(record: Record, reading: Coroutine[Any, Any, T]) -> T:
    """Reads a request's body, until its deadline. Raises: Refusal: `deadline_exceeded`."""
    begun = perf_counter()
    try:
        async with asyncio.timeout(record.deadline - begun):
            return await reading
    except TimeoutError:
        raise Refusal(
            "deadline_exceeded", "The request's body did not arrive in time.", headers={"Connection": "close"}
        ) from None
    finally:
        record.timing_ms["read"] = round((perf_counter() - begun) * 1000, 3)


async def disconnected(receive: Receive) -> None:
    """Returns once the client has left; its body has been read before."""
    while (await receive())["type"] != "http.disconnect":
        pass


def _drawn(outcome: Outcome, media_type: str) -> bytes:
    drawn: Image.Image = draw(outcome.picture, outcome.answer.detections)
    out = io.BytesIO()
    drawn.save(out, "JPEG" if media_type == JPEG else "PNG", **({"quality": 90} if media_type == JPEG else {}))
    return out.getvalue()
