"""Concepts on the host's MODEL, CLIP and CONDITIONING: always on a clone, with the host's own patches.

Merged, concepts are weight patches like any LoRA's. Routed, they act beside the layers, with weights of their own for each row of a batch.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import comfy.lora
import comfy.model_management
import comfy.sd
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..cidm_ops.bank.concept import Concept
from ..cidm_ops.bank.concept_file import unfolded
from ..cidm_ops.bank.export import exported_state
from ..cidm_ops.concept_text import ConceptText, plain
from ..cidm_ops.lowrank import LowRank
from ..cidm_ops.method.aggregation import tables_of
from ..cidm_ops.models.registry import family_of
from ..cidm_ops.painting.compose import AggregationConfig, ConceptMix, ParsedPrompt, encode, infusing, row_plan, scene_beside
from ..cidm_ops.painting.composition import Composition
from ..cidm_ops.painting.config import NoiseEstimation, ResidualConfig
from ..cidm_ops.painting.region_text import region_text
from ..cidm_ops.painting.scene import Template
from ..cidm_ops.painting.texts import text_deltas
from ..cidm_ops.painting.weaving import woven
from ..cidm_ops.row_plan import RowPlan
from ..cidm_ops.tokens import hide
from .host import ComfyBackbone, ComfyText, ComfyTransformer, adapted, known_family, layer_names, weight_keys
from .scenes import scene_of, with_more, with_regions, with_scene

PATCHED = "cidm_text"  # in a CLIP's options: names of the concepts whose text factors are merged into it


def lora_of(model: ModelPatcher, concept: Concept) -> dict[str, Tensor]:
    """The factors of a concept as the host's LORA_MODEL; on a transformer as its loader knows the names of layers."""
    return lora_model(model, concept.factors) if known_family(model).layerwise else exported_state(concept)


def lora_model(model: ModelPatcher, factors: Mapping[str, LowRank]) -> dict[str, Tensor]:
    """Factors as the host's LORA_MODEL: what its own nodes save, load and apply."""
    names = layer_names(model)
    check_known(factors, names)
    return lora_state({f"diffusion_model.{names[layer]}": f for layer, f in factors.items()})


def check_known(factors: Mapping[str, LowRank], known: Collection[str]) -> None:
    """Raises ``KeyError`` naming a layer that has factors and is not in a model."""
    if unknown := [layer for layer in factors if layer not in known]:
        raise KeyError(
            f"the model has no layer {unknown[0]!r} ({len(unknown)} of {len(factors)} unknown): the concept is for another architecture"
        )


def lora_state(factors: Mapping[str, LowRank]) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    for key, f in factors.items():
        up, down = unfolded(f)
        state |= {f"{key}.lora_up.weight": up.contiguous(), f"{key}.lora_down.weight": down.contiguous()}
        state[f"{key}.alpha"] = torch.tensor(float(f.rank))
    return state


def merge(model: ModelPatcher, factors: Mapping[str, LowRank]) -> ModelPatcher:
    """Return a clone of ``model`` with the factors merged into its weights, which reads texts layer by layer if its family does."""
    patched = with_scene(model, scene_of(model)) if known_family(model).layerwise else model.clone()
    keys = weight_keys(model)
    check_known(factors, keys)
    patched.add_patches(comfy.lora.load_lora(lora_state(factors), {layer: keys[layer] for layer in factors}))
    return patched


def with_concepts(
    backbone: ComfyBackbone | ComfyTransformer, mixes: Sequence[ConceptMix], how: AggregationConfig | None = None
) -> ModelPatcher:
    """A clone of the model with the concepts of one prompt, or of one for each image of a batch: in its weights, or beside its layers."""
    how = how or AggregationConfig()
    if len(mixes) == 1 and Composition(mixes[0], (), how).mergeable:
        return merge(backbone.model, mixes[0].factors(backbone))
    if isinstance(backbone, ComfyTransformer) and not how.negative:
        raise ValueError(
            f"on {backbone.family.title} a prompt alone does not say which texts are negative: take concepts on the negative too, or paint "
            "in regions"
        )
    scene = scene_beside([[mixed] for mixed in mixes], how)
    model = with_adapter(backbone, mixes[0]) if isinstance(backbone, ComfyTransformer) and len(mixes) == 1 else backbone.model
    names = weight_keys(model)
    if unknown := [layer for stack in scene.stacks for c in stack.concepts for layer in c.factors if layer not in names]:
        raise KeyError(f"the model has no layer {unknown[0]!r}: the concept is for another architecture")
    return with_more(model, scene)


