"""Gradient checkpointing: blocks keep only what goes in and are computed again in the backward pass (Chen et al. 2016)."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint

from .causal import RECOMPUTED

BLOCKS = ("BasicTransformerBlock", "ResBlock", "ResnetBlock2D")  # the U-Net's blocks in ComfyUI and diffusers


@contextmanager
def recompute(model: nn.Module) -> Iterator[None]:
    """Let the blocks of a U-Net and the layers of text encoders trade time for memory; backward has to run while this is open as well."""
    blocks = [m for m in model.modules() if type(m).__name__ in BLOCKS]
    before = [vars(block).get("forward") for block in blocks]  # another pack may have put its own there
    for block in blocks:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    token = RECOMPUTED.set(True)
    try:
        yield
    finally:
        RECOMPUTED.reset(token)
        for block, own in zip(blocks, before, strict=True):
            del block.forward
            if own is not None:
                block.forward = own
