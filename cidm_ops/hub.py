"""Where texts, factors and attention meet the layers of a model: the one place that hooks into a U-Net, for every engine.

Hooks are there while a context is open, around one call of the model, and gone after it. They act on modules, so whatever else a host or
another pack does to a layer stays: its weights, its patches, its attention.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from .concept_text import ConceptText, states_in_layer

CONTEXT_NAMES = ("encoder_hidden_states", "context")  # diffusers, ComfyUI
LARGEST = 32 * 32  # image tokens: above that attention maps cost too much memory and say little


@dataclass(frozen=True)
class Sites:
    """The places of a U-Net where the method acts, by canonical names and in layer order: transformer blocks, their cross-attentions,
    all linear layers and convolutions, and the modules that turn feature maps ``[B, C, h, w]`` into the tokens of blocks.
    ``replaced``: cross-attentions that another pack computes.
    """

    blocks: Mapping[str, nn.Module]
    cross_attention: Mapping[str, Any]
    layers: Mapping[str, nn.Module]
    tokenizers: tuple[nn.Module, ...]
    replaced: frozenset[str] = frozenset()

    @classmethod
    def of(
        cls, unet: nn.Module, blocks: Mapping[str, nn.Module], cross_attention: Mapping[str, Any], layers: Mapping[str, nn.Module]
    ) -> "Sites":
        names = {module: name for name, module in unet.named_modules()}
        around = dict.fromkeys(names[block].rsplit(".", 2)[0] for block in blocks.values())
        return cls(blocks, cross_attention, layers, tuple(unet.get_submodule(name) for name in around))


@contextmanager
def read_layerwise(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Let module number l of ``modules``, blocks or cross-attentions in layer order, read its own part of a layer-wise text: of
    a ``ConceptText``, or of a tensor ``[B, L, N, C]``. A tensor ``[B, N, C]`` is the same for all (P+, Voynov et al. 2023; CIDM 3.1).
    """

    def slice_of(index: int):
        def before(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
            for name in CONTEXT_NAMES:
                context = kwargs.get(name)
                if isinstance(context, ConceptText):
                    kwargs = kwargs | {name: states_in_layer(context, index)}
                elif isinstance(context, Tensor) and context.ndim == 4:
                    kwargs = kwargs | {name: context[:, index]}
            return args, kwargs

        return before

    with remove_at_end(module.register_forward_pre_hook(slice_of(i), with_kwargs=True) for i, module in enumerate(modules)):
        yield


@dataclass(frozen=True)
class Attention:
    """A cross-attention at work: its name and number among the layers, its heads, queries ``[B, T, C]``, keys and values ``[B, N, C]``,
    and the text ``[B, N, D]`` that the keys were made of.
    """

    name: str
    index: int
    heads: int
    q: Tensor
    k: Tensor
    v: Tensor
    text: Tensor


@contextmanager
def intercept(
    cross_attention: Mapping[str, Any],
    change: Callable[[Attention, Tensor], Tensor],
    keyed: Callable[[str, Tensor], Tensor] | None = None,
    asked: Callable[[str, Tensor], Tensor] | None = None,
) -> Iterator[None]:
    """Put ``change(attention, out)`` in place of what a layer hands on, ``out [B, T, C]``, and ``keyed(name, k)`` in place of its keys,
    while this is open.

    It is changed between the attention and ``to_out``, so whatever computes the attention, the host or another pack in its place, stays.
    That is asked ``asked(name, q) [B, S, C]`` only, if given, and answers ``out [B, S, C]``; ``change`` still sees all queries.
    """

    def hooks(index: int, name: str, layer: Any) -> list[Any]:
        seen: dict[str, Tensor] = {}

        def query(module: nn.Module, args: Any, output: Tensor) -> Tensor:
            seen["q"] = output
            return output if asked is None else asked(name, output)

        def key(module: nn.Module, args: Any, output: Tensor) -> Tensor:
            seen["text"] = args[0]
            seen["k"] = output if keyed is None else keyed(name, output)
            return seen["k"]

        def value(module: nn.Module, args: Any, output: Tensor) -> None:
            seen["v"] = output

        def before(module: nn.Module, args: Any) -> tuple[Tensor]:
            at = Attention(name, index, layer.heads, *(seen.pop(part) for part in ("q", "k", "v", "text")))
            return (change(at, args[0]),)

        return [
            layer.to_q.register_forward_hook(query),
            layer.to_k.register_forward_hook(key),
            layer.to_v.register_forward_hook(value),
            layer.to_out[0].register_forward_pre_hook(before),
        ]

    with remove_at_end(handle for i, (name, layer) in enumerate(cross_attention.items()) for handle in hooks(i, name, layer)):
        yield


@contextmanager
def change_outputs(layers: Iterable[nn.Module], change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Put ``change(output)`` in place of what layers return, low-rank deltas that were attached before included, while this is open."""
    with remove_at_end(layer.register_forward_hook(lambda module, args, output: change(output)) for layer in layers):
        yield


@contextmanager
def change_attention(
    cross_attention: Mapping[str, Any],
    change: Callable[[str, Tensor, Tensor, Tensor, int], Tensor],
    keyed: Callable[[str, Tensor], Tensor] | None = None,
) -> Iterator[None]:
    """Intercept attention for handlers that need no values and no text: ``change(name, out, q, k, heads)``."""
    with intercept(cross_attention, lambda at, out: change(at.name, out, at.q, at.k, at.heads), keyed):
        yield


@contextmanager
def watch_attention(layers: Iterable[nn.Module]) -> Iterator[list[tuple[Tensor, Tensor, int]]]:
    """Collect ``(q [B, T, C], k [B, N, C], heads)`` of every call of the cross-attention layers while this is open, low-rank deltas
    included.
    """
    seen: list[tuple[Tensor, Tensor, int]] = []

    def keep(at: Attention, out: Tensor) -> Tensor:
        if at.q.shape[1] <= LARGEST:
            seen.append((at.q, at.k, at.heads))
        return out

    with intercept({str(i): layer for i, layer in enumerate(layers)}, keep):
        yield seen


@contextmanager
def observe_grid(tokenizers: Iterable[nn.Module]) -> Iterator[list[int]]:
    """Keep, while this is open, the rows and columns of the feature map whose tokens the model is working on: ``[height, width]``.

    The model says itself what its tokens are, so images of any shape and nodes that resize its features are right.
    """
    grid: list[int] = []

    def before(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        features = args[0] if args else kwargs["hidden_states"]
        grid[:] = features.shape[-2:]

    with remove_at_end(module.register_forward_pre_hook(before, with_kwargs=True) for module in tokenizers):
        yield grid


@contextmanager
def remove_at_end(handles: Iterable[Any]) -> Iterator[None]:
    """Remove hooks at the end, whatever happens."""
    kept: list[Any] = []
    try:
        for handle in handles:
            kept.append(handle)
        yield
    finally:
        for handle in kept:
            handle.remove()
