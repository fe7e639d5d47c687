"""CUDA graphs: each shape of input is recorded once and then replayed, without launching its kernels one by one.

A recording reads and writes fixed addresses, so each shape keeps its own buffers on the GPU, and its own graph id
(microsoft/onnxruntime#19636). Recordings belong to the thread that made them: warm-up and requests must share one.
"""

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

_RECORDING_RUNS = (
    3  # ONNX Runtime allocates in the first, may still choose in the second, and has recorded by the third
)

# While one session records, another's work on the GPU, from its own thread, may break the recording: ONNX Runtime
# records in CUDA's global mode. It happens when a model is reloaded under load.
_ONE_AT_A_TIME = threading.Lock()


def unrecorded() -> ort.RunOptions:
    """Returns: Options of a run that is not recorded.

    Without them, ONNX Runtime records the first run of a session with `enable_cuda_graph`, whatever it is, as graph 0,
    with the copies from and to the caller's memory in it.
    """
    options = ort.RunOptions()
    options.add_run_config_entry("gpu_graph_id", "-1")
    return options


class CudaGraphs:
    """Runs a session of the CUDA provider whose option `enable_cuda_graph` is set.

    Args:
        outputs: Names, in the order in which they are wanted.
        device_id: The GPU of the session.
    """

    def __init__(self, session: ort.InferenceSession, outputs: Sequence[str], device_id: int) -> None:
        self._session = session
        self._outputs = outputs
        self._device_id = device_id
        self._recorded: dict[tuple[int, ...], _Recording] = {}

    def run(self, images: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
        """Returns: The outputs for uint8 [N, H, W, 3], as copies."""
        with _ONE_AT_A_TIME:
            recording = self._recorded.get(images.shape)
            if recording is None:
                recording = _Recording(self._session, self._outputs, self._device_id, images, len(self._recorded) + 1)
                for _ in range(_RECORDING_RUNS):
                    recording.run(images)
                self._recorded[images.shape] = recording
            return recording.run(images)


class _Recording:
    """One shape's buffers and graph id."""

    def __init__(
        self,
        session: ort.InferenceSession,
        names: Sequence[str],
        device_id: int,
        images: NDArray[np.uint8],
        number: int,
    ) -> None:
        self._session = session
        self._options = ort.RunOptions()
        self._options.add_run_config_entry("gpu_graph_id", str(number))
        # One run without recording tells the outputs' shapes.
        (name,) = (one.name for one in session.get_inputs())
        shapes = [output.shape for output in session.run(list(names), {name: images}, unrecorded())]

        self._input: Any = ort.OrtValue.ortvalue_from_numpy(images, "cuda", device_id)
        self._outputs: list[Any] = [
            ort.OrtValue.ortvalue_from_shape_and_type(list(shape), np.float32, "cuda", device_id) for shape in shapes
        ]
        self._binding: Any = session.io_binding()
        self._binding.bind_ortvalue_input(name, self._input)
        for output_name, output in zip(names, self._outputs, strict=True):
            self._binding.bind_ortvalue_output(output_name, output)

    def run(self, images: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
        self._input.update_inplace(np.ascontiguousarray(images))
        self._session.run_with_iobinding(self._binding, self._options)
        # `numpy()` copies to the host after the run; the next run overwrites only the buffers on the GPU.
        return [output.numpy() for output in self._outputs]
