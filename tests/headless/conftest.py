"""Base models small enough for every test."""

from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from tiny_transformers import write
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from cidm_ops.bank.bank import Bank
from cidm_ops.engines.diffusers import DiffusersBackbone, load


@pytest.fixture(scope="module")
def backbone() -> DiffusersBackbone:
    """Doodle, for tests that paint and leave it as it is."""
    return load("doodle")


@pytest.fixture(scope="module")
def bank(pytestconfig) -> Bank:
    """The ten concepts that ship."""
    return Bank(pytestconfig.rootpath / "cidm_ops/doodle/ten")


@pytest.fixture(scope="session")
def tiny_sd1(tmp_path_factory) -> Path:
    """A tiny SD1 in diffusers' layout, weights random."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("tiny-sd1")
    UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=8,
    ).save_pretrained(folder / "unet")
    text = CLIPTextConfig(vocab_size=49408, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
    CLIPTextModel(text).save_pretrained(folder / "text_encoder")
    AutoencoderKL(
        block_out_channels=(32, 32, 32, 32), down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4
    ).save_pretrained(folder / "vae")
    DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012).save_pretrained(folder / "scheduler")
    return folder


@pytest.fixture(scope="session")
def tiny_sdxl(tmp_path_factory) -> Path:
    """A tiny SDXL in diffusers' layout, weights random: two text encoders, several transformers in a block."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("tiny-sdxl")
    UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2),
        attention_head_dim=8,
        cross_attention_dim=80,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=48 + 6 * 8,
    ).save_pretrained(folder / "unet")
    small = dict(vocab_size=49408, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
    CLIPTextModel(CLIPTextConfig(hidden_size=32, **small)).save_pretrained(folder / "text_encoder")
    second = CLIPTextConfig(hidden_size=48, projection_dim=48, hidden_act="gelu", **small)
    CLIPTextModelWithProjection(second).save_pretrained(folder / "text_encoder_2")
    AutoencoderKL(
        block_out_channels=(32, 32, 32, 32), down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4
    ).save_pretrained(folder / "vae")
    DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012).save_pretrained(folder / "scheduler")
    return folder


@pytest.fixture(scope="session")
def adapters() -> None:
    """Adapters of peft in the models of diffusers and transformers: skips by name where one refuses the peft that is installed.

    Tried with their own models and nothing of ours: what is skipped here is between them.
    """
    peft = pytest.importorskip("peft", reason="diffusers loads LoRAs through peft")
    text = CLIPTextConfig(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    unet = UNet2DConditionModel(
        block_out_channels=(32,),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",),
        cross_attention_dim=8,
    )
    for library, model, layer in (("diffusers", unet, "to_q"), ("transformers", CLIPTextModel(text), "q_proj")):
        try:
            model.add_adapter(peft.LoraConfig(r=1, target_modules=[layer]))
        except (ImportError, ValueError) as refusal:
            pytest.skip(f"{library} {version(library)} refuses peft {peft.__version__}: {refusal}")


def joint_folder(name: str):
    """A fixture of a tiny transformer of a family."""

    @pytest.fixture(scope="session", name=f"tiny_{name}")
    def folder(tmp_path_factory) -> Path:
        return write(name, tmp_path_factory.mktemp(f"tiny-{name}"))

    return folder


tiny_flux1, tiny_chroma, tiny_lumina2, tiny_zimage, tiny_qwenimage = map(
    joint_folder, ("flux1", "chroma", "lumina2", "zimage", "qwenimage")
)
tiny_sd3, tiny_flux2, tiny_anima, tiny_krea2 = map(joint_folder, ("sd3", "flux2", "anima", "krea2"))
