"""The threads around the model: what is done first, and what is done at all."""

import threading

import pytest

from app.workers import Workers


def test_what_a_picture_needs_last_is_done_first() -> None:
    done: list[str] = []
    begun, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        begun.set()
        assert go_on.wait(20)

    workers = Workers(1, "test")
    workers.submit(hold)
    assert begun.wait(20)
    for name, urgent in (("first", False), ("second", False), ("urgent", True), ("urgent too", True)):
        workers.submit(lambda name=name: done.append(name), urgent=urgent)  # type: ignore[misc]
    go_on.set()
    workers.close()
    assert done == ["urgent", "urgent too", "first", "second"]


def test_a_task_that_fails_takes_no_thread_along(caplog: pytest.LogCaptureFixture) -> None:
    done: list[int] = []
    workers = Workers(1, "test")
    workers.submit(lambda: done.append(1 // 0))
    workers.submit(lambda: done.append(1))
    workers.close()
    assert done == [1]
    assert "ZeroDivisionError" in caplog.text
