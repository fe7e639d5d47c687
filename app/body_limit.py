"""A cap on each request body, and on all that are held at once, before anything reads them.

Starlette's own `max_body_size` does the same, but answers in plain text; here a refusal is a problem document.
"""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.budget import Budget, Share
from app.errors import Refusal
from app.problems import counted_response
from app.record import content_length


class BodyLimit:
    """ASGI middleware: refuses a request whose body is too large, at once if it declares its size.

    If a body does not, and turns out too large, whatever reads it gets the refusal as an exception.

    Args:
        max_bytes: The most bytes of one body.
        max_held: The most bytes of all requests not yet answered. A sole request has room, however large.
    """

    def __init__(self, app: ASGIApp, max_bytes: int, max_held: int) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._held = Budget(max_held)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        share = Share(self._held)
        try:
            self._take(share, content_length(scope) or 0)
        except Refusal as refusal:
            await counted_response(scope, refusal)(scope, receive, send)
            return

        share.shrink(0)  # what counts as held is what has arrived, not what was announced

        async def limited() -> Message:
            message = await receive()
            self._take(share, len(message.get("body", b"")))
            return message

        try:
            await self._app(scope, limited, send)
        finally:
            share.shrink(0)

    def _take(self, share: Share, count: int) -> None:
        """Raises: Refusal: There is no room for more of the body."""
        if share.amount + count > self._max_bytes:
            raise Refusal(
                "body_too_large",
                f"The request's body is larger than the {self._max_bytes} bytes that are accepted. Send a smaller "
                "picture.",
                headers={"Connection": "close"},
            )
        if not share.grow(count):
            raise Refusal(
                "overloaded",
                f"Requests of {self._held.used} bytes are being answered, and at most {self._held.limit} may be. "
                "Try again later.",
                headers={"Connection": "close", "Retry-After": "1"},
            )
