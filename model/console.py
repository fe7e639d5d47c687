"""The scripts' console, which prints every text as it is."""

from typing import IO

from rich.console import Console


def plain_console(file: IO[str] | None = None) -> Console:
    """A console that interprets no markup: a bbox is in brackets, and a class may be called `[/b]` or `:dog:`."""
    return Console(file=file, soft_wrap=True, highlight=False, markup=False, emoji=False)
