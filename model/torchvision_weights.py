"""torchvision's COCO FCOS (`fcos_resnet50_fpn`, 39.2 AP) as a checkpoint of this project.

The same network under other names, with the same point convention, resize rule and thresholds; 91 outputs become the
80 classes that COCO uses. Checked against `torchvision.models.detection.fcos_resnet50_fpn`: detections are the same.
"""

import re
from pathlib import Path

import torch
from torch import Tensor
from torchvision.models.detection import FCOS_ResNet50_FPN_Weights

from model.backbone import read_weights
from model.checkpoint import Checkpoint
from model.config import IMAGENET_MEAN, IMAGENET_STD, FCOSConfig, InputConfig
from model.fcos import FCOS
from model.finetune import PER_CLASS

SHORT, LONG = 800, 1333
"""torchvision's resize rule."""
CATEGORIES: list[str] = FCOS_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
"""The outputs, one for each of COCO's ids 0 to 90: background, 80 classes and ten ids that no object has."""
USED = [index for index, name in enumerate(CATEGORIES) if name not in ("__background__", "N/A")]
"""The outputs that are classes."""

_RENAMED = (
    (r"backbone\.fpn\.inner_blocks\.(\d)\.(?:0\.)?", r"fpn.lateral.\1."),
    (r"backbone\.fpn\.layer_blocks\.(\d)\.(?:0\.)?", r"fpn.output.\1."),
    (r"backbone\.fpn\.extra_blocks\.(p\d)\.", r"fpn.\1."),
    (r"head\.classification_head\.cls_logits\.", r"head.class_logits."),
    (r"head\.regression_head\.bbox_reg\.", r"head.distances."),
    (r"head\.regression_head\.bbox_ctrness\.", r"head.centerness."),
)
_TOWERS = {"classification_head": "class_tower", "regression_head": "box_tower"}


def download() -> Path:
    """Download the weights (164 MB) into torch's cache, unless they are there.

    Raises:
        ValueError: there is no network.
    """
    url = FCOS_ResNet50_FPN_Weights.COCO_V1.url
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(url).name
    if not path.is_file():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(path), hash_prefix=path.stem.rpartition("-")[2])
        except Exception as error:
            raise ValueError(
                f"torchvision's weights cannot be downloaded to {path.parent} ({type(error).__name__}): "
                f"download {url} elsewhere and pass the file"
            ) from error
    return path


def load_torchvision(path: Path) -> Checkpoint:
    """Read the file of torchvision's COCO weights.

    Raises:
        ValueError: there is no file, or tensors do not fit; the message names each of them.
    """
    return from_state_dict(read_weights(path), path.name)


def from_state_dict(state: dict[str, Tensor], origin: str) -> Checkpoint:
    """torchvision's `fcos_resnet50_fpn(num_classes=91).state_dict()` as a checkpoint.

    Raises:
        ValueError: a tensor is missing, unexpected or of another shape; the message lists every key.
    """
    config = FCOSConfig.torchvision(tuple(CATEGORIES[index] for index in USED))
    input_config = InputConfig(
        short=SHORT,
        long=LONG,
        canvases=torchvision_canvases(),
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
    )
    theirs = {rename(key): value for key, value in state.items() if not key.endswith("num_batches_tracked")}
    for key in PER_CLASS:
        if key in theirs and theirs[key].shape[:1] == (len(CATEGORIES),):
            theirs[key] = theirs[key][USED]

    own = FCOS(config, input_config).state_dict()
    # What torchvision lacks: one factor per level, which is 1 there, and a counter that only training reads.
    theirs |= {key: own[key] for key in own if key.startswith("head.scales.") or key.endswith("num_batches_tracked")}
    faults = [f"{key} is missing" for key in own if key not in theirs]
    faults += [f"{key} is unexpected" for key in theirs if key not in own]
    faults += [
        f"{key} has shape {list(theirs[key].shape)} instead of {list(own[key].shape)}"
        for key in own
        if key in theirs and theirs[key].shape != own[key].shape
    ]
    if faults:
        raise ValueError(f"{origin} is not torchvision's fcos_resnet50_fpn for COCO: {'; '.join(faults)}")
    return Checkpoint(
        config=config,
        input_config=input_config,
        weights=theirs,
        training={"name": "fcos-resnet50-coco", "origin": origin, "data": "COCO train2017"},
        score_threshold=0.2,
    )


def rename(key: str) -> str:
    """torchvision's name of a tensor → ours. Files older than torchvision 0.14 lack a `.0` in the pyramid's names."""
    for pattern, replacement in _RENAMED:
        key, count = re.subn(f"^{pattern}", replacement, key)
        if count:
            return key
    tower = re.match(r"^head\.(classification_head|regression_head)\.conv\.(\d+)\.(.+)$", key)
    if tower:
        # Conv2d, GroupNorm, ReLU, Conv2d, ...
        block, part = divmod(int(tower[2]), 3)
        where = f"convs.{block}" if part == 0 else f"norms.{block}.0"
        return f"head.{_TOWERS[tower[1]]}.{where}.{tower[3]}"
    return key


def torchvision_canvases() -> tuple[tuple[int, int], ...]:
    """Every canvas that torchvision's rule gives: 800 x (800 to 1333), or less x 1333, padded to multiples of 32."""
    longest = -(-LONG // 32) * 32
    wide = [(SHORT, width) for width in range(SHORT, longest + 1, 32)]
    wide += [(height, longest) for height in range(32, SHORT, 32)]
    return tuple(dict.fromkeys([*wide, *((width, height) for height, width in wide)]))
