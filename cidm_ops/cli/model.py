"""The base model that a command was given."""

import argparse
from typing import Any


def load_base(options: argparse.Namespace, on_cuda: str) -> Any:
    """Loads the backbone, on the fastest device there is unless told; half precision is the default on CUDA only."""
    import torch
    from transformers.utils.logging import disable_progress_bar

    from ..engines.diffusers import fastest_device, load

    disable_progress_bar()
    device = torch.device(options.device) if options.device else fastest_device()
    return load(options.base, device, getattr(torch, options.dtype or (on_cuda if device.type == "cuda" else "float32")))
