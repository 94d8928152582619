"""The factors of LoRAs that were learned elsewhere: files of kohya's tools, LyCORIS, diffusers, peft, OneTrainer, ai-toolkit and ComfyUI.

What they change is kept exactly as far as factors can. A file says how strongly its factors act in one of two ways: an
``alpha`` beside them (kohya, LyCORIS: ``alpha / rank``), or settings (peft: ``lora_alpha / r``, with rsLoRA ``/ sqrt(r)``)
in its metadata or in ``adapter_config.json``. Without either they act as they are.
"""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ..lowrank import LowRank
from ..models.architecture import Architecture
from ..models.family import Family
from ..models.foreign import foreign_family
from ..models.registry import families, family_of
from .concept import Concept
from .factorised import factors_of
from .metadata import Settings
from .names import PRODUCTS, LayerPart, Unused, canonical, read_key

NUMBERED = (
    "a LoRA as lora_diffusion wrote the first ones, with a layer's number in place of its name: have that tool save it with diffusers' "
    "names, or look for a LoRA of the same in another form"
)
TURNED = "a modulation whose rows ComfyUI and diffusers have in different orders"


class NoLayers(ValueError):
    """A file has no layer of a family that is known."""


@dataclass(frozen=True)
class Lora:
    """Factors by canonical layer, those of the model and of the text encoders, and what has to be said about them.

    ``unused`` says by key why a tensor is not used; all others are.
    """

    architecture: str
    factors: Mapping[str, LowRank]
    text_factors: Mapping[str, LowRank]
    warnings: list[str]
    unused: Mapping[str, str] = field(default_factory=dict)


Groups = Mapping[str, Mapping[str, Tensor]]  # parts by the name of their layer, as it is written


def read_lora(
    state: Mapping[str, Tensor], settings: Mapping[str, Settings] = {}, architecture: str = "", rank: int = 16, said: str = ""
) -> Lora:
    """The factors in a state dict of any naming; what is no LoRA of two factors is brought to ``rank``, and what is fused is divided.

    ``settings`` are peft's by encoder, "" for the U-Net. Without an ``architecture`` it is found from the shapes, and, where these are
    those of two families, from what the metadata ``said``. Raises ``ValueError`` naming the key for a file of another family, kinds that
    are no sum (DoRA, OFT, ...), factors that do not fit each other or the base, or are no finite numbers, and layers given twice;
    ``NoLayers``, which is one, where no layer is of a family that is known.
    """
    groups, written, unused = grouped(state)
    check_kinds(groups)
    architecture, remark = architecture_of(groups, architecture, said)
    family = family_of(architecture)
    known = family.shapes if family.architecture == architecture else {}
    factors: dict[str, LowRank] = {}
    errors: dict[str, float] = {}
    for module, parts in groups.items():
        name = canonical(module, family)
        turned = name is not None and family.is_turned(name, architecture)
        if name is None or turned or (known and any(layer not in known for layer in family.layers_in(name))):
            unused |= dict.fromkeys(written[module], TURNED if turned else no_layer(module, architecture))
            continue
        try:
            whole, error = scaled(parts, name, settings, family, rank, module)
            own = divided(whole, name, family, architecture)
        except ValueError as error_:
            raise ValueError(f"{module}: {error_}") from error_
        for layer, f in own.items():
            if layer in factors:
                raise ValueError(f"{module}: layer {layer} stands twice in it, under two names: remove one of them")
            if known and (found := shape_of(f)) != known[layer]:
                raise ValueError(
                    f"{module}: a change of a weight {list(found)}, which does not fit {architecture}: {layer} is {list(known[layer])} "
                    "there"
                )
            factors[layer], errors[layer] = f, error
    if not factors:
        raise NoLayers(what_else(state))
    check_share(state, unused, family)
    return Lora(
        architecture,
        {layer: f for layer, f in factors.items() if not family.encoder_of(layer)},
        {layer: f for layer, f in factors.items() if family.encoder_of(layer)},
        [*remark, *remarks(unused, len(state)), *errors_told(errors, rank), *unscaled(state, settings)],
        unused,
    )


def divided(factors: LowRank, name: str, family: Family, architecture: str) -> dict[str, LowRank]:
    """The factors of our layers in what a file has fused, each exactly its rows of the whole; a layer that is none stays as it is.

    Raises ``ValueError`` if their rows cannot be those of its layers.
    """
    parts = family.slices(name, shape_of(factors), Architecture.parse(architecture).width)
    if len(parts) == 1:
        return {layer: factors for layer in parts}
    return {layer: LowRank(factors.up[at.start : at.start + at.rows].clone(), factors.down.clone()) for layer, at in parts.items()}


