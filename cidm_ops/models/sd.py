"""Stable Diffusion 1.x (Rombach et al. 2022), SDXL (Podell et al. 2023), and Doodle, the small model of the first kind that ships."""

from dataclasses import replace
from typing import Any

from . import clip
from .clip import clip_shapes
from .diffusers import Diffusers
from .encoder import Encoder
from .family import Family, Objective
from .host import Host
from .lora_files import LoraFiles
from .registry import register
from .unet import KERNELS, ORDER, PROJECTIONS, TRANSFORMERS, layers_of, patch_place, unet_shapes

ROOTS = ("lora_unet", "lycoris", "unet", "(?:model_)?diffusion_model")
STAGE = r".+(?=\.transformer_blocks\.)"
EXAMPLE = "up_blocks.1.attentions.0.transformer_blocks.0.attn2"  # a layer that reads the text, for words that explain
ABBREVIATIONS = (".transformer_blocks.0.attn2", "attentions.")
SCHEDULE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
VAE: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
}


def shapes_of(family: Family) -> dict[str, tuple[int, int]]:
    """The weights of the U-Net and the text encoders."""
    texts = {f"{e.name}.{layer}": shape for e in family.encoders for layer, shape in clip_shapes(family.diffusers.texts[e.name]).items()}
    return unet_shapes(family.diffusers.model) | texts


CLIP_L = Encoder(
    name="clip_l",
    width=clip.SMALL["hidden_size"],
    chunk=clip.CHUNK,
    start=clip.START,
    end=clip.END,
    pad=clip.END,
    placeholders=clip.PLACEHOLDERS,
    diffusers="text_encoder",
    host="clip_l",
    host_tokens="l",
    kohya="lora_te_text_model_",
    roots=("lora_te1?", "text_encoder", "text_encoders_clip_l_transformer"),
    read_layer=clip.clip_layer,
    rows=("text_encoders_0", "text_encoder", "text_encoder_1", "te1"),
)
CLIP_G = replace(
    CLIP_L,
    name="clip_g",
    width=clip.BIG["hidden_size"],
    pad=0,
    skip=1,
    pooled=True,
    diffusers="text_encoder_2",
    host="clip_g",
    host_tokens="g",
    kohya="lora_te2_text_model_",
    roots=("lora_te2", "text_encoder_2", "text_encoders_clip_g_transformer"),
    rows=("text_encoders_1", "text_encoder_2", "te2"),
)

SD1 = register(
    Family(
        name="sd1",
        title="Stable Diffusion 1",
        architecture="sd1-16x768",
        encoders=(CLIP_L,),
        blocks=(TRANSFORMERS,),
        latent_channels=4,
        factor=8,
        size=512,
        order=ORDER,
        decoder=r"^up_blocks\.",
        stage=STAGE,
        layout_attention=r"^up_blocks\.(1\.attentions\.[12]|2|3)\.",  # output blocks 4 to 11, as in Plug-and-Play (Tumanyan et al. 2023)
        layout_residual=r"^up_blocks\.1\.resnets\.1\.conv2$",  # output block 4
        halvings=3,
        kernels=(*KERNELS, *PROJECTIONS),
        abbreviations=ABBREVIATIONS,
        host=Host(models=("SD15",), text_model="SD1ClipModel", patch_place=patch_place),
        diffusers=Diffusers(
            facts={"addition_embed_type": None},
            model={"sample_size": 64, "cross_attention_dim": 768, "layers_per_block": 2},
            texts={"clip_l": clip.SMALL},
            vae=VAE | {"latent_channels": 4, "sample_size": 512, "scaling_factor": 0.18215},
            schedule=SCHEDULE,
        ),
        objective=Objective(density="uniform", cfg=5.0),
        files=LoraFiles(
            roots=ROOTS,
            read_layer=layers_of(resnets=2),
            telltale=r"^(down_blocks\.0\.attentions|down_blocks\.3|up_blocks\.3)",
            modelspec="stable-diffusion-v1/lora",
        ),
        weigh=shapes_of,
    )
)

