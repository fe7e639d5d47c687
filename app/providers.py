"""Execution providers: whether CUDA is available here, and how each is asked for."""

import contextlib
import ctypes
import io
import re
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import onnxruntime as ort
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidGraph, InvalidProtobuf, NoModel

from app.errors import first_line

ProviderChoice = Literal["auto", "cuda", "cpu"]
ConvSearch = Literal["heuristic", "exhaustive", "default"]
CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
DRIVER = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"  # NVIDIA's
# ONNX Runtime's errors that are caused by the file; it has many others for what is wrong with a device.
BAD_MODEL = (InvalidProtobuf, InvalidGraph, NoModel)
_NVIDIA = "0x10de"  # the vendor, on the PCI bus
_ORT_FATAL = 4  # ONNX Runtime's severity; its errors are raised anyway, in words that name the file
_CUDA_FAILURE = re.compile(r"(?:CUDA|CUDNN|CUBLAS)\w* failure \d+: [^;]*[^; ]")
_PLACE = re.compile(r".*\.(?:cc|h):\d+ [^(]*\([^()]*\) ")  # in ONNX Runtime's sources: file, line and function


@dataclass(frozen=True)
class CudaOptions:
    """How the CUDA provider works.

    Attributes:
        device_id: Which GPU.
        memory_limit_bytes: Of ONNX Runtime's arena; what graphs read and write comes on top. 0 for no limit.
        conv_search: How cuDNN's convolutions are chosen: by its quick heuristics, or by its slow ones (`exhaustive`,
            which tries nothing out from ONNX Runtime 1.20 on). `default` is cuDNN's slow fallback in these versions
            (microsoft/onnxruntime#22705).
        tf32: Let float32 convolutions multiply with 10 bits of mantissa, on GPUs that can.
        graphs: Record each (canvas, batch size) once and replay it: see `cuda_graphs`. Then the runner belongs to the
            thread that warms it up.
    """

    device_id: int = 0
    memory_limit_bytes: int = 0
    conv_search: ConvSearch = "heuristic"
    tf32: bool = True
    graphs: bool = False

    def provider_options(self) -> dict[str, str]:
        """Returns: ONNX Runtime's names and values."""
        options = {
            "device_id": str(self.device_id),
            "cudnn_conv_algo_search": self.conv_search.upper(),
            "use_tf32": str(int(self.tf32)),
            "enable_cuda_graph": str(int(self.graphs)),
            # Growing by powers of two would hold up to twice what the warmed shapes need.
            "arena_extend_strategy": "kSameAsRequested",
        }
        if self.memory_limit_bytes:
            options["gpu_mem_limit"] = str(self.memory_limit_bytes)
        return options


def open_session(file: bytes, provider: str, threads: int, cuda: CudaOptions) -> ort.InferenceSession:
    """Opens a model file on one provider and no other.

    Args:
        threads: Of one operator on the CPU; 0 for one per core.

    Raises:
        Exception: ONNX Runtime's own; its exceptions share no base class.
    """
    ort.set_default_logger_severity(_ORT_FATAL)  # of what it logs outside of a session
    options = ort.SessionOptions()
    options.log_severity_level = _ORT_FATAL
    options.intra_op_num_threads = threads
    # Threads that spin until their next operator make a run faster; after it they would spin on for a while, and take
    # the cores from decoding and from the event loop.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if provider == CPU:
        _make_arena()
        options.add_session_config_entry("session.use_env_allocators", "1")
    providers: list[str | tuple[str, dict[str, str]]] = (
        [(CUDA, cuda.provider_options())] if provider == CUDA else [provider]
    )
    return ort.InferenceSession(file, options, providers=providers, enable_fallback=0)


def reason_of(error: Exception) -> str:
    """Returns: What ONNX Runtime's exception says, in one line, without the place in its sources and the host."""
    failure = _CUDA_FAILURE.search(str(error))
    return failure[0] if failure else _PLACE.sub("", first_line(error)).rstrip(".")


@cache
def _make_arena() -> None:
    """Makes one arena for the tensors of all CPU sessions, or each would hold a model's largest ones for itself."""
    memory = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    ort.create_and_register_allocator(memory, None)


def why_no_cuda() -> str | None:
    """Loads CUDA's libraries. Returns: Why the CUDA provider is not available; None if nothing is missing.

    ONNX Runtime only logs which library is missing; the dynamic loader's error says it. On systems other than Linux,
    only opening the session shows it.
    """
    if CUDA not in ort.get_available_providers():
        return "the installed onnxruntime has no CUDA provider"
    try:
        if sys.platform == "linux":
            ctypes.CDLL(DRIVER)  # without it the large libraries need not be loaded
        with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does not find, which is more than is needed
            ort.preload_dlls(directory="")
        if sys.platform == "linux":
            libraries = Path(ort.__file__).parent / "capi"
            ctypes.CDLL(str(libraries / "libonnxruntime_providers_shared.so"), mode=ctypes.RTLD_GLOBAL)
            ctypes.CDLL(str(libraries / "libonnxruntime_providers_cuda.so"))
    except OSError as error:
        return str(error)
    return None


def nvidia_is_here() -> bool:
    """Whether there is an NVIDIA driver or GPU, so that somebody may have meant to use it: not that it works."""
    with contextlib.suppress(OSError):
        ctypes.CDLL(DRIVER)
        return True
    # A container that was given no GPU still sees the machine's.
    vendors = [file.read_text().strip() for file in Path("/sys/bus/pci/devices").glob("*/vendor")]
    return _NVIDIA in vendors or any(Path("/dev").glob("nvidia*"))
