"""Low-rank deltas beside frozen layers: ``y = W x + up (down x)``, without touching ``W``.

Forward hooks work on any linear layer, a quantised or offloaded one included, in every engine.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn

PARTS = ("to_q", "to_k", "to_v", "to_out.0")


@contextmanager
def attached(layers: Mapping[str, nn.Module], deltas: Mapping[str, Callable[[Tensor], Tensor]]) -> Iterator[None]:
    """Add ``deltas[name](x)`` to the output of ``layers[name]`` while the context is open.

    A delta maps ``x [..., in]`` to ``[..., out]``: a ``LowRank`` or a stack with its weights bound.
    Raises ``KeyError`` when a delta names a layer the model does not have.
    """
    missing = [name for name in deltas if name not in layers]
    if missing:
        raise KeyError(
            f"the model has no layer {missing[0]!r} ({len(missing)} of {len(deltas)} unknown): the concept is for another architecture"
        )

    def beside(delta: Callable[[Tensor], Tensor]):
        return lambda module, args, output: output + delta(args[0])

    handles = [layers[name].register_forward_hook(beside(delta)) for name, delta in deltas.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def linears(cross_attention: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """The four projections of every cross-attention layer under their canonical names, ``4 L`` in all."""
    return {f"{name}.{part}": module.get_submodule(part) for name, module in cross_attention.items() for part in PARTS}
