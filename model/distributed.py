"""The processes of a run: one, or as many as torchrun starts."""

import contextlib
import dataclasses
import os
from collections.abc import Generator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


@dataclasses.dataclass(frozen=True)
class Processes:
    """This process among those of the run.

    Attributes:
        rank: this process's; 0 prints and writes.
        count: number of processes on all nodes.
        device: this process's.
    """

    rank: int
    count: int
    device: torch.device

    @property
    def first(self) -> bool:
        return self.rank == 0

    def average(self, value: Tensor) -> Tensor:
        """The mean over the processes."""
        if self.count > 1:
            dist.all_reduce(value)
            value /= self.count
        return value

    def gather(self, value: Any) -> list[Any]:
        """Every process's value, in all of them: small plain objects and arrays."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        dist.all_gather_object(values, value)
        return values

    def share_buffers(self, module: nn.Module) -> None:
        """Give every process the first one's buffers: BatchNorm's statistics, for which each saw other pictures."""
        if self.count > 1:
            for buffer in module.buffers():
                dist.broadcast(buffer, 0)


@contextlib.contextmanager
def started(device: str) -> Generator[Processes]:
    """Join the processes that torchrun started; without torchrun, run alone.

    Args:
        device: auto, cpu, cuda, cuda:1 ...; under torchrun each process takes the GPU of its local rank.

    Raises:
        ValueError: there is no such device, or fewer GPUs than processes.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    place = choose_device(device)
    if count == 1:
        yield Processes(0, 1, place)
        return
    if place.type == "cuda":
        local = int(os.environ["LOCAL_RANK"])
        if local >= torch.cuda.device_count():
            raise ValueError(
                f"torchrun started process {local + 1} of this node, but it has {torch.cuda.device_count()} GPUs: "
                "lower --nproc-per-node"
            )
        place = torch.device("cuda", local)
        torch.cuda.set_device(place)
    dist.init_process_group("nccl" if place.type == "cuda" else "gloo")
    try:
        yield Processes(dist.get_rank(), count, place)
    finally:
        dist.destroy_process_group()


def choose_device(name: str) -> torch.device:
    """Raises: ValueError: there is no such device."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise ValueError(f"--device must be auto, cpu, cuda or cuda:1 and so on, but got {name}")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"--device {name}: torch finds no CUDA GPU here; leave --device out to use what there is")
    return device
