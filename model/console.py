"""The scripts' console, which prints every text as it is, and what it shows while something takes long."""

import contextlib
import threading
import time
from collections.abc import Generator
from typing import IO

from rich.console import Console

from app.launch import escape_unknown_letters

SAY_EVERY_S = 30.0
"""Between lines if there is no terminal to draw on."""


def plain_console(file: IO[str] | None = None) -> Console:
    """A console that interprets no markup, as a bbox is in brackets, and a class may be called `[/b]` or `:dog:`; and
    has an escape for each letter that stdout lacks."""
    escape_unknown_letters()
    return Console(file=file, soft_wrap=True, highlight=False, markup=False, emoji=False)


@contextlib.contextmanager
def waiting(what: str, console: Console) -> Generator[None]:
    """Something moves on a terminal while work of unknown length is done; elsewhere there is a line now and then."""
    if console.is_terminal:
        with console.status(what):
            yield
        return
    started = time.monotonic()
    done = threading.Event()

    def say() -> None:
        while not done.wait(SAY_EVERY_S):
            console.print(f"{what}: {time.monotonic() - started:.0f} s so far")

    thread = threading.Thread(target=say, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()  # workers are forked later, which other threads would make unsafe
