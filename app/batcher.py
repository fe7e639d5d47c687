"""Requests → batches: one queue, of which a batch takes one canvas, and no waiting except for the session itself.

A thread whose session is free takes what is queued at that moment, up to the largest batch. The item that has waited
longest is always in the next batch, so no canvas is starved by a busier one; within a canvas, items leave in the order
in which they came. Cancelled items never reach a session, nor, while others wait, do any that could only be answered
late.
"""

import math
import threading
import time
from collections.abc import Callable, Hashable
from typing import Generic, NamedTuple, TypeVar

Item = TypeVar("Item", bound=Hashable)


class _Place(NamedTuple):
    """An item's, in the queue."""

    key: Hashable
    deadline_s: float  # on the batcher's clock


class Batch(NamedTuple, Generic[Item]):
    """What a session should run now, all of one key, oldest first; and what is no longer worth running."""

    items: list[Item]
    late: list[Item]


class Batcher(Generic[Item]):
    """A queue for any number of threads that put, take and cancel.

    Every item that was put is handed out exactly once: in a batch, as late, or to whoever cancelled it. No two items in
    it are equal.

    Args:
        largest: The most items that a batch may have; may be changed later.
        clock: Gives seconds; deadlines are on this clock.
    """

    def __init__(self, largest: int, clock: Callable[[], float] = time.perf_counter) -> None:
        if largest < 1:
            raise ValueError(f"largest must be at least 1, but is {largest}")
        self.largest = largest
        self._clock = clock
        self._changed = threading.Condition(threading.Lock())
        self._queued: dict[Item, _Place] = {}  # the oldest first
        self._closed = False

    def __len__(self) -> int:
        return len(self._queued)

    def put(self, key: Hashable, item: Item, deadline_s: float = math.inf) -> None:
        """Queues an item.

        Args:
            key: Items of the same key may share a batch.
            deadline_s: On the batcher's clock; after it, nobody wants the item's answer.

        Raises:
            RuntimeError: The batcher is closed.
        """
        with self._changed:
            if self._closed:
                raise RuntimeError("the batcher is closed")
            self._queued[item] = _Place(key, deadline_s)
            self._changed.notify()

    def take(self, needed_s: Callable[[], float] = lambda: 0.0, *, wait: bool = True) -> Batch[Item] | None:
        """Takes a batch of what is queued, once something is.

        Args:
            needed_s: How long a batch is expected to take: an item whose deadline comes sooner is late already, unless
                there is nothing else to do. The expectation may be wrong, and only a run can correct it.
            wait: False to take what is queued now, or nothing.

        Returns:
            Between 1 and `largest` items, or only late ones; None once the batcher is closed and empty, or if nothing
            is queued and `wait` is False.
        """
        with self._changed:
            while not self._queued:
                if self._closed or not wait:
                    return None
                self._changed.wait()
            now_s = self._clock()
            latest_s = now_s + needed_s()
            late = [item for item, place in self._queued.items() if place.deadline_s < latest_s]
            in_time = [item for item, place in self._queued.items() if place.deadline_s >= latest_s]
            items = [item for item in in_time if self._queued[item].key == self._queued[in_time[0]].key][: self.largest]
            last = max(late, key=lambda item: self._queued[item].deadline_s, default=None)
            if not items and last is not None and self._queued[last].deadline_s >= now_s:
                late.remove(last)
                items = [last]
            for item in (*items, *late):
                del self._queued[item]
            return Batch(items, late)

    def cancel(self, item: Item) -> bool:
        """Takes an item back. Returns: Whether it was queued; if not, it has been handed out, or was never put."""
        with self._changed:
            return self._queued.pop(item, None) is not None

    def close(self) -> None:
        """Accepts no more items. What is queued can still be taken."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
