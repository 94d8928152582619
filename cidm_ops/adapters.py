"""Low-rank deltas beside frozen layers: ``y = W x + up (down x)``, without touching ``W``.

Forward hooks work on any linear layer, a quantised or offloaded one included, in every engine.
"""

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .backbone import Backbone
from .models.blocks import TARGETS
from .models.family import Family
from .models.module import Slice

MEETING, ATTENTION = "blocks", "attention"
JOINT_TARGETS = (MEETING, ATTENTION)  # the groups of a transformer's layers that training can be aimed at


@contextmanager
def attach(layers: Mapping[str, nn.Module], deltas: Mapping[str, Callable[[Tensor], Tensor]]) -> Iterator[None]:
    """Add ``deltas[name](x)`` to the output of ``layers[name]`` while the context is open.

    A delta maps ``x [..., in]`` to ``[..., out]``, such as a ``LowRank``; one with a ``kernel`` is a convolution as the layer is.
    Raises ``KeyError`` when a delta names a layer the model does not have.
    """
    refuse_unknown(deltas, layers)

    def beside(delta: Callable[[Tensor], Tensor]):
        if getattr(delta, "kernel", ()):
            return lambda module, args, output: output + convolve(delta, module, args[0])
        return lambda module, args, output: output + delta(args[0])

    handles = [layers[name].register_forward_hook(beside(delta)) for name, delta in deltas.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def attach_parts(
    modules: Mapping[str, nn.Module], parts: Mapping[str, Slice], deltas: Mapping[str, Callable[[Tensor], Tensor]]
) -> Iterator[None]:
    """Add ``deltas[name](x)`` to the rows of a module's output that are those of the layer ``parts[name]``, while the context is open:
    layers that lie in one module side by side each have their own.

    Raises ``KeyError`` when a delta names a layer the model does not have.
    """
    refuse_unknown(deltas, parts)
    of_module: dict[str, list[tuple[Slice, Callable[[Tensor], Tensor]]]] = {}
    for name, delta in deltas.items():
        of_module.setdefault(parts[name].module, []).append((parts[name], delta))

    def beside(own: Sequence[tuple[Slice, Callable[[Tensor], Tensor]]]):
        def after(module: nn.Module, args: Any, output: Tensor) -> Tensor:
            if torch.is_grad_enabled():
                return output + in_rows([(part, delta(args[0])) for part, delta in own], output)
            for part, delta in own:
                output[..., part.start : part.start + part.rows] += delta(args[0])  # a linear layer's output is nobody else's
            return output

        return after

    handles = [modules[name].register_forward_hook(beside(own)) for name, own in of_module.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def in_rows(changes: Sequence[tuple[Slice, Tensor]], like: Tensor) -> Tensor:
    """Changes ``[..., rows]`` of parts of a module's output, each in its rows, zero elsewhere; in a way that has a backward pass."""
    pieces, end = [], 0
    for part, change in sorted(changes, key=lambda pair: pair[0].start):
        pieces += [like.new_zeros(*like.shape[:-1], part.start - end)] if part.start > end else []
        pieces.append(change.expand(*like.shape[:-1], part.rows))
        end = part.start + part.rows
    pieces += [like.new_zeros(*like.shape[:-1], like.shape[-1] - end)] if end < like.shape[-1] else []
    return torch.cat(pieces, -1) if len(pieces) > 1 else pieces[0]


def refuse_unknown(deltas: Collection[str], layers: Collection[str]) -> None:
    """Raises ``KeyError`` when a delta names a layer the model does not have."""
    if missing := [name for name in deltas if name not in layers]:
        raise KeyError(
            f"the model has no layer {missing[0]!r} ({len(missing)} of {len(deltas)} unknown): the concept is for another architecture"
        )


def convolve(factors: Any, module: Any, x: Tensor) -> Tensor:
    """Compute the change of a convolution's output: down with its kernel, stride and padding, then up at every place."""
    down = factors.down.to(x).unflatten(1, (-1, *factors.kernel))
    between = F.conv2d(x, down, None, module.stride, module.padding, module.dilation)
    between = factors.scale_ranks(between.movedim(1, -1)).movedim(-1, 1)
    return F.conv2d(between, factors.up.to(x)[:, :, None, None])


def linears(backbone: Backbone, targets: str = "") -> dict[str, nn.Module]:
    """The linear layers of a model's blocks under their canonical names: those of ``TARGETS``, or those a regular expression finds.

    Raises ``ValueError`` when it finds none or is no expression.
    """
    kinds, blocks = TARGETS.get(targets, ()), backbone.blocks
    try:
        wanted = re.compile("" if kinds else targets)
    except re.error as error:
        raise ValueError(f"targets {targets!r}: expected one of {', '.join(TARGETS)} or a regular expression ({error})") from error
    parts = [(name, part) for name in blocks for part in backbone.family.parts(name, *kinds)]
    names = [(name, part) for name, part in parts if _has(blocks[name], part) and wanted.search(f"{name}.{part}")]
    if not names:
        first, part = parts[0]
        raise ValueError(f"targets {targets!r}: no layer has that in its name, such as {first}.{part}")
    return {f"{name}.{part}": blocks[name].get_submodule(part) for name, part in names}


def joint_linears(family: Family, layers: Mapping[str, Slice], targets: str = MEETING) -> dict[str, Slice]:
    """The linear layers of a transformer under their canonical names, where they lie: all of the blocks in which the image reads the text
    (``MEETING``), their attention alone (``ATTENTION``), or those of any block that a regular expression finds; without those at the end
    that nothing reads any more, which have no gradient.

    Raises ``ValueError`` when it finds none or is no expression.
    """
    blocks = sorted({*map(family.block_of, layers)} - {""}, key=family.place)
    meeting = family.meeting(blocks)
    try:
        wanted = re.compile("" if targets in JOINT_TARGETS else targets)
    except re.error as error:
        raise ValueError(f"targets {targets!r}: expected one of {', '.join(JOINT_TARGETS)} or a regular expression ({error})") from error
    found = {}
    for layer, at in layers.items():
        block, sublayer, _ = family.locate(layer)
        chosen = bool(wanted.search(layer)) if targets not in JOINT_TARGETS else block in meeting
        if sublayer and chosen and (targets != ATTENTION or sublayer.kind != "feed_forward") and not family.is_unread(layer, blocks[-1]):
            found[layer] = at
    if not found:
        raise ValueError(f"targets {targets!r}: no layer of a block has that in its name, such as {next(iter(layers))}")
    return found


def _has(block: nn.Module, part: str) -> bool:
    try:
        return hasattr(block.get_submodule(part), "weight")
    except AttributeError:
        return False
