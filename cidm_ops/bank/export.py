"""Concepts for other programs: a plain LoRA and an embedding, or several concepts as one LoRA of a chosen rank."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ..lowrank import LowRank, Stack
from ..method.aggregation import count_once
from ..models.registry import family_of
from .concept import Concept
from .concept_file import factor_state, lora_state
from .embedding import single_rows
from .factorised import truncated
from .files import check_replaceable, write_atomically
from .formats import packed
from .header import ABOUT, check_name

EXPORTED = "cidm.exported"  # in the metadata of our exports: only these are replaced by another


def export_concept(concept: Concept, folder: Path) -> list[Path]:
    """Write ``<name>.safetensors``, a LoRA that the host's loader takes, of ``up @ down`` unscaled, if the concept has factors, and
    ``<name>_words.safetensors``, its words as an embedding of one row each, if it has words; ``embedding:<name>_words`` in ComfyUI.

    Raises ``OSError`` naming a file that cannot be written, ``ValueError`` for a concept of Infusion and for a file that is there and
    was not exported.
    """
    if concept.residuals:
        raise ValueError(f"<{concept.name}> is an Infusion concept, which no other program knows: share its own file")
    stem = check_name(concept.name)
    found: dict[Path, bytes] = {}
    if concept.all_factors:
        found[folder / f"{stem}.safetensors"] = packed(exported_state(concept), lora_metadata(concept))
    if concept.tokens:
        rows: dict[str, Tensor] = {encoder: t.contiguous() for encoder, t in single_rows(concept).items()}
        found[folder / f"{stem}_words.safetensors"] = packed(rows, {"modelspec.title": stem, EXPORTED: stem})
    for file in found:
        check_replaceable(file, EXPORTED)
    for file, data in found.items():
        write_atomically(data, file)
    return list(found)


def remarks_on_export(concepts: Sequence[Concept]) -> list[str]:
    """Returns what a person should know about how other programs paint with these concepts."""
    limited = [f"<{c.name}>" for c in concepts if c.reach not in ("", "by kind", "everywhere")]
    if not limited:
        return []
    what = "was learned to act at its own words and the end of the text" if len(limited) == 1 else "were learned to act at their own words"
    return [f"{', '.join(limited)} {what}: other programs have a LoRA act at all words, so it will look otherwise there"]


def export_merged(concepts: Sequence[Concept], weights: Sequence[float], rank: int, file: Path) -> float:
    """Write ``sum_g weights[g] * delta_g`` as one LoRA of at most ``rank``, and return its error relative to the sum (Frobenius).

    The sum stays in factors: QR of both sides of the stack, then the SVD of a small core. Raises ``ValueError`` when concepts and
    weights do not fit, the concepts are for several architectures, there is nothing to merge, or the file is there and was not exported.
    """
    if len(concepts) != len(weights):
        raise ValueError(f"{len(weights)} strengths for {len(concepts)} concepts: expected one for each")
    if rank < 1:
        raise ValueError(f"rank {rank}: expected at least 1")
    if len(kinds := sorted({c.architecture for c in concepts})) > 1:
        raise ValueError(f"concepts for {' and for '.join(kinds)} cannot be merged: choose those of one base")
    if residuals := [c.name for c in concepts if c.residuals]:
        raise ValueError(f"<{residuals[0]}> is an Infusion concept, which is no LoRA: leave it out")
    merged, error = _merged(concepts, weights, rank)
    if not merged:
        raise ValueError("nothing to merge: no concept has factors")
    triggers = tuple(t for c in concepts for t in c.triggers)
    one = replace(concepts[0], name=check_name(file.stem), factors=merged, text_factors={}, triggers=triggers, about={}, preview=b"")
    metadata = lora_metadata(one) | {"cidm.merged": json.dumps(dict(zip([c.name for c in concepts], weights, strict=True)))}
    check_replaceable(file, EXPORTED)
    write_atomically(packed(exported_state(one), metadata), file)
    return error


def exported_state(concept: Concept) -> dict[str, Tensor]:
    """The factors as other programs read them: as in our own file, or fused as the host's modules are, where it reads nothing else."""
    files = family_of(concept.architecture).files
    if not files.exported:
        return lora_state(concept)
    fused = fused_factors(concept.factors, concept.architecture)
    return factor_state({f"{files.exported}{module}": f for module, f in fused.items()}, files.dotted)


def fused_factors(factors: Mapping[str, LowRank], architecture: str) -> dict[str, LowRank]:
    """Factors of the host's modules, exactly: those of a fused one have all ``down`` one above another, and each ``up`` in its own rows
    and columns.

    Raises ``ValueError`` where some layers of a fused module are not in it and the size of the model, which says theirs, is not known.
    """
    family = family_of(architecture)
    found: dict[str, LowRank] = {}
    for layer in factors:
        module, layers = family.module_of(layer)
        if module in found:
            continue
        rows = [rows_of(name, layers, factors, architecture) for name in layers]
        parts = [(factors.get(name), n) for name, n in zip(layers, rows, strict=True)]
        ups = [torch.zeros(n, 0) if f is None else f.up.float() for f, n in parts]
        found[module] = LowRank(torch.block_diag(*ups), torch.cat([f.down.float() for f, _ in parts if f is not None]))
    return found


def rows_of(layer: str, layers: Sequence[str], factors: Mapping[str, LowRank], architecture: str) -> int:
    """How many rows a layer has that is fused with others: as its factors have, else as a model of this size.

    Raises ``ValueError`` if neither says it.
    """
    if layer in factors:
        return len(factors[layer].up)
    family = family_of(architecture)
    if family.architecture == architecture:
        return family.shapes[layer][0]
    raise ValueError(f"{layer} has no factors, and how large it is in a model {architecture} is not known: expected {', '.join(layers)}")


def _merged(concepts: Sequence[Concept], weights: Sequence[float], rank: int) -> tuple[dict[str, LowRank], float]:
    """The sum of the concepts' deltas by layer, each of at most ``rank``, and its error relative to the whole sum (Frobenius)."""
    layers: dict[str, list[tuple[LowRank, float]]] = {}
    once = count_once(concepts, torch.tensor(weights, dtype=torch.double)).tolist()
    for concept, weight in zip(concepts, once, strict=True):
        for layer, f in concept.all_factors.items() if weight else ():
            layers.setdefault(layer, []).append((f, weight))
    merged, lost, whole = {}, 0.0, 0.0
    for layer, parts in layers.items():
        total = Stack.of([f for f, _ in parts]).merge(torch.tensor([w for _, w in parts]))
        merged[layer], error = truncated(total, rank)
        size = total.norm() ** 2
        lost, whole = lost + error**2 * size, whole + size
    return merged, math.sqrt(lost / whole) if whole else 0.0


def lora_metadata(concept: Concept) -> dict[str, str]:
    """Return the metadata of a plain LoRA, by the ModelSpec standard."""
    found = {key: concept.about[key] for key in ABOUT if concept.about.get(key)} | {
        "title": concept.name,
        "architecture": family_of(concept.architecture).files.modelspec,
        "trigger_phrase": ", ".join(concept.triggers),
    }
    return {f"modelspec.{key}": value for key, value in found.items() if value} | {EXPORTED: concept.name}
