"""Timeouts of many requests on one timer of the event loop.

Nearly all are cancelled: a request that is answered in milliseconds has a deadline in seconds. Here that costs an entry
in a dictionary and its removal; a timer of the loop's own costs more than all else that is noted about a request.
"""

import asyncio
from collections.abc import Callable
from time import perf_counter

RESOLUTION_S = 0.02  # a callback may be this late, and a little more if the loop is busy


class Timers:
    """The timeouts of one event loop, to be used only on it."""

    def __init__(self) -> None:
        self._waiting: dict[Timer, None] = {}
        self._sweeping = False

    def call_at(self, when: float, callback: Callable[[], object]) -> "Timer":
        """Calls a function at a moment on `time.perf_counter`'s clock. Returns: The timer, to cancel it."""
        timer = Timer(self._waiting, when, callback)
        self._waiting[timer] = None
        if not self._sweeping:
            self._sweeping = True
            asyncio.get_running_loop().call_later(RESOLUTION_S, self._sweep)
        return timer

    def _sweep(self) -> None:
        now, loop = perf_counter(), asyncio.get_running_loop()
        for timer in [timer for timer in self._waiting if timer.when <= now]:
            if timer not in self._waiting:  # an earlier one's callback cancelled it
                continue
            callback = timer.callback
            timer.cancel()
            try:
                callback()
            except Exception as error:  # it must not affect the others
                loop.call_exception_handler({"message": "A timer's callback failed.", "exception": error})
        self._sweeping = bool(self._waiting)
        if self._sweeping:
            loop.call_later(RESOLUTION_S, self._sweep)


class Timer:
    """One pending callback."""

    __slots__ = ("_waiting", "callback", "when")

    def __init__(self, waiting: "dict[Timer, None]", when: float, callback: Callable[[], object]) -> None:
        self._waiting = waiting
        self.when = when
        self.callback = callback

    def cancel(self) -> None:
        self._waiting.pop(self, None)
        self.callback = _nothing  # it may refer to the timer's holder: only the garbage collector would free both


def _nothing() -> None:
    pass
