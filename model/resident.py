"""All training pictures in a device's memory, decoded once, and painted onto canvases there, a batch at a time.

A GPU takes thousands of pictures a second; a process that decodes and resizes them one by one gives a hundred. So the
pictures are kept as bytes on the device, no larger than training can show them, and the host only draws the layouts
(`model.layout`), a few numbers each.

Resizing is two matrix products, one per axis, with Pillow's own weights: a triangle filter, widened when it reduces.
A picture's rows and columns of weights also crop it, place it and mirror it; rows outside it are zero.

N pictures of a batch, M canvases (more than N with mixup), L layers (more than M with mosaics), B boxes. Boxes are
xyxy.
"""

import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from app.artifact import Metadata, Resize, Size
from app.canvas import resized_size
from app.resizing import resized
from model.data import Annotations, Batch, Plan
from model.layout import Augmentation, Light
from model.pictures import for_each, open_reduced


class Pack(NamedTuple):
    """The plans of one batch as few tensors: each comes from a worker as a file of its own, and is pinned by itself."""

    canvas: Size
    pictures: list[int]  # N
    counts: list[int]  # N, their numbers of boxes
    boxes: Tensor  # float32 [B, 4], of all pictures
    labels: Tensor  # int64 [B]
    flipped: Tensor  # bool [M]; the first N canvases are the pictures' own, the others are blended into them
    blended: Tensor  # int64 [M - N], the canvas that each of the others is blended into
    share: Tensor  # float32 [M - N], the former's in the blend
    layer: Tensor  # int64 [L], its picture
    on: Tensor  # int64 [L], its canvas
    source: Tensor  # float32 [L, 4], xyxy in the picture's own pixels
    target: Tensor  # float32 [L, 4], xyxy, canvas pixels, whole numbers
    light: Tensor  # float32 [L, 4], as `Light`

    def to(self, device: torch.device) -> Self:
        """A copy with all that painting needs on the device; boxes and labels stay where they are."""
        moved: dict[str, Any] = {
            name: value.to(device, non_blocking=True)
            for name, value in self._asdict().items()
            if isinstance(value, Tensor) and name not in ("boxes", "labels")
        }
        return self._replace(**moved)


def pack(plans: list[Plan]) -> Pack:
    """The plans of one batch, whose canvases all have the same size."""
    own = [(plan.layouts[0], index) for index, plan in enumerate(plans)]
    others = [(plan.layouts[1], index) for index, plan in enumerate(plans) if len(plan.layouts) == 2]
    layouts = [layout for layout, _ in own + others]
    layers = [(layer, on) for on, layout in enumerate(layouts) for layer in layout.layers]
    targets = [(x, y, x + width, y + height) for (x, y, width, height) in (layer.target for layer, _ in layers)]
    return Pack(
        canvas=layouts[0].canvas,
        pictures=[plan.picture for plan in plans],
        counts=[len(plan.boxes) for plan in plans],
        boxes=torch.from_numpy(np.concatenate([plan.boxes for plan in plans])),
        labels=torch.from_numpy(np.concatenate([plan.labels for plan in plans])),
        flipped=torch.tensor([layout.flipped for layout in layouts]),
        blended=torch.tensor([index for _, index in others], dtype=torch.long),
        share=torch.tensor([plans[index].share for _, index in others], dtype=torch.float32),
        layer=torch.tensor([layer.picture for layer, _ in layers]),
        on=torch.tensor([on for _, on in layers]),
        source=torch.tensor([layer.source for layer, _ in layers], dtype=torch.float32),
        target=torch.tensor(targets, dtype=torch.float32),
        light=torch.tensor([layer.light for layer, _ in layers], dtype=torch.float32),
    )


