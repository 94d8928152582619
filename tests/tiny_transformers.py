"""Transformers in diffusers' layout, small enough for every test, with random weights: model, autoencoder, text encoders, tokenizers."""

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AnimaTextConditioner,
    AutoencoderKL,
    AutoencoderKLFlux2,
    AutoencoderKLQwenImage,
    ChromaTransformer2DModel,
    CosmosTransformer3DModel,
    FlowMatchEulerDiscreteScheduler,
    Flux2Transformer2DModel,
    FluxTransformer2DModel,
    Krea2Transformer2DModel,
    Lumina2Transformer2DModel,
    QwenImageTransformer2DModel,
    SD3Transformer2DModel,
    ZImageTransformer2DModel,
)
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    Gemma2Config,
    Gemma2Model,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3Config,
    Qwen3Model,
    Qwen3VLConfig,
    Qwen3VLModel,
    T5Config,
    T5EncoderModel,
)

WIDTH, POOLED, TEXT = 24, 8, 32  # of the model, of the pooled state, and of the text's states
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789<>,.-|_/ \n"
CHAT = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
FLUX: dict[str, Any] = dict(
    patch_size=1, in_channels=64, num_layers=2, num_single_layers=2, attention_head_dim=12, num_attention_heads=2, joint_attention_dim=TEXT,
    axes_dims_rope=(4, 4, 4),
)  # fmt: skip
MODELS = {
    "flux1": lambda: FluxTransformer2DModel(**FLUX, pooled_projection_dim=POOLED, guidance_embeds=True),
    "chroma": lambda: ChromaTransformer2DModel(
        **FLUX, approximator_num_channels=16, approximator_hidden_dim=8, approximator_layers=1
    ),
    "lumina2": lambda: Lumina2Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=16, hidden_size=WIDTH, num_layers=2, num_refiner_layers=1, num_attention_heads=4,
        num_kv_heads=2, multiple_of=8, ffn_dim_multiplier=None, axes_dim_rope=(2, 2, 2), axes_lens=(300, 64, 64), cap_feat_dim=TEXT,
    ),
    "zimage": lambda: ZImageTransformer2DModel(
        in_channels=16, dim=WIDTH, n_layers=2, n_refiner_layers=1, n_heads=2, n_kv_heads=2, cap_feat_dim=TEXT, axes_dims=[4, 4, 4],
        axes_lens=[512, 64, 64],
    ),
    "qwenimage": lambda: QwenImageTransformer2DModel(
        in_channels=64, num_layers=2, attention_head_dim=12, num_attention_heads=2, joint_attention_dim=TEXT, axes_dims_rope=(4, 4, 4)
    ),
    "sd3": lambda: SD3Transformer2DModel(
        sample_size=8, num_layers=2, attention_head_dim=12, num_attention_heads=2, joint_attention_dim=TEXT, caption_projection_dim=WIDTH,
        pooled_projection_dim=2 * POOLED, pos_embed_max_size=24, dual_attention_layers=(0,), qk_norm="rms_norm",
    ),
    "flux2": lambda: Flux2Transformer2DModel(
        patch_size=1, in_channels=128, num_layers=2, num_single_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=3 * TEXT, axes_dims_rope=(4, 4, 4, 4), guidance_embeds=False,
    ),
    "anima": lambda: CosmosTransformer3DModel(
        num_attention_heads=2, attention_head_dim=12, num_layers=2, mlp_ratio=2.0, text_embed_dim=TEXT, adaln_lora_dim=8,
        rope_scale=(1.0, 4.0, 4.0), extra_pos_embed_type=None,
    ),
    "krea2": lambda: Krea2Transformer2DModel(
        num_layers=2, attention_head_dim=12, num_attention_heads=2, num_key_value_heads=1, intermediate_size=32, timestep_embed_dim=16,
        text_hidden_dim=TEXT, text_num_attention_heads=2, text_num_key_value_heads=2, text_intermediate_size=32, axes_dims_rope=(4, 4, 4),
    ),
}  # fmt: skip
SMALL: dict[str, Any] = dict(
    vocab_size=64, hidden_size=TEXT, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, head_dim=16
)
SEEING = dict(
    depth=1, hidden_size=16, intermediate_size=16, num_heads=1, out_hidden_size=TEXT, fullatt_block_indexes=[0]
)  # fmt: skip
ROTATED = {"rope_type": "default", "mrope_section": [2, 3, 3], "type": "mrope", "rope_theta": 10000.0}
TEXTS = {
    "lumina2": lambda: Gemma2Model(Gemma2Config(**SMALL)),
    "zimage": lambda: Qwen3Model(Qwen3Config(**SMALL)),
    "anima": lambda: Qwen3Model(Qwen3Config(**SMALL)),
    "flux2": lambda: Qwen3Model(Qwen3Config(**SMALL | {"num_hidden_layers": 27})),  # the last that it reads
    "qwenimage": lambda: Qwen2_5_VLForConditionalGeneration(
        Qwen2_5_VLConfig(
            text_config={**SMALL, "rope_parameters": ROTATED, "rope_scaling": ROTATED}, vision_config=SEEING, tie_word_embeddings=False
        )
    ),
    "krea2": lambda: Qwen3VLModel(
        Qwen3VLConfig(
            text_config={**SMALL, "num_hidden_layers": 36, "rope_parameters": ROTATED},
            vision_config=SEEING | {"deepstack_visual_indexes": [0]},
        )
    ),
}


