"""Where texts meet the cross-attention layers of a model: layer l reads its own slice of the context."""

from collections.abc import Callable, Iterable, Iterator, Mapping
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


Attended = Callable[[str, Tensor, Tensor, Tensor, int], Tensor]


@contextmanager
def attended(
    cross_attention: Mapping[str, nn.Module], change: Attended, keyed: Callable[[str, Tensor], Tensor] | None = None
) -> Iterator[None]:
    """While open, what a layer hands on is ``change(name, out, q, k, heads)`` with out and q ``[B, T, C]``, k ``[B, N, C]``, and its keys
    ``keyed(name, k)``.

    It is changed between the attention and ``to_out``, so whatever computes the attention, the host or another pack in its place, stays.
    """

    def hooks(name: str, layer: Any) -> list[Any]:
        seen: dict[str, Tensor] = {}

        def query(module: nn.Module, args: Any, output: Tensor) -> None:
            seen["q"] = output

        def key(module: nn.Module, args: Any, output: Tensor) -> Tensor:
            seen["k"] = output if keyed is None else keyed(name, output)
            return seen["k"]

        def before(module: nn.Module, args: Any) -> tuple[Tensor]:
            return (change(name, args[0], seen.pop("q"), seen.pop("k"), layer.heads),)

        return [
            layer.to_q.register_forward_hook(query),
            layer.to_k.register_forward_hook(key),
            layer.to_out[0].register_forward_pre_hook(before),
        ]

    handles = [handle for name, layer in cross_attention.items() for handle in hooks(name, layer)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