SDXL = register(
    Family(
        name="sdxl",
        title="SDXL",
        architecture="sdxl-70x2048",
        encoders=(replace(CLIP_L, skip=1, kohya="lora_te1_text_model_"), CLIP_G),
        blocks=(TRANSFORMERS,),
        latent_channels=4,
        factor=8,
        size=1024,
        order=ORDER,
        decoder=r"^up_blocks\.",
        stage=STAGE,
        layout_attention=r"^up_blocks\.(0\.attentions\.[12]|1)\.",  # the same places as in Stable Diffusion 1, in the first stages
        layout_residual=r"^up_blocks\.0\.resnets\.1\.conv2$",
        halvings=2,
        kernels=KERNELS,
        abbreviations=ABBREVIATIONS,
        host=Host(models=("SDXL",), text_model="SDXLClipModel", patch_place=patch_place),
        diffusers=Diffusers(
            facts={"addition_embed_type": "text_time"},
            model={
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
            texts={"clip_l": clip.SMALL, "clip_g": clip.BIG},
            vae=VAE | {"latent_channels": 4, "sample_size": 1024, "scaling_factor": 0.13025},
            schedule=SCHEDULE,
        ),
        objective=Objective(density="uniform", cfg=5.0),
        files=LoraFiles(
            roots=ROOTS,
            read_layer=layers_of(resnets=2),
            telltale=r"^(clip_g|add_embedding)|\.transformer_blocks\.[1-9]",
            modelspec="stable-diffusion-xl-v1-base/lora",
        ),
        weigh=shapes_of,
    )
)

DOODLE_WIDTH, DOODLE_CHANNELS = 160, 16  # of its texts and of its latents, which have as many as those of Flux.1 and SD 3
DOODLE = register(
    replace(
        SD1,
        title="Doodle",
        architecture=f"sd1-7x{DOODLE_WIDTH}",
        encoders=(replace(CLIP_L, width=DOODLE_WIDTH),),
        latent_channels=DOODLE_CHANNELS,
        size=128,
        recipes={
            "cidm": {"steps": 350, "batch": 4, "lr": 4e-3, "lr_tokens": 1e-2, "norm_stop": 2.0},
            # Its class words get little of the attention, so residuals have to be large; docs/infusion.md.
            "infusion": {"accumulate": 1, "steps": 150, "lr": 0.3, "min_snr": 1.0},
            "disendiff": {"steps": 200, "batch": 4, "lr": 4e-3, "lr_tokens": 1e-2, "norm_stop": 2.0},
            "clif": {"steps": 350, "batch": 4, "lr": 4e-3, "lr_tokens": 1e-2, "norm_stop": 2.0},
            "contrast": {"lr": 1e-2, "norm_stop": 2.0},
        },
        objective=Objective(density="uniform", cfg=2.0),  # its world is simple
        layout_attention=r"^up_blocks\.[01]\.",
        layout_residual=r"^up_blocks\.0\.resnets\.0\.conv2$",
        halvings=2,
        diffusers=Diffusers(
            model={
                "in_channels": DOODLE_CHANNELS,
                "out_channels": DOODLE_CHANNELS,
                "sample_size": 16,
                "block_out_channels": (128, 128, 128),
                "layers_per_block": 1,
                "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
                "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
                "attention_head_dim": 8,
                "cross_attention_dim": DOODLE_WIDTH,
            },
            texts={
                "clip_l": {
                    "hidden_size": DOODLE_WIDTH,
                    "intermediate_size": 4 * DOODLE_WIDTH,
                    "num_hidden_layers": 3,
                    "num_attention_heads": 4,
                    "max_position_embeddings": clip.CHUNK,
                    "projection_dim": DOODLE_WIDTH,
                    "hidden_act": "quick_gelu",
                }
            },
            vae={"latent_channels": DOODLE_CHANNELS},
            schedule=SCHEDULE | {"prediction_type": "v_prediction"},
        ),
        files=LoraFiles(roots=ROOTS, read_layer=layers_of(resnets=1), modelspec="stable-diffusion-v1/lora"),
    )
)
