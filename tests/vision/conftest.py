"""Tests with timm and torchvision, which `make test` installs into a folder beside the environment."""

import importlib.util

import torch

collect_ignore_glob = [] if importlib.util.find_spec("timm") else ["test_*"]

try:
    import torchvision
except ModuleNotFoundError:
    pass
except RuntimeError:
    # Its operators were built for a PyTorch of another index; those that it names as it is imported classify nothing.
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import torchvision  # noqa: F401
