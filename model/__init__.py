"""The detector: network, losses, data and training. Needs torch, torchvision and timm; the service needs none of it."""
