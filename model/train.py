"""Train the detector on your own pictures.

    python model/train.py --train-annotations data/train.json --train-images data/train \\
        --val-annotations data/val.json --val-images data/val --output runs/first
    python model/train.py --preset everyday-cpu --data data --output runs/everyday   # for two cores and some hours
    python model/train.py ... --output runs/first --resume        # resume exactly where that run stopped
    python model/train.py ... --output runs/mine --from runs/first/best.pt          # fine-tune; classes may differ
    torchrun --nproc-per-node 4 model/train.py ...                # four GPUs; --batch-size is still the total
    python -m export runs/first/best.pt --output first.onnx       # then serve it: FCOS_MODEL=first.onnx python -m app

--data and --preset stand for several of the other options, which win over them if given as well (`model/presets.py`).
Annotations are checked before any work.

The run's folder gets `config.json` (every option, the network), `last.pt` (resumable until the run is finished),
`best.pt` (highest AP on val, averaged weights), `metrics.csv` (a line per epoch), `tensorboard/`, `batches.jpg` (what
the network sees) and, with every evaluation, `metrics.json` (as `model/evaluate.py --json`); at the end
`precision_recall.png`, `confusion.png` and `predictions.jpg`. Ctrl-C or SIGTERM saves and stops, as does the end of
the terminal, unless nohup was used; a second Ctrl-C stops at once.
"""

import sys
from pathlib import Path

if not __package__:  # run as a script: the repository's packages lie one level up
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    import model  # noqa: F401  it says so if torch is not installed
if __name__ == "__main__":  # before what takes seconds to import
    from app.launch import end_at_once

    end_at_once()

from app.launch import raise_again
from model.presets import read_options


def main() -> int:
    try:
        settings = read_options(sys.argv[1:], __doc__)
    except (ValueError, OSError) as error:
        print(f"train: {error}", file=sys.stderr)
        return 2

    # Not before: torch and what comes with it take seconds, and a wrong option should not.
    from model.console import plain_console
    from model.distributed import started
    from model.optim import keep_tensors_memory
    from model.training import MENDABLE, in_words, train

    raise_again()
    console = plain_console()
    try:
        keep_tensors_memory()
        with started(settings.device) as processes:
            console.quiet = not processes.first
            if not train(settings, processes, console):
                print("train: stopped and saved; --resume continues from there", file=sys.stderr)
                return 130
    except MENDABLE as error:
        print(in_words(error), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("train: stopped; --resume continues from the last save, if there was one", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