def with_adapter(backbone: ComfyTransformer, mixed: ConceptMix) -> ModelPatcher:
    """The model, or a clone into whose adapter for texts is merged what concepts changed there: it acts before hooks beside layers do."""
    if not backbone.family.host.text.adapter:
        return backbone.model
    factors = {layer: f for layer, f in mixed.factors(backbone).items() if backbone.family.adapts(layer)}
    return merge(backbone.model, factors) if factors else backbone.model


def as_read(backbone: ComfyTransformer, mixed: ConceptMix) -> list:
    """The CONDITIONING of a prompt as the blocks of a transformer read it: through its adapter as the prompt's concepts changed it."""
    return adapted(with_adapter(backbone, mixed), encode_prompt(backbone.clip, mixed))


def in_regions(
    backbone: ComfyBackbone | ComfyTransformer, composition: Composition, estimation: NoiseEstimation | None = None
) -> tuple[ModelPatcher, list]:
    """A clone of the model that paints a composition in its regions, if it has any, and the CONDITIONING of its global prompt."""
    whole, how = composition.whole, composition.how
    if isinstance(backbone, ComfyTransformer):
        if not composition.regions:
            return with_concepts(backbone, [whole], how), encode_prompt(backbone.clip, whole)
        texts = [text_of(backbone, region.mix, bool(region.mask.sought), how.padding) for region in composition.regions]
        said = [[with_regions(text, texts), more] for text, more in as_read(backbone, whole)]
        model = with_adapter(backbone, whole) if how.negative else backbone.model  # whose adapter reads the negative text
        return with_more(model, composition.scene(texts, estimation)), said
    if composition.regions:
        texts = [of_region(backbone.clip, region.mix) for region in composition.regions]
        patched, said = with_more(backbone.model, composition.scene(texts, estimation)), conditioning(backbone.clip, [whole], texts)
        plain = [of_region(backbone.clip, region.mix.in_plain_words) for region in composition.regions] if how.start else []
        return patched, begin_plainly(backbone.clip, [whole], said, how.start, plain)
    if whole.residuals:
        patched, said = with_infusion(backbone, whole, ResidualConfig(), how)
    else:
        patched, said = with_concepts(backbone, [whole], how), encode_prompt(backbone.clip, whole)
    return patched, begin_plainly(backbone.clip, [whole], said, how.start)


def begin_plainly(
    clip: comfy.sd.CLIP, prompts: Sequence[ParsedPrompt], said: list, start: float, regions: Sequence[ConceptText] = ()
) -> list:
    """The CONDITIONING ``said`` of one prompt, or of one for each row of a batch, that until ``start`` of the sampling says the same in
    plain words, with ``regions`` in plain words too.
    """
    if not start:
        return said
    before = conditioning(clip, [prompt.in_plain_words for prompt in prompts], regions)
    parts = ((before, 0.0, start), (said, start, 1.0))  # as the host's ConditioningSetTimestepRange has it
    return [[text, {**more, "start_percent": first, "end_percent": last}] for part, first, last in parts for text, more in part]


def text_of(backbone: ComfyTransformer, said: ConceptMix, sought: bool, padding: bool = True) -> ConceptText:
    """The text ``[1, N, C]`` of a region for a model in which all layers read one text, as the host encodes it: see ``region_text``.

    Raises ``ValueError`` where that is not one text, while hooks change the encoder with the steps, and as ``region_text`` does.
    """
    found, clip, how = as_read(backbone, said), backbone.clip, backbone.family.host.text
    if len(found) != 1:
        raise ValueError(f"{said.text!r} is {len(found)} texts, by hooks on the CLIP that change with the steps: take them off for regions")
    text = plain(found[0][0])
    encoder = how.tokens or read_encoder(clip, said.text, text.shape[1])
    filled = text.shape[1] if how.adapter else 0
    return region_text(said, text, (lambda part: token_ids(clip, encoder, part, filled)) if encoder else None, sought, padding)


