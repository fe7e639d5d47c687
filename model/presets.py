"""Sets of options for the everyday pictures; an option given by hand wins.

`everyday-cpu` is for two cores and some hours; the shipped model was made with it, in stages: weights/train.sh.
`everyday` is to replace that: meant for ten to twenty minutes on a GPU; its numbers are estimates until one has run it.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tyro

from model.layout import Augmentation
from model.pictures import require_unpacked
from model.settings import PATHS, Settings

# The shipped model. Trained on nine tenths of train and scored on the last tenth, after 6 epochs at half size: AP 0.114
# with Lite2 and 0.090 with Lite0; with overlaps above 0.5, 0.55, 0.6, 0.65 suppressed, 0.116, 0.115, 0.114, 0.112 (AP50
# 0.289, 0.281, 0.273, 0.261). After 14 more, up to the full size, with 0.45 to 0.65: 0.194, 0.193, 0.194, 0.194, 0.193
# (AP50 0.368, 0.362, 0.360, 0.353, 0.345; F1 0.520, 0.516, 0.512, 0.506, 0.496). Lower thresholds avoid doubled boxes,
# higher ones find more in crowds; AP is the same. The better a model's boxes fit, the more they overlap: 0.55.
EVERYDAY: dict[str, Any] = {
    "name": "fcos-everyday",
    "backbone": "tf_efficientnet_lite2",
    "size": 512,  # gives canvases of 512 x 384: a 4:3 picture needs no padding
    "iou_threshold": 0.55,
    "norm": "bn",
    "assignment": "atss",
    "quality": "iou",
    "repeat_thin": 0.05,
}

PRESETS: dict[str, dict[str, Any]] = {
    # 4,950 pictures are few: strong augmentation and many epochs, the last of them on pictures as they are served.
    "everyday": EVERYDAY
    | {
        "epochs": 200,
        "plain_epochs": 8,
        "batch_size": 64,
        "lr": 5e-4,
        "backbone_lr_factor": 0.1,
        "augmentation": Augmentation(scale=(0.6, 2.0), color=0.4, hue=0.03, mosaic=0.7, mixup=0.2),
        "evaluate_every": 200,  # once: no epoch is chosen by its score on val
        "loader": "resident",
        "workers": 8,
        "save_every": 2000,
    },
    "everyday-cpu": EVERYDAY
    | {
        "epochs": 24,
        "plain_epochs": 4,
        "zooms": (0.75,),
        "freeze": "c3",
        "backbone_norm": "frozen",
        "augmentation": Augmentation(scale=(0.7, 2.0)),
        "evaluate_every": 24,  # once, as above
        "workers": 1,
    },
}


LAYOUTS = {  # annotations and pictures of a part
    "train.json and train/": ("{}.json", "{}"),
    "train/_annotations.coco.json": ("{}/_annotations.coco.json", "{}"),  # Roboflow's COCO
    "train/labels and train/images": ("{}/labels", "{}/images"),  # Roboflow's YOLO
    "labels/train and images/train": ("labels/{}", "images/{}"),  # Ultralytics'
}

_SEVERAL = f"""options that stand for several of those below:

    --preset {{{",".join(PRESETS)}}}    see model/presets.py
    --data FOLDER    its annotations and pictures, in one of the usual layouts, in place of the four paths:
                     {", ".join(LAYOUTS)}; of val (or valid) alike
"""


def data_folder(folder: Path) -> dict[str, Path]:
    """The paths of train's annotations and pictures, and of val's if there are any, in a folder of a usual layout.

    Raises:
        ValueError: the folder has none of the `LAYOUTS`.
    """
    require_unpacked(folder)
    for layout in LAYOUTS.values():
        found = [part for part in ("train", "val", "valid") if (folder / layout[0].format(part)).exists()]
        if "train" in found:
            return {
                f"{'train' if part == 'train' else 'val'}_{kind}": folder / place.format(part)
                for part in reversed(found)  # of val and valid, val wins
                for kind, place in zip(("annotations", "images"), layout, strict=True)
            }
    raise ValueError(
        f"{folder} is not a folder in a layout that is known: {', '.join(LAYOUTS)}; and val (or valid) alike, if there "
        "is one. For any other, give --train-annotations and --train-images"
    )


def read_options(arguments: Sequence[str], description: str | None) -> Settings:
    """The options of a command line, in which --preset and --data stand for several.

    Raises:
        ValueError: a value is refused.
        SystemExit: an option is unknown or missing, or is --help.
    """
    parser = argparse.ArgumentParser(prog="train.py", add_help=False, allow_abbrev=False)
    parser.add_argument("--preset", choices=PRESETS)
    parser.add_argument("--data", type=Path)
    short, rest = parser.parse_known_args(arguments)
    given: dict[str, Any] = PRESETS[short.preset] if short.preset else {}
    given = given | (data_folder(short.data) if short.data else {})
    description = f"{description or ''}\n\n{_SEVERAL}"
    if not given:
        return tyro.cli(Settings, args=rest, description=description)
    given = dict.fromkeys(PATHS, tyro.MISSING) | given
    return tyro.cli(Settings, args=rest, description=description, default=Settings(**given))
