"""COCO's 12 numbers and AP per class of a model file, measured through the service's own pre- and post-processing.

    python model/evaluate.py model/weights/fcos-everyday.onnx --annotations data/val.json --images data/val
    python model/evaluate.py runs/first/best.pt --annotations data/val.json --images data/val --json out.json

What is reported is what is served: pictures are opened, resized, decoded and filtered by `app`. --json writes
{"metrics": {"AP", "AP50", "AP75", ...}, "per_class": {name: {"AP", "AP50"}}, "best_f1": {"f1", "score_threshold",
"confusion"}}. -1 is COCO's word for: no such boxes. `confusion` counts boxes at that threshold: a row per true class, a
column per detected one, in the order of `per_class`; the last row is what is not there, the last column what is missed.
"""

import argparse
import sys
from pathlib import Path

if not __package__:  # run as a script: the repository's packages lie one level up
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    import model  # noqa: F401  it says so if torch is not installed
if __name__ == "__main__":  # before what takes seconds to import
    from app.launch import end_at_once

    end_at_once()

from app.errors import StartError
from app.launch import raise_again


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help=".onnx or .pt")
    parser.add_argument("--annotations", type=Path, required=True, help="COCO json, or a folder of VOC xml or YOLO txt")
    parser.add_argument("--images", type=Path, required=True, help="the folder that file names are relative to")
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    options = parser.parse_args()

    # Not before: torch and what comes with it take seconds, and a wrong option should not.
    from model.console import plain_console
    from model.evaluation import report

    raise_again()
    try:
        report(options, plain_console())
    except KeyboardInterrupt:
        return 130
    except (ValueError, StartError, OSError) as error:
        print(f"evaluate: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