class ResidentPictures:
    """Pictures as uint8 on a device. Each of several processes holds all of them.

    Args:
        largest: size, relative to the served one, that training never exceeds; larger pictures are reduced to it. See
            `largest_shown`.

    Raises:
        ValueError: they do not fit into the device's memory, or one cannot be decoded.
    """

    def __init__(
        self,
        annotations: Annotations,
        images: Path,
        metadata: Metadata,
        device: torch.device,
        largest: float,
    ) -> None:
        self.device, resize = device, metadata.resize
        self.filler = torch.tensor(metadata.mean_pixel, dtype=torch.float32, device=device).view(1, 1, 3, 1)
        self.kept = torch.tensor([_kept(annotations.size_of(i), resize, largest) for i in range(len(annotations))])
        sizes = torch.from_numpy(annotations.sizes)
        # Factors from a picture's own pixels to the kept ones: x, y, x, y.
        self.ratio = (self.kept / sizes).flip(1).repeat(1, 2).float().to(device)
        height, width = self.kept.amax(0).tolist()
        shape = (len(annotations), height, 3, width)  # rows and columns apart, as the two products need them
        try:
            self.pixels = torch.empty(shape, dtype=torch.uint8, device=device)
        except RuntimeError:
            raise ValueError(
                f"{len(annotations)} pictures of up to {width} x {height} take {math.prod(shape) / 1e9:,.1f} GB, "
                f"for which {device} has no room: leave --loader resident out"
            ) from None

        def load(index: int) -> None:
            path = images / annotations.file_names[index]
            decoded = open_reduced(path, lambda size: _kept(size, resize, largest))
            height, width = self.kept[index].tolist()
            picture = resized(decoded.picture, Size(height, width), decoded.box)
            pixels = torch.from_numpy(np.array(picture)).permute(0, 2, 1)
            self.pixels[index, :height, :, :width] = pixels.to(device)

        for_each(load, range(len(annotations)))

    @torch.no_grad()
    def paint(self, pack: Pack) -> Batch:
        """The batch of a pack: images on the device, boxes on the CPU."""
        bright = bool((pack.light[:, :3] != torch.tensor(Light()[:3])).any())
        turned = bool(pack.light[:, 3].any())
        kept = self.kept[pack.layer].to(torch.float32)  # [L, 2]
        height, width = (int(side) for side in kept.amax(0))  # beyond these the layers' pictures have no pixels
        pack, kept = pack.to(self.device), kept.to(self.device, non_blocking=True)
        layer, target, light = pack.layer, pack.target, pack.light
        source = pack.source * self.ratio[layer]
        columns = _weights(source[:, 0::2], target[:, 0::2], kept[:, 1], width, pack.canvas.width)  # [L, W, width]
        mirrored = pack.flipped[pack.on].view(-1, 1, 1)
        columns = torch.where(mirrored, columns.flip(1), columns)
        rows = _weights(source[:, 1::2], target[:, 1::2], kept[:, 0], height, pack.canvas.height)  # [L, H, height]

        pixels = self.pixels[:, :height, :, :width].index_select(0, layer).float()
        shown = pixels.flatten(1, 2) @ columns.mT  # [L, height * 3, W]
        shown = (rows @ shown.view(len(layer), height, -1)).view(len(layer), -1, 3, pack.canvas.width)  # [L, H, 3, W]
        mask = (rows.sum(2) > 0)[:, :, None, None] & (columns.sum(2) > 0)[:, None, None, :]  # [L, H, 1, W]
        if bright:
            area = (target[:, 2:] - target[:, :2]).prod(1)
            shown = change_light(shown, light, area)
        if turned:
            shown = turn_hue(shown, light[:, 3])

        # Layers of a canvas do not overlap, so the order in which these whole numbers are added does not matter.
        canvases = self.filler.repeat(len(pack.flipped), pack.canvas.height, 1, pack.canvas.width)
        canvases.index_add_(0, pack.on, (shown.round() - self.filler) * mask)
        images, others = canvases[: len(pack.pictures)], canvases[len(pack.pictures) :]
        share, blended = pack.share.view(-1, 1, 1, 1), pack.blended
        images[blended] = (images[blended] * share + others * (1 - share)).round()
        boxes, labels = (list(torch.split(of_all, pack.counts)) for of_all in (pack.boxes, pack.labels))
        return Batch(images.to(torch.uint8).transpose(1, 2), boxes, labels, pack.pictures)


