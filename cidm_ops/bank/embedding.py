"""Textual-inversion embeddings (Gal et al. 2022) as words of a concept: each of their vectors is a word that all layers read alike.

Known are the files of AUTOMATIC1111 (``string_to_param``), kohya's tools (``emb_params``), diffusers (``{"<word>": rows}``), those with
rows by the name or the number of a text encoder, as for SDXL and of pivotal tuning, and all of these bundled with a LoRA.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..models.architecture import Architecture
from ..models.family import Family
from ..models.registry import families, family_of
from .concept import Concept
from .header import check_name
from .names import LayerPart, Rows, read_key

Words = Mapping[str, Mapping[str, Tensor]]  # rows [k, D] by text encoder, by word; "" for a word that has no name
PLAIN = re.compile(r"(?!(?:weights?|bias|data|tensors?|up|down|alpha)$)[^.:/\\]+")


def layerwise_families() -> list[Family]:
    """The families that can read words of their own."""
    return [family for family in families() if family.layerwise]


def widths() -> dict[str, list[int]]:
    """The widths that rows for a text encoder may have, by its name, the smallest first."""
    found: dict[str, set[int]] = {}
    for family in layerwise_families():
        for encoder in family.encoders:
            found.setdefault(encoder.name, set()).add(encoder.width)
    return {name: sorted(known) for name, known in found.items()}


def rows_in(tensors: Mapping[str, Tensor]) -> dict[str, Rows]:
    """The keys that are rows of words, by their names. A file of one tensor may call it by the word alone, as diffusers' do."""
    found = {key: read for key in tensors if isinstance(read := read_key(key), Rows)}
    if not found and len(tensors) == 1:
        key, tensor = next(iter(tensors.items()))
        if PLAIN.fullmatch(key) and tensor.ndim in (1, 2) and not isinstance(read_key(key), LayerPart):
            return {key: Rows(key, "")}
    return found


def read_words(tensors: Mapping[str, Tensor], keys: Mapping[str, Rows], first: str = "") -> dict[str, dict[str, Tensor]]:
    """The rows of each word; those that name no text encoder are for the ``first``.

    Raises ``ValueError`` naming the key for what are no rows of finite numbers as wide as a known text encoder's.
    """
    known = widths()
    words: dict[str, dict[str, Tensor]] = {}
    for key, rows in keys.items():
        encoder, tensor = rows.encoder or first or next(iter(known)), tensors[key]
        if not tensor.is_floating_point() or tensor.ndim not in (1, 2) or not tensor.numel():
            kind = str(tensor.dtype).removeprefix("torch.")
            raise ValueError(f"{key}: {list(tensor.shape)} of the type {kind}: expected rows of numbers with a fraction, [k, D]")
        table = tensor.float().reshape(-1, tensor.shape[-1])
        if table.shape[-1] not in known[encoder]:
            raise ValueError(f"an embedding of width {table.shape[-1]}: expected {' or '.join(map(str, known[encoder]))} for {encoder}")
        if len(table) > (room := max(e.room for f in layerwise_families() for e in f.encoders if e.name == encoder)):
            raise ValueError(f"{key}: {len(table)} rows, and a text has room for {room}: it is no embedding of a word")
        if not table.isfinite().all():
            raise ValueError(f"not all rows for {encoder} are finite numbers")
        if encoder in words.setdefault(rows.word, {}):
            raise ValueError(f"{key}: the rows of this word for {encoder} stand twice in it: keep one of them")
        words[rows.word][encoder] = table
    return words


def check_words(words: Words) -> None:
    """Raises ``ValueError`` unless every word has as many rows for each text encoder, and those of a known family."""
    sets = {f.title: {e.name for e in f.encoders} for f in layerwise_families()}
    for rows in words.values() or [{}]:
        if len({len(t) for t in rows.values()}) != 1 or set(rows) not in sets.values() or set(rows) != set(next(iter(words.values()))):
            wanted = ", ".join(f"for {' as for '.join(sorted(names, reverse=True))} in {title}" for title, names in sets.items())
            raise ValueError(
                f"an embedding with {', '.join(f'{len(t)} rows for {e}' for e, t in rows.items()) or 'no rows'}: expected as many {wanted}"
            )


