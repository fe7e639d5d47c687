"""What is trained, and how fast: frozen parts, parameter groups, the learning rate of each iteration, memory."""

import math

import torch
from torch import nn

from app.memory import keep_freed_memory
from model.amp import mixed_precision
from model.fcos import FCOS
from model.settings import Settings


def freeze(model: FCOS, settings: Settings) -> None:
    """Freeze the backbone: not at all, up to a level, or entirely.

    Raises:
        ValueError: the backbone has no parameters up to that level.
    """
    parameters = list(model.backbone.body.named_parameters())
    if settings.freeze == "none":
        count = 0
    elif settings.freeze == "all":
        count = len(parameters)
    else:
        stride = {"c2": 4, "c3": 8}[settings.freeze]
        # The last of several modules at a stride is the level: what follows it is at the next stride.
        levels = [level["module"] for level in model.backbone.body.feature_info.info if level["reduction"] == stride]
        prefixes = tuple(f"{name}." for level in levels[-1:] for name in (level, level.replace(".", "_")))
        count = 1 + max((i for i, (name, _) in enumerate(parameters) if name.startswith(prefixes)), default=-1)
        if not count:
            raise ValueError(
                f"--freeze {settings.freeze}: {settings.backbone or 'the backbone'} has no parameters up to "
                f"{settings.freeze.upper()}; leave --freeze out"
            )
    for _, parameter in parameters[:count]:
        parameter.requires_grad_(False)
    for parameter in _without_effect(model):
        parameter.requires_grad_(False)


def _without_effect(model: FCOS) -> list[nn.Parameter]:
    """The backbone's parameters that its features do not depend on, as HRNet has some: several processes would wait for
    their gradients."""
    backbone, device = model.backbone, model.mean.device
    learning = [parameter for parameter in backbone.parameters() if parameter.requires_grad]
    was_training = backbone.training
    backbone.eval()
    with mixed_precision(device, None):
        features = [feature.sum() for feature in backbone(torch.zeros(1, 3, 64, 96, device=device))]
    backbone.train(was_training)
    dependent = [feature for feature in features if feature.requires_grad]
    if not dependent:
        return []
    gradients = torch.autograd.grad(dependent, learning, allow_unused=True)
    return [parameter for parameter, gradient in zip(learning, gradients, strict=True) if gradient is None]


def train_mode(model: FCOS, settings: Settings) -> None:
    """Training mode, except that BatchNorm's statistics are frozen if the settings say so or its weights are."""
    model.train()
    for module in model.backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.train(settings.backbone_norm == "trained" and module.weight.requires_grad)


def make_optimizer(model: FCOS, settings: Settings) -> torch.optim.Optimizer:
    """Four groups: backbone or not, with weight decay or (norms, biases, scales) without."""
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((name.startswith("backbone."), parameter.ndim > 1), []).append(parameter)
    parameters = [
        {
            "params": members,
            "lr_factor": settings.backbone_lr_factor if of_backbone else 1.0,
            "weight_decay": settings.decay if decays else 0.0,
        }
        for (of_backbone, decays), members in groups.items()
    ]
    if settings.optimizer == "adamw":
        on_gpu = all(parameter.is_cuda for parameter in model.parameters())
        return torch.optim.AdamW(parameters, lr=settings.base_lr, fused=on_gpu)
    return torch.optim.SGD(parameters, lr=settings.base_lr, momentum=0.9)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the head's learning rate, and the backbone's by its factor."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_factor"]


def lr_factor(iteration: int, iterations: int, settings: Settings) -> float:
    """Linear warm-up, then a cosine down to `final_lr_factor`, or steps."""
    warmup = min(settings.warmup_iterations, iterations // 10)
    if iteration < warmup:
        return (iteration + 1) / (warmup + 1)
    if settings.schedule == "steps":
        return 0.1 ** sum(iteration >= part * iterations for part in settings.lr_steps)
    progress = (iteration - warmup) / max(iterations - warmup, 1)
    lowest = settings.final_lr_factor
    return lowest + (1 - lowest) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


def keep_tensors_memory() -> None:
    """Keep the memory of one iteration's tensors for the next.

    Per iteration, page faults fell from 490,000 to 16,000 and CPU time from 8.9 s to 5.3 (Lite0, eight canvases of
    320 x 416, two busy cores). In a second pair of runs, faults fell from 467,000 to 8,300, but the time rose from
    8.5 s to 9.7: fewer faults are certain, less time is not.
    """
    keep_freed_memory(block_bytes=2**31 - 1, trim_bytes=2**31 - 1, top_pad_bytes=100_000_000, heaps=0)
