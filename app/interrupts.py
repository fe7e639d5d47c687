"""Ctrl-C while a program still imports its packages: it ends with 130, and without a traceback, as it would later.

A program calls `end_at_once` before its imports and `raise_again` after them; who imports its modules is not affected.
"""

import os
import signal
from types import FrameType


def end_at_once() -> None:
    """From here on SIGINT ends the process. Where it is ignored, as under nohup, it stays so."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)


def raise_again() -> None:
    """From here on SIGINT raises KeyboardInterrupt, as Python has it."""
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _end(number: int, frame: FrameType | None) -> None:
    os._exit(128 + number)  # an exception would run into whatever is being imported, and there is nothing to clean up
