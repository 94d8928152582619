"""Concepts on the host's MODEL, CLIP and CONDITIONING: always on a clone, with the host's own patches and wrappers.

Merged, concepts are weight patches like any LoRA's. Routed, they act beside the layers, with weights of their own for each
row of a batch. Both read layer-wise texts.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import comfy.conds
import comfy.lora
import comfy.model_management
import comfy.sd
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrapperExecutor, WrappersMP
from torch import Tensor

from ..cidm_ops.adapters import attached
from ..cidm_ops.bank.concept import Concept
from ..cidm_ops.bank.concept_file import unfolded
from ..cidm_ops.lowrank import LowRank
from ..cidm_ops.method.aggregation import Route, route, tables_of
from ..cidm_ops.run.prompt import Said, encode, text_deltas
from ..cidm_ops.tokens import hide
from .host import ComfyText, block_names, layer_names, text_sites

CONTEXT = "cidm_context"  # layer-wise text [L, N, C], or [B, L, N, C] for a batch, in the dict of a CONDITIONING
WEIGHTS = "cidm_weights"  # [B, L, G] of a routed model, on their way to the U-Net
MARKS = "cidm_marks"  # [B, N, G], likewise: at which tokens they act
PATCHED = "cidm_text"  # in a CLIP's options: names of the concepts whose text factors are merged into it


def lora_model(model: ModelPatcher, factors: Mapping[str, LowRank]) -> dict[str, Tensor]:
    """Factors as the host's LORA_MODEL: what its own nodes save, load and apply."""
    names = layer_names(model)
    if unknown := [layer for layer in factors if layer not in names]:
        raise KeyError(
            f"the model has no layer {unknown[0]!r} ({len(unknown)} of {len(factors)} unknown): the concept is for another architecture"
        )
    return lora_state({f"diffusion_model.{names[layer]}": f for layer, f in factors.items()})


def lora_state(factors: Mapping[str, LowRank]) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    for key, f in factors.items():
        up, down = unfolded(f)
        state |= {f"{key}.lora_up.weight": up.contiguous(), f"{key}.lora_down.weight": down.contiguous()}
        state[f"{key}.alpha"] = torch.tensor(float(f.rank))
    return state


def merged(model: ModelPatcher, factors: Mapping[str, LowRank]) -> ModelPatcher:
    """A clone of ``model`` with the factors merged into its weights and a reader for layer-wise texts."""
    patched = reading(model)
    patched.add_patches(comfy.lora.load_lora(lora_model(model, factors), comfy.lora.model_lora_keys_unet(model.model, {})))
    return patched


def reading(model: ModelPatcher) -> ModelPatcher:
    """A clone whose cross-attention layer l reads slice l of a layer-wise text."""
    patched = model.clone()
    order = {block_place(name): layer for layer, name in enumerate(block_names(model).values())}

    def own_slice(n: Tensor, context: Tensor, value: Tensor, extra: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
        if context.ndim == 4:
            layer = order[(*extra["block"][:2], extra["block_index"])]
            context, value = context[:, layer], value[:, layer]
        return n, context, value

    patched.set_model_attn2_patch(own_slice)
    patched.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, "cidm", _give_all_layers)
    patched.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "cidm", _read_layers)
    return patched


