"""Files of others into a bank: what they are is told by the names in them, every tensor is used or named, and so is what is refused."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from ..models.earlier import check_present
from ..models.foreign import foreign_family
from ..models.registry import families, family_of
from ..printable import one_line
from ..tensor_file import read_tensors, tensors_in
from ..text_file import read_json
from .bank import Bank
from .community import Lora, NoLayers, check_sizes, read_lora, remarks, what_else
from .concept import Concept
from .concept_file import load_concept
from .embedding import first_encoder, misfit, read_words, rows_in, spoken, words_concept
from .header import ABOUT, check_name
from .manage import renamed
from .metadata import BASES, Settings, check_settings, picture_in, settings_in, triggers_in
from .names import NUMBERED, Description, LayerPart, Rows, Unused, read_key
from .reference import is_reference, own_name, reference_concept

EXISTING = ("refuse", "replace")
OURS = "a concept of this pack"


@dataclass(frozen=True)
class Labels:
    """Whoever imports a file says this of it: all of it may be empty, and the file then says it. ``rank`` is that of layers which are no
    LoRA of two factors (LoHa, LoKr, full deltas). Raises ``ValueError`` for the architecture of a model that no longer ships.
    """

    name: str = ""
    architecture: str = ""
    class_word: str = ""
    triggers: Sequence[str] = ()
    rank: int = 16

    def __post_init__(self) -> None:
        check_present(self.architecture)


@dataclass(frozen=True)
class Reading:
    """A file as it was read: what it is, the concept that it becomes, and remarks. Every key of the file is in ``used`` or, with the
    reason why it is not used, in ``unused``.
    """

    what: str
    concept: Concept
    warnings: Sequence[str]
    used: Sequence[str]
    unused: Mapping[str, str] = field(default_factory=dict)


def import_file(
    file: Path, *, name: str = "", architecture: str = "", class_word: str = "", triggers: Sequence[str] = (), rank: int = 16
) -> tuple[list[Concept], list[str]]:
    """The concepts of a file, and warnings: our own, a LoRA of any naming, an embedding, both together, or a checkpoint of the reference.

    Without a ``name`` it is that of the file. ``rank`` is that of layers which are no LoRA of two factors (LoHa, LoKr, full deltas).
    Raises ``FileNotFoundError``, or ``ValueError`` naming the file and the key; nothing that a file holds is ever executed.
    """
    reading = read_file(file, Labels(name, architecture, class_word, triggers, rank))
    return [reading.concept], list(reading.warnings)


def read_file(file: Path, labels: Labels = Labels()) -> Reading:
    """Tell what a file is and what is used of it. Raises ``FileNotFoundError``, or ``ValueError`` naming the file and the key."""
    file = Path(file)
    try:
        content, metadata = read_tensors(file)
    except ValueError as error:
        raise ValueError(f"{file.name}: {one_line(error)}") from error
    if "cidm" in metadata:
        concept = load_concept(file)
        try:
            check_sizes(concept)
        except ValueError as error:
            raise ValueError(f"{file.name}: {one_line(error)}") from error
        concept = renamed(concept, check_name(labels.name or concept.name))
        concept = replace(concept, class_word=labels.class_word or concept.class_word, triggers=tuple(labels.triggers) or concept.triggers)
        return Reading(OURS, concept, [], list(content))
    try:
        labels = replace(labels, name=check_name(labels.name or name_of(file, content)))
        if is_reference(content):
            return read_reference(content, labels)
        return read_foreign(tensors_in(content), metadata, settings_beside(file), labels)
    except ValueError as error:
        raise ValueError(f"{file.name}: {one_line(error)}") from error


def name_of(file: Path, content: Mapping[str, Any]) -> str:
    """The name that a file gives its concept. Raises ``ValueError`` if it gives none."""
    if name := handle(own_name(content) if is_reference(content) else "") or handle(file.stem):
        return name
    raise ValueError(
        "a concept's name has letters a to z, digits, '-' and '_', and there are none in the file's name: give the concept a name (--name)"
    )


def read_reference(content: Mapping[str, Any], labels: Labels) -> Reading:
    """A checkpoint of the reference implementation."""
    concept, warnings, unused = reference_concept(
        content, name=labels.name, architecture=labels.architecture, class_word=labels.class_word, rank=labels.rank
    )
    used = [key for key in tensors_in(content) if key not in unused]
    return Reading("a checkpoint of the CIDM reference code", replace(concept, triggers=tuple(labels.triggers)), warnings, used, unused)


def read_foreign(tensors: Mapping[str, Tensor], metadata: Mapping[str, str], settings: Mapping[str, Settings], labels: Labels) -> Reading:
    """A LoRA, an embedding, or both together."""
    if any(NUMBERED.fullmatch(key) for key in tensors):
        raise ValueError(what_else(tensors))
    rows = rows_in(tensors)
    told = [key for key in tensors if isinstance(read_key(key), Description)]
    others = {key: t for key, t in tensors.items() if key not in rows and key not in told}
    if rows and not any(isinstance(read_key(key), LayerPart) for key in others):
        return read_embedding(tensors, rows, labels)
    base = " ".join(metadata.get(key, "") for key in BASES)
    try:
        lora = read_lora(others, settings or settings_in(metadata), labels.architecture, labels.rank, base)
    except NoLayers:
        if not rows or foreign_family(others):
            raise
        return read_embedding(tensors, rows, labels)  # what lies beside its words is nothing that a concept holds
    concept, hints = lora_concept(lora, metadata, labels)
    kept, unused, said = words_beside(tensors, rows, lora)
    if kept:
        own = spoken(kept, lora.architecture, concept.name)
        concept = replace(concept, words=own.words, tokens=own.tokens, token_layers=own.token_layers)
        said += own.warnings
    unused = {**lora.unused, **unused}
    used = [key for key in tensors if key not in unused]
    return Reading(f"a LoRA{' with words' if kept else ''}", concept, [*lora.warnings, *said, *hints], used, unused)


def read_embedding(tensors: Mapping[str, Tensor], rows: Mapping[str, Rows], labels: Labels) -> Reading:
    """Words alone."""
    first = first_encoder(family_of(labels.architecture) if labels.architecture else None)
    words = read_words(tensors, rows, first)
    concept, said = words_concept(words, name=labels.name, architecture=labels.architecture, class_word=labels.class_word)
    unused = {}
    for key in tensors:
        if key not in rows and not isinstance(read := read_key(key), Description):
            unused[key] = read.why if isinstance(read, Unused) else "no row of a word, nor a layer of a base that is known"
    used = [key for key in tensors if key not in unused]
    concept = replace(concept, triggers=tuple(dict.fromkeys(t.strip() for t in labels.triggers if t.strip())))
    return Reading("an embedding", concept, [*remarks(unused, len(tensors)), *said], used, unused)


def words_beside(
    tensors: Mapping[str, Tensor], rows: Mapping[str, Rows], lora: Lora
) -> tuple[dict[str, dict[str, Tensor]], dict[str, str], list[str]]:
    """The words bundled with a LoRA that its base can read, why the other rows are not used, and what to say of these."""
    words = read_words(tensors, rows, first_encoder(family_of(lora.architecture)))
    wrong = {word: why for word, own in words.items() if (why := misfit(own, lora.architecture))}
    unused = {key: wrong[row.word] for key, row in rows.items() if row.word in wrong}
    return {word: own for word, own in words.items() if word not in wrong}, unused, remarks(unused, len(tensors))


def lora_concept(lora: Lora, metadata: Mapping[str, str], labels: Labels) -> tuple[Concept, list[str]]:
    """A LoRA as a concept without words of its own, and hints about its triggers."""
    known, hints = triggers_in(metadata, labels.triggers, labels.name)
    concept = Concept(
        name=labels.name,
        class_word=labels.class_word,
        architecture=lora.architecture,
        factors=lora.factors,
        text_factors=lora.text_factors,
        triggers=known,
        about={key: metadata[f"modelspec.{key}"] for key in ABOUT if metadata.get(f"modelspec.{key}")},
        preview=picture_in(metadata),
    )
    return concept, hints


def import_into(bank: Bank, file: Path, *, name: str = "", existing: str = "refuse", **how: Any) -> tuple[Bank, list[Concept], list[str]]:
    """Add the concepts of a file to a bank. The same file again, in the same way, changes nothing.

    Returns the bank reopened, the concepts and warnings. Raises what ``import_file`` and ``Bank.add`` raise, and ``ValueError`` for a
    name that the bank has, unless ``existing`` is "replace".
    """
    if existing not in EXISTING:
        raise ValueError(f"existing {existing!r}: expected one of {', '.join(EXISTING)}")
    concepts, warnings = import_file(file, name=name, **how)
    source = {"file": file.name, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()} | {
        key: list(v) if isinstance(v, tuple) else v for key, v in how.items()
    }
    for concept in concepts:
        bank = Bank(bank.folder)
        if concept.name in bank.headers:
            if bank.headers[concept.name]["training"].get("imported") == source:
                continue
            if existing == "refuse":
                raise ValueError(
                    f"bank {bank.folder.name!r} has a concept {concept.name!r} already: choose another name, or let it be replaced"
                )
        bank = bank.add(replace(concept, training={**concept.training, "imported": source}))
    return bank, concepts, warnings


def settings_beside(file: Path) -> dict[str, Settings]:
    """peft keeps its settings beside ``adapter_model.safetensors``. Raises ``ValueError`` if they cannot be read."""
    config = file.with_name("adapter_config.json")
    if not file.name.startswith("adapter_model.") or not config.is_file():
        return {}
    try:
        own = read_json(config)
    except (OSError, ValueError) as error:
        raise ValueError(f"{config.name} beside it is no JSON that can be read: get it again, or have the file without it") from error
    if not isinstance(own, dict):
        raise ValueError(f"{config.name} beside it holds no settings")
    check_settings(own)
    return {"": own, **{e.name: own for family in families() for e in family.encoders}}


def handle(text: str) -> str:
    """A text as a concept's name: what cannot stand in one becomes ``_``."""
    return re.sub(r"[^A-Za-z0-9_-]+", "_", text).strip("_-")[:64]
