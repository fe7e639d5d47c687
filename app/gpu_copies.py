"""Copies between arrays and a GPU.

ONNX Runtime's own hold Python's lock (1.31: `OrtValue.update_inplace` and `numpy`): a batch of 16 takes 12 MB there and
9 MB back, milliseconds in which no picture would be decoded and nobody answered. So the driver's are called instead,
during which other threads go on, if they prove to do the same.
"""

import ctypes
import logging
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from app.providers import DRIVER

log = logging.getLogger(__name__)


class Copies:
    """ONNX Runtime's own."""

    def to_gpu(self, array: NDArray[Any], value: Any) -> None:
        """Copies an array into an OrtValue of its shape and type."""
        value.update_inplace(array)

    def from_gpu(self, value: Any, dtype: DTypeLike) -> NDArray[Any]:
        """Returns: A copy of an OrtValue, whose type is `dtype`."""
        array: NDArray[Any] = value.numpy()
        return array


class DriverCopies(Copies):
    """The CUDA driver's, for a thread in which a session has run: CUDA's context is a thread's.

    Raises:
        OSError, AttributeError: There is no driver, or it is another than CUDA's.
        RuntimeError: The driver reports a failure; from the methods.
    """

    def __init__(self) -> None:
        driver = ctypes.CDLL(DRIVER)  # whose functions are called without Python's lock
        self._there, self._back, self._wait = driver.cuMemcpyHtoD_v2, driver.cuMemcpyDtoH_v2, driver.cuStreamSynchronize
        self._there.argtypes = (ctypes.c_uint64, ctypes.c_void_p, ctypes.c_size_t)
        self._back.argtypes = (ctypes.c_void_p, ctypes.c_uint64, ctypes.c_size_t)
        self._wait.argtypes = (ctypes.c_void_p,)

    def to_gpu(self, array: NDArray[Any], value: Any) -> None:
        array = np.ascontiguousarray(array)
        assert array.nbytes == value.tensor_size_in_bytes()
        _require(self._there(value.data_ptr(), array.ctypes.data, array.nbytes))
        _require(self._wait(None))  # until then the bytes have left the array, but may not have arrived

    def from_gpu(self, value: Any, dtype: DTypeLike) -> NDArray[Any]:
        array = np.empty(value.shape(), dtype)
        assert array.nbytes == value.tensor_size_in_bytes()
        _require(self._back(array.ctypes.data, value.data_ptr(), array.nbytes))
        return array


def choose_copies(value: Any, held: NDArray[np.uint8]) -> Copies:
    """Returns: The driver's copies, if they bring bytes to an OrtValue on the GPU and back; else ONNX Runtime's.

    Args:
        held: What the value holds, which will be something else then.
    """
    sent = ~held
    try:
        copies = DriverCopies()
        copies.to_gpu(sent, value)
        there, back = value.numpy(), copies.from_gpu(value, sent.dtype)
    except (OSError, AttributeError, RuntimeError) as error:
        reason = str(error)
    else:
        if np.array_equal(there, sent) and np.array_equal(back, sent):
            return copies
        reason = "they bring something else"
    log.warning("The driver's copies to the GPU cannot be used (%s): the process waits for ONNX Runtime's.", reason)
    return Copies()


def _require(result: int) -> None:
    if result:
        raise RuntimeError(f"CUDA failure {result}: a copy between the host and the GPU failed")
