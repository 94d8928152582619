"""What the LoRA files of others say about themselves: peft's settings, trigger words, a thumbnail."""

import base64
import json
from collections.abc import Mapping, Sequence
from typing import Any

from ..models.registry import families
from .header import JPEG

SUMS = ("LORA", "LOHA", "LOKR")  # of peft's kinds
MOVED = ("pissa", "olora", "corda")  # ways of peft to begin, which take the first factors out of the base's own weights
BASES = ("modelspec.architecture", "ss_base_model_version")  # of the metadata, that say what base a file is for
LARGEST_RANK = 1 << 20
Settings = Mapping[str, Any]  # of peft: lora_alpha, use_rslora, alpha_pattern, ...


def settings_in(metadata: Mapping[str, str]) -> Mapping[str, Settings]:
    """peft's settings in the metadata that diffusers writes, by encoder, "" for the model itself."""
    parts = {f.diffusers.folder: "" for f in families()} | {e.diffusers: e.name for f in families() for e in f.encoders}
    try:
        packed = json.loads(metadata.get("lora_adapter_metadata", "{}"))
        found: dict[str, dict[str, Any]] = {}
        for key, value in packed.items():
            part, _, name = key.partition(".")
            found.setdefault(parts[part], {})[name] = value
    except (ValueError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError("its metadata 'lora_adapter_metadata' are no settings of peft: save it again, or without them") from error
    for own in found.values():
        check_settings(own)
    return found


def check_settings(own: Settings) -> None:
    """Raises ``ValueError`` for settings of peft under which a layer's change is not ``scale * up @ down``, or that cannot be read."""
    if own.get("use_dora"):
        raise ValueError("a DoRA, which scales the base's own weights and is no sum: look for a LoRA of the same")
    kind = own.get("peft_type") or "LORA"
    if str(kind).upper() not in SUMS:
        raise ValueError(f"peft_type {str(kind)[:40]!r}: expected {', '.join(SUMS)}, whose changes are sums: look for a LoRA of the same")
    begun = str(own.get("init_lora_weights", "")).lower()
    if begun.startswith(MOVED):
        raise ValueError(f"init_lora_weights {begun[:40]!r}, which moved the base's own weights: have peft convert it to a plain LoRA")
    for pattern in ("alpha_pattern", "rank_pattern"):
        names = own.get(pattern) or {}
        if not isinstance(names, dict) or any(set(name) & set("*+?[](){}|^$\\") for name in names):
            raise ValueError(f"{pattern} {str(names)[:80]}: expected names of layers, no expressions")
        if not all(isinstance(n, int | float) for n in names.values()):
            raise ValueError(f"{pattern} {str(names)[:80]}: expected numbers")
    for key in ("lora_alpha", "alpha", "r"):
        if not isinstance(own.get(key, 1), int | float):
            raise ValueError(f"{key} {str(own[key])[:40]!r}: expected a number")
    ranks = [own.get("r", 1), *(own.get("rank_pattern") or {}).values()]
    if not all(1 <= rank <= LARGEST_RANK for rank in ranks):
        raise ValueError(f"r {ranks[0]!r}: expected ranks of at least 1")


def triggers_in(metadata: Mapping[str, str], given: Sequence[str], name: str) -> tuple[tuple[str, ...], list[str]]:
    """The words that a LoRA takes part with: those given, else those in its metadata. Its most frequent tag is only a suggestion."""
    phrase = metadata.get("modelspec.trigger_phrase", "")
    triggers = tuple(dict.fromkeys(t.strip() for t in (given or phrase.split(",")) if t.strip()))
    if triggers:
        return triggers, []
    hint = f"it takes part where a prompt says <{name}>"
    if tag := frequent_tag(metadata):
        hint += f"; its most frequent tag in training was {tag!r}"
    return (), [f"no trigger words are known: {hint}"]


def frequent_tag(metadata: Mapping[str, str]) -> str:
    """The tag that most pictures had in training, by kohya's metadata."""
    try:
        counts: dict[str, int] = {}
        for folder in json.loads(metadata.get("ss_tag_frequency", "{}")).values():
            for tag, count in folder.items():
                counts[tag.strip()] = counts.get(tag.strip(), 0) + int(count)
        return max(counts, key=counts.__getitem__, default="")[:80]
    except (ValueError, AttributeError, TypeError):
        return ""


def picture_in(metadata: Mapping[str, str]) -> bytes:
    """The thumbnail of the ModelSpec standard if it is a JPEG."""
    thumbnail = metadata.get("modelspec.thumbnail", "")
    try:
        return base64.b64decode(thumbnail.removeprefix(JPEG), validate=True) if thumbnail.startswith(JPEG) else b""
    except ValueError:
        return b""