def routed(
    model: ModelPatcher, concepts: Sequence[Concept], weights: Tensor, negative: bool = True, marks: Tensor | None = None
) -> ModelPatcher:
    """A clone of ``model`` with the concepts beside its layers; row b of a batch mixes them by ``weights[b] [L, G]``.

    With ``negative`` off, they do not act on texts that are not layer-wise, such as the negative one. With ``marks [B, N, G]`` they act
    on keys and values only at those tokens of layer-wise texts, and on other texts those alone that act at every token.
    """
    patched, own = reading(model), layer_names(model)
    routes = route(concepts, list(text_sites(model)))
    if unknown := [layer for layer in routes if layer not in own]:
        raise KeyError(f"the model has no layer {unknown[0]!r}: the concept is for another architecture")
    placed: dict[tuple[torch.device, torch.dtype], dict[str, Route]] = {}
    marked = None if marks is None else {True: marks, False: marks.amin((0, 1), keepdim=True)}  # by whether a text is layer-wise

    def give_weights(executor: Callable, base: Any, conds: list, x: Tensor, timestep: Tensor, options: dict) -> Any:
        here = weights.to(x.device)
        length = 0 if marked is None else _common_length(conds)

        def weighed(cond: dict) -> dict:
            mine = here if negative or CONTEXT in cond else torch.zeros_like(here)
            given = {WEIGHTS: comfy.conds.CONDRegular(mine)}
            if marked is not None:
                at = marked[CONTEXT in cond]
                given[MARKS] = comfy.conds.CONDRegular(at.repeat(1, length // at.shape[1], 1).to(x.device))
            return {**cond, "model_conds": {**cond["model_conds"], **given}}

        return executor(base, [cond and [weighed(c) for c in cond] for cond in conds], x, timestep, options)

    def beside(executor: WrapperExecutor, x: Tensor, t: Tensor, context: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        rows, unet = kwargs.pop(WEIGHTS).to(x.dtype), executor.class_obj
        at = kwargs.pop(MARKS, None)
        if at is not None:  # a text that the host runs on its own is shorter
            at = at[:, : kwargs.get(CONTEXT, context).shape[-2]].to(x.dtype)
        if (x.device, x.dtype) not in placed:
            placed[x.device, x.dtype] = {name: r.to(x) for name, r in routes.items()}
        deltas = {name: r.rows(rows, at) for name, r in placed[x.device, x.dtype].items()}
        with attached({name: unet.get_submodule(own[name]) for name in deltas}, deltas):
            return executor(x, t, context, *args, **kwargs)

    patched.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, "cidm", give_weights)
    patched.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "cidm", beside)
    return patched


def block_place(module: str) -> tuple[str, int, int]:
    """``input_blocks.4.1.transformer_blocks.0...`` is what the host's attention patches see as ``("input", 4)`` and index 0."""
    kind, number = module.split(".")[:2]
    index = int(module.partition("transformer_blocks.")[2].partition(".")[0])
    return ("middle", 0, index) if kind == "middle_block" else (kind.removesuffix("_blocks"), int(number), index)


def _give_all_layers(executor: Callable, model: Any, conds: list, x: Tensor, timestep: Tensor, options: dict) -> Any:
    """If one text is layer-wise, make all so, in one length, so that the host runs them in one batch.

    A shorter text is repeated, which attention does not notice; the host does the same with plain texts.
    """
    present = [c for cond in conds for c in cond or []]
    wise = [c[CONTEXT] for c in present if CONTEXT in c]
    if not wise:
        return executor(model, conds, x, timestep, options)
    layers, length = wise[0].shape[-3], _common_length(conds)

    def layered(cond: dict) -> dict:
        if CONTEXT in cond:
            text = cond[CONTEXT] if cond[CONTEXT].ndim == 4 else cond[CONTEXT][None]
        else:
            text = cond["model_conds"]["c_crossattn"].cond[:, None].expand(-1, layers, -1, -1)
        text = text.repeat(1, 1, length // text.shape[2], 1).to(x.device)
        return {**cond, "model_conds": {**cond["model_conds"], CONTEXT: comfy.conds.CONDRegular(text)}}

    return executor(model, [cond and [layered(c) for c in cond] for cond in conds], x, timestep, options)


def _common_length(conds: list) -> int:
    """Of all texts, repeated."""
    return math.lcm(*(c["model_conds"]["c_crossattn"].cond.shape[1] for cond in conds for c in cond or []))


def _read_layers(executor: Callable, x: Tensor, t: Tensor, context: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Hand the layer-wise texts ``[B, L, N, C]`` to the U-Net in place of the plain ones."""
    return executor(x, t, kwargs.pop(CONTEXT, context), *args, **kwargs)


def conditioning(clip: comfy.sd.CLIP, prompts: Sequence[Said]) -> list:
    """A CONDITIONING with the layer-wise text of one prompt, or of one for each row of a batch, with the host's word weights.

    Without learned words it is a plain one.
    """
    text, states, pooled = ComfyText(clip), [], []
    known = clip.patcher.model_options.get(PATCHED, ())
    for said in prompts:
        plain, _ = hide(said.text, tables_of(said.concepts), text.family.placeholders)
        encoded = encode(text, replace(said, strengths={n: s for n, s in said.strengths.items() if n not in known}))
        states.append(text.emphasise(plain, encoded.context[0]))
        pooled += [] if encoded.pooled is None else [encoded.pooled]
    layers, length = max(len(s) for s in states), math.lcm(*(s.shape[1] for s in states))
    context = torch.stack([s.repeat(1, length // s.shape[1], 1).expand(layers, -1, -1) for s in states])
    context = context.to(comfy.model_management.intermediate_device())
    more = {"pooled_output": torch.cat(pooled).to(context.device)} if pooled else {}
    if layers > 1:
        more[CONTEXT] = context if len(prompts) > 1 else context[0]
    return [[context.mean(1), more]]


def patched_clip(clip: comfy.sd.CLIP, concepts: Sequence[Concept], strengths: Mapping[str, float]) -> comfy.sd.CLIP:
    """A clone with what the concepts changed in the text encoders merged into it, for prompts that other nodes encode."""
    patched, deltas = clip.clone(), text_deltas(concepts, strengths, torch.device("cpu"))
    names = {layer: "{0}.transformer.text_model.{2}".format(*layer.partition(".")) for layer in deltas}
    state = lora_state({names[layer]: f for layer, f in deltas.items()})
    patched.add_patches(comfy.lora.load_lora(state, {name: f"{name}.weight" for name in names.values()}))
    patched.patcher.model_options[PATCHED] = (*clip.patcher.model_options.get(PATCHED, ()), *strengths)
    return patched
