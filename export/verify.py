"""ONNX Runtime against torch: an export that does not give the same heads is not written.

Exporters have had bugs that silently give wrong numbers, such as shapes taken for constants. So the graph is run on
several canvases and batch sizes.
"""

import dataclasses

import numpy as np
import onnx
import onnxruntime as ort
import torch
from numpy.typing import NDArray

from app.artifact import INPUT, Metadata, Size
from app.errors import first_line
from app.postprocess import Heads
from export.graph import ServedGraph
from model.fcos import FCOS

ABSOLUTE, RELATIVE = 1e-3, 1e-4
"""Tolerances, of logits and of canvas pixels. float32 stays well under both through about a hundred layers."""
CANVASES = 3
BATCHES = (1, 2)
FALLBACK_CANVASES = (Size(64, 96), Size(160, 128), Size(256, 256))
"""Tried if the model has fewer canvases of its own."""


@dataclasses.dataclass(frozen=True)
class Difference:
    """Between ONNX Runtime and torch, over all runs."""

    largest: dict[str, float]
    """Per output, absolute."""
    runs: list[tuple[int, Size]]
    """(pictures, canvas) each."""

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {value:.1e}" for name, value in self.largest.items())
        shapes = ", ".join(f"{batch}x{canvas.height}x{canvas.width}" for batch, canvas in self.runs)
        return f"ONNX Runtime and torch differ by at most {parts} ({shapes})"


def compare(proto: onnx.ModelProto, model: FCOS, metadata: Metadata) -> Difference:
    """Run both on three canvases, with one and two pictures.

    Raises:
        ValueError: a value differs by more than the tolerance, is not finite, or the shapes differ.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 4
    try:
        session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's own exceptions share no base class
        raise ValueError(f"ONNX Runtime does not load the exported graph: {first_line(error)}") from error
    graph = ServedGraph(model).eval()

    largest = dict.fromkeys(Heads._fields, 0.0)
    runs = [(batch, canvas) for canvas in _canvases(metadata) for batch in BATCHES]
    for batch, canvas in runs:
        images = sample_pictures(batch, canvas)
        try:
            ours = session.run(list(Heads._fields), {INPUT: images})
        except Exception as error:
            raise ValueError(f"the exported graph fails on {batch} x {list(canvas)}: {first_line(error)}") from error
        with torch.inference_mode():
            wanted = [head.numpy() for head in graph(torch.from_numpy(images))]
        for name, got, want in zip(Heads._fields, ours, wanted, strict=True):
            if got.shape != want.shape:
                raise ValueError(f"{name} is {list(got.shape)} in ONNX Runtime, but {list(want.shape)} in torch")
            difference = np.abs(got - want)
            if not (difference <= ABSOLUTE + RELATIVE * np.abs(want)).all():  # false for NaN too
                raise ValueError(
                    f"{name} differs by {difference.max():.3g} between ONNX Runtime and torch on a batch of "
                    f"{batch} at {canvas.height}x{canvas.width}: the exported graph is wrong, nothing was written"
                )
            largest[name] = max(largest[name], float(difference.max()))
    return Difference(largest, runs)


def sample_pictures(batch: int, canvas: Size) -> NDArray[np.uint8]:
    """Pictures, uint8 [batch, H, W, 3], with large shapes, edges and noise, so that every part of the network has
    something to respond to."""
    rng = np.random.default_rng(canvas.height * 10_000 + canvas.width + batch)
    coarse = rng.integers(0, 256, size=(batch, canvas.height // 32, canvas.width // 32, 3))
    shapes = coarse.repeat(32, axis=1).repeat(32, axis=2)
    return np.clip(shapes + rng.normal(0, 20, size=shapes.shape), 0, 255).astype(np.uint8)


def _canvases(metadata: Metadata) -> list[Size]:
    by_area = sorted(metadata.canvases, key=lambda canvas: canvas.area)
    return list(dict.fromkeys([*by_area, *FALLBACK_CANVASES]))[:CANVASES]
