"""The detector: network, losses, data and training. Needs torch, torchvision, timm, rich and tyro; the service needs
none of them."""

import sys
from importlib.util import find_spec


def require(*packages: str) -> None:
    """End the program with a message if one of these is not installed, as after `make serve`."""
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        sys.exit(f"{', '.join(missing)} not found: run `make test` or `pip install -r requirements/dev.txt`.")


require("torch", "torchvision", "timm", "rich", "tyro")
