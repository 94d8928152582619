"""Checkpoints of the CIDM reference implementation, and of Mix-of-Show, which it grew from (``.pth``).

``params.new_concept_embedding`` has 16 rows for each word, one per cross-attention layer, and ``params.unet`` factors under
diffusers' names that act as they are, without a division by the rank.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..models.architecture import Architecture
from ..tensor_file import tensors_in
from .community import read_lora, remarks
from .concept import Concept
from .header import check_name

EMBEDDINGS = {"clip_l": "new_concept_embedding", "clip_g": "new_concept_embedding_2"}
PARTS = ("unet", "text_encoder", "text_encoder_2")


def is_reference(content: Mapping[str, Any]) -> bool:
    params = content.get("params", content)
    return isinstance(params, Mapping) and isinstance(params.get("new_concept_embedding"), Mapping)


def own_name(content: Mapping[str, Any]) -> str:
    """Find what the words of a checkpoint have in common: ``dog`` of ``<dog1> <dog2>``; "" if they differ."""
    words = content.get("params", content)["new_concept_embedding"]
    stems = {re.sub(r"\d*>?$", "", str(word)).removeprefix("<") for word in words}
    return stems.pop() if len(stems) == 1 else ""


def read_state(params: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of a checkpoint's factors by their keys. Raises ``ValueError`` naming a part that is none."""
    for key in (*EMBEDDINGS.values(), *PARTS):
        if not isinstance(params.get(key) or {}, Mapping) or not all(isinstance(name, str) for name in params.get(key) or {}):
            raise ValueError(f"params.{key} is {type(params[key]).__name__}: expected tensors by name")
    state = {f"{part}.{key}": tensor for part in PARTS for key, tensor in (params.get(part) or {}).items()}
    if wrong := next((key for key, tensor in state.items() if not isinstance(tensor, Tensor)), None):
        raise ValueError(f"params.{wrong} is {type(state[wrong]).__name__}: expected a tensor")
    return state


def read_rows(params: Mapping[str, Any], layers: int) -> tuple[list[str], dict[str, Tensor]]:
    """The words of a checkpoint in their order, and their rows ``[k, layers, D]`` by text encoder.

    Raises ``ValueError`` naming the word for rows of other shapes, and for encoders that have other words.
    """
    words: list[str] = []
    tokens: dict[str, Tensor] = {}
    for encoder, key in EMBEDDINGS.items():
        if not (table := params.get(key)):
            continue
        for word, rows in table.items():
            check_rows(f"params.{key}[{word!r}]", rows, layers)
        words = words or list(table)
        if list(table) != words or len({rows.shape for rows in table.values()}) > 1:
            raise ValueError(f"params.{key} has other words or widths than params.new_concept_embedding: expected {', '.join(words)}")
        tokens[encoder] = torch.stack([rows.detach().float() for rows in table.values()])
    if not tokens:
        raise ValueError("params.new_concept_embedding has no words")
    return words, tokens


def check_rows(name: str, rows: Any, layers: int) -> None:
    """Raises ``ValueError`` unless the rows of a word are finite numbers ``[layers, D]``."""
    if not isinstance(rows, Tensor) or rows.ndim != 2 or len(rows) != layers or not rows.isfinite().all():
        shape = tuple(rows.shape) if isinstance(rows, Tensor) else type(rows).__name__
        raise ValueError(f"{name} is {shape}: expected finite numbers [{layers}, D], one row per layer")


def reference_concept(
    content: Mapping[str, Any], *, name: str, architecture: str = "", class_word: str = "", rank: int = 16
) -> tuple[Concept, list[str], dict[str, str]]:
    """A checkpoint as a concept, its words renamed to ``<name.1>`` ... in their order, warnings, and why some of its tensors are not used.

    Raises ``ValueError`` naming the part for one that is not whole.
    """
    params = content.get("params", content)
    lora = read_lora(read_state(params), {}, architecture, rank)
    words, tokens = read_rows(params, Architecture.parse(lora.architecture).count)
    renamed = tuple(f"<{name}.{i + 1}>" for i in range(len(words)))
    warnings = [*lora.warnings, f"the words {' '.join(words)} are now {' '.join(renamed)}"]
    root = "params." if "params" in content else ""
    taken = tuple(f"{root}{key}." for key in (*EMBEDDINGS.values(), *PARTS))
    rest = {key: "neither a word nor a factor" for key in tensors_in(content) if not key.startswith(taken)}
    warnings += remarks(rest, len(tensors_in(content)))
    unused = rest | {f"{root}{key}": why for key, why in lora.unused.items()}
    concept = Concept(
        name=check_name(name),
        class_word=class_word,
        words=renamed,
        factors=lora.factors,
        tokens=tokens,
        architecture=lora.architecture,
        text_factors=lora.text_factors,
    )
    return concept, warnings, unused
