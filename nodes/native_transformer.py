"""A transformer on Doodle's latents as the host's own MODEL and CLIP: its classes of Lumina 2 in small, and a CLIP in Gemma's place.

A text is what stands between its start and its end, both included. The host numbers the tokens of Lumina 2 by a mask, which is all ones
here, and no padding is read.
"""

import inspect
import re
from collections.abc import Mapping
from functools import partial
from typing import Any

import comfy.ldm.lumina.model
import comfy.model_management
import comfy.model_patcher
import comfy.sd
import comfy.sd1_clip
import comfy.supported_models
import torch
from torch import Tensor

from ..cidm_ops.doodle import files
from ..cidm_ops.models.nextdit import LUMINA, LUMINA_NORMS
from .native import DoodleLatent, Patcher, text_encoder

EPSILON = 1e-5  # of the norms of queries and keys in diffusers, which newer hosts have as little as PyTorch does
UNUSED = {"norm_final.weight"}  # older hosts have it, and read it nowhere


class LuminaLatent(DoodleLatent):
    """Doodle's, with as many channels as Lumina 2 reads."""

    latent_channels = LUMINA.latent_channels


class SmallLumina(comfy.supported_models.Lumina2):
    """Lumina 2 at another size: matched by hand, so nothing for the host to detect."""

    unet_config: dict[str, Any] = {}
    sampling_settings = {"multiplier": 1.0, "shift": 1.0}
    latent_format = LuminaLatent


class EndedText(comfy.sd1_clip.SDClipModel):
    """CLIP's text model, whose answer ends where a text does. The model itself reads a whole chunk, which changes nothing: it is causal."""

    def encode_token_weights(self, token_weight_pairs: list[list[tuple]]) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        (tokens,) = token_weight_pairs
        filled = [*tokens, *[(self.special_tokens["pad"], 1.0)] * (self.max_length - len(tokens))]
        states, pooled = super().encode_token_weights([filled])[:2]
        return states[:, : len(tokens)], pooled, {"attention_mask": torch.ones(1, len(tokens), dtype=torch.long)}


class EndedTokenizer(comfy.sd1_clip.SDTokenizer):
    """CLIP's tokens of a text in one chunk of at most its usual length, without padding."""

    def __init__(self, size: int, embedding_directory: str | None = None, tokenizer_data: dict[str, Any] | None = None):
        super().__init__(
            embedding_directory=embedding_directory,
            embedding_size=size,
            pad_to_max_length=False,
            max_length=99_999_999,
            tokenizer_data=tokenizer_data or {},
        )

    def tokenize_with_weights(self, text: str, return_word_ids: bool = False, **how: Any) -> list[list[tuple]]:
        (tokens,) = super().tokenize_with_weights(text, return_word_ids, **how)
        return [[*tokens[:-1][: files.ENCODER.chunk - 1], tokens[-1]]]


def model(state: Mapping[str, Tensor], config: Mapping[str, Any], disable_dynamic: bool = False) -> comfy.model_patcher.ModelPatcher:
    """The transformer in fp32, from its weights in diffusers' names and diffusers' configuration of it. ``disable_dynamic`` is how the host
    asks for a copy with plain weights, to train it.

    Raises ``ValueError`` for weights that are none of it, or are missing: the host would leave those as the memory was.
    """
    small = SmallLumina(sizes(config))
    small.set_inference_dtype(torch.float32, None)
    offload = comfy.model_management.unet_offload_device()
    base = small.get_model({}, "", device=offload)
    weights = in_host_names(state)
    if missing := base.diffusion_model.state_dict().keys() - weights.keys() - UNUSED:
        raise ValueError(f"the transformer lacks {min(missing)} and {len(missing) - 1} others, in the host's names: give all its weights")
    base.load_model_weights(weights, "")
    for name, module in base.diffusion_model.named_modules():
        if name.endswith((".q_norm", ".k_norm")):
            module.eps = EPSILON
    base.eval().requires_grad_(False)
    kind = comfy.model_patcher.ModelPatcher if disable_dynamic else Patcher
    patcher = kind(base, load_device=comfy.model_management.get_torch_device(), offload_device=offload)
    patcher.cached_patcher_init = (model, (state, config))
    return patcher


def clip(state: Mapping[str, Tensor], config: Mapping[str, Any]) -> comfy.sd.CLIP:
    """The text encoder, from its weights in CLIP's names with its whole token table, and transformers' configuration of it."""
    return text_encoder(state, config, partial(EndedTokenizer, config["hidden_size"]), EndedText)


def sizes(config: Mapping[str, Any]) -> dict[str, Any]:
    """The host's configuration of Lumina 2 from that of diffusers. Newer hosts multiply the feed-forward's width by 4 in it, older ones
    beside it.
    """
    fourfold = inspect.signature(comfy.ldm.lumina.model.NextDiT).parameters["ffn_dim_multiplier"].default or 1.0
    return {
        "image_model": "lumina2",
        "patch_size": config["patch_size"],
        "in_channels": config["in_channels"],
        "dim": config["hidden_size"],
        "n_layers": config["num_layers"],
        "n_refiner_layers": config["num_refiner_layers"],
        "n_heads": config["num_attention_heads"],
        "n_kv_heads": config["num_kv_heads"],
        "multiple_of": config["multiple_of"],
        "ffn_dim_multiplier": fourfold * config["ffn_dim_multiplier"],
        "qk_norm": True,
        "axes_dims": list(config["axes_dim_rope"]),
        "cap_feat_dim": config["cap_feat_dim"],
    }


def in_host_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights in diffusers' names as the host has them, those of layers that lie in one module under each other.

    Raises ``ValueError`` for a name that Lumina 2 does not have.
    """
    found = {}
    for key in state:
        layer, _, kind = key.rpartition(".")
        norm = next((pattern for pattern in LUMINA_NORMS if re.fullmatch(pattern, key)), None)
        if norm:
            found[re.sub(norm, LUMINA_NORMS[norm], key)] = state[key].float()
            continue
        try:
            module, layers = LUMINA.module_of(layer)
        except KeyError:
            raise ValueError(f"{key} is no weight of {LUMINA.title}: expected the names of diffusers' Lumina2Transformer2DModel") from None
        found[f"{module}.{kind}"] = torch.cat([state[f"{part}.{kind}"].float() for part in layers])
    return found
