"""The FCOS detector: network, losses, data, training. It needs torch, torchvision and timm; the service does not."""
