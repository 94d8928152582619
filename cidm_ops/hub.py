"""Where texts meet the cross-attention layers of a model: layer l reads its own slice of the context."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

CONTEXT_NAMES = ("encoder_hidden_states", "context")  # diffusers, ComfyUI


@contextmanager
def layerwise(cross_attention: Iterable[nn.Module]) -> Iterator[None]:
    """While open, layer l of ``cross_attention`` turns a context ``[B, L, N, C]`` into its ``[B, N, C]``.

    A context ``[B, N, C]`` is the same for all layers and passes unchanged (P+, Voynov et al. 2023; CIDM 3.1).
    """

    def slice_of(index: int):
        def before(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
            for name in CONTEXT_NAMES:
                context = kwargs.get(name)
                if isinstance(context, Tensor) and context.ndim == 4:
                    kwargs = kwargs | {name: context[:, index]}
            return args, kwargs

        return before

    handles = [module.register_forward_pre_hook(slice_of(i), with_kwargs=True) for i, module in enumerate(cross_attention)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
