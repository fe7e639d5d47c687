"""The ONNX Runtime session: contract, provider, warm-up.

N: pictures. H, W: the canvas's height and width. P: points. C: classes.
"""

import contextlib
import ctypes
import io
import logging
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from app import artifact
from app.artifact import Metadata, Size, grids
from app.errors import ArtifactError, ProviderError
from app.postprocess import Heads

log = logging.getLogger(__name__)

ProviderChoice = Literal["auto", "cuda", "cpu"]
CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
INPUT = "images"
_ORT_FATAL = 4  # ONNX Runtime's severity; its errors are raised here, in words that name the file


@dataclass(frozen=True)
class OnnxRunner:
    """A model file on a device. Calling it runs the graph; one thread at a time should.

    Attributes:
        metadata: What the model file says about itself.
        version: The first 8 hexadecimal digits of the file's sha256.
        provider: The execution provider that does the work.
        fallback: Why `auto` did not get CUDA; None where it did, or where it was not asked to.
    """

    session: ort.InferenceSession
    metadata: Metadata
    version: str
    provider: str
    fallback: str | None

    @classmethod
    def load(cls, path: Path, provider: ProviderChoice = "cpu", threads: int = 0) -> Self:
        """Opens a model file and runs it once, on its smallest canvas.

        Args:
            path: The .onnx file.
            provider: `auto` takes CUDA where it works, else the CPU.
            threads: Of one operator on the CPU; 0 for one per core.

        Raises:
            ArtifactError: The file is missing, is no ONNX model, or does not keep the contract.
            ProviderError: `cuda` was asked for and cannot be had; names what is missing.
        """
        if not path.is_file():
            raise ArtifactError(
                f"There is no model file {path}: set FCOS_MODEL to one, or write one with `python -m export`."
            )
        reason = None if provider == "cpu" else _why_no_cuda()
        if provider != "cpu" and reason is None:
            try:
                return cls._open(path, CUDA, threads, None)
            except ProviderError as error:
                reason = str(error)
        if provider == "cuda":
            raise ProviderError(
                f"FCOS_PROVIDER=cuda, but CUDA cannot be used ({reason}): install the extra `gpu` and a driver that "
                "fits it, or set FCOS_PROVIDER to auto or cpu."
            )
        if reason is not None:
            log.warning("CUDA cannot be used (%s): the model runs on the CPU.", reason)
        return cls._open(path, CPU, threads, reason)

    @classmethod
    def _open(cls, path: Path, provider: str, threads: int, fallback: str | None) -> Self:
        options = ort.SessionOptions()
        options.log_severity_level = _ORT_FATAL
        options.intra_op_num_threads = threads
        try:
            session = ort.InferenceSession(path, options, providers=[provider], enable_fallback=0)
        except Exception as error:  # ONNX Runtime's own exceptions share no base class
            reason = _first_line(error)
            if provider == CUDA and "CUDA" in reason:
                raise ProviderError(reason) from None
            raise ArtifactError(
                f"{path} is not an ONNX model that can be read ({reason}): write one with `python -m export`."
            ) from None
        if session.get_providers()[0] != provider:
            raise ProviderError(f"ONNX Runtime took {session.get_providers()[0]} in place of {provider}")

        text = session.get_modelmeta().custom_metadata_map.get(artifact.METADATA_KEY)
        metadata = artifact.parse(text, str(path))
        _check_contract(session, path)
        runner = cls(session, metadata, artifact.file_version(path), provider, fallback)
        try:
            # A provider that loads may still fail at its first convolution, where cuDNN comes in.
            runner.check(min(metadata.canvases, key=lambda canvas: canvas.height * canvas.width))
        except ArtifactError:
            raise
        except Exception as error:
            if provider == CUDA:
                raise ProviderError(_first_line(error)) from None
            raise ArtifactError(f"{path} does not run ({_first_line(error)}): export the model again.") from None
        return runner

    def __call__(self, canvases: NDArray[np.uint8]) -> Heads:
        """Runs the graph on canvases, uint8 [N, H, W, 3]. Returns: The heads, float32."""
        return Heads(*self.session.run(Heads._fields, {INPUT: canvases}))

    def warm_up(self) -> None:
        """Runs a canary picture on every canvas, so that no request pays for a first run.

        Raises:
            ArtifactError: The heads have the wrong shape, or are not finite.
        """
        for canvas in self.metadata.canvases:
            self.check(canvas)

    def check(self, canvas: Size) -> None:
        """Runs the canary picture, a ramp of every colour, on one canvas. Raises: As `warm_up`."""
        ramp = np.linspace(0, 255, canvas.height * canvas.width * 3).astype(np.uint8)
        heads = self(ramp.reshape(1, *canvas, 3))
        points = sum(grid.height * grid.width for grid in grids(self.metadata.strides, canvas))
        expected = ((1, points, len(self.metadata.classes)), (1, points, 4), (1, points))
        for name, head, shape in zip(Heads._fields, heads, expected, strict=True):
            if head.shape != shape:
                raise ArtifactError(
                    f"The model {self.metadata.name} gives {name} of shape {list(head.shape)} on canvas "
                    f"{list(canvas)}, but its metadata says {list(shape)}: export it again."
                )
            if not np.isfinite(head).all():
                raise ArtifactError(
                    f"The model {self.metadata.name} gives values that are not finite in {name} on canvas "
                    f"{list(canvas)}: export it again, in another precision if it is fp16."
                )


def _check_contract(session: ort.InferenceSession, path: Path) -> None:
    """Compares the graph's inputs and outputs with DESIGN's version 1."""
    inputs = {one.name: (one.type, len(one.shape)) for one in session.get_inputs()}
    outputs = {one.name: (one.type, len(one.shape)) for one in session.get_outputs()}
    ranks = zip(Heads._fields, (3, 3, 2), strict=True)
    expected_outputs = {name: ("tensor(float)", rank) for name, rank in ranks}
    if inputs != {INPUT: ("tensor(uint8)", 4)} or outputs != expected_outputs:
        raise ArtifactError(
            f"{path} has inputs {_signature(inputs)} and outputs {_signature(outputs)}, but a model has the input "
            f"{INPUT} uint8 [N, H, W, 3] and the outputs {', '.join(Heads._fields)}: export the model again."
        )


def _signature(tensors: dict[str, tuple[str, int]]) -> str:
    return ", ".join(f"{name} {kind} of {rank} axes" for name, (kind, rank) in tensors.items())


def _why_no_cuda() -> str | None:
    """Loads CUDA's libraries. Returns: Why the CUDA provider cannot be had; None if nothing is missing.

    ONNX Runtime only logs which library is missing; the dynamic loader says it. Elsewhere than on Linux the session
    itself has to find out.
    """
    if CUDA not in ort.get_available_providers():
        return "the installed onnxruntime has no CUDA provider"
    try:
        if sys.platform == "linux":
            ctypes.CDLL("libcuda.so.1")  # the driver's; without it the large libraries need not be loaded
        with contextlib.redirect_stdout(io.StringIO()):  # it prints what it misses, and misses more than is needed
            ort.preload_dlls(directory="")
        if sys.platform == "linux":
            libraries = Path(ort.__file__).parent / "capi"
            ctypes.CDLL(str(libraries / "libonnxruntime_providers_shared.so"), mode=ctypes.RTLD_GLOBAL)
            ctypes.CDLL(str(libraries / "libonnxruntime_providers_cuda.so"))
    except OSError as error:
        return str(error)
    return None


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
