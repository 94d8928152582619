"""LoRAs that were learned elsewhere, as concepts: the files of kohya's tools, LyCORIS, diffusers, peft and ComfyUI.

What they change is kept exactly as far as factors can. A file says how strongly its factors act in one of two ways: an
``alpha`` beside them (kohya, LyCORIS: ``alpha / rank``), or settings (peft: ``lora_alpha / r``, with rsLoRA ``/ sqrt(r)``)
in its metadata or in ``adapter_config.json``. Without either they act as they are.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..lowrank import LowRank
from ..models.family import Architecture, Family, families, family_of
from .concept import ABOUT, Concept, check_name
from .factorised import factors_of
from .metadata import Settings, picture_in, settings_in, triggers_in
from .names import canonical, split_key


@dataclass(frozen=True)
class Lora:
    """Factors by canonical layer, those of the model and of the text encoders, and what has to be said about them."""

    architecture: str
    factors: Mapping[str, LowRank]
    text_factors: Mapping[str, LowRank]
    warnings: list[str]


def read_lora(state: Mapping[str, Tensor], settings: Mapping[str, Settings] = {}, architecture: str = "", rank: int = 16) -> Lora:
    """The factors in a state dict of any naming; what is no LoRA of two factors is brought to ``rank``.

    ``settings`` are peft's by encoder, "" for the U-Net. Without an ``architecture`` it is found from the shapes. Raises ``ValueError``
    naming the key for a file of another family, DoRA, factors that do not fit or are no finite numbers, and layers given twice.
    """
    groups: dict[str, dict[str, Tensor]] = {}
    written: dict[str, list[str]] = {}
    left_out = []
    for key, tensor in state.items():
        if split := split_key(key):
            module, part = split
            groups.setdefault(module, {})[part] = tensor.float()
            written.setdefault(module, []).append(key)
        else:
            left_out.append(key)
    if dora := next((module for module, parts in groups.items() if "dora_scale" in parts), None):
        raise ValueError(f"{dora}: a DoRA, which scales the base's own weights and is no sum: look for a LoRA of the same")
    architecture = architecture_of(groups, architecture)
    family = family_of(architecture)
    factors: dict[str, LowRank] = {}
    errors: dict[str, float] = {}
    for module, parts in groups.items():
        layer = canonical(module, family)
        if layer is None:
            left_out += written[module]
            continue
        alpha = parts.pop("alpha", None)
        if alpha is not None and alpha.numel() != 1:
            raise ValueError(f"{module}: its alpha is {tuple(alpha.shape)}: expected one number")
        if layer in factors:
            raise ValueError(f"{module}: layer {layer} stands twice in it, under two names: remove one of them")
        try:
            f, dim, errors[layer] = factors_of(parts, rank, family.kernel_of(layer))
        except ValueError as error:
            raise ValueError(f"{module}: {error}") from error
        scale = scale_of(layer, dim, settings, family) if alpha is None else alpha.item() / dim if dim else 1.0
        if not (math.isfinite(scale) and f.up.isfinite().all() and f.down.isfinite().all()):
            raise ValueError(f"{module}: not all factors are finite numbers")
        factors[layer] = LowRank(f.up * scale, f.down, f.kernel)
    if not factors:
        known = listed([f.title for f in families()])
        raise ValueError(f"no LoRA of {known}: none of its {len(state)} keys is one, such as {next(iter(state), '')!r}")
    return Lora(
        architecture,
        {layer: f for layer, f in factors.items() if not family.encoder_of(layer)},
        {layer: f for layer, f in factors.items() if family.encoder_of(layer)},
        remarks(left_out, len(state), errors, rank),
    )


def architecture_of(groups: Mapping[str, Mapping[str, Tensor]], given: str = "") -> str:
    """What base the layers are of: by the text that they read, else by names that only one family has.

    Raises ``ValueError`` when it is another family, not the one ``given``, or cannot be told.
    """
    known = [family_of(given)] if given else families()
    names = {f: {layer: parts for module, parts in groups.items() if (layer := canonical(module, f))} for f in known}
    widths = {f: text_width(f, layers) for f, layers in names.items()}
    width = next(filter(None, widths.values()), 0)
    if given:
        if width and width != Architecture.parse(given).width:
            raise ValueError(f"a LoRA for a text of width {width}: it does not fit {given}")
        return given
    if width:
        fitting = next((f for f in known if widths[f] == f.width), None)
        if fitting is None:
            raise ValueError(f"a LoRA for a text of width {width}: expected {listed([f'{f.width} ({f.title})' for f in known])}")
        return fitting.architecture
    if told := next((f for f in known if any(re.search(f.files.telltale, layer) for layer in names[f])), None):
        return told.architecture
    if not any(names.values()):
        return known[0].architecture  # the caller says that there is no layer at all
    raise ValueError(f"no layer in it says which base it is for: give the architecture, one of {', '.join(f.architecture for f in known)}")


def text_width(family: Family, layers: Mapping[str, Mapping[str, Tensor]]) -> int:
    """The width of what the layers that read the text read, by their parts; 0 if there are none."""
    return next((width_in(parts) for layer, parts in layers.items() if family.reads_text(layer)), 0)


def listed(names: Sequence[str]) -> str:
    """Names in a sentence: "a, b or c"."""
    return " or ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def width_in(parts: Mapping[str, Tensor]) -> int:
    """How many features a linear layer reads. 0 if its parts do not say."""
    if "lokr_w1" in parts or "lokr_w1_b" in parts:
        inner = [next((parts[k] for k in (f"lokr_w{i}_b", f"lokr_w{i}") if k in parts), None) for i in (1, 2)]
        return math.prod(0 if w is None or w.ndim < 2 else w.shape[1] for w in inner)
    return next((parts[k].shape[1] for k in ("down", "hada_w1_b", "diff") if k in parts and parts[k].ndim > 1), 0)


def scale_of(layer: str, rank: int, settings: Mapping[str, Settings], family: Family) -> float:
    """How strongly factors act by peft's settings: 1 where there are none."""
    encoder = family.encoder_of(layer)
    own = settings.get(encoder.name if encoder else "")
    if own is None or not rank:
        return 1.0
    pattern: Mapping[str, Any] = own.get("alpha_pattern") or {}
    path = f"text_model.{layer.partition('.')[2]}" if encoder else layer
    alpha = next((value for name, value in pattern.items() if f".{path}".endswith(f".{name}")), own.get("lora_alpha", rank))
    return float(alpha) / (math.sqrt(rank) if own.get("use_rslora") else rank)