def check_share(state: Mapping[str, Tensor], unused: Mapping[str, str], family: Family) -> None:
    """Raises ``ValueError`` naming three entries if fewer of them are used than the family's files have at least."""
    used = len(state) - len(unused)
    if used < family.files.least * len(state):
        others = foreign_family(unused)
        names = ", ".join(map(repr, list(unused)[:3]))
        raise ValueError(
            f"only {used} of its {len(state)} entries are {family.title}'s, others such as {names} are not: "
            + (f"it looks like a file for {others}" if others else "look for a LoRA of the linear layers, or of that base")
        )


def grouped(state: Mapping[str, Tensor]) -> tuple[dict[str, dict[str, Tensor]], dict[str, list[str]], dict[str, str]]:
    """Parts by layer, their keys by layer, and why the other keys are none. Raises ``ValueError`` for a part that stands twice."""
    groups: dict[str, dict[str, Tensor]] = {}
    written: dict[str, list[str]] = {}
    unused: dict[str, str] = {}
    for key, tensor in state.items():
        match read_key(key):
            case LayerPart(module, part):
                if part in groups.setdefault(module, {}):
                    if part in PRODUCTS:
                        continue
                    raise ValueError(f"{key}: its layer stands twice in it, as of two adapters: keep one of them")
                groups[module][part] = tensor
                written.setdefault(module, []).append(key)
            case Unused(why):
                unused[key] = why
            case _:
                unused[key] = "no part of a layer"
    return groups, written, unused


def check_kinds(groups: Groups) -> None:
    """Raises ``ValueError`` naming the layer for a kind whose change is no sum with the base's weights."""
    for module, parts in groups.items():
        for kind in PRODUCTS:
            if kind in parts:
                raise ValueError(f"{module}: {kind}, which needs the base's own weights and is no sum: look for a LoRA of the same")


def scaled(
    parts: Mapping[str, Tensor], layer: str, settings: Mapping[str, Settings], family: Family, rank: int, module: str = ""
) -> tuple[LowRank, float]:
    """The factors of a layer as they act, and their relative error; ``module`` is the layer's name as it is written.

    Raises ``ValueError`` for parts of which none can be made.
    """
    numbers = {name: parts[name] for name in ("alpha", "scalar") if name in parts}
    for name, number in numbers.items():
        if number.numel() != 1:
            raise ValueError(f"its {name} is {tuple(number.shape)}: expected one number")
    for name, part in parts.items():
        if name not in numbers and not part.is_floating_point():
            raise ValueError(f"{name} is of the type {str(part.dtype).removeprefix('torch.')}: expected numbers with a fraction")
    given = {name: part.float() for name, part in parts.items() if name not in numbers}
    f, dim, error = factors_of(given, rank, family.kernel_of(layer))
    alpha, scalar = numbers.get("alpha"), numbers.get("scalar")
    scale = scale_of(layer, dim, settings, family, module) if alpha is None else alpha.item() / dim if dim else 1.0
    scale *= 1.0 if scalar is None else scalar.item()
    up = f.up * scale  # a finite scale can take it beyond what its type holds
    if not (math.isfinite(scale) and up.isfinite().all() and f.down.isfinite().all()):
        raise ValueError("not all factors are finite numbers")
    return LowRank(up, f.down, f.kernel), error


def check_sizes(concept: Concept) -> None:
    """Raises ``ValueError`` naming the first layer whose factors are of another size than the base has, where that is known."""
    known = family_of(concept.architecture)
    for layer, f in concept.all_factors.items() if known.architecture == concept.architecture else ():
        wanted = known.shapes.get(layer)
        if wanted and shape_of(f) != wanted:
            raise ValueError(
                f"a change of a weight {list(shape_of(f))}, which does not fit {concept.architecture}: {layer} is {list(wanted)} there"
            )


def shape_of(factors: LowRank) -> tuple[int, int]:
    """The weight ``(out, in)`` that factors change."""
    return factors.up.shape[0], factors.down.shape[1]


def no_layer(module: str, architecture: str) -> str:
    """Why a group of parts is of no layer."""
    if re.search(r"norm|ln_", module):
        return "a norm"
    if re.search(r"token_embedding|position_embedding|lora_embedding", module):
        return "a table of embeddings"
    return f"a layer that {architecture} does not have"


