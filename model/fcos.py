"""The detector: backbone, pyramid and head as one module."""

import torch
from torch import Tensor, nn

from model.backbone import Backbone
from model.config import DEFAULT_OBJECTIVE, STRIDES, FCOSConfig, InputConfig, Objective
from model.fpn import FPN
from model.head import Head, Heads
from model.losses import fcos_losses
from model.points import canvas_points


class FCOS(nn.Module):
    """Fully convolutional one-stage detector (Tian et al., arXiv:1904.01355).

    Args:
        config: the network.
        input_config: canvases and normalisation.

    Raises:
        ValueError: timm does not know the backbone, it lacks the levels, or a norm would have a single value.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: FCOSConfig, input_config: InputConfig) -> None:
        super().__init__()
        single = [canvas for canvas in input_config.canvases if max(canvas) <= STRIDES[-1]]
        # torch refuses to normalise a single value; in larger batches, the norm would make it 0.
        if config.norm == "gn" and config.channels == config.norm_groups and single:
            raise ValueError(
                f"with {config.channels} channels in as many norm_groups, the norm erases P7's only point on a canvas "
                f"of {single[0][0]}x{single[0][1]}: choose more channels or norm 'bn'"
            )
        self.config = config
        self.input_config = input_config
        self.backbone = Backbone(config.backbone)
        self.fpn = FPN(self.backbone.channels, config.channels)
        self.head = Head(config)
        # A part of the config, not of the weights: rebuilt, never loaded.
        self.register_buffer("mean", torch.tensor(input_config.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(input_config.std).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Heads:
        """images: RGB canvases, uint8 or float 0..255, [N, 3, H, W]; H and W multiples of 32."""
        heads: Heads = self.head(self.fpn(self.backbone(self.normalize(images))))
        return heads

    def normalize(self, images: Tensor) -> Tensor:
        """RGB 0..255 → zero mean, unit deviation; a canvas's filler → exactly 0, as if padded after normalisation."""
        pixels = images.float()
        x = (pixels - self.mean) / self.std
        if all(float(value).is_integer() for value in self.input_config.mean):  # a plain bool: the export traces this
            return x
        filler = self.mean.round()
        # The filler is the mean in whole numbers. What is left of it would be small, but cover all of the padding.
        return x * ((pixels - filler).abs().amax(1, keepdim=True) > 0)

    def losses(
        self,
        images: Tensor,
        boxes: list[Tensor],
        labels: list[Tensor],
        objective: Objective = DEFAULT_OBJECTIVE,
        normalisers: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """The losses of a batch, or of a part of one; see `model.losses.fcos_losses`.

        Args:
            images: as for `forward`.
            boxes: N tensors [G, 4], canvas pixels; G may be 0.
            labels: N tensors [G], class ids.
            objective: the quality that the centerness output learns, and the assignment.
            normalisers: those of the whole batch; by default, of these pictures.
        """
        heads: Heads = self(images)
        points, strides = self.points_of(images)
        return fcos_losses(*heads, points, strides, boxes, labels, objective, normalisers)

    def points_of(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The points [P, 2] of pictures [N, 3, H, W], and their strides [P]."""
        height, width = images.shape[-2:]
        return canvas_points((height, width), self.config, images.device)
