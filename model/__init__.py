"""The detector: network, losses, data and training. Needs torch, torchvision and timm; the service needs none of it."""

import sys
from importlib.util import find_spec


def require(*packages: str) -> None:
    """Ends the program with a sentence where one of these is not installed, as after `make serve`."""
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        sys.exit(f"{', '.join(missing)} not found: `make test` or `pip install -r requirements/dev.txt` installs all.")


require("torch", "torchvision", "timm", "rich", "tyro")
