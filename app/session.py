"""The ONNX Runtime session: contract, provider, warm-up.

N: pictures. H, W: the canvas's height and width. P: points. C: classes.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from app import artifact
from app.artifact import INPUT, Metadata, Size, grids
from app.cuda_graphs import CudaGraphs
from app.errors import NO_THREADS, ArtifactError, ProviderError, StartError
from app.postprocess import Heads
from app.providers import BAD_MODEL, CPU, CUDA, CudaOptions, ProviderChoice, open_session, reason_of, why_no_cuda

log = logging.getLogger(__name__)

BATCH_SIZES = (1, 2, 4, 8, 16)
DEFAULT_CUDA = CudaOptions()


@dataclass(frozen=True)
class OnnxRunner:
    """A model file on a device. Calling it runs the graph: on CUDA, always call it from the same thread.

    Attributes:
        metadata: What the model file says about itself.
        version: The first 8 hexadecimal digits of the file's sha256.
        provider: The execution provider that does the work.
        fallback: Why `auto` did not get CUDA; None if it did, or was not asked to.
        wider: On the CPU, sessions with more threads than `session` has, by number of threads, ascending.
    """

    session: ort.InferenceSession
    metadata: Metadata
    version: str
    provider: str
    fallback: str | None = None
    graphs: CudaGraphs | None = None
    wider: Mapping[int, ort.InferenceSession] = field(default_factory=dict)

    @classmethod
    def load(
        cls,
        path: Path,
        provider: ProviderChoice = "cpu",
        threads: int = 0,
        cuda: CudaOptions = DEFAULT_CUDA,
        *,
        widest: int = 1,
    ) -> Self:
        """Opens a model file and runs it once, on its smallest canvas.

        Args:
            path: The .onnx file.
            provider: `auto` takes CUDA if it works, else the CPU.
            threads: Of one operator on the CPU; 0 for one per core.
            cuda: How CUDA works, if it is taken.
            widest: The most cores that a run on the CPU may be given; there are sessions for fewer, too.

        Raises:
            ArtifactError: The file is missing, is not an ONNX model, or breaks the contract.
            ProviderError: `cuda` was asked for and is not available; names what is missing.
            StartError: The system allows no more threads.
        """
        file = _read(path)
        if path.suffix == ".pt":
            raise ArtifactError(
                f"{path} is a checkpoint: export it first, with `python -m export {path} --output "
                f"{path.with_suffix('.onnx')}`."
            )
        reason = None if provider == "cpu" else why_no_cuda()
        if provider != "cpu" and reason is None:
            try:
                return cls._open(file, path, CUDA, threads, cuda)
            except ProviderError as error:
                reason = str(error)
        if provider == "cuda":
            raise ProviderError(
                f"CUDA was asked for, but cannot be used ({reason}): install the extra `gpu` and a driver that fits "
                "it, or choose auto or cpu (FCOS_PROVIDER, --device)."
            )
        return replace(cls._open(file, path, CPU, threads, cuda, widest), fallback=reason)

    @classmethod
    def _open(cls, file: bytes, path: Path, provider: str, threads: int, cuda: CudaOptions, widest: int = 1) -> Self:
        try:
            session, recorded = _open_to_record(file, path, provider, threads, cuda)
            wider = {count: open_session(file, provider, count, cuda) for count in widths(widest)}
        except Exception as error:
            reason = reason_of(error)
            if "pthread_create failed" in reason:
                raise StartError(NO_THREADS) from None
            if provider == CUDA and not isinstance(error, BAD_MODEL):
                raise ProviderError(reason) from None
            raise ArtifactError(
                f"{path} is not an ONNX model that can be read ({reason}): write one with `python -m export`."
            ) from error
        if session.get_providers()[0] != provider:
            raise ProviderError(f"ONNX Runtime took {session.get_providers()[0]} instead of {provider}")

        text = session.get_modelmeta().custom_metadata_map.get(artifact.METADATA_KEY)
        metadata = artifact.parse(text, str(path))
        _check_contract(session, path)
        graphs = None
        if provider == CUDA and cuda.graphs:
            graphs = CudaGraphs(session, Heads._fields, cuda.device_id, record=False)
        runner = cls(session, metadata, artifact.file_version(file), provider, graphs=graphs, wider=wider)
        try:
            # A provider that loads may still fail at its first convolution, where cuDNN comes in.
            runner.check(min(metadata.canvases, key=lambda canvas: canvas.area))
        except ArtifactError:
            raise
        except Exception as error:
            if provider == CUDA:
                raise ProviderError(reason_of(error)) from None
            raise ArtifactError(f"{path} does not run ({reason_of(error)}): export the model again.") from error
        if recorded:  # from here on: by the thread that will run them, not this one
            return replace(runner, graphs=CudaGraphs(session, Heads._fields, cuda.device_id))
        return runner

    def __call__(self, canvases: NDArray[np.uint8], cores: int = 1) -> Heads:
        """Runs the graph on canvases, uint8 [N, H, W, 3]. Returns: The heads, float32."""
        if self.graphs is not None:
            return Heads(*self.graphs.run(canvases))
        session = self.session
        for threads, wider in self.wider.items():
            if threads <= cores:
                session = wider
        return Heads(*session.run(Heads._fields, {INPUT: canvases}))

    def run_batch(self, canvases: Sequence[NDArray[np.uint8]], cores: int = 1) -> Heads:
        """Runs the graph on canvases of one size, each uint8 [H, W, 3].

        On CUDA the batch is padded to one of `BATCH_SIZES`, which are warm; a CPU has no use for that.

        Args:
            cores: How many cores the run may have, on the CPU.

        Returns:
            The heads; those beyond `len(canvases)` mean nothing.
        """
        count = len(canvases)
        if count == 1:
            return self(canvases[0][None], cores)
        padded = next(size for size in BATCH_SIZES if size >= count) if self.provider == CUDA else count
        batch = np.empty((padded, *canvases[0].shape), np.uint8)
        np.stack(canvases, out=batch[:count])
        batch[count:] = canvases[0]  # not what an earlier batch left there: a model may fail on that
        return self(batch, cores)

    def warm_up(self, largest_batch: int = 1) -> None:
        """Runs a canary picture on every canvas in every batch size, so that no request pays for a first run.

        Of the CPU's sessions, where a first run takes no longer once there is memory for the largest canvas, only one
        does: the one that runs batches or, without them, the fastest. The others run the largest canvas.

        Raises:
            ArtifactError: The heads have the wrong shape, or are not finite.
            ProviderError: The GPU fails; mostly, its memory is full.
        """
        shapes = [(canvas, size) for canvas in self.metadata.canvases for size in BATCH_SIZES if size <= largest_batch]
        # The largest first: what the others need then finds room in the memory that it has left, and not beside it.
        shapes.sort(key=lambda shape: shape[0].area * shape[1], reverse=True)
        first, *others = (1, *self.wider) if largest_batch > 1 else (*reversed(self.wider), 1)
        for canvas, size in shapes:
            try:
                self.check(canvas, size, first)
            except Exception as error:
                if self.provider != CUDA or isinstance(error, ArtifactError):
                    raise
                raise ProviderError(
                    f"The GPU fails on batches of {size} at canvas {list(canvas)} ({reason_of(error)}): if its memory "
                    "is full, lower FCOS_MAX_BATCH, or raise FCOS_GPU_MEMORY_LIMIT_BYTES if that is set."
                ) from None
        for cores in others:
            self.check(shapes[0][0], cores=cores)

    def check(self, canvas: Size, batch_size: int = 1, cores: int = 1) -> None:
        """Runs the canary picture, a ramp of every colour, on one canvas. Raises: As `warm_up`."""
        ramp = np.linspace(0, 255, canvas.area * 3).astype(np.uint8).reshape(*canvas, 3)
        heads = self.run_batch([ramp] * batch_size, cores)
        points = sum(grid.area for grid in grids(self.metadata.strides, canvas))
        classes = len(self.metadata.classes)
        expected = ((batch_size, points, classes), (batch_size, points, 4), (batch_size, points))
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


def _read(path: Path) -> bytes:
    """Reads the file once: what is served is what its version says, even if the file is replaced meanwhile."""
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise ArtifactError(
            f"There is no model file {path}: set FCOS_MODEL to one, or write one with `python -m export`."
        ) from None
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read ({error.strerror}).") from None


def _open_to_record(
    file: bytes, path: Path, provider: str, threads: int, cuda: CudaOptions
) -> tuple[ort.InferenceSession, bool]:
    """Returns: A session, and whether it records CUDA graphs: ONNX Runtime records only a model that runs on the GPU as
    a whole, which an int8 one does not."""
    recorded = provider == CUDA and cuda.graphs
    try:
        return open_session(file, provider, threads, cuda), recorded
    except Exception as error:
        if not recorded or isinstance(error, BAD_MODEL):
            raise
        session = open_session(file, provider, threads, replace(cuda, graphs=False))
        log.warning("%s runs without CUDA graphs, and slowly: %s", path, reason_of(error))
        return session, False


def widths(widest: int) -> list[int]:
    """Returns: Numbers of threads over 1, each twice the last, up to `widest`, which is always included."""
    return sorted({*(2**power for power in range(1, widest.bit_length())), widest} - {1})


def _check_contract(session: ort.InferenceSession, path: Path) -> None:
    """Raises: ArtifactError: The graph has other inputs or outputs than canvases in and heads out."""
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
