"""A cap on request bodies, before anything reads them.

Starlette's own `max_body_size` does the same, but answers in plain text; here a refusal is a problem document.
"""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import Refusal
from app.problems import counted_response
from app.telemetry import header


class BodyLimit:
    """ASGI middleware: a request whose body is larger than `max_bytes` is refused, at once where it declares its size.

    A body that does not, and turns out larger, raises the refusal into whoever reads it.
    """

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        declared = header(scope, b"content-length")
        if declared.isdecimal() and int(declared) > self._max_bytes:
            await counted_response(scope["app"], self._refusal())(scope, receive, send)
            return

        received = 0

        async def limited() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._max_bytes:
                raise self._refusal()
            return message

        await self._app(scope, limited, send)

    def _refusal(self) -> Refusal:
        return Refusal(
            "body_too_large",
            f"The request's body is larger than the {self._max_bytes} bytes that are taken. Send a smaller picture.",
            headers={"Connection": "close"},  # the rest of the body is not read
        )