def texts_of_images(backbone: ComfyBackbone | ComfyTransformer, prompts: Sequence[ConceptMix]) -> list:
    """The CONDITIONING of one prompt for each image of a batch.

    Raises ``ValueError`` where that is not one text each: while hooks change the encoder with the steps.
    """
    if not isinstance(backbone, ComfyTransformer):
        return conditioning(backbone.clip, prompts)
    if len(prompts) == 1:
        return encode_prompt(backbone.clip, prompts[0])
    found = [as_read(backbone, said) for said in prompts]
    if any(len(one) != 1 for one in found):
        raise ValueError("the prompts are several texts each, by hooks on the CLIP that change with the steps: take them off for a batch")
    texts, more = [plain(one[0][0]) for one in found], dict(found[0][0][1])
    length = max(text.shape[1] for text in texts)
    filled = torch.cat([torch.nn.functional.pad(text, (0, 0, 0, length - text.shape[1])) for text in texts])
    if "attention_mask" in more:
        more["attention_mask"] = torch.ones(1, length, dtype=torch.long)
    if more.get("pooled_output") is not None:
        more["pooled_output"] = torch.cat([one[0][1]["pooled_output"] for one in found])
    return [[ConceptText.of(filled, [RowPlan(layers=text) for text in texts]), more]]


def read_encoder(clip: comfy.sd.CLIP, text: str, count: int) -> str:
    """The name of the encoder whose states the model reads, of which a text has ``count``: the last of a lone encoder's, which may cut off
    the template that it puts the text in, or those behind the states of the others, which stand side by side. An empty one if none has so
    many tokens.
    """
    lengths = {name: sum(map(len, rows)) for name, rows in clip.tokenize(text).items()}
    if found := next((name for name, length in lengths.items() if length == count or (len(lengths) == 1 and length > count)), ""):
        return found
    *beside, (last, own) = lengths.items()
    return last if beside and count == own + min(length for _, length in beside) else ""


def token_ids(clip: comfy.sd.CLIP, encoder: str, text: str, filled: int = 0) -> list[int]:
    """The ids of the tokens of a text for one encoder, -1 for those that have none, ``filled`` up with -1 to so many."""
    found = [token[0] if isinstance(token[0], int) else -1 for row in clip.tokenize(text)[encoder] for token in row]
    return found + [-1] * (filled - len(found))


def woven_into(backbone: ComfyBackbone, composition: Composition, template: Template) -> tuple[ModelPatcher, list]:
    """A clone of the model that weaves a composition into a template, and the CONDITIONING of its global prompt."""
    texts = [of_region(backbone.clip, region.mix) for region in composition.regions]
    patched = with_more(backbone.model, woven(composition, template, texts))
    return patched, conditioning(backbone.clip, [composition.whole], texts)


def encode_prompt(clip: comfy.sd.CLIP, said: ParsedPrompt) -> list:
    """The CONDITIONING of a prompt; without concepts, or where all layers read one text, the host encodes it, embeddings and all."""
    if any(family_of(concept.architecture).layerwise for concept in said.concepts):
        return conditioning(clip, [said])
    if strengths := unmerged(clip, said.strengths):
        clip = patched_clip(clip, said.concepts, strengths)
    return clip.encode_from_tokens_scheduled(clip.tokenize(said.text))


def unmerged(clip: comfy.sd.CLIP, strengths: Mapping[str, float]) -> dict[str, float]:
    """Strengths without those of concepts whose text factors are merged into a CLIP already."""
    known = clip.patcher.model_options.get(PATCHED, ())
    return {name: strength for name, strength in strengths.items() if name not in known}


def encode_negative(clip: comfy.sd.CLIP, said: ParsedPrompt, composition: Composition) -> list:
    """The CONDITIONING of what a composition should not have, with what the concepts of its prompt changed in the text encoders, where they
    act on negative texts too.
    """
    whole = composition.whole
    return encode_prompt(patched_clip(clip, whole.concepts, whole.strengths) if composition.how.negative else clip, said)


