"""What learns: network, optimizer and averaged weights, one iteration at a time, in one process or in several."""

import contextlib
import math
from collections.abc import Sequence
from typing import Any

import torch
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from model.amp import mixed_precision, precision_of
from model.config import InputConfig, Objective
from model.data import Batch
from model.distributed import Processes
from model.fcos import FCOS
from model.losses import normalisers_of
from model.optim import freeze, lr_factor, make_optimizer, set_lr, train_mode
from model.settings import Settings


class Learner:
    """A detector in training.

    An iteration depends only on the weights, the batch and its number, not on the clock or on what ran before. That
    makes a resumed run equal to an uninterrupted one.

    Args:
        model: on the CPU; it is moved to the processes' device.
        iterations: of the whole run, for the schedule.
    """

    def __init__(self, model: FCOS, settings: Settings, processes: Processes, iterations: int) -> None:
        self.settings, self.processes, self.iterations = settings, processes, iterations
        device = processes.device
        self.model = model.to(device).to(memory_format=torch.channels_last)
        freeze(model, settings)
        self.optimizer = make_optimizer(model, settings)
        self.precision = precision_of(settings.amp, device)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.precision == torch.float16)
        # The averaging window grows to about a tenth of the run: runs are too short for a constant one.
        self.ema = ModelEmaV3(model, decay=settings.ema_decay, use_warmup=True, warmup_power=0.75)
        if settings.compile:
            _allow_shapes(settings, model.input_config)
            model.compile(dynamic=False)
        self.objective = settings.objective
        self._losses: nn.Module = _Losses(model, self.objective)
        if processes.count > 1:
            self._losses = DistributedDataParallel(
                self._losses, device_ids=[device] if device.type == "cuda" else None, gradient_as_bucket_view=True
            )

    def step(self, parts: Sequence[Batch], iteration: int) -> dict[str, float]:
        """One iteration: the gradient of a batch, which may come in parts, and a step along it.

        Returns:
            The losses, averaged over the processes.

        Raises:
            FloatingPointError: a loss or the gradient is not finite in some process; the weights are then unchanged.
        """
        train_mode(self.model, self.settings)
        set_lr(self.optimizer, self.lr(iteration))
        # Dropout and the like depend only on the iteration.
        number = (self.settings.seed * self.iterations + iteration) * self.processes.count + self.processes.rank
        torch.manual_seed(number)
        values = self.backward(parts)
        if not all(map(torch.isfinite, values.values())):
            raise FloatingPointError(", ".join(f"{key} {float(value)}" for key, value in values.items()))
        scaled = self.scaler.is_enabled()  # the scaler itself skips steps along an infinite gradient
        if self.settings.clip_norm or not scaled:
            self.scaler.unscale_(self.optimizer)
            norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip_norm or math.inf)
            if not scaled and not norm.isfinite():
                raise FloatingPointError(f"norm of the gradient {float(norm)}")
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.ema.update(self.model, step=iteration + 1)
        return {f"{key}_loss": float(value) for key, value in values.items()}

    def lr(self, iteration: int) -> float:
        """The head's learning rate. It depends only on the iteration, so it does not jump when a run is resumed."""
        return self.settings.base_lr * lr_factor(iteration, self.iterations, self.settings)

    def backward(self, parts: Sequence[Batch]) -> dict[str, Tensor]:
        """Set the gradient of a batch. Returns: The losses, averaged over the processes, on the CPU."""
        device = self.processes.device
        self.optimizer.zero_grad()
        total: dict[str, Tensor] = {}
        moved = [part.to(device) for part in parts]
        normalisers = None  # a single part computes its own
        if len(moved) > 1:
            known = [(*self.model.points_of(part.images), part.boxes) for part in moved]
            normalisers = normalisers_of(known, self.objective)
        for number, batch in enumerate(moved, 1):
            images = batch.images.contiguous(memory_format=torch.channels_last)
            # Only the last part's backward pass exchanges gradients.
            local = self.processes.count > 1 and number < len(moved)
            with self._losses.no_sync() if local else contextlib.nullcontext():  # type: ignore[operator]
                with mixed_precision(device, self.precision):
                    losses: dict[str, Tensor] = self._losses(images, batch.boxes, batch.labels, normalisers)
                loss = torch.stack(list(losses.values())).sum()
                self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            for key, value in losses.items():
                total[key] = total.get(key, torch.zeros((), device=device)) + value.detach()
        values = self.processes.average(torch.stack(list(total.values()))).cpu()
        return dict(zip(total, values.unbind(), strict=True))

    def averaged(self) -> FCOS:
        """The model with averaged weights, the same in all processes."""
        self.processes.share_buffers(self.ema.module)
        model = self.ema.module
        assert isinstance(model, FCOS)
        return model

    def averaged_weights(self) -> dict[str, Tensor]:
        """A copy of them, on the CPU."""
        return {key: value.detach().cpu().clone() for key, value in self.ema.module.state_dict().items()}

    def state(self) -> dict[str, Any]:
        """Plain tensors and numbers to resume from, without the averaged weights, which a checkpoint holds anyway."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def restore(self, state: dict[str, Any], averaged_weights: dict[str, Tensor]) -> None:
        """Resume from a state."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.ema.module.load_state_dict(averaged_weights)


class _Losses(nn.Module):
    """The losses as a forward pass: DistributedDataParallel hooks only into that."""

    def __init__(self, model: FCOS, objective: Objective) -> None:
        super().__init__()
        self.model, self.objective = model, objective

    def forward(
        self, images: Tensor, boxes: list[Tensor], labels: list[Tensor], normalisers: Tensor | None
    ) -> dict[str, Tensor]:
        return self.model.losses(images, boxes, labels, self.objective, normalisers)


def _allow_shapes(settings: Settings, input_config: InputConfig) -> None:
    """Let torch compile every shape there is: beyond its limit, usually 8, it silently runs them uncompiled.

    Pictures left over from several canvases share one, each of whose sides is a side of one of those.
    """
    heights, widths = (set(sides) for sides in zip(*input_config.canvases, strict=True))
    shapes = len(heights) * len(widths) * len({*settings.zooms, 1.0})  # plain epochs are at zoom 1
    dynamo = torch._dynamo.config
    dynamo.recompile_limit = max(dynamo.recompile_limit, shapes)
