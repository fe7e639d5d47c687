"""Who may ask, and whether there is room: decided before a request's body is read.

Health, metrics and the pages are for everybody, and always answered.
"""

import hashlib
from collections import Counter

from starlette.types import ASGIApp, Receive, Scope, Send

from app.addresses import KEYED, PICTURES, RELOAD
from app.errors import Refusal
from app.problems import counted_response, nothing_at
from app.record import content_length, header, record_of
from app.service import Service
from app.settings import Settings

DEADLINE_HEADER = b"x-deadline-ms"
# A refused client that sends this much loses its connection, so that it need not send all of it.
LARGE_BODY_BYTES = 2**20
MOST_PARAMETERS = 2000  # in a query: each costs time before its name is looked at, and 150,000 fit into a head
# Requests that are still being sent have no place in the queue yet: slow clients must not keep others out. What has
# come of them counts for `max_queue_bytes`.
UPLOADS_PER_PLACE = 16


class Gate:
    """ASGI middleware: API keys, parameters, requests per key, requests in all, and each request's deadline."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._settings = settings
        self._keys = {_digest(key.encode()) for key in settings.api_keys}
        self._admin_keys = {_digest(settings.admin_key.encode())} if settings.admin_key else self._keys
        self._requests_of: Counter[bytes] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # Starlette's routes also match a path with a line break at its end, which is not in `KEYED`.
        if scope["type"] == "http" and not scope["path"].isprintable():
            await counted_response(scope, nothing_at(scope["path"]))(scope, receive, send)
            return
        if scope["type"] != "http" or (path := record_of(scope).path) not in KEYED:
            await self._app(scope, receive, send)
            return
        service: Service = scope["app"].state.service
        bounded = path in PICTURES and scope["method"] == "POST"
        try:
            key = self._key(scope)
            record_of(scope).key = key.hex()[:8]
            if scope["query_string"].count(b"&") >= MOST_PARAMETERS:
                raise Refusal("invalid_parameter", f"The query has more than {MOST_PARAMETERS} parameters.")
            if bounded:
                self._require_place(scope, key, service)
        except Refusal as refusal:
            if _is_large(scope):
                refusal.headers["Connection"] = "close"
            await counted_response(scope, refusal)(scope, receive, send)
            return
        if not bounded:
            await self._app(scope, receive, send)
            return

        service.requests += 1
        self._requests_of[key] += 1
        try:
            await self._app(scope, receive, send)
        finally:
            service.requests -= 1
            self._requests_of[key] -= 1

    def _key(self, scope: Scope) -> bytes:
        """Returns: The SHA-256 of the request's key; empty if no keys are set. Raises: Refusal: `unauthorized`."""
        reloads = record_of(scope).path == RELOAD
        keys = self._admin_keys if reloads else self._keys
        if not keys:
            return b""
        scheme, _, value = header(scope, b"authorization").partition(" ")
        # Both may be there: a gateway in front may need an Authorization of its own.
        given = [header(scope, b"x-api-key"), value.strip() if scheme.lower() == "bearer" else ""]
        # By digests: how long a refusal takes reveals nothing about the keys, nor does it grow with their number.
        found = [key for one in given if (key := _digest(one.encode("latin-1"))) in keys]
        if not found:
            wrong = "for reloading" if reloads else "for this service"
            raise Refusal(
                "unauthorized",
                f"The key is not valid {wrong}."
                if any(given)
                else "This service requires a key. Send `Authorization: Bearer KEY`.",
                headers={"WWW-Authenticate": "Bearer"},
            )
        return found[0]

    def _require_place(self, scope: Scope, key: bytes, service: Service) -> None:
        """Notes the request's deadline. Raises: Refusal: There is no place for it, or no time."""
        service.require_ready()
        record = record_of(scope)
        record.deadline = record.begun + _deadline_s(scope, self._settings.deadline_s)
        if self._settings.max_per_key and key and self._requests_of[key] >= self._settings.max_per_key:
            raise Refusal(
                "too_many_requests",
                f"Requests of this key at a time: at most {self._settings.max_per_key}. Wait for one to end.",
                headers={"Retry-After": "1"},
            )
        if service.uploading >= UPLOADS_PER_PLACE * self._settings.max_queue:
            raise Refusal(
                "overloaded",
                f"Requests being sent: {service.uploading}, which is all there is room for. Try again later.",
                headers={"Retry-After": "1"},
            )
        service.require_room(record.deadline, service.answering)


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _deadline_s(scope: Scope, longest_s: float) -> float:
    text = header(scope, DEADLINE_HEADER)
    if not text:
        return longest_s
    digits = text.lstrip("0")[:12]
    if not text.isdecimal() or not digits:
        raise Refusal(
            "invalid_parameter",
            f"The header {DEADLINE_HEADER.decode()} has value {text[:100]!r}: a whole number of ms above 0 is needed.",
        )
    return min(longest_s, int(digits) / 1000)


def _is_large(scope: Scope) -> bool:
    """Whether the request's body is large, or may be: a chunked one does not say."""
    declared = content_length(scope)
    return bool(header(scope, b"transfer-encoding")) if declared is None else declared > LARGE_BODY_BYTES
