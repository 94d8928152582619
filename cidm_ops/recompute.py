"""Gradient checkpointing: blocks keep only what goes in and are computed again in the backward pass (Chen et al. 2016).

Some blocks of transformers add to what they were given in place. What autograd kept of it is then another value than it was, and where a
block is computed again not every version of PyTorch says so: the gradient is wrong. So such blocks work on copies.
"""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .causal import RECOMPUTED

BLOCKS = ("BasicTransformerBlock", "ResBlock", "ResnetBlock2D")  # the U-Net's blocks in ComfyUI and diffusers


@contextmanager
def recompute(model: nn.Module, blocks: Collection[nn.Module] = ()) -> Iterator[None]:
    """Let the blocks of a U-Net and the layers of text encoders, or the ``blocks`` of a transformer, trade time for memory; backward has to
    run while this is open as well.
    """
    parts = list(blocks) or [m for m in model.modules() if type(m).__name__ in BLOCKS]
    before = [vars(block).get("forward") for block in parts]  # another pack may have put its own there
    for block in parts:
        block.forward = partial(checkpoint, on_copies(block.forward) if blocks else block.forward, use_reentrant=False)
    token = RECOMPUTED.set(True)
    try:
        yield
    finally:
        RECOMPUTED.reset(token)
        for block, own in zip(parts, before, strict=True):
            del block.forward
            if own is not None:
                block.forward = own


def on_copies(forward: Callable[..., Any]) -> Callable[..., Any]:
    """A forward pass that leaves the tokens it is given as they are, whatever it does to them: what it is computed from again."""

    def copied(*given: Any, **named: Any) -> Any:
        return forward(*map(copy_of, given), **{name: copy_of(value) for name, value in named.items()})

    return copied


def copy_of(value: Any) -> Any:
    """A copy of tokens ``[B, N, C]``; anything else as it is."""
    return value.clone() if isinstance(value, Tensor) and value.ndim == 3 and value.is_floating_point() else value


@contextmanager
def keep_normalised(model: nn.Module) -> Iterator[None]:
    """Let every layer norm read a copy, since it keeps what it read for the backward pass and blocks go on adding to that in place."""

    def copied(module: nn.Module, given: tuple) -> tuple:
        return (given[0].clone(), *given[1:]) if torch.is_grad_enabled() else given

    norms = [m for m in model.modules() if isinstance(m, nn.LayerNorm)]
    handles = [norm.register_forward_pre_hook(copied) for norm in norms]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
