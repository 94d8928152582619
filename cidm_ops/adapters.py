"""Low-rank deltas beside frozen layers: ``y = W x + up (down x)``, without touching ``W``.

Forward hooks work on any linear layer, a quantised or offloaded one included, in every engine.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

PARTS = (
    *(f"{attention}.to_{projection}" for attention in ("attn1", "attn2") for projection in ("q", "k", "v", "out.0")),
    "ff.net.0.proj",
    "ff.net.2",
)
TARGETS = {
    "cross_attention": r"attn2\.",
    "attention": r"attn[12]\.",
    "attention_ff": r"attn[12]\.|ff\.",
}


@contextmanager
def attached(layers: Mapping[str, nn.Module], deltas: Mapping[str, Callable[[Tensor], Tensor]]) -> Iterator[None]:
    """Add ``deltas[name](x)`` to the output of ``layers[name]`` while the context is open.

    A delta maps ``x [..., in]`` to ``[..., out]``, such as a ``LowRank``; one with a ``kernel`` is a convolution as the layer is.
    Raises ``KeyError`` when a delta names a layer the model does not have.
    """
    missing = [name for name in deltas if name not in layers]
    if missing:
        raise KeyError(
            f"the model has no layer {missing[0]!r} ({len(missing)} of {len(deltas)} unknown): the concept is for another architecture"
        )

    def beside(delta: Callable[[Tensor], Tensor]):
        if getattr(delta, "kernel", ()):
            return lambda module, args, output: output + convolved(delta, module, args[0])
        return lambda module, args, output: output + delta(args[0])

    handles = [layers[name].register_forward_hook(beside(delta)) for name, delta in deltas.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def convolved(factors: Any, module: Any, x: Tensor) -> Tensor:
    """The change of a convolution's output: down with its kernel, stride and padding, then up at every place."""
    down = factors.down.to(x).unflatten(1, (-1, *factors.kernel))
    between = F.conv2d(x, down, None, module.stride, module.padding, module.dilation)
    between = factors.weighed(between.movedim(1, -1)).movedim(-1, 1)
    return F.conv2d(between, factors.up.to(x)[:, :, None, None])


def linears(blocks: Mapping[str, nn.Module], targets: str = "") -> dict[str, nn.Module]:
    """The linear layers of transformer blocks under their canonical names: those of ``TARGETS``, or those a regular expression finds.

    Raises ``ValueError`` when it finds none or is no expression.
    """
    try:
        wanted = re.compile(TARGETS.get(targets, targets))
    except re.error as error:
        raise ValueError(f"targets {targets!r}: expected one of {', '.join(TARGETS)} or a regular expression ({error})") from error
    names = [(name, part) for name, block in blocks.items() for part in PARTS if _has(block, part) and wanted.search(f"{name}.{part}")]
    if not names:
        raise ValueError(f"targets {targets!r}: no layer has that in its name, such as {next(iter(blocks))}.{PARTS[0]}")
    return {f"{name}.{part}": blocks[name].get_submodule(part) for name, part in names}


def block_of(layer: str) -> str:
    """The transformer block that a linear layer is in, by its canonical name; "" if it is in none."""
    match = re.match(r".*\.transformer_blocks\.\d+(?=\.)", layer)
    return match[0] if match else ""


def _has(block: nn.Module, part: str) -> bool:
    try:
        return hasattr(block.get_submodule(part), "weight")
    except AttributeError:
        return False
