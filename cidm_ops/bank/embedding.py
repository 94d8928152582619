"""Textual-inversion embeddings (Gal et al. 2022) as concepts: each of their vectors is a word that all layers read alike.

Known are the files of AUTOMATIC1111 (``string_to_param``, ``emb_params``), diffusers (``{"<word>": rows}``) and those
with rows by the name of a text encoder, as for SDXL.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..models.family import Architecture, families, family_of
from .concept import Concept, check_name


def widths() -> dict[str, list[int]]:
    """The widths that rows for a text encoder may have, by its name, the smallest first."""
    found: dict[str, set[int]] = {}
    for family in families():
        for encoder in family.encoders:
            found.setdefault(encoder.name, set()).add(encoder.width)
    return {name: sorted(known) for name, known in found.items()}


def is_embedding(content: Mapping[str, Any]) -> bool:
    """Whether what a file holds is rows for a text encoder and nothing else."""
    if "string_to_param" in content or "emb_params" in content or {*content} & {*widths()}:
        return True
    return bool(content) and all(isinstance(t, Tensor) and t.ndim in (1, 2) and "." not in key for key, t in content.items())


def embedding_rows(content: Mapping[str, Any]) -> dict[str, Tensor]:
    """Rows ``[k, D]`` by text encoder. Raises ``ValueError`` when there are none for Stable Diffusion 1, SDXL or Doodle."""
    content = content.get("string_to_param", content)
    tensors = {
        k: t.detach().float()
        for k, t in content.items()
        if isinstance(t, Tensor) and t.is_floating_point() and t.ndim in (1, 2) and t.numel()
    }
    known = widths()
    rows = {encoder: tensors[encoder] for encoder in known if encoder in tensors}
    if not rows and tensors:
        rows = {next(iter(known)): next(iter(tensors.values()))}  # a file without names is for the first text encoder
    rows = {encoder: t.reshape(-1, t.shape[-1]) for encoder, t in rows.items()}
    for encoder, t in rows.items():
        if t.shape[-1] not in known[encoder]:
            raise ValueError(f"an embedding of width {t.shape[-1]}: expected {' or '.join(map(str, known[encoder]))} for {encoder}")
        if not t.isfinite().all():
            raise ValueError(f"not all rows for {encoder} are finite numbers")
    sets = {f.title: [e.name for e in f.encoders] for f in families()}
    if len({len(t) for t in rows.values()}) != 1 or list(rows) not in sets.values():
        wanted = ", ".join(f"for {' as for '.join(names)} in {title}" for title, names in sets.items())
        raise ValueError(
            f"an embedding with {', '.join(f'{len(t)} rows for {e}' for e, t in rows.items()) or 'no rows'}: expected as many {wanted}"
        )
    return rows


def embedding_concept(content: Mapping[str, Any], *, name: str, architecture: str = "", class_word: str = "") -> Concept:
    """An embedding as a concept of k words ``<name.1>`` ... without factors.

    Raises ``ValueError`` for an embedding of another width, or for another number of text encoders than ``architecture`` has.
    """
    rows = embedding_rows(content)
    sizes = {encoder: t.shape[-1] for encoder, t in rows.items()}
    found = architecture or next((f.architecture for f in families() if {e.name: e.width for e in f.encoders} == sizes), "")
    if not found:
        said = ", ".join(f"{width} for {encoder}" for encoder, width in sizes.items())
        raise ValueError(f"an embedding of width {said}: no base that is known has those")
    if [e.name for e in family_of(found).encoders] != list(rows):
        raise ValueError(f"an embedding for {', '.join(rows)}: it does not fit {found}")
    layers, count = Architecture.parse(found).count, len(next(iter(rows.values())))
    words = tuple(f"<{name}.{i}>" for i in range(1, count + 1))
    tokens = {encoder: t[:, None].contiguous() for encoder, t in rows.items()}
    return Concept(name=check_name(name), class_word=class_word, words=words, tokens=tokens, architecture=found, token_layers=(0,) * layers)


def single_rows(concept: Concept) -> dict[str, Tensor]:
    """One row ``[k, D]`` per word and text encoder for programs without layer-wise words: the mean of what the layers read."""
    layers = list(concept.token_layers)
    return {e: (t[:, layers] if layers else t).mean(1) for e, t in concept.tokens.items()}
