"""CLIP's text transformer over variants of one text. It is causal: what stands before the first difference is computed once.

Works on the modules of transformers and of ComfyUI alike, which share their names, and through them on weights that
the host casts, quantises or offloads.
"""

from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import Any

import torch
from einops import rearrange
from torch import Tensor
from torch.utils.checkpoint import checkpoint

RECOMPUTED = ContextVar("recomputed", default=False)  # set by recompute.recompute
AFTER_LAYER: ContextVar[Callable[[], None]] = ContextVar("after_layer", default=lambda: None)  # set by painting/texts.py
GRAPH = 2**31  # bytes that autograd may keep for one text in all its variants; above that, layers are computed again
KEPT = 14  # tensors of the size of the hidden states that a layer keeps


def transformer_of(model: Any) -> Any:
    """The text transformer of a model; ComfyUI and transformers before 5 keep it one level down."""
    return getattr(model, "text_model", model)


def attention_layers(models: Mapping[str, Any]) -> dict[str, Any]:
    """The attention's linear layers of text models by encoder: ``<encoder>.encoder.layers.0.self_attn.q_proj`` and so on."""
    return {
        f"{encoder}.encoder.layers.{i}.self_attn.{projection}": getattr(layer.self_attn, projection)
        for encoder, model in models.items()
        for i, layer in enumerate(transformer_of(model).encoder.layers)
        for projection in ("q_proj", "k_proj", "v_proj", "out_proj")
    }


def linear_layers(models: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the attention and ``<encoder>.encoder.layers.0.mlp.fc1`` and so on: all that a LoRA can change."""
    return attention_layers(models) | {
        f"{encoder}.encoder.layers.{i}.mlp.{part}": getattr(layer.mlp, part)
        for encoder, model in models.items()
        for i, layer in enumerate(transformer_of(model).encoder.layers)
        for part in ("fc1", "fc2")
    }


def text_states(model: Any, rows: Tensor, shared: int, depth: int, norm: bool) -> Tensor:
    """Hidden states ``[V, N, D]`` after ``depth`` layers of token rows ``[V, N, D]``, with the final norm if ``norm``; differentiable.

    The first ``shared`` positions must hold the same rows in every variant: they go through the layers as one.
    """
    transformer = transformer_of(model)
    states = rows + transformer.embeddings.position_embedding.weight[: rows.shape[1]].to(rows)
    start, rest = states[:1, :shared], states[:, shared:]
    again = rows.requires_grad and (RECOMPUTED.get() or rest.nbytes * KEPT * depth > GRAPH)
    after_layer = AFTER_LAYER.get()
    for layer in transformer.encoder.layers[:depth]:
        start, rest = checkpoint(_layer, layer, start, rest, use_reentrant=False) if again else _layer(layer, start, rest)
        after_layer()
    states = torch.cat([start.expand(len(rest), -1, -1), rest], 1)
    return transformer.final_layer_norm(states) if norm else states


def pooled_state(model: Any, states: Tensor, end: Tensor, depth: int) -> Tensor:
    """The normed last state ``[B, D]`` at position ``end [B]`` of states ``[B, N, D]`` after ``depth`` layers."""
    rest, transformer = states, transformer_of(model)
    for layer in transformer.encoder.layers[depth:]:
        _, rest = _layer(layer, rest[:1, :0], rest)
    return transformer.final_layer_norm(rest[torch.arange(len(rest)), end])


def end_states(model: Any, rows: Tensor, end: Tensor) -> Tensor:
    """The normed last states ``[B, D]`` at the positions ``end [B]`` of token rows ``[B, N, D]``: what a CLIP's text projection reads;
    differentiable. What follows the last end is not computed.
    """
    rows = rows[:, : int(end.max()) + 1]
    states = text_states(model, rows, 0, len(transformer_of(model).encoder.layers), norm=True)
    return states[torch.arange(len(rows), device=states.device), end.to(states.device)]


def _layer(layer: Any, start: Tensor, rest: Tensor) -> tuple[Tensor, Tensor]:
    """One layer on the shared start ``[1, p, D]`` and the rest ``[V, N - p, D]`` of each variant, which attends to both."""
    attention = layer.self_attn
    parts = [part for part in (start, rest) if part.shape[1]]
    normed = [layer.layer_norm1(part) for part in parts]
    keys, values = ([projection(part) for part in normed] for projection in (attention.k_proj, attention.v_proj))
    out = []
    for i, part in enumerate(parts):
        k, v = (torch.cat([x.expand(len(part), -1, -1) for x in before[: i + 1]], 1) for before in (keys, values))
        part = part + attention.out_proj(_attend(attention.q_proj(normed[i]), k, v, getattr(attention, "heads", 0) or attention.num_heads))
        out.append(part + layer.mlp(layer.layer_norm2(part)))
    return (out[0] if start.shape[1] else start), (out[-1] if rest.shape[1] else rest)


def _attend(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Causal attention of the last positions ``q [B, n, D]`` to all ``k, v [B, N, D]``.

    In plain matrix products: for so few positions the fused kernel is no faster forward and, on the CPU, much slower backward.
    """
    q, k, v = (rearrange(x, "b n (h d) -> b h n d", h=heads) for x in (q, k, v))
    n, total = q.shape[2], k.shape[2]
    later = torch.ones(n, total, dtype=torch.bool, device=q.device).triu(total - n + 1)
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    weights = scores.masked_fill(later, -torch.inf).softmax(-1).to(v.dtype)
    return rearrange(weights @ v, "b h n d -> b n (h d)")
