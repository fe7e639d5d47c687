"""Errors as HTTP answers: each that a client sees is an `application/problem+json` document (RFC 9457)."""

import logging
from itertools import islice
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic_core import to_json
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.routing import Match
from starlette.types import ASGIApp, Receive, Scope, Send

from app import tracing
from app.addresses import DETECT
from app.errors import KINDS, Refusal, failed
from app.record import record_of
from app.schemas import DetectQuery, PictureQuery, Problem

log = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"
MOST_FAULTS = 10  # that one answer names
LONGEST_QUOTE = 100  # characters of what was sent, in an answer
EXPECTED = (Refusal, RequestValidationError, HTTPException, ClientDisconnect)


def counted_response(scope: Scope, refusal: Refusal) -> Response:
    """Returns: The answer to a request, counted in the service's metrics, and noted in the request's record."""
    scope["app"].state.service.metrics.refusals[refusal.code].inc()
    record_of(scope).code = refusal.code
    return Response(
        to_json(refusal.problem()), status_code=refusal.kind.status, headers=refusal.headers, media_type=MEDIA_TYPE
    )


def problem_docs(*codes: str) -> dict[int | str, dict[str, Any]]:
    """Returns: OpenAPI's `responses` for these codes of `errors.KINDS`."""
    titles: dict[int, list[str]] = {}
    for code in codes:
        titles.setdefault(KINDS[code].status, []).append(f"`{code}`: {KINDS[code].title}")
    schema = {"$ref": f"#/components/schemas/{Problem.__name__}"}
    return {
        status: {"description": "; ".join(lines), "content": {MEDIA_TYPE: {"schema": schema}}}
        for status, lines in titles.items()
    }


def install(app: FastAPI) -> None:
    """Makes every error of the application a problem document."""
    for kind in EXPECTED:
        app.add_exception_handler(kind, _expected)


def response_of(scope: Scope, error: Exception) -> Response:
    """Returns: The answer to one of the `EXPECTED` errors, counted."""
    if isinstance(error, ClientDisconnect):
        return Response(status_code=499)  # nobody reads it; the status is for the access log
    if isinstance(error, RequestValidationError):
        error = _invalid(scope, error)
    elif isinstance(error, HTTPException):
        error = _http(scope, error)
    assert isinstance(error, Refusal)
    return counted_response(scope, error)


class Failures:
    """ASGI middleware: turns the service's own errors into answers. Within CORS, or browsers keep them from pages."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._app(scope, receive, send)
        except Exception as error:
            if scope["type"] != "http" or record_of(scope).status:
                raise  # the answer has begun: the server ends the connection, and logs the error
            request_id = record_of(scope).request_id
            log.exception("The service failed on the request %s.", request_id, extra={"request_id": request_id})
            tracing.note_exception(error)
            await counted_response(scope, failed("request"))(scope, receive, send)


def nothing_at(path: str) -> Refusal:
    return Refusal("not_found", f"There is nothing at {path}; /docs lists what there is.")


async def _expected(request: Request, error: Exception) -> Response:
    return response_of(request.scope, error)


def _invalid(scope: Scope, error: RequestValidationError) -> Refusal:
    sentences, unknown = [], False
    for fault in islice(error.errors(), MOST_FAULTS):
        name = ".".join(str(key) for key in fault["loc"][1:])
        if fault["type"] == "extra_forbidden":
            unknown = True
            sentences.append(f"{name[:LONGEST_QUOTE]} is not a parameter of this address.")
        else:
            value = repr(fault.get("input"))[:LONGEST_QUOTE]
            message = fault["msg"][:1].lower() + fault["msg"][1:]
            sentences.append(f"{name} has value {value}: {message}.")
    if unknown:
        query = PictureQuery if record_of(scope).path == DETECT else DetectQuery
        sentences.append(f"It takes {', '.join(query.model_fields)}; /docs describes them.")
    return Refusal("invalid_parameter", " ".join(sentences))


def _http(scope: Scope, error: HTTPException) -> Refusal:
    path = scope["path"]
    if error.status_code == 404:
        return nothing_at(path)
    if error.status_code == 405:
        # Those of all routes; Starlette names only the first one's.
        routes = [route for route in scope["app"].routes if route.matches(scope)[0] is not Match.NONE]
        allowed = ", ".join(sorted(set().union(*(route.methods for route in routes))))
        return Refusal(
            "method_not_allowed", f"{path} does not take {scope['method']}, only {allowed}.", headers={"Allow": allowed}
        )
    return Refusal("malformed_request", f"{error.detail.rstrip('.')}. /docs shows a correct request.")