def architecture_of_words(words: Words) -> str:
    """The base whose text encoders have the widths of the rows. Raises ``ValueError`` if there is none."""
    sizes = {encoder: t.shape[-1] for encoder, t in next(iter(words.values())).items()}
    if found := next((f.architecture for f in layerwise_families() if {e.name: e.width for e in f.encoders} == sizes), ""):
        return found
    said = ", ".join(f"{width} for {encoder}" for encoder, width in sizes.items())
    raise ValueError(f"an embedding of width {said}: no base that is known has those")


def misfit(rows: Mapping[str, Tensor], architecture: str) -> str:
    """Why the rows of a word are none for a base; "" if they are."""
    family = family_of(architecture)
    if not family.layerwise:
        return f"{family.title} has no words of its own, its concepts are factors alone"
    if {e.name for e in family.encoders} != set(rows):
        return f"rows for {' and '.join(rows)}, and {family.title} reads {' and '.join(e.name for e in family.encoders)}"
    if len({len(t) for t in rows.values()}) > 1:
        return "rows of a word that differ in number from encoder to encoder"
    wrong = next((e for e in family.encoders if family.architecture == architecture and rows[e.name].shape[-1] != e.width), None)
    return f"rows of width {rows[wrong.name].shape[-1]}, and {wrong.name} of {architecture} has {wrong.width}" if wrong else ""


@dataclass(frozen=True)
class Spoken:
    """Words of a concept, as ``Concept`` has them, and what they were called before."""

    words: tuple[str, ...]
    tokens: Mapping[str, Tensor]
    token_layers: tuple[int, ...]
    warnings: Sequence[str]


def spoken(words: Words, architecture: str, name: str) -> Spoken:
    """Words as ``<name.1>`` ... for a base, in their order."""
    family, layers = family_of(architecture), Architecture.parse(architecture).count
    tokens = {e.name: torch.cat([rows[e.name] for rows in words.values()])[:, None].contiguous() for e in family.encoders}
    handles = [f"<{name}.{i}>" for i in range(1, 1 + sum(len(next(iter(rows.values()))) for rows in words.values()))]
    warnings, at = [], 0
    for word, rows in words.items():
        count = len(next(iter(rows.values())))
        if word and (word, count) != (handles[at], 1):
            warnings.append(f"the word {word[:80]} is now {' '.join(handles[at : at + count])}")
        at += count
    return Spoken(tuple(handles), tokens, (0,) * layers, warnings)


def first_encoder(family: Family | None) -> str:
    """The text encoder that rows without one are for."""
    return family.encoders[0].name if family and family.encoders else ""


def words_concept(words: Words, *, name: str, architecture: str, class_word: str) -> tuple[Concept, list[str]]:
    """Words alone as a concept, and what they were called before."""
    check_words(words)
    found = architecture or architecture_of_words(words)
    for rows in words.values():
        if wrong := misfit(rows, found):
            raise ValueError(f"an embedding for {', '.join(rows)}: it does not fit {found} ({wrong})")
    told = spoken(words, found, check_name(name))
    concept = Concept(
        name=name, class_word=class_word, words=told.words, tokens=told.tokens, architecture=found, token_layers=told.token_layers
    )
    return concept, list(told.warnings)


def single_rows(concept: Concept) -> dict[str, Tensor]:
    """One row ``[k, D]`` per word and text encoder for programs without layer-wise words: the mean of what the layers read."""
    layers = list(concept.token_layers)
    return {e: (t[:, layers] if layers else t).mean(1) for e, t in concept.tokens.items()}
