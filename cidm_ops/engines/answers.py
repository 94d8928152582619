"""The transformers of diffusers as each is called, from latents and texts of one form to an answer of one form."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from diffusers import (
    ChromaTransformer2DModel,
    CosmosTransformer3DModel,
    Flux2Transformer2DModel,
    FluxTransformer2DModel,
    Krea2Transformer2DModel,
    Lumina2Transformer2DModel,
    QwenImageTransformer2DModel,
    SD3Transformer2DModel,
    ZImageTransformer2DModel,
)
from torch import Tensor
from torch.nn import functional as F

# A model's answer for latents [B, C, h, w] at noise levels [B] in fp32, with a text [B, N, C], its pooled state and guidance
Answer = Callable[[Any, Tensor, Tensor, Tensor, Tensor | None, float], Tensor]


def flux_answer(model: Any, x: Tensor, sigma: Tensor, text: Tensor, pooled: Tensor | None, guidance: float) -> Tensor:
    """Flux.1 reads latents in patches of 2 x 2 cells, and places of all tokens; Chroma neither a pooled text nor guidance."""
    height, width = x.shape[2] // 2, x.shape[3] // 2
    named: dict[str, Any] = {}
    if isinstance(model, FluxTransformer2DModel):
        if pooled is None:
            raise ValueError("Flux.1 reads the pooled state of its smaller text encoder too, and got none")
        named["pooled_projections"] = pooled.to(x)
        named["guidance"] = torch.full((len(x),), guidance, device=x.device) if model.config.guidance_embeds else None
    out = model(
        hidden_states=patches_of(x),
        encoder_hidden_states=text,
        timestep=sigma,
        img_ids=places_of(height, width).to(x),
        txt_ids=torch.zeros(text.shape[1], 3).to(x),
        **named,
    ).sample
    return from_patches(out, height, width)


def places_of(height: int, width: int) -> Tensor:
    """The places ``[N, 3]`` of an image's tokens in so many rows and columns: 0, row and column."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([torch.zeros_like(rows), rows, columns], -1).flatten(0, 1)


def patches_of(x: Tensor) -> Tensor:
    """Latents ``[B, C, h, w]`` as tokens of 2 x 2 cells, ``[B, N, 4 * C]``."""
    height, width = x.shape[2] // 2, x.shape[3] // 2
    return x.unflatten(2, (height, 2)).unflatten(4, (width, 2)).permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def from_patches(tokens: Tensor, height: int, width: int) -> Tensor:
    """Latents from tokens of 2 x 2 cells in so many rows and columns."""
    return tokens.view(len(tokens), height, width, -1, 2, 2).permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)


def qwen_answer(model: Any, x: Tensor, sigma: Tensor, text: Tensor, pooled: Tensor | None, guidance: float) -> Tensor:
    """Qwen-Image reads patches as Flux.1 does, and makes the places of tokens from the shape of a picture."""
    height, width = x.shape[2] // 2, x.shape[3] // 2
    shapes = [[(1, height, width)]] * len(x)
    out = model(hidden_states=patches_of(x), encoder_hidden_states=text, timestep=sigma, img_shapes=shapes).sample
    return from_patches(out, height, width)


def lumina_answer(model: Any, x: Tensor, sigma: Tensor, text: Tensor, pooled: Tensor | None, guidance: float) -> Tensor:
    """Lumina 2 counts time from noise to picture and answers the way back."""
    mask = torch.ones(text.shape[:2], device=x.device, dtype=torch.long)
    return -model(hidden_states=x, timestep=1 - sigma, encoder_hidden_states=text, encoder_attention_mask=mask).sample


def z_image_answer(model: Any, x: Tensor, sigma: Tensor, text: Tensor, pooled: Tensor | None, guidance: float) -> Tensor:
    """Z-Image as Lumina 2, each picture on its own and with a frame."""
    return -torch.stack(model(list(x[:, :, None]), 1 - sigma, list(text)).sample)[:, :, 0]


def flux2_answer(model: Any, x: Tensor, sigma: Tensor, text: Tensor, pooled: Tensor | None, guidance: float) -> Tensor:
    """Flux.2 Klein reads cells as tokens, and places of all tokens: those of texts are numbered on the last axis."""
    height, width = x.shape[2:]
    places = F.pad(places_of(height, width), (0, 1)).to(x.device)
    of_text = F.pad(torch.arange(text.shape[1])[:, None], (3, 0)).to(x.device)
    tokens = x.flatten(2).mT
    out = model(hidden_states=tokens, encoder_hidden_states=text, timestep=sigma, img_ids=places, txt_ids=of_text).sample
    return out.mT.unflatten(2, (height, width))


def krea2_answer(model: Any, x: Tensor, sigma: Tensor, text: Tensor, pooled: Tensor | None, guidance: float) -> Tensor:
    """Krea 2 reads patches as Flux.1 does, texts whose tokens all stand at place 0, and in each of them states of several layers."""
    height, width = x.shape[2] // 2, x.shape[3] // 2
    places = F.pad(places_of(height, width), (0, 0, text.shape[1], 0)).to(x.device)
    layers = text.unflatten(2, (model.config.num_text_layers, -1))
    out = model(hidden_states=patches_of(x), encoder_hidden_states=layers, timestep=sigma, position_ids=places).sample
    return from_patches(out, height, width)


def anima_answer(model: Any, x: Tensor, sigma: Tensor, text: Tensor, pooled: Tensor | None, guidance: float) -> Tensor:
    """Anima reads films, of one frame here, and in a channel behind them what of them is no picture: nothing. That is given as a condition,
    since a mask would be resized first, for which diffusers needs torchvision.
    """
    if model.config.concat_padding_mask:
        model.register_to_config(concat_padding_mask=False)
    film = x[:, :, None]
    nothing = torch.zeros_like(film[:, :1])
    return model(hidden_states=film, timestep=sigma, encoder_hidden_states=text, condition_mask=nothing).sample[:, :, 0]


def sd3_answer(model: Any, x: Tensor, sigma: Tensor, text: Tensor, pooled: Tensor | None, guidance: float) -> Tensor:
    """Stable Diffusion 3.5 reads pooled texts beside the text, and counts 1000 times."""
    if pooled is None:
        raise ValueError("Stable Diffusion 3.5 reads the pooled states of its two CLIPs too, and got none")
    return model(hidden_states=x, encoder_hidden_states=text, pooled_projections=pooled.to(x), timestep=1000 * sigma).sample


ANSWERS: Mapping[type, Answer] = {
    FluxTransformer2DModel: flux_answer,
    Flux2Transformer2DModel: flux2_answer,
    ChromaTransformer2DModel: flux_answer,
    CosmosTransformer3DModel: anima_answer,
    Krea2Transformer2DModel: krea2_answer,
    Lumina2Transformer2DModel: lumina_answer,
    QwenImageTransformer2DModel: qwen_answer,
    SD3Transformer2DModel: sd3_answer,
    ZImageTransformer2DModel: z_image_answer,
}