def remarks(left_out: Sequence[str], total: int, errors: Mapping[str, float], rank: int) -> list[str]:
    """What of a file could not be taken over as it is."""
    found = []
    if left_out:
        found.append(
            f"{len(left_out)} of {total} keys are left out, the first is {left_out[0]!r}: only the weights of linear layers and "
            "convolutions can be changed, not biases, norms or embeddings"
        )
    lossy = {layer: error for layer, error in errors.items() if error > 1e-6}
    if lossy:
        worst = max(lossy, key=lossy.__getitem__)
        found.append(f"{len(lossy)} layers were brought to rank {rank}: relative error at most {lossy[worst]:.3f} (in {worst})")
    return found


def lora_concept(
    state: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    settings: Mapping[str, Settings],
    *,
    name: str,
    architecture: str,
    class_word: str,
    triggers: Sequence[str],
    rank: int,
) -> tuple[Concept, list[str]]:
    """A LoRA as a concept without words of its own, and warnings."""
    read = read_lora(state, settings or settings_in(metadata), architecture, rank)
    known, hints = triggers_in(metadata, triggers, name)
    about = {key: metadata[f"modelspec.{key}"] for key in ABOUT if metadata.get(f"modelspec.{key}")}
    concept = Concept(
        name=check_name(name),
        class_word=class_word,
        architecture=read.architecture,
        factors=read.factors,
        text_factors=read.text_factors,
        triggers=known,
        about=about,
        preview=picture_in(metadata),
    )
    return concept, [*read.warnings, *hints]
