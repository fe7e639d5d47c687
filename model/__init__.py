"""The detector: network, losses, data and training. Needs torch, torchvision, timm, rich and tyro; the service needs
none of them."""

import sys

from app.launch import missing


def require(*packages: str) -> None:
    """End the program with a message if one of these is not installed, as after `make serve`."""
    if names := missing(packages):
        sys.exit(f"{names} not found: run `make test` or `pip install -r requirements/dev.txt`.")


require("torch", "torchvision", "timm", "rich", "tyro")
