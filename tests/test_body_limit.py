"""Bodies are bounded before anything reads them."""

import asyncio

import pytest
from starlette.types import Message, Receive, Scope, Send

from app.body_limit import BodyLimit
from app.errors import Refusal
from app.record import Record, note_record


async def read(scope: Scope, receive: Receive, send: Send) -> None:
    while (await receive())["more_body"]:
        pass


@pytest.mark.parametrize(("sizes", "fits"), [((10,), True), ((11,), False), ((5, 5), True), ((5, 5, 1), False)])
def test_a_body_that_does_not_say_its_size_is_bounded_by_what_has_come(sizes: tuple[int, ...], fits: bool) -> None:
    messages = iter(
        [{"type": "http.request", "body": bytes(size), "more_body": True} for size in sizes]
        + [{"type": "http.request", "body": b"", "more_body": False}]
    )
    scope: Scope = {"type": "http"}
    note_record(scope, Record("", "", {}, 0.0))

    async def receive() -> Message:
        return next(messages)

    async def send(message: Message) -> None:
        raise NotImplementedError

    limited = BodyLimit(read, max_bytes=10, max_held=100)(scope, receive, send)
    if fits:
        asyncio.run(limited)
    else:
        with pytest.raises(Refusal) as caught:
            asyncio.run(limited)
        assert caught.value.code == "body_too_large"
        assert caught.value.headers == {"Connection": "close"}, "nobody reads the rest"
