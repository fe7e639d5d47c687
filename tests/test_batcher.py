"""The batcher's promises, whatever is put, taken and cancelled in whatever order."""

import math
import threading
from collections import Counter

import hypothesis.strategies as st
import pytest
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from app.batcher import Batcher


class Machine(RuleBasedStateMachine):
    """Any sequence of puts, takes, cancellations and passing time, against a list of what must be queued."""

    @initialize(largest=st.integers(1, 16))
    def start(self, largest: int) -> None:
        self.now = 0.0
        self.largest = largest
        self.batcher: Batcher[int] = Batcher(largest, lambda: self.now)
        self.queued: dict[int, tuple[int, float]] = {}  # item → key and deadline, oldest first
        self.handed_out: Counter[int] = Counter()
        self.put_so_far = 0

    @rule(key=st.integers(0, 3), patience=st.one_of(st.just(math.inf), st.floats(0, 10)))
    def put(self, key: int, patience: float) -> None:
        self.batcher.put(key, self.put_so_far, self.now + patience)
        self.queued[self.put_so_far] = (key, self.now + patience)
        self.put_so_far += 1

    @rule(seconds=st.floats(0, 5))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @precondition(lambda self: self.queued)
    @rule(needed_s=st.floats(0, 2))
    def take(self, needed_s: float) -> None:
        batch = self.batcher.take(lambda: needed_s)
        assert batch is not None
        assert batch.items or batch.late
        assert len(batch.items) <= self.largest
        self.handed_out.update(batch.items + batch.late)
        taken = {item: self.queued.pop(item) for item in (*batch.items, *batch.late)}
        deadlines = {item: deadline for item, (_, deadline) in taken.items()}
        latest_s = self.now + needed_s
        assert all(deadlines[item] < latest_s for item in batch.late)
        worth_running = {item: key for item, (key, deadline) in self.queued.items() if deadline >= latest_s}
        if not worth_running and all(deadline < latest_s for deadline in deadlines.values()):
            assert not self.queued
            in_time = [item for item in taken if deadlines[item] >= self.now]
            assert len(batch.items) == bool(in_time), "what is expected to be late is tried where nothing else is to do"
            assert all(item in in_time for item in batch.items)
            return
        assert all(deadlines[item] >= latest_s for item in batch.items)

        (key,) = {taken[item][0] for item in batch.items}
        assert batch.items == sorted(batch.items), "first come, first served"
        assert all(item > batch.items[0] for item in worth_running), "the oldest is in the next batch"
        left = [item for item, other in worth_running.items() if other == key]
        assert all(item > batch.items[-1] for item in left), "nobody is overtaken"
        assert not left or len(batch.items) == self.largest, "a free session takes all that fits"

    @precondition(lambda self: self.put_so_far)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        if data.draw(st.booleans()) and self.queued:
            item = data.draw(st.sampled_from(list(self.queued)))
            assert self.batcher.cancel(item)
            del self.queued[item]
            self.handed_out[item] += 1
        else:
            gone = data.draw(st.sampled_from([-1, *self.handed_out]))
            assert not self.batcher.cancel(gone)

    @invariant()
    def every_item_is_queued_or_handed_out_exactly_once(self) -> None:
        if not hasattr(self, "batcher"):
            return
        assert len(self.batcher) == len(self.queued)
        assert all(self.handed_out.get(item, 0) == (item not in self.queued) for item in range(self.put_so_far))


TestBatcher = Machine.TestCase


def test_threads_get_every_item_once() -> None:
    batcher: Batcher[int] = Batcher(4)
    outcomes: Counter[str] = Counter()
    seen: Counter[int] = Counter()
    lock = threading.Lock()

    def session() -> None:
        while (batch := batcher.take()) is not None:
            with lock:
                seen.update(batch.items)
                outcomes["too large"] += len(batch.items) > 4

    def client(first: int) -> None:
        for number in range(first, first + 500):
            batcher.put(number % 3, number)
            if number % 7 == 0 and batcher.cancel(number):
                with lock:
                    seen[number] += 1

    threads = [threading.Thread(target=session) for _ in range(3)]
    clients = [threading.Thread(target=client, args=(first,)) for first in range(0, 2000, 500)]
    for thread in threads + clients:
        thread.start()
    for thread in clients:
        thread.join()
    batcher.close()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert seen == Counter(range(2000))
    assert outcomes["too large"] == 0
    assert len(batcher) == 0


def test_what_is_expected_to_be_late_is_tried_if_it_has_the_most_time_left() -> None:
    batcher: Batcher[str] = Batcher(4, lambda: 2.0)
    for item, deadline_s in (("past", 1.0), ("last", 4.0), ("first", 3.0)):
        batcher.put("canvas", item, deadline_s)
    assert batcher.take(lambda: 9.0) == (["last"], ["past", "first"])


def test_a_closed_batcher_hands_out_what_it_has_and_ends() -> None:
    batcher: Batcher[str] = Batcher(1)
    batcher.put("canvas", "a")
    batcher.put("canvas", "b")
    batcher.close()
    with pytest.raises(RuntimeError):
        batcher.put("canvas", "c")
    batches = [batcher.take(), batcher.take(), batcher.take()]
    assert [batch and batch.items for batch in batches] == [["a"], ["b"], None]
