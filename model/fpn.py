"""Feature pyramid, P3 to P7 (Lin et al., arXiv:1612.03144; P6 and P7 as in RetinaNet, from P5)."""

from torch import Tensor, nn
from torch.nn import functional as F


class FPN(nn.Module):
    """Top-down pyramid over C3, C4, C5 with two stride-2 convolutions on top.

    Args:
        in_channels: channels of C3, C4, C5.
        channels: channels of every pyramid level.
    """

    def __init__(self, in_channels: list[int], channels: int) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(c, channels, 1) for c in in_channels)
        self.output = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in in_channels)
        self.p6 = nn.Conv2d(channels, channels, 3, stride=2, padding=1)
        self.p7 = nn.Conv2d(channels, channels, 3, stride=2, padding=1)
        for parameter in self.parameters():
            if parameter.ndim > 1:
                nn.init.kaiming_uniform_(parameter, a=1)
            else:
                nn.init.zeros_(parameter)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """features: C3, C4, C5, each [N, c, h, w]. Returns P3..P7, each [N, channels, h', w']."""
        merged = [lateral(feature) for lateral, feature in zip(self.lateral, features, strict=True)]
        for level in (1, 0):
            merged[level] = merged[level] + F.interpolate(
                merged[level + 1], size=merged[level].shape[-2:], mode="nearest"
            )
        pyramid = [output(x) for output, x in zip(self.output, merged, strict=True)]
        p6 = self.p6(pyramid[-1])
        return [*pyramid, p6, self.p7(F.relu(p6))]
