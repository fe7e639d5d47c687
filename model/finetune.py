"""Weights of one detector as the start of another, whose classes may differ."""

from __future__ import annotations

import dataclasses

from torch import Tensor

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
    kept: list[str] = []
    values: dict[str, Tensor] = {}
    for key, value in own.items():
        other = checkpoint.weights.get(key)
        if other is not None and key in PER_CLASS and other.shape[1:] == value.shape[1:] and common:
            value = value.clone()
            value[[row for row, _ in common]] = other[[row for _, row in common]].to(value)
            kept.append(key)
        elif other is not None and key not in PER_CLASS and other.shape == value.shape:
            value = other
            kept.append(key)
        values[key] = value
    if not any(key.startswith("backbone.") and own[key].ndim > 1 for key in kept):
        raise ValueError(
            f"no weight of the checkpoint's backbone ({checkpoint.config.backbone}) fits {model.config.backbone}: "
            "leave --backbone out to go on with the checkpoint's"
        )
    model.load_state_dict(values)
    return Adopted(
        kept=tuple(kept),
        new=tuple(key for key in own if key not in set(kept)),
        classes_kept=tuple(name for name in names if name in known),
        classes_new=tuple(name for name in names if name not in known),
    )