# What files of tensors hold that are no LoRA of a known family, by what their keys have in them.
OTHERS: tuple[tuple[str, str], ...] = (
    (r"(^|\.)\w+:\d+:\w+$", NUMBERED),
    (r"custom_diffusion\.", "a Custom Diffusion, whose weights stand in place of the base's own: look for a LoRA of the same"),
    (r"^(control_model|controlnet_cond_embedding|controlnet_|zero_convs|input_hint_block)", "a ControlNet: it is no concept"),
    (r"^(image_proj|ip_adapter)\b", "an IP-Adapter: it is no concept"),
    (r"^(model\.diffusion_model|diffusion_model|unet)\..*(?<!lora)\.weight$", "weights of a model and no change of one: it is a base"),
    (r"^(first_stage_model|encoder\.down|decoder\.up|post_quant_conv)", "an autoencoder: it is no concept"),
    (r"^(text_model\.|cond_stage_model|conditioner|transformer\.text_model)", "a text encoder: it is no concept"),
)


def what_else(state: Mapping[str, Tensor]) -> str:
    """Says of a file without a layer of a known family what it is."""
    known = listed([f.title for f in families()])
    said = f"no LoRA of {known}: none of its {len(state)} keys is one, such as {next(iter(state), '')!r}"
    if others := foreign_family(state):
        return f"a LoRA or a model of {others}, which this version does not know; {said}"
    for pattern, what in OTHERS:
        if any(re.search(pattern, key) for key in state):
            return f"{what}; {said}"
    if base := next((f for f in families() if not f.layerwise and any(canonical(key.removesuffix(".weight"), f) for key in state)), None):
        return f"weights of {base.title} and no change of them: it is a base; {said}"
    return said


def architecture_of(groups: Groups, given: str = "", said: str = "") -> tuple[str, list[str]]:
    """Tell what base the layers are of, and what has to be said about that: by the text that they read, else by names that only one family
    has, else by their shapes, else by what the file ``said``.

    Raises ``ValueError`` when it is another family, not the one ``given``, or cannot be told.
    """
    known = [family_of(given)] if given else families()
    names = {f: {layer: parts for module, parts in groups.items() if (layer := canonical(module, f))} for f in known}
    if given:
        width = telling_width(known[0], names[known[0]])
        if width and width != Architecture.parse(given).width and known[0].architecture != given:
            raise ValueError(f"a LoRA for a text of width {width}: it does not fit {given}")
        return given, []
    readers = [f for f in known if f.layerwise]
    widths = {f: telling_width(f, names[f]) for f in readers}
    if width := next(filter(None, widths.values()), 0):
        fitting = next((f for f in readers if widths[f] == f.width), None)
        if fitting is None:
            raise ValueError(f"a LoRA for a text of width {width}: expected {listed([f'{f.width} ({f.title})' for f in readers])}")
        return fitting.architecture, []
    if told := next((f for f in known if any(re.search(f.files.telltale, layer) for layer in names[f])), None):
        return told.architecture, []
    if not any(names.values()):
        return known[0].architecture, []  # the caller says that there is no layer at all
    could = [f for f in known if f.shapes and names[f] and all(could_be(f, *item) for item in names[f].items())]
    changed = [f for f in could if any(not f.encoder_of(layer) for layer in names[f])]
    could = changed or [f for f in could if f.layerwise]
    if len(could) > 1:
        return alike(could, said)
    if could:
        return could[0].architecture, []
    if sized := next((f for f in known if not f.layerwise and any(not f.encoder_of(layer) for layer in names[f])), None):
        wrong = next(layer for layer, parts in names[sized].items() if not could_be(sized, layer, parts))
        others = foreign_family(groups) or "another model"
        raise ValueError(f"its layers are named as those of {sized.title} and have other sizes, the first is {wrong}: a file for {others}")
    raise ValueError(undecided(known))


def alike(could: Sequence[Family], said: str) -> tuple[str, list[str]]:
    """Choose among families whose layers have the same names and shapes: the one that the file ``said``, else the one that such files are
    taken for, with a remark. Raises ``ValueError`` if neither decides.
    """
    if len(told := [f for f in could if re.search(f.files.said, said)]) == 1:
        return told[0].architecture, []
    names = [f.name for f in could]
    rest = [f for f in could if f.files.kin not in names]
    if len(rest) > 1:
        raise ValueError(undecided(could))
    one, others = rest[0], [f for f in could if f is not rest[0]]
    also = listed([f"{f.title} ({f.architecture})" for f in others])
    return one.architecture, [f"it does not say whether it is for {one.title} or {also}: it is taken for {one.title}"]


def undecided(could: Sequence[Family]) -> str:
    """Say that a file could be for several bases."""
    return f"no layer in it says which base it is for: give the architecture, one of {', '.join(f.architecture for f in could)}"


