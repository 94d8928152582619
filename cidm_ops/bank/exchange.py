"""Files of others into a bank: what they are is told by what is in them, not by their name."""

import hashlib
import json
import pickletools
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from warnings import catch_warnings, filterwarnings

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..models.family import families
from .bank import Bank
from .community import lora_concept
from .concept import Concept, check_name
from .concept_file import load_concept
from .embedding import embedding_concept, is_embedding
from .manage import renamed
from .metadata import Settings, check_settings
from .reference import is_reference, own_name, reference_concept

EXISTING = ("refuse", "replace")


def import_file(
    file: Path, *, name: str = "", architecture: str = "", class_word: str = "", triggers: Sequence[str] = (), rank: int = 16
) -> tuple[list[Concept], list[str]]:
    """The concepts of a file, and warnings: our own, a LoRA of any naming, an embedding, or a checkpoint of the reference.

    Without a ``name`` it is that of the file. ``rank`` is that of layers which are no LoRA of two factors (LoHa, LoKr, full deltas).
    Raises ``FileNotFoundError``, or ``ValueError`` naming the file and the key; nothing that a file holds is ever executed.
    """
    file = Path(file)
    if not file.is_file():
        raise FileNotFoundError(f"there is no file {file}")
    content, metadata = read_tensors(file)
    if "cidm" in metadata:
        concept = load_concept(file)
        concept = renamed(concept, check_name(name or concept.name))
        return [replace(concept, class_word=class_word or concept.class_word, triggers=tuple(triggers) or concept.triggers)], []
    try:
        found = name or handle(own_name(content) if is_reference(content) else "") or handle(file.stem)
        if is_reference(content):
            concept, warnings = reference_concept(content, name=found, architecture=architecture, class_word=class_word, rank=rank)
        elif is_embedding(content):
            concept, warnings = embedding_concept(content, name=found, architecture=architecture, class_word=class_word), []
        else:
            state = {key: t for key, t in content.items() if isinstance(t, Tensor)}
            concept, warnings = lora_concept(
                state, metadata, settings_beside(file), name=found, architecture=architecture, class_word=class_word, triggers=triggers,
                rank=rank,
            )  # fmt: skip
    except ValueError as error:
        raise ValueError(f"{file.name}: {error}") from error
    return [concept], warnings


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


def read_tensors(file: Path) -> tuple[Mapping[str, Any], dict[str, str]]:
    """What a safetensors file or a checkpoint of torch holds, and its metadata. Raises ``ValueError`` naming the file."""
    with open(file, "rb") as f:
        head = f.read(9)
    if head[8:] == b"{":
        try:
            with safe_open(file, "pt") as f:
                return {key: f.get_tensor(key) for key in f.keys()}, f.metadata() or {}  # noqa: SIM118 -- an open file, not a dict
        except (SafetensorError, OSError, ValueError, RuntimeError) as error:
            raise ValueError(f"{file.name}: damaged safetensors file ({error}): get it again") from error
    try:
        with catch_warnings():
            filterwarnings("ignore", "Detected pickle protocol")  # what cannot be read is refused below
            content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a broken file makes the reader fail in any way
        named = re.search(r"GLOBAL (\S+)", str(error))
        if code := named[1] if named else first_call(file):
            raise ValueError(f"{file.name}: it wants to run code ({code}): refused, and nothing was executed") from None
        raise ValueError(f"{file.name}: neither a safetensors file nor a checkpoint of torch that can be read: get it again") from error
    if not isinstance(content, Mapping) or not all(isinstance(key, str) for key in content):
        raise ValueError(f"{file.name}: it holds a {type(content).__name__}: expected tensors by name")
    return content.get("state_dict", content), {}


def first_call(file: Path) -> str:
    """The module and the name of what a pickle wants to call first, told by its opcodes alone; "" for a file that is none."""
    texts: list[str] = []
    with open(file, "rb") as f, suppress(ValueError, MemoryError, OverflowError):
        for opcode, argument, _ in pickletools.genops(f):
            if opcode.name in ("GLOBAL", "INST"):
                return str(argument).replace(" ", ".")
            if opcode.name == "STACK_GLOBAL":
                return ".".join(texts[-2:])
            if isinstance(argument, str):
                texts.append(argument)
    return ""


def settings_beside(file: Path) -> dict[str, Settings]:
    """peft keeps its settings beside ``adapter_model.safetensors``. Raises ``ValueError`` if they cannot be read."""
    config = file.with_name("adapter_config.json")
    if not file.name.startswith("adapter_model.") or not config.is_file():
        return {}
    try:
        own = json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{config.name} beside it cannot be read ({error})") from error
    if not isinstance(own, dict):
        raise ValueError(f"{config.name} beside it holds no settings")
    check_settings(own)
    return {"": own, **{e.name: own for family in families() for e in family.encoders}}


def handle(text: str) -> str:
    """A text as a concept's name: what cannot stand in one becomes ``_``."""
    return re.sub(r"[^A-Za-z0-9_-]+", "_", text).strip("_-")[:64]
