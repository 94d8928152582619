"""The shapes of the model families that the headless engine knows, as diffusers and transformers configure them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection


@dataclass(frozen=True)
class Family:
    """What is not named in a configuration is the default of its class."""

    name: str
    unet: Mapping[str, Any]
    texts: Mapping[str, Mapping[str, Any]]  # by text encoder
    vae: Mapping[str, Any]

    @property
    def width(self) -> int:
        """Width of the text that the U-Net reads."""
        return self.unet["cross_attention_dim"]


CLIP_L: dict[str, Any] = {
    "vocab_size": 49408,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "hidden_act": "quick_gelu",
    "projection_dim": 768,
}
CLIP_G: dict[str, Any] = {
    "vocab_size": 49408,
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "hidden_act": "gelu",
    "projection_dim": 1280,
}
VAE: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
}

SD1 = Family(
    "Stable Diffusion 1",
    {"sample_size": 64, "cross_attention_dim": 768, "layers_per_block": 2},
    {"clip_l": CLIP_L},
    VAE | {"sample_size": 512, "scaling_factor": 0.18215},
)
SDXL = Family(
    "SDXL",
    {
        "sample_size": 128,
        "cross_attention_dim": 2048,
        "layers_per_block": 2,
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2, 10),
        "attention_head_dim": (5, 10, 20),
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
    {"clip_l": CLIP_L, "clip_g": CLIP_G},
    VAE | {"sample_size": 1024, "scaling_factor": 0.13025},
)


def new_text_encoder(encoder: str, config: Mapping[str, Any]) -> CLIPTextModel | CLIPTextModelWithProjection:
    """A text encoder; that of SDXL's second kind gives a pooled state through a projection."""
    return (CLIPTextModelWithProjection if encoder == "clip_g" else CLIPTextModel)(CLIPTextConfig(**config))