def of_region(clip: comfy.sd.CLIP, mixed: ConceptMix) -> ConceptText:
    """The text of a region, ``[1, N, C]``."""
    text = conditioning(clip, [mixed])[0][0]
    return text if isinstance(text, ConceptText) else ConceptText.of(text, [RowPlan()])


def conditioning(clip: comfy.sd.CLIP, prompts: Sequence[ParsedPrompt], regions: Sequence[ConceptText] = ()) -> list:
    """A CONDITIONING of one prompt, or of one for each row of a batch, with the host's word weights. Its text brings what each layer reads,
    where concepts stand, residuals, and the texts of ``regions``. Without concepts and regions it is a plain one.

    Raises ``ValueError`` for a text encoder that changes over the sampling.
    """
    if clip.patcher.forced_hooks is not None and clip.use_clip_schedule:
        raise ValueError(
            "the hooks of this CLIP are scheduled, and a prompt with concepts is encoded once: switch schedule_clip of SetClipHooks off"
        )
    text, states, plans, pooled = ComfyText(clip), [], [], []
    device = comfy.model_management.intermediate_device()
    for said in prompts:
        plain, _ = hide(said.text, tables_of(said.concepts), text.family.placeholders)
        encoded = encode(text, replace(said, strengths=unmerged(clip, said.strengths)))
        states.append(text.emphasise(plain, encoded.context[0]).to(device))
        plans.append(row_plan(text, said, regions))
        pooled += [] if encoded.pooled is None else [encoded.pooled]
    length = math.lcm(*(s.shape[1] for s in states))
    rows = [alone(own, plan).repeat(1, length // own.shape[1], 1) for own, plan in zip(states, plans, strict=True)]
    more: dict[str, Any] = {"pooled_output": torch.cat(pooled).to(device)} if pooled else {}
    clip.add_hooks_to_dict(more)
    return [[torch.cat(rows), more]]


def alone(states: Tensor, plan: RowPlan) -> Tensor:
    """The text of one row whose layers read ``states [L, N, C]``, or all of them the same ``[1, N, C]``."""
    if len(states) == 1 and not (plan.composed or plan.residuals):
        return states
    return ConceptText.of(states.mean(0, keepdim=True), [replace(plan, layers=states if len(states) > 1 else None)])


def with_infusion(
    backbone: ComfyBackbone, mixed: ConceptMix, infusion: ResidualConfig, how: AggregationConfig | None = None
) -> tuple[ModelPatcher, list]:
    """A clone of the model with a prompt's concepts in it, on which residuals act as ``infusion`` says, and the prompt's CONDITIONING,
    which carries them. Without other concepts the text is encoded by the host itself.
    """
    patched = with_concepts(backbone, [mixed], how)
    patched = with_scene(patched, infusing(scene_of(patched), infusion))
    if mixed.concepts:
        return patched, conditioning(backbone.clip, [mixed])
    said, plan = backbone.clip.encode_from_tokens_scheduled(backbone.clip.tokenize(mixed.text)), row_plan(backbone, mixed)
    return patched, [[ConceptText.of(states, [plan] * len(states)), more] for states, more in said]


def patched_clip(clip: comfy.sd.CLIP, concepts: Sequence[Concept], strengths: Mapping[str, float]) -> comfy.sd.CLIP:
    """A clone with what the concepts changed in the text encoders merged into it, for prompts that other nodes encode.

    Raises ``ValueError`` if it has not the text encoder that they changed.
    """
    patched, deltas = clip.clone(), text_deltas(concepts, strengths, torch.device("cpu"))
    names = {layer: "{0}.transformer.text_model.{2}".format(*layer.partition(".")) for layer in deltas}
    state = lora_state({names[layer]: f for layer, f in deltas.items()})
    done = patched.add_patches(comfy.lora.load_lora(state, {name: f"{name}.weight" for name in names.values()}))
    if missing := [layer for layer, name in names.items() if f"{name}.weight" not in done]:
        raise ValueError(f"the CLIP has no {missing[0]}, which a concept changed: connect one with that text encoder, as of its checkpoint")
    patched.patcher.model_options[PATCHED] = (*clip.patcher.model_options.get(PATCHED, ()), *strengths)
    return patched
