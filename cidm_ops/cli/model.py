"""The base model that a command was given."""

import argparse
from typing import Any


def guidance_of(options: argparse.Namespace, backbone: Any) -> float:
    """Returns the guidance that was given, or what suits the base."""
    return backbone.family.objective.cfg if options.guidance is None else options.guidance


def load_base(options: argparse.Namespace, on_cuda: str, transformers: bool = False) -> Any:
    """Loads the backbone, on the fastest device there is unless told; half precision is the default on CUDA only. A command that works on
    ``transformers`` too takes a folder of one.
    """
    import torch
    from transformers.utils.logging import disable_progress_bar

    from ..engines.diffusers import fastest_device, load, load_any

    disable_progress_bar()
    device = torch.device(options.device) if options.device else fastest_device()
    read = load_any if transformers else load
    return read(options.base, device, getattr(torch, options.dtype or (on_cuda if device.type == "cuda" else "float32")))