class ResidentBatches:
    """Packs that a loader's workers make, painted as they come."""

    def __init__(self, packs: Iterable[Pack], pictures: ResidentPictures) -> None:
        self.packs, self.pictures = packs, pictures

    def __iter__(self) -> Iterator[Batch]:
        return map(self.pictures.paint, self.packs)


def largest_shown(augmentation: Augmentation, zooms: Iterable[float]) -> float:
    """The largest size at which training shows a picture, relative to the served one."""
    return max(1.0, augmentation.scale[1]) * max(1.0, *zooms)


def change_light(pixels: Tensor, light: Tensor, area: Tensor) -> Tensor:
    """Brightness, contrast and saturation, as Pillow's `ImageEnhance` computes them.

    Args:
        pixels: [L, H, 3, W], 0..255, and 0 where a layer shows nothing.
        light: [L, 4]
        area: [L], how many pixels a layer shows.
    """
    brightness, contrast, saturation, _ = light.view(-1, 4, 1, 1, 1).unbind(1)
    pixels = (pixels * brightness).clamp_(0, 255)
    mean = (_grey(pixels).sum((1, 2, 3)) / area).view(-1, 1, 1, 1)
    pixels = torch.lerp(mean, pixels, contrast).clamp_(0, 255)
    return torch.lerp(_grey(pixels), pixels, saturation).clamp_(0, 255)


def turn_hue(pixels: Tensor, turns: Tensor) -> Tensor:
    """Turn the hue and keep value and saturation (HSV): pixels [L, H, 3, W] 0..255, turns [L]."""
    value, lowest = pixels.amax(2), pixels.amin(2)  # [L, H, W]
    chroma = value - lowest
    red, green, blue = pixels.unbind(2)
    sixths = torch.where(
        value == red,
        (green - blue) / chroma,
        torch.where(value == green, (blue - red) / chroma + 2, (red - green) / chroma + 4),
    )
    sixths = sixths.nan_to_num(0.0, 0.0, 0.0) + 6 * turns.view(-1, 1, 1)
    channels = []
    for first in (5, 3, 1):  # red, green, blue: en.wikipedia.org/wiki/HSL_and_HSV, "HSV to RGB alternative"
        k = (sixths + first) % 6
        channels.append(value - chroma * torch.minimum(k, 4 - k).clamp(0, 1))
    return torch.stack(channels, 2)


def _weights(source: Tensor, target: Tensor, size: Tensor, sources: int, targets: int) -> Tensor:
    """Pillow's bilinear filter along one axis.

    Args:
        source: [L, 2], where the part that is shown begins and ends, in kept pixels.
        target: [L, 2], where it lies on the canvas.
        size: [L], kept pixels of the picture.

    Returns:
        [L, targets, sources]: a row per canvas pixel, with sum 1, or 0 outside the target.
    """
    first, last = target[:, :1], target[:, 1:]  # [L, 1]
    ratio = (source[:, 1:] - source[:, :1]) / (last - first)
    position = torch.arange(targets, device=source.device) + 0.5  # [targets]
    center = source[:, :1] + (position - first) * ratio  # [L, targets]
    pixel = torch.arange(sources, device=source.device) + 0.5  # [sources]
    weights = 1 - (pixel - center[:, :, None]).abs_() / ratio.clamp(min=1)[:, :, None]
    inside = (position > first) & (position < last)  # [L, targets]
    weights = weights.clamp_(min=0) * inside[:, :, None] * (pixel < size[:, None])[:, None, :]
    return weights / weights.sum(2, keepdim=True).clamp(min=1e-6)


def _kept(size: Size, resize: Resize, largest: float) -> Size:
    """The size that a picture is kept at: as large as it is ever shown, but no larger than its own."""
    shown = resized_size(size, resize)
    return size if shown.height * largest >= size.height else Size(*(max(1, round(side * largest)) for side in shown))


def _grey(pixels: Tensor) -> Tensor:
    """Brightness as Pillow computes it: [L, H, 3, W] -> [L, H, 1, W]."""
    red, green, blue = pixels.unbind(2)
    return (0.299 * red + 0.587 * green + 0.114 * blue).unsqueeze(2)
