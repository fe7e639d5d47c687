"""POST /detect: the address with the most requests, and so the one whose own cost counts.

FastAPI describes it in the documentation, but its router and its handling of parameters would take longer than all else
on the way to the model, and with a small model the workers wait for the event loop. So this address bypasses them;
a query is validated once for all requests that have the same one.
"""

import asyncio
from collections.abc import Coroutine, Mapping
from functools import lru_cache
from time import perf_counter
from typing import Any, TypeVar
from urllib.parse import parse_qsl

from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from app import problems
from app.addresses import DETECT
from app.errors import Refusal, forget_frames
from app.negotiation import JSON
from app.outcome import Outcome
from app.record import Record, header, record_of
from app.schemas import PictureQuery
from app.service import Service
from app.uploads import picture_bytes

T = TypeVar("T")
LONGEST_KEPT = 2048  # bytes of a query
WATCH_AFTER_S = 0.05  # only then is a client watched for leaving: most have their answer


class Detect:
    """ASGI middleware, the innermost: answers POST /detect itself."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or record_of(scope).path != DETECT or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        try:
            response = await _detect(Request(scope, receive))
        except problems.EXPECTED as error:
            response = problems.response_of(scope, error)
        await response(scope, receive, send)


class LargeResponse(Response):
    """A drawn picture. It ends only once the client has taken nearly all of it; until then its request keeps its place,
    and its bytes count as pixels."""

    def __init__(self, outcome: Outcome, media_type: str, headers: Mapping[str, str]) -> None:
        super().__init__(outcome.drawn, media_type=media_type, headers=headers)
        self._outcome = outcome

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            await send({"type": "http.response.body", "body": self.body, "more_body": True})
            await send({"type": "http.response.body"})
        finally:
            self._outcome.let_go()


def picture_query(query_string: bytes) -> PictureQuery:
    """Reads a query. Of a repeated parameter the last value counts, of `classes` all.

    Raises:
        RequestValidationError: A value cannot be used, or a name is unknown.
    """
    return (_read_query if len(query_string) > LONGEST_KEPT else _read_query_once)(query_string)


def _read_query(query_string: bytes) -> PictureQuery:
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


_read_query_once = lru_cache(maxsize=256)(_read_query)


async def _detect(request: Request) -> Response:
    """Raises: One of `problems.EXPECTED`."""
    service: Service = request.app.state.service
    record = record_of(request.scope)
    query = picture_query(request.scope["query_string"])
    media_type = query.media_type(header(request.scope, b"accept"))
    query.parameters(service.runner.metadata)  # a bad one is refused before the body is read
    data = await in_time(service, record, picture_bytes(request))
    draw = None if media_type == JSON else media_type
    outcome = await while_connected(
        service, request.receive, service.detect(data, query, deadline=record.deadline, draw=draw)
    )
    record.timing_ms |= outcome.timing_ms
    headers = {"Vary": "Accept"}
    if outcome.drawn is None:
        return Response(outcome.to_json(), media_type=media_type, headers=headers)
    return LargeResponse(outcome, media_type, headers)


async def in_time(service: Service, record: Record, reading: Coroutine[Any, Any, T]) -> T:
    """Reads a request's body, until its deadline. Raises: Refusal: `request_timeout`."""
    begun, now = perf_counter(), asyncio.get_running_loop().time
    service.uploading += 1
    try:
        async with asyncio.timeout(None) as scope:
            timer = service.timers.call_at(record.deadline, lambda: scope.reschedule(now()))
            try:
                return await reading
            finally:
                timer.cancel()
    except TimeoutError:
        raise Refusal(
            "request_timeout",
            "The request's body did not arrive in time. Send a smaller picture, or ask for more time.",
            headers={"Connection": "close"},
        ) from None
    finally:
        service.uploading -= 1
        record.timing_ms["read"] = round((perf_counter() - begun) * 1000, 3)


async def while_connected(service: Service, receive: Receive, answering: Coroutine[Any, Any, T]) -> T:
    """Answers a request whose body has been read, until its client leaves. Raises: ClientDisconnect."""
    watching: list[asyncio.Task[None]] = []
    try:
        async with asyncio.timeout(None) as scope:
            timer = service.timers.call_at(
                perf_counter() + WATCH_AFTER_S, lambda: watching.append(asyncio.create_task(_watch(receive, scope)))
            )
            try:
                return await answering
            finally:
                timer.cancel()
                for task in watching:
                    task.cancel()
    except TimeoutError as error:
        if not scope.expired():  # a failure, which must not pass for a client that left
            raise
        forget_frames(error)
        raise ClientDisconnect from None


async def _watch(receive: Receive, scope: asyncio.Timeout) -> None:
    """Ends the scope once the client has left."""
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.reschedule(asyncio.get_running_loop().time())
