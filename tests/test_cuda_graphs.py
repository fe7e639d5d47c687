"""Which shapes are recorded, on a session that only pretends to have a GPU."""

import threading
from typing import Any

import numpy as np
import pytest

from app.cuda_graphs import _ONE_AT_A_TIME, CudaGraphs


class Value:
    """A tensor on the GPU."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array.copy()

    @staticmethod
    def ortvalue_from_numpy(array: np.ndarray, device: str, device_id: int) -> "Value":
        assert (device, device_id) == ("cuda", 1)
        return Value(array)

    @staticmethod
    def ortvalue_from_shape_and_type(shape: list[int], kind: Any, device: str, device_id: int) -> "Value":
        assert (device, device_id) == ("cuda", 1)
        return Value(np.zeros(shape, kind))

    def update_inplace(self, array: np.ndarray) -> None:
        assert array.shape == self.array.shape
        self.array[...] = array

    def numpy(self) -> np.ndarray:
        return self.array.copy()


class Binding:
    def __init__(self) -> None:
        self.bound: dict[str, Value] = {}

    def bind_ortvalue_input(self, name: str, value: Value) -> None:
        self.bound[name] = value

    bind_ortvalue_output = bind_ortvalue_input


class Session:
    """Gives each picture's sum. A graph reads and writes what was bound when it was recorded.

    Attributes:
        ids: Of all runs.
        fails: At which run of a graph it fails, counted from 1.
    """

    def __init__(self, fails: int | None = None) -> None:
        self.ids: list[str] = []
        self.graphs: dict[str, Binding] = {}
        self.fails, self.replays = fails, 0

    def io_binding(self) -> Binding:
        return Binding()

    def run(self, names: list[str], feed: dict[str, np.ndarray], options: Any) -> list[np.ndarray]:
        self.ids.append(options.get_run_config_entry("gpu_graph_id"))
        return [feed["images"].sum((1, 2, 3)).astype(np.float32) for _ in names]

    def run_with_iobinding(self, binding: Binding, options: Any) -> None:
        number = options.get_run_config_entry("gpu_graph_id")
        self.ids.append(number)
        bound = self.graphs.setdefault(number, binding).bound
        self.replays += 1
        if self.replays == self.fails:
            raise RuntimeError("CUDA failure 900: operation not permitted when stream is capturing")
        for name, value in bound.items():
            if name != "images":
                value.array[...] = bound["images"].array.sum((1, 2, 3))


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.cuda_graphs.ort.OrtValue", Value)


def pictures(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 4, 6, 3), np.uint8)


def assert_sums(graphs: CudaGraphs, images: np.ndarray) -> None:
    outputs = graphs.run(images)
    assert len(outputs) == 2
    for output in outputs:
        np.testing.assert_array_equal(output, images.sum((1, 2, 3)))


def test_a_shape_is_recorded_once_and_replayed_with_other_pictures() -> None:
    session: Any = Session()
    graphs = CudaGraphs(session, ("one", "two"), 1)
    for seed in range(3):
        for count in (1, 4):
            assert_sums(graphs, pictures(count, seed))
    assert session.ids == ["-1", *"11", "-1", *"22", *"1212"]


def test_a_shape_that_cannot_be_recorded_is_run_as_it_is_and_no_graph_of_it_is_ever_used(
    caplog: pytest.LogCaptureFixture,
) -> None:
    session: Any = Session(fails=1)
    graphs = CudaGraphs(session, ("one", "two"), 1)
    assert_sums(graphs, pictures(2, 0))
    assert "[2, 4, 6, 3] are not recorded as a CUDA graph: CUDA failure 900" in caplog.text
    assert_sums(graphs, pictures(2, 1))
    assert_sums(graphs, pictures(1, 2))
    assert session.ids == ["-1", "1", "-1", "-1", "-1", *"22"]


def test_a_session_that_cannot_record_leaves_others_recordings_alone() -> None:
    session: Any = Session()
    graphs = CudaGraphs(session, ("one", "two"), 1, record=False)
    with _ONE_AT_A_TIME:
        run = threading.Thread(target=graphs.run, args=(pictures(2, 0),))
        run.start()
        run.join(0.05)
        assert not session.ids
    run.join()
    assert_sums(graphs, pictures(2, 1))
    assert session.ids == ["-1", "-1"]