T5 = {"flux1": "_2", "chroma": "", "sd3": "_3"}  # which of its encoders that is
CLIP: dict[str, Any] = dict(vocab_size=64, hidden_size=POOLED, intermediate_size=16, num_attention_heads=2, eos_token_id=1)


def autoencoder(name: str) -> torch.nn.Module:
    """The autoencoder of a family: that of Qwen-Image, Anima and Krea 2 reads films."""
    if name in ("qwenimage", "anima", "krea2"):
        return AutoencoderKLQwenImage(base_dim=8, dim_mult=[1, 1, 1, 1], num_res_blocks=1)
    if name == "flux2":
        return AutoencoderKLFlux2(block_out_channels=(32, 32, 32, 32), layers_per_block=1)
    return AutoencoderKL(
        latent_channels=16, block_out_channels=(32, 32, 32, 32), down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4, scaling_factor=0.36, shift_factor=0.11,
    )  # fmt: skip


def write(name: str, folder: Path) -> Path:
    """A model of a family by its name, in a folder."""
    torch.manual_seed(0)
    make(name).save_pretrained(folder / "transformer")
    autoencoder(name).save_pretrained(folder / "vae")
    FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=name in ("flux1", "flux2", "qwenimage", "krea2"), shift=3.0).save_pretrained(
        folder / "scheduler"
    )
    if name in T5:
        first = T5[name]
        t5 = T5Config(vocab_size=64, d_model=TEXT, d_ff=16, d_kv=8, num_heads=2, num_layers=2)
        T5EncoderModel(t5).save_pretrained(folder / f"text_encoder{first}")
        tokenizer().save_pretrained(folder / f"tokenizer{first}")
    else:
        TEXTS[name]().save_pretrained(folder / "text_encoder")
        ends = name not in ("krea2", "anima")  # diffusers reads a text of the former in two parts, and of no text the latter has no token
        tokenizer(CHAT, ends=ends).save_pretrained(folder / "tokenizer")
    if name == "flux1":
        CLIPTextModel(CLIPTextConfig(**CLIP, num_hidden_layers=1)).save_pretrained(folder / "text_encoder")
        tokenizer(length=77).save_pretrained(folder / "tokenizer")
    if name == "anima":
        adapter = AnimaTextConditioner(TEXT, TEXT, TEXT, num_layers=1, num_attention_heads=2, target_vocab_size=64)
        adapter.save_pretrained(folder / "text_conditioner")
        tokenizer().save_pretrained(folder / "t5_tokenizer")
    for number in ("", "_2") if name == "sd3" else ():
        clip = CLIPTextConfig(**CLIP, num_hidden_layers=2, projection_dim=POOLED)
        CLIPTextModelWithProjection(clip).save_pretrained(folder / f"text_encoder{number}")
        tokenizer(length=77).save_pretrained(folder / f"tokenizer{number}")
    return folder


def make(name: str) -> torch.nn.Module:
    """A model whose answers are of the size of what it is given: some start with layers of zeros."""
    model = MODELS[name]()
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if not parameter.any():
            parameter.data.normal_(0, 0.1, generator=generator)
    return model


def tokenizer(chat: str = "", length: int = 512, ends: bool = True) -> PreTrainedTokenizerFast:
    """A tokenizer of single characters, with an end token behind them where it ``ends``."""
    words = {"<pad>": 0, "</s>": 1, "<unk>": 2, **{letter: i for i, letter in enumerate(LETTERS, 3)}}
    own = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    own.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    if ends:
        own.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    found = PreTrainedTokenizerFast(tokenizer_object=own, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=length)
    if chat:
        found.chat_template = chat
    return found


__all__ = ["MODELS", "make", "tokenizer", "write"]
