"""What a program does before its imports: they take seconds, in which there may be a Ctrl-C, and may not be installed.
And what it does to its standard files.

A program calls `end_at_once` before its imports and `raise_again` after them; who imports its modules is not affected.
"""

import errno
import io
import os
import signal
import sys
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from types import FrameType

_PACKAGES = (
    "numpy", "PIL", "onnxruntime", "fastapi", "uvicorn", "httptools", "pydantic", "pydantic_settings",
    "python_multipart", "prometheus_client", "opentelemetry",
)  # fmt: skip
_X86_64_V2 = {"ssse3", "sse4_1", "sse4_2", "popcnt"}  # what numpy's wheels are built for


def require_processor(description: Path = Path("/proc/cpuinfo")) -> None:
    """Ends the program with a message if Linux says that the processor is too old for numpy, which an illegal
    instruction would end without one. Virtual machines often pretend to such a processor."""
    try:
        with description.open() as lines:
            flags = next((set(line.split()) for line in lines if line.startswith("flags")), _X86_64_V2)
    except OSError:  # another system
        return
    if lacking := sorted(_X86_64_V2 - flags):
        print(
            f"error: This processor lacks {', '.join(lacking)}, which numpy needs. If it is a virtual machine's, set "
            "its CPU type to `host`: kvm64 and qemu64 lack them.",
            file=sys.stderr,
        )
        sys.exit(2)


def missing(packages: Iterable[str]) -> str:
    """Returns: Those of the packages that are not installed, as a list for a message; empty if all are."""
    return ", ".join(package for package in packages if find_spec(package) is None)


def require_packages() -> None:
    """Ends the program with a message if the service's packages are not installed."""
    if names := missing(_PACKAGES):
        print(
            f"error: {names} not found: run `source .venv/bin/activate` first, or `make serve`, which installs them, "
            "as does `pip install -r requirements/serve.txt`.",
            file=sys.stderr,
        )
        sys.exit(2)


def open_standard_files() -> None:
    """Opens whichever of stdin, stdout and stderr is closed, on nothing: the event loop's own files would get their
    numbers, and libuv aborts a process in which it is to close one of these. Python's stdout and stderr, which are None
    if closed, get such a file, too: print would write to stdout what is for stderr."""
    while (file := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(file)
    sys.stdout, sys.stderr = sys.stdout or os.fdopen(1, "w"), sys.stderr or os.fdopen(2, "w")


def escape_unknown_letters() -> None:
    """From here on a letter that stdout's encoding lacks, as Windows' may in a file or pipe, is printed as an escape: a
    file or a class may be called so."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def closed_terminals() -> list[int]:
    """Returns: Those of stdin, stdout and stderr, as numbers, that are a terminal whose window was closed or whose ssh
    connection broke. To write to it is an error."""
    return [file for file in range(3) if _is_closed_terminal(file)]


def _is_closed_terminal(file: int) -> bool:
    try:
        os.get_terminal_size(file)
    except OSError as error:
        return error.errno in {errno.EIO, errno.ENXIO}  # what never was one has ENOTTY
    return False


def end_at_once() -> None:
    """From here on SIGINT ends the process with 130, as later, and without a traceback. Where it is ignored, as under
    nohup, it stays so."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)


def raise_again() -> None:
    """From here on SIGINT raises KeyboardInterrupt, as Python has it."""
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _end(number: int, frame: FrameType | None) -> None:
    os._exit(128 + number)  # an exception would run into whatever is being imported, and there is nothing to clean up
