"""One timer for many deadlines: on time, in any order, and never after `cancel`."""

import asyncio
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from time import perf_counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.detect_route import in_time
from app.record import Record
from app.timers import RESOLUTION_S, Timers
from tests.support import served, until

MOMENTS_S = st.floats(-0.02, 0.06)


@given(st.lists(st.tuples(MOMENTS_S, st.booleans()), max_size=12))
@settings(max_examples=20, deadline=None)
def test_what_is_not_cancelled_is_called_once_and_not_too_early(plan: Sequence[tuple[float, bool]]) -> None:
    called: list[tuple[int, float]] = []

    async def run() -> None:
        timers, begun = Timers(), perf_counter()

        def call(number: int) -> None:
            called.append((number, perf_counter() - begun))

        made = [timers.call_at(begun + after, partial(call, number)) for number, (after, _) in enumerate(plan)]
        for timer, (_, cancelled) in zip(made, plan, strict=True):
            if cancelled:
                timer.cancel()
                timer.cancel()  # a second time does nothing
        ended = asyncio.Event()
        timers.call_at(begun + 0.06, ended.set)
        await ended.wait()

    asyncio.run(run())
    assert sorted(number for number, _ in called) == [n for n, (_, cancelled) in enumerate(plan) if not cancelled]
    assert all(moment >= plan[number][0] for number, moment in called)


@pytest.mark.anyio
async def test_a_callback_may_add_and_cancel_others() -> None:
    timers, said = Timers(), list[str]()

    def first() -> None:
        later.cancel()
        now.cancel()
        timers.call_at(perf_counter(), lambda: said.append("second"))

    timers.call_at(perf_counter(), first)
    now = timers.call_at(perf_counter(), lambda: said.append("cancelled"))
    later = timers.call_at(perf_counter() + 0.05, lambda: said.append("cancelled"))
    ended = asyncio.Event()
    timers.call_at(perf_counter() + 0.05, ended.set)
    await ended.wait()
    await until(lambda: "second" in said)
    assert said == ["second"]


@pytest.mark.anyio
async def test_a_callback_that_fails_keeps_no_other_from_its_turn() -> None:
    timers, said = Timers(), list[str]()
    asyncio.get_running_loop().set_exception_handler(lambda _, context: said.append(str(context["exception"])))

    def fail() -> None:
        raise ValueError("no")

    timers.call_at(perf_counter(), fail)
    timers.call_at(perf_counter(), lambda: said.append("yes"))
    await until(lambda: "yes" in said)
    assert sorted(said) == ["no", "yes"]


@pytest.mark.anyio
async def test_a_body_that_came_in_time_is_not_timed_any_more(model_file: Path) -> None:
    failures: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: failures.append(context))
    async with served(model_file) as service:
        now = perf_counter()
        record = Record("1", "", {}, begun=now, deadline=now + RESOLUTION_S)
        assert await in_time(service, record, asyncio.sleep(0, b"a picture")) == b"a picture"
        await asyncio.sleep(4 * RESOLUTION_S)
    assert not failures
