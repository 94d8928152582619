"""A family of other sizes, ids and channels learns and paints through the engine as soon as it is registered."""

import json
from dataclasses import replace

import pytest
import torch
from diffusers import AutoencoderTiny, DDPMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from cidm_ops.bank.bank import Bank
from cidm_ops.engines.diffusers import load
from cidm_ops.models.clip import VOCABULARY
from cidm_ops.models.registry import forget, register
from cidm_ops.models.sd import SD1
from cidm_ops.painting.paint import SamplingConfig, paint, unit_noise
from cidm_ops.training.dataset import Dataset
from cidm_ops.training.method import Task
from cidm_ops.training.methods import configure
from cidm_ops.training.task import learn_into

CHUNK, CHANNELS = 40, 16


@pytest.fixture
def wide():
    encoder = replace(SD1.encoder(), name="reader", width=32, chunk=CHUNK, pad=0, skip=1, kohya="lora_reader_")
    facts = {"addition_embed_type": None, "in_channels": CHANNELS}
    own = replace(SD1.diffusers, facts=facts, texts={"reader": SD1.diffusers.texts["clip_l"]})
    family = replace(SD1, name="wide", title="Wide", architecture="wide-4x32", encoders=[encoder], latent_channels=CHANNELS, diffusers=own)
    yield register(family)
    forget(family)


@pytest.fixture
def folder(tmp_path):
    """A model of the family in diffusers' layout, weights random."""
    torch.manual_seed(0)
    base = tmp_path / "base"
    UNet2DConditionModel(
        sample_size=8,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=8,
    ).save_pretrained(base / "unet")
    text = CLIPTextConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=CHUNK,
    )  # fmt: skip
    CLIPTextModel(text).save_pretrained(base / "text_encoder")
    AutoencoderTiny(latent_channels=CHANNELS).save_pretrained(base / "vae")
    DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012).save_pretrained(base / "scheduler")
    return base


def test_it_learns_and_paints(wide, folder, tmp_path):
    backbone = load(folder)
    assert backbone.family is wide and backbone.architecture == "wide-4x32" and backbone.encoders == ("reader",)
    ids = backbone.tokenize("a dog " * 30)
    assert ids.shape == (2, CHUNK) and ids[1, -1] == 0
    pictures = [torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(i)) for i in range(2)]
    config = configure("cidm", steps=3, lr=1e-2, lr_tokens=1e-2, prior=0.5, prior_pictures=1)
    task = Task(name="rex", class_word="dog", config=config)
    bank, concept, losses, _ = learn_into(Bank(tmp_path / "bank"), backbone, Dataset(pictures, ["a dog"] * 2), task)
    assert len(losses) == 3 and {e: t.shape[-1] for e, t in concept.tokens.items()} == {"reader": 32}
    noise = unit_noise(wide, 0, 1, 64, 64)
    assert noise.shape == (1, CHANNELS, 8, 8)
    known, plain = (paint(backbone, bank, prompt, noise, SamplingConfig(2))[0] for prompt in ("a <rex> in the snow", "a dog in the snow"))
    assert known.shape == (1, 3, 64, 64) and known.isfinite().all() and not torch.equal(known, plain)


def test_a_model_with_other_channels_than_its_family_is_named(wide, folder):
    config = folder / "unet" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"in_channels": 9}))
    with pytest.raises(ValueError, match="9 input channels"):
        load(folder)
