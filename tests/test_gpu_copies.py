"""Copies to a GPU whose memory is the host's, and whose driver is written in Python."""

import ctypes
from typing import Any

import numpy as np
import pytest

from app.gpu_copies import Copies, DriverCopies, choose_copies

HELD = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
OUT_OF_MEMORY = 2


class Value:
    """An OrtValue on the GPU."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array.copy()
        self.updates = 0

    def update_inplace(self, array: np.ndarray) -> None:
        self.updates += 1
        self.array[...] = array

    def numpy(self) -> np.ndarray:
        return self.array.copy()

    def shape(self) -> list[int]:
        return list(self.array.shape)

    def data_ptr(self) -> int:
        return self.array.ctypes.data

    def tensor_size_in_bytes(self) -> int:
        return self.array.nbytes


class Driver:
    """`libcuda`, where copies to the GPU arrive once they are waited for.

    Args: result: what every copy returns; wrong: what is added to the last byte of one there, and of one back.
    """

    def __init__(self, result: int = 0, wrong: tuple[int, int] = (0, 0)) -> None:
        sent: list[tuple[int, bytes]] = []

        def there(target: int, source: int, size: int) -> int:
            sent.append((target, _changed(source, size, wrong[0])))
            return result

        def back(target: int, source: int, size: int) -> int:
            ctypes.memmove(target, _changed(source, size, wrong[1]), size)
            return result

        def wait(stream: int | None) -> int:
            for target, content in sent:
                ctypes.memmove(target, content, len(content))
            sent.clear()
            return 0

        kinds = (ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
        self.cuMemcpyHtoD_v2, self.cuMemcpyDtoH_v2 = (ctypes.CFUNCTYPE(*kinds)(copy) for copy in (there, back))
        self.cuStreamSynchronize = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p)(wait)


def _changed(source: int, size: int, added: int) -> bytes:
    content = ctypes.string_at(source, size)
    return content[:-1] + bytes([content[-1] + added & 255])


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    made: Any = request.param

    def load(name: str) -> Any:
        if isinstance(made, Exception):
            raise made
        return made

    monkeypatch.setattr("app.gpu_copies.ctypes.CDLL", load)


@pytest.mark.parametrize("driver", [Driver()], indirect=True)
@pytest.mark.usefixtures("driver")
def test_the_drivers_copies_are_taken_if_they_are_right(caplog: pytest.LogCaptureFixture) -> None:
    value = Value(HELD)
    copies = choose_copies(value, HELD)
    assert isinstance(copies, DriverCopies) and not caplog.records

    copies.to_gpu(HELD[:, ::-1], value)  # which does not lie in memory as it is
    assert np.array_equal(value.array, HELD[:, ::-1]) and not value.updates
    distances = np.linspace(0, 1, 10, dtype=np.float32).reshape(5, 2)
    assert np.array_equal(copies.from_gpu(Value(distances), np.float32), distances)


@pytest.mark.parametrize(
    ("driver", "says"),
    [
        (OSError("libcuda.so.1: cannot open shared object file"), "cannot open"),
        (object(), "cuMemcpyHtoD_v2"),
        (Driver(result=OUT_OF_MEMORY), "CUDA failure 2"),
        (Driver(wrong=(1, 0)), "something else"),
        (Driver(wrong=(0, 1)), "something else"),
    ],
    indirect=["driver"],
)
@pytest.mark.usefixtures("driver")
def test_else_onnx_runtimes_are(says: str, caplog: pytest.LogCaptureFixture) -> None:
    value = Value(HELD)
    copies = choose_copies(value, HELD)
    assert type(copies) is Copies and says in caplog.text

    copies.to_gpu(HELD + 1, value)
    assert value.updates == 1
    assert np.array_equal(copies.from_gpu(value, np.uint8), HELD + 1)


@pytest.mark.parametrize("driver", [Driver(result=OUT_OF_MEMORY)], indirect=True)
@pytest.mark.usefixtures("driver")
def test_a_failing_copy_is_an_error() -> None:
    copies = DriverCopies()
    with pytest.raises(RuntimeError, match="CUDA failure 2"):
        copies.to_gpu(HELD, Value(HELD))
    with pytest.raises(RuntimeError, match="CUDA failure 2"):
        copies.from_gpu(Value(HELD), np.uint8)
