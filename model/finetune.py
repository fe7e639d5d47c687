"""Weights of one detector as the start of another, whose classes and pictures may differ."""

import dataclasses
from collections.abc import Iterable
from functools import partial

import torch
from torch import Tensor, nn

from model.checkpoint import Checkpoint
from model.fcos import FCOS

PER_CLASS = ("head.class_logits.weight", "head.class_logits.bias")
"""Tensors whose first axis is the class."""


@dataclasses.dataclass(frozen=True)
class Adopted:
    """What a model took over from a checkpoint."""

    kept: tuple[str, ...]
    """Tensors taken over, whole or in the rows of the classes that both have."""
    new: tuple[str, ...]
    """Tensors that start as in a new network: the checkpoint lacks them, or has them in another shape."""
    classes_kept: tuple[str, ...]
    classes_new: tuple[str, ...]

    def describe(self) -> str:
        """In words, for the log."""
        text = f"{len(self.kept)} of {len(self.kept) + len(self.new)} tensors kept"
        if self.new:
            text += f", new: {', '.join(self.new[:6])}{f' and {len(self.new) - 6} more' if len(self.new) > 6 else ''}"
        text += f"; classes kept: {', '.join(self.classes_kept) or 'none'}"
        return text + (f", new: {', '.join(self.classes_new)}" if self.classes_new else "")


def adopt(model: FCOS, checkpoint: Checkpoint) -> Adopted:
    """Copy into a model every tensor of a checkpoint that fits it, and the class outputs of classes with the same name.

    Raises:
        ValueError: nothing of the checkpoint's backbone fits.
    """
    own = model.state_dict()
    known = {name: row for row, name in enumerate(checkpoint.config.classes)}
    names = model.config.classes
    common = [(row, known[name]) for row, name in enumerate(names) if name in known]
    taken: dict[str, Tensor] = {}
    for key, value in own.items():
        other = checkpoint.weights.get(key)
        if other is None or (".norms." in key and model.config.norm != checkpoint.config.norm):
            continue  # GroupNorm's one pair of weights would become that of the first level's BatchNorm
        if key not in PER_CLASS:
            if other.shape == value.shape:
                taken[key] = other
        elif common and other.shape[1:] == value.shape[1:]:
            taken[key] = value.clone()
            taken[key][[row for row, _ in common]] = other[[row for _, row in common]].to(value)
    if not any(key.startswith("backbone.") and own[key].ndim > 1 for key in taken):
        raise ValueError(
            f"no weight of the checkpoint's backbone ({checkpoint.config.backbone}) fits {model.config.backbone}: "
            "leave --backbone out to keep the checkpoint's"
        )
    model.load_state_dict(own | taken)
    return Adopted(
        kept=tuple(taken),
        new=tuple(key for key in own if key not in taken),
        classes_kept=tuple(name for name in names if name in known),
        classes_new=tuple(name for name in names if name not in known),
    )


@torch.no_grad()
def restate_statistics(model: FCOS, batches: Iterable[Tensor]) -> None:
    """Replace the backbone's BatchNorm statistics with those of what it sees, and adjust the norms' weights to match.

    In eval mode the detector stays as it is; in training mode it now is nearly the same. With the statistics of other
    pictures, or of other weights, as a run with `backbone_norm="frozen"` leaves them, it would not be, and the first
    iterations would undo what was learnt before.

    Args:
        model: on any device.
        batches: canvases on the CPU, as `FCOS.forward` takes them; at least one.
    """
    norms = [module for module in model.backbone.modules() if isinstance(module, nn.BatchNorm2d) and module.affine]
    sums = {norm: torch.zeros(3, norm.num_features, dtype=torch.float64) for norm in norms}

    def add(into: Tensor, _: nn.Module, inputs: tuple[Tensor]) -> None:
        x = inputs[0].float()
        variance, mean = torch.var_mean(x, (0, 2, 3), correction=0)
        moments = torch.stack([torch.ones_like(mean), mean, variance + mean.square()])
        into.add_(moments.cpu(), alpha=x.numel() // x.shape[1])

    hooks = [norm.register_forward_pre_hook(partial(add, sums[norm])) for norm in norms]
    model.eval()
    try:
        for images in batches:
            model(images.to(model.mean.device))
    finally:
        for hook in hooks:
            hook.remove()
    for norm, (count, total, squares) in sums.items():
        assert norm.running_mean is not None and norm.running_var is not None
        mean = (total / count).to(norm.weight)
        variance = (squares / count - (total / count).square()).clamp(min=0).to(norm.weight)
        factor = norm.weight / (norm.running_var + norm.eps).sqrt()
        norm.bias.add_((mean - norm.running_mean) * factor)
        norm.weight.copy_(factor * (variance + norm.eps).sqrt())
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance)
