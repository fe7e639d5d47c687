"""CUDA graphs: each shape of input is recorded once and then replayed, without launching its kernels one by one.

Launching them is the lesser part of what that saves. ONNX Runtime's convolutions keep cuDNN's plan for the last shape
only, and whenever a batch has another one, every convolution makes its plan anew: 126 plans with the shipped model,
about a millisecond each, where the model itself takes a few (microsoft/onnxruntime#23006, still so in 1.31). Hardly any
two batches in a row have the same shape.

A recording reads and writes fixed addresses, so each shape keeps its own buffers on the GPU, and its own graph id
(microsoft/onnxruntime#19636). Recordings belong to the thread that made them: warm-up and requests must share one.
"""

import itertools
import logging
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from app.artifact import INPUT
from app.gpu_copies import Copies, choose_copies
from app.providers import reason_of

log = logging.getLogger(__name__)

# While one session records, another's work on the GPU, from its own thread, may break the recording: ONNX Runtime
# records in CUDA's global mode. It happens when a model is reloaded under load.
_ONE_AT_A_TIME = threading.Lock()
# The graph id of a run that is not recorded. Without an id, ONNX Runtime records the first run of a session with
# `enable_cuda_graph`, whatever it is, as graph 0, with the copies from and to the caller's memory in it.
_UNRECORDED = -1


class CudaGraphs:
    """Runs a session of the CUDA provider whose option `enable_cuda_graph` is set.

    A shape that cannot be recorded is run without that, as slowly as described above.

    Args:
        outputs: Names, in the order in which they are wanted.
        device_id: The GPU of the session.
        record: False for a session without that option, or not yet to be recorded: no shape is recorded, but others'
            recordings are not disturbed.
    """

    def __init__(
        self, session: ort.InferenceSession, outputs: Sequence[str], device_id: int, *, record: bool = True
    ) -> None:
        self._session = session
        self._records = record
        self._outputs = outputs
        self._device_id = device_id
        self._recorded: dict[tuple[int, ...], _Recording | None] = {}
        self._copies: Copies | None = None  # chosen with the first recording
        # A number is never used again: if a recording fails, its graph, with addresses freed since, may exist already.
        self._numbers = itertools.count(1)

    def run(self, images: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
        """Returns: The outputs for uint8 [N, H, W, 3], as copies."""
        with _ONE_AT_A_TIME:
            if self._records and images.shape not in self._recorded:
                self._recorded[images.shape] = self._record(images)
            recording = self._recorded.get(images.shape)
            return _run_unrecorded(self._session, self._outputs, images) if recording is None else recording.run(images)

    def _record(self, images: NDArray[np.uint8]) -> "_Recording | None":
        try:
            recording = _Recording(
                self._session, self._outputs, self._device_id, images, next(self._numbers), self._copies
            )
            self._copies = recording.copies
            recording.run(images)  # in which ONNX Runtime runs the model until all is allocated, and then records it
        except Exception as error:  # ONNX Runtime's own share no base class
            log.warning("Batches of %s are not recorded as a CUDA graph: %s", list(images.shape), reason_of(error))
            return None
        return recording


def _run_unrecorded(
    session: ort.InferenceSession, names: Sequence[str], images: NDArray[np.uint8]
) -> list[NDArray[np.float32]]:
    outputs: list[NDArray[np.float32]] = session.run(list(names), {INPUT: images}, _run_options(_UNRECORDED))
    return outputs


def _run_options(graph_id: int) -> ort.RunOptions:
    options = ort.RunOptions()
    options.add_run_config_entry("gpu_graph_id", str(graph_id))
    return options


class _Recording:
    """One shape's buffers and graph id."""

    def __init__(
        self,
        session: ort.InferenceSession,
        names: Sequence[str],
        device_id: int,
        images: NDArray[np.uint8],
        number: int,
        copies: Copies | None,
    ) -> None:
        self._session = session
        self._options = _run_options(number)
        # One run without recording tells the outputs' shapes.
        shapes = [output.shape for output in _run_unrecorded(session, names, images)]

        self._input: Any = ort.OrtValue.ortvalue_from_numpy(images, "cuda", device_id)
        self._outputs: list[Any] = [
            ort.OrtValue.ortvalue_from_shape_and_type(list(shape), np.float32, "cuda", device_id) for shape in shapes
        ]
        self._binding: Any = session.io_binding()
        self._binding.bind_ortvalue_input(INPUT, self._input)
        for name, output in zip(names, self._outputs, strict=True):
            self._binding.bind_ortvalue_output(name, output)
        self.copies = copies or choose_copies(self._input, held=images)

    def run(self, images: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
        self.copies.to_gpu(images, self._input)
        self._session.run_with_iobinding(self._binding, self._options)
        return [self.copies.from_gpu(output, np.float32) for output in self._outputs]
