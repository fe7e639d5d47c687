"""The pipeline as one object, usable without HTTP: picture → canvas → heads → detections in the picture's own pixels.

runner = OnnxRunner.load(Path("model.onnx"))
detector = Detector(runner.metadata, runner)
detections = detector.detect(detector.decode(Path("cat.jpg").read_bytes()))
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from app import images
from app.artifact import Metadata
from app.canvas import Placement, fit, resized_size, unfit
from app.images import MOST_PIXELS, Decoded
from app.postprocess import Detections, Heads, Parameters, PictureHeads, postprocess

Runner = Callable[[NDArray[np.uint8]], Heads]


@dataclass(frozen=True)
class Detector:
    """A model and what runs it. The stages are separate, so that a server can give each its own thread.

    Attributes:
        metadata: What the model file says about itself.
        run: The graph: canvases, uint8 [N, H, W, 3] → their heads.
    """

    metadata: Metadata
    run: Runner

    def parameters(self) -> Parameters:
        """Returns: The model's default parameters."""
        defaults = self.metadata.defaults
        return Parameters(defaults.score_threshold, defaults.iou_threshold, defaults.max_detections)

    def decode(
        self, data: bytes, max_pixels: int = MOST_PIXELS, reserve: Callable[[int], None] = lambda pixels: None
    ) -> Decoded:
        """Stage 1. Returns: The picture in a file; a large JPEG no larger than its canvas needs. Raises: Refusal."""
        resized = partial(resized_size, resize=self.metadata.resize)
        return images.decode(data, max_pixels, resized=resized, reserve=reserve)

    def fit(self, picture: Image.Image | NDArray[np.uint8] | Decoded) -> tuple[NDArray[np.uint8], Placement]:
        """Stage 2. Returns: The canvas, uint8 [H, W, 3], and where the picture lies on it."""
        return fit(picture, self.metadata)

    def finish(self, heads: PictureHeads, placement: Placement, parameters: Parameters) -> Detections:
        """Stage 4, after `run`. Returns: Detections, best first; boxes xyxy in the picture's own pixels."""
        found = postprocess(heads, placement, self.metadata, parameters)
        return replace(found, boxes=unfit(found.boxes, placement))

    def detect(
        self, picture: Image.Image | NDArray[np.uint8] | Decoded, parameters: Parameters | None = None
    ) -> Detections:
        """Detects objects in one upright RGB picture.

        Args:
            picture: A Pillow picture of mode RGB, or uint8 [height, width, 3], or the result of `decode`.
            parameters: If None, the model's defaults.

        Returns:
            Detections, best first; boxes float32 [K, 4], xyxy in the picture's own pixels.

        Raises:
            ValueError: The picture is not RGB of 8 bits.
        """
        canvas, placement = self.fit(picture)
        heads = self.run(canvas[None])
        return self.finish(heads.of(0), placement, parameters or self.parameters())
