"""What the benchmarks have in common as commands."""

import csv
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from pydantic import ValidationError

from app.errors import StartError, first_fault, first_line


def as_command(main: Callable[[], int | None]) -> None:
    """End the process with what `main` returns, or with one sentence about what its user can fix."""
    try:
        code = main() or 0
    except KeyboardInterrupt:
        code = 130
    except ValidationError as error:
        print(f"error: {first_fault(error)}", file=sys.stderr)
        code = 2
    except (ValueError, OSError, StartError) as error:
        print(f"error: {first_line(error)}", file=sys.stderr)
        code = 2
    sys.exit(code)


def write_csv(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
