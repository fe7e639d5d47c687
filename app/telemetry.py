"""What every response says about itself, and what is noted about it: request id, timing, counters, a log line."""

import itertools
import logging
import os
import re
from collections.abc import Mapping, Sequence
from time import perf_counter

from starlette._utils import get_route_path  # so that what is guarded is what is routed
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app import tracing
from app.addresses import KEYED
from app.metrics import Metrics
from app.record import Record, note_record

access = logging.getLogger("app.access")

REQUEST_ID_HEADER = b"x-request-id"
LISTS = {b"accept", b"content-encoding"}  # of the headers that are read, those whose values may be spread over several
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}", re.ASCII)
# A new id is this process's prefix and a count: random bytes for each would cost a system call.
_PREFIX = os.urandom(6).hex()
_numbers = itertools.count()


class Telemetry:
    """ASGI middleware, the outermost: it sees every response."""

    def __init__(self, app: ASGIApp, access_log: bool) -> None:
        self._app = app
        self._access_log = access_log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun = perf_counter()
        headers = _by_name(scope["headers"])
        record = Record(_request_id(headers), get_route_path(scope), headers, begun)
        note_record(scope, record)

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                record.timing_ms["total"] = round((perf_counter() - begun) * 1000, 3)
                # Middleware may answer these, before FastAPI has put them on the request's span.
                route = record.path if record.path in KEYED else None
                # Here, because the end of the answer's body ends the span.
                record.trace_id = tracing.note(scope["method"], route, record.request_id, record.timing_ms)
                timing = ", ".join([f"{name};dur={value}" for name, value in record.timing_ms.items()])
                message["headers"] = [
                    *message["headers"],
                    (REQUEST_ID_HEADER, record.request_id.encode()),
                    (b"server-timing", timing.encode()),
                ]
            await send(message)

        try:
            await self._app(scope, receive, sending)
        finally:
            self._note(scope, record)

    def _note(self, scope: Scope, record: Record) -> None:
        metrics: Metrics = scope["app"].state.service.metrics
        status, method = record.status, scope["method"]
        metrics.answer(record.path, status)
        if status == 200 and "read" in record.timing_ms:
            metrics.stages["read"].observe(record.timing_ms["read"] / 1000)
            metrics.stages["total"].observe(perf_counter() - record.begun)
        if self._access_log:
            path = scope["raw_path"].decode("latin-1")  # with its escapes: so it cannot begin a line of its own
            client = (scope.get("client") or ("",))[0]
            access.info(
                "%s %s %d%s in %s ms, request %s from %s", method, path, status, record.code and f" {record.code}",
                record.timing_ms.get("total"), record.request_id, client,
                extra={
                    "method": method, "path": path, "status": status, "code": record.code, "key": record.key,
                    "request_id": record.request_id, "trace_id": record.trace_id, "timing_ms": record.timing_ms,
                    "client": client,
                },
            )  # fmt: skip


def _by_name(headers: Sequence[tuple[bytes, bytes]]) -> Mapping[bytes, bytes]:
    """Returns: Headers by name. Of a repeated one the last, or, if its value is a list, all (RFC 9110, 5.3)."""
    found = dict(headers)
    if len(found) < len(headers):
        for name in LISTS & found.keys():
            found[name] = b", ".join(value for one, value in headers if one == name)
    return found


def _request_id(headers: Mapping[bytes, bytes]) -> str:
    """Returns: The client's own id, if it is fit for a log; else a new one."""
    given = headers.get(REQUEST_ID_HEADER, b"")
    return given.decode() if _REQUEST_ID.fullmatch(given) else f"{_PREFIX}-{next(_numbers):x}"