def could_be(family: Family, name: str, parts: Mapping[str, Tensor]) -> bool:
    """Whether a layer of a family, or what a file has fused of several, has the sizes of some parts, as far as these are a plain LoRA."""
    up, down = parts.get("up"), parts.get("down")
    if any(layer not in family.shapes for layer in family.layers_in(name)):
        return False
    if up is None or down is None or not up.ndim or not down.ndim or "mid" in parts or not down.shape[0]:
        return True
    try:
        slices = family.slices(name, (up.shape[0], down[0].numel()), family.width)
    except ValueError:
        return False
    return all((at.rows, at.columns) == family.shapes[layer] for layer, at in slices.items())


def telling_width(family: Family, layers: Mapping[str, Mapping[str, Tensor]]) -> int:
    """The width by which a family tells its sizes, by the parts of layers: of the text that they read, or, where all read one, of the
    image's tokens; 0 if there are none.
    """
    tells = family.reads_text if family.layerwise else family.looks_at_text
    return next((width_in(parts) for layer, parts in layers.items() if tells(layer)), 0)


def listed(names: Sequence[str]) -> str:
    """Names in a sentence: "a, b or c"."""
    return " or ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def width_in(parts: Mapping[str, Tensor]) -> int:
    """How many features a linear layer reads. 0 if its parts do not say."""
    if "lokr_w1" in parts or "lokr_w1_b" in parts:
        inner = [next((parts[k] for k in (f"lokr_w{i}_b", f"lokr_w{i}") if k in parts), None) for i in (1, 2)]
        return math.prod(0 if w is None or w.ndim < 2 else w.shape[1] for w in inner)
    return next((parts[k].shape[1] for k in ("down", "hada_w1_b", "diff") if k in parts and parts[k].ndim > 1), 0)


def scale_of(layer: str, rank: int, settings: Mapping[str, Settings], family: Family, module: str = "") -> float:
    """How strongly factors act by peft's settings: 1 where there are none.

    LoRA is divided by its rank or, with rsLoRA, by the root of it. LoHa and LoKr are always divided by ``r``, whole sides too, and call
    their alpha so.
    """
    encoder = family.encoder_of(layer)
    own = settings.get(encoder.name if encoder else "")
    if own is None:
        return 1.0
    paths = (f"text_model.{layer.partition('.')[2]}" if encoder else layer, module)
    kind = str(own.get("peft_type", "LORA")).upper()
    rank = int(for_layer(own, "rank_pattern", paths, own.get("r", rank))) if kind in ("LOHA", "LOKR") else rank
    if not rank:
        return 1.0
    alpha = for_layer(own, "alpha_pattern", paths, own.get("lora_alpha" if kind == "LORA" else "alpha", rank))
    return float(alpha) / (math.sqrt(rank) if own.get("use_rslora") and kind == "LORA" else rank)


def for_layer(own: Settings, pattern: str, paths: Sequence[str], otherwise: Any) -> Any:
    """A setting of peft for one layer: that of the first name in its pattern which one of the layer's names ends with."""
    for name, value in (own.get(pattern) or {}).items():
        if any(f".{path}".endswith(f".{name}") for path in paths):
            return value
    return otherwise


def remarks(unused: Mapping[str, str], total: int) -> list[str]:
    """Say what of a file is not used: how many keys, why, and one of each kind by name."""
    if not unused:
        return []
    counts, first = Counter(unused.values()), {why: key for key, why in reversed([*unused.items()])}
    kinds = "; ".join(f"{count} {why}, such as {first[why]!r}" for why, count in counts.items())
    return [
        f"{len(unused)} of {total} keys are left out, the first is {next(iter(unused))!r} ({kinds}): only the weights of linear layers and "
        "convolutions can be changed, and words"
    ]


def errors_told(errors: Mapping[str, float], rank: int) -> list[str]:
    """Which layers are not exact at a rank, by their relative errors."""
    lossy = {layer: error for layer, error in errors.items() if error > 1e-6}
    if not lossy:
        return []
    worst = max(lossy, key=lossy.__getitem__)
    return [f"{len(lossy)} layers were brought to rank {rank}: relative error at most {lossy[worst]:.3f} (in {worst})"]


def unscaled(state: Mapping[str, Tensor], settings: Mapping[str, Settings]) -> list[str]:
    """A remark on a file of peft that has lost the settings which say how strongly it acts."""
    if settings or not any(key.startswith("base_model.model.") for key in state) or any(key.endswith(".alpha") for key in state):
        return []
    return ["no adapter_config.json is beside it, which says how strongly peft's factors act: they are taken as they are"]
