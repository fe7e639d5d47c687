"""Signals that ask a run to stop: it saves first."""

import contextlib
import os
import signal
from collections.abc import Generator
from types import FrameType

import torch

from app.launch import closed_terminals
from model.distributed import Processes

SIGHUP = getattr(signal, "SIGHUP", None)  # Windows has none


class Stop:
    """Whether a signal asked to stop. All processes get the same answer, at the same iteration."""

    def __init__(self, processes: Processes) -> None:
        self.processes = processes
        self.signal: int | None = None

    def handle(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = number
        for file in closed_terminals():  # what is still said must not fail
            os.dup2(os.open(os.devnull, os.O_RDWR), file)

    def requested(self) -> bool:
        if self.processes.count == 1:
            return self.signal is not None
        asked = torch.tensor(0.0 if self.signal is None else 1.0, device=self.processes.device)
        return bool(self.processes.average(asked) > 0)


@contextlib.contextmanager
def stop_on_signals(processes: Processes) -> Generator[Stop]:
    stop = Stop(processes)
    numbers = [signal.SIGINT, signal.SIGTERM]
    if SIGHUP is not None and signal.getsignal(SIGHUP) is not signal.SIG_IGN:  # as it is under nohup
        numbers.append(SIGHUP)
    before = {number: signal.signal(number, stop.handle) for number in numbers}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
