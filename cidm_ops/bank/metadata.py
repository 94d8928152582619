"""What the LoRA files of others say about themselves: peft's settings, trigger words, a thumbnail."""

import base64
import json
from collections.abc import Mapping, Sequence
from typing import Any

from ..models.family import families
from .concept_file import JPEG

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
    except (ValueError, KeyError, AttributeError) as error:
        raise ValueError(f"metadata 'lora_adapter_metadata' cannot be read ({error!r})") from error
    for own in found.values():
        check_settings(own)
    return found


def check_settings(own: Settings) -> None:
    """Raises ``ValueError`` for settings of peft under which a layer's change is not ``scale * up @ down``, or that cannot be read."""
    if own.get("use_dora"):
        raise ValueError("a DoRA, which scales the base's own weights and is no sum: look for a LoRA of the same")
    patterns = own.get("alpha_pattern") or {}
    if not isinstance(patterns, dict) or any(set(name) & set("*+?[](){}|^$\\") for name in patterns):
        raise ValueError(f"alpha_pattern {str(patterns)[:80]}: expected names of layers, no expressions")
    if not all(isinstance(a, int | float) for a in [own.get("lora_alpha", 1), *patterns.values()]):
        raise ValueError(f"lora_alpha {own.get('lora_alpha')!r}: expected a number")


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
