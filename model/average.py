"""One network from several runs: the mean of their weights, better than each of them (model soups, arXiv:2203.05482).

    python -m model.average runs/first/best.pt runs/second/best.pt --data data --output runs/average.pt

The runs must be related: one started --from the other, or all from the same checkpoint. The mean of unrelated runs
detects nothing. BatchNorm statistics that differ between the runs are not averaged but measured again, on train's
pictures as they would be served. Then the network is scored on val, for its metrics and its threshold, and saved;
`python -m export` takes it.

--data FOLDER has a layout that model/train.py knows, too. Without a val, that of the last run is held out of train.
"""

import argparse
import sys
from pathlib import Path

if __name__ == "__main__":  # before what takes seconds to import
    from app.launch import end_at_once

    end_at_once()

from app.launch import raise_again


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", type=Path, nargs="+", help=".pt files")
    parser.add_argument("--data", type=Path, required=True, help="a folder, as for model/train.py")
    parser.add_argument("--output", type=Path, required=True, help="the .pt file to write")
    parser.add_argument("--small", action="store_true", help="write convolutions in fp16, which halves the file")
    options = parser.parse_args()

    # Not before: torch and what comes with it take seconds, and a wrong option should not.
    from model.averaging import average
    from model.console import plain_console

    raise_again()
    try:
        average(options.checkpoints, options.data, options.output, plain_console(), small=options.small)
    except (ValueError, OSError) as error:
        print(f"average: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
