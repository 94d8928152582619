"""Tiny transformers in diffusers' layout as an engine: texts, latents and answers are where diffusers has them, in every precision."""

import shutil
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import (
    Flux2KleinPipeline,
    FluxPipeline,
    QwenImagePipeline,
)
from diffusers.modular_pipelines.anima.before_denoise import AnimaTextConditioningStep
from diffusers.modular_pipelines.anima.encoders import AnimaTextEncoderStep
from pipelines import PIPELINES
from tiny_transformers import MODELS
from transformers import Qwen2_5_VLForConditionalGeneration

from cidm_ops.engines.diffusers import load, load_any
from cidm_ops.engines.transformer import DiffusersTransformer, family_in
from cidm_ops.tokens import read_plain

MORE = {"flux1": ("_2",), "sd3": ("_2", "_3")}  # text encoders and tokenizers beside the first
LONG = "a rex dog on the grass"


@pytest.fixture(scope="module", params=MODELS)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def backbone(name, request) -> Any:
    return load_any(request.getfixturevalue(f"tiny_{name}"))


def test_a_text_is_read_as_diffusers_does(name, backbone):
    if name == "anima":
        read_as_anima(backbone)
        return
    parts: dict[str, Any] = {"transformer": backbone.unet, "vae": backbone.vae, "scheduler": None}
    for number in ("", *MORE.get(name, ())):
        parts |= {part: backbone.part(part) for part in (f"text_encoder{number}", f"tokenizer{number}")}
    pipeline = PIPELINES[name](**parts)
    states, pooled = backbone.read(LONG)
    if name == "flux1":
        wanted, own, _ = pipeline.encode_prompt(LONG, max_sequence_length=256, device="cpu")
        torch.testing.assert_close(pooled, own)
    elif name == "flux2":
        wanted, _ = pipeline.encode_prompt(LONG, device="cpu")
    elif name == "sd3":
        wanted, _, own, _ = pipeline.encode_prompt(LONG, None, None, None, 1, False, max_sequence_length=77)
        torch.testing.assert_close(pooled, own)
    elif name == "zimage":
        wanted = torch.stack(pipeline.encode_prompt(LONG, device="cpu")[0])
    elif name == "qwenimage":
        parts["text_encoder"] = Qwen2_5_VLForConditionalGeneration.from_pretrained(backbone.folder / "text_encoder")
        wanted, _ = PIPELINES[name](**parts).encode_prompt(LONG, device="cpu")
    elif name == "krea2":
        wanted, mask = pipeline.encode_prompt(LONG, device="cpu")
        wanted = wanted[mask].flatten(1)[None]
    elif name == "chroma":
        wanted, mask = pipeline._get_t5_prompt_embeds(LONG, device="cpu")
        wanted = wanted[:, : int(mask.sum()) - 1]  # it reads one token of padding more, the host none
    else:
        wanted, mask = pipeline._get_gemma_prompt_embeds(LONG, device="cpu")
        wanted = wanted[:, : int(mask.sum())]
    torch.testing.assert_close(states, wanted, atol=1e-5, rtol=1e-5)
    backbone.drop_encoders()
    assert not backbone.encoders_loaded and torch.equal(backbone.read(LONG)[0], states), "they come back when a text is read"


def read_as_anima(backbone: Any) -> None:
    """Diffusers has its pipeline in steps."""
    adapter, tokenizer = (backbone.part(name) for name in ("text_conditioner", "t5_tokenizer"))
    parts = SimpleNamespace(text_encoder=backbone.part("text_encoder"), tokenizer=backbone.part("tokenizer"), t5_tokenizer=tokenizer)
    made = AnimaTextEncoderStep.encode_prompt(parts, LONG, None, False, device=torch.device("cpu"), dtype=torch.float32)
    names = ("qwen_prompt_embeds", "qwen_attention_mask", "t5_input_ids", "t5_attention_mask")
    given = (made[name] for name in names)
    wanted = AnimaTextConditioningStep._condition_prompt_embeds(
        SimpleNamespace(text_conditioner=adapter), *given, "cpu", torch.float32, torch.float32
    )
    states, pooled = backbone.read(LONG)
    torch.testing.assert_close(states, wanted, atol=1e-5, rtol=1e-5)
    assert pooled is None and backbone.tokenize(LONG).shape == states.shape[:2] == (1, 512)
    assert not backbone.part("tokenizer")("").input_ids and bool(backbone.read("")[0].isfinite().all())


def test_flux_reads_patches_where_diffusers_has_them(tiny_flux1):
    backbone: Any = load_any(tiny_flux1)
    seen = {}

    def stand_in(hidden_states, img_ids, **given):
        seen.update(tokens=hidden_states, places=img_ids, **given)
        return type("Out", (), {"sample": hidden_states})

    backbone.unet.forward = stand_in
    x = torch.randn(2, 16, 6, 10)
    text = read_plain(backbone, LONG).expand(2)
    t = torch.tensor([999, 100])
    out = backbone.predict(x, t, text.states[:, 0], text.pooled, 1.0)
    assert torch.equal(out, x), "there and back"
    assert torch.equal(seen["tokens"], FluxPipeline._pack_latents(x, 2, 16, 6, 10))
    assert torch.equal(seen["places"], FluxPipeline._prepare_latent_image_ids(2, 3, 5, "cpu", torch.float32))
    assert torch.equal(seen["guidance"], torch.ones(2)) and torch.equal(seen["timestep"], backbone.schedule.sigma[t])
    backbone.predict(x, t, text.states[:, 0], text.pooled)
    assert torch.equal(seen["guidance"], torch.full((2,), 3.5)), "what it is painted with"


def test_qwen_reads_patches_and_films_of_one_frame_where_diffusers_has_them(tiny_qwenimage):
    backbone: Any = load_any(tiny_qwenimage)
    seen, vae = {}, backbone.vae

    def stand_in(hidden_states, **given):
        seen.update(tokens=hidden_states, **given)
        return type("Out", (), {"sample": hidden_states})

    backbone.unet.forward = stand_in
    x, t = torch.randn(2, 16, 6, 10), torch.tensor([999, 100])
    text = read_plain(backbone, LONG).expand(2)
    assert torch.equal(backbone.predict(x, t, text.states[:, 0]), x), "there and back"
    assert torch.equal(seen["tokens"], QwenImagePipeline._pack_latents(x[:, :, None], 2, 16, 6, 10))
    assert seen["img_shapes"] == [[(1, 3, 5)]] * 2 and torch.equal(seen["timestep"], backbone.schedule.sigma[t])
    pixels = 2 * torch.rand(2, 3, 64, 64) - 1
    latents = backbone.encode_image(pixels)
    mean, std = (torch.tensor(vae.config[name]).view(1, 16, 1, 1, 1) for name in ("latents_mean", "latents_std"))
    with torch.no_grad():
        whole = vae.encode(pixels[:, :, None]).latent_dist.mode()
        torch.testing.assert_close(latents, ((whole - mean) / std)[:, :, 0])
        torch.testing.assert_close(backbone.decode_latent(latents), vae.decode(whole).sample[:, :, 0], atol=1e-5, rtol=1e-5)


def test_flux_2_folds_latents_where_diffusers_does(tiny_flux2):
    backbone: Any = load_any(tiny_flux2)
    vae = backbone.vae
    vae.bn.running_mean.normal_(generator=torch.Generator().manual_seed(0))
    vae.bn.running_var.uniform_(0.5, 2, generator=torch.Generator().manual_seed(1))
    parts = {part: backbone.part(part) for part in ("text_encoder", "tokenizer")}
    pipeline = Flux2KleinPipeline(transformer=backbone.unet, vae=vae, scheduler=None, **parts)
    pixels = 2 * torch.rand(2, 3, 64, 96) - 1
    latents = backbone.encode_image(pixels)
    with torch.no_grad():
        torch.testing.assert_close(latents, pipeline._encode_vae_image(pixels, torch.Generator()))
        wanted = vae.decode(vae.encode(pixels).latent_dist.mode()).sample.clamp(-1, 1)
        torch.testing.assert_close(backbone.decode_latent(latents), wanted, atol=1e-5, rtol=1e-4)
    seen = {}

    def stand_in(hidden_states, **given):
        seen.update(given)
        return type("Out", (), {"sample": hidden_states})

    backbone.unet.forward = stand_in
    text = read_plain(backbone, LONG).expand(2)
    assert torch.equal(backbone.predict(latents, torch.tensor([999, 100]), text.states[:, 0]), latents), "there and back"
    assert torch.equal(seen["img_ids"], Flux2KleinPipeline._prepare_latent_ids(latents)[0])
    assert torch.equal(seen["txt_ids"], Flux2KleinPipeline._prepare_text_ids(text.states[:, 0])[0])
    with pytest.raises(ValueError, match=r"with guidance_embeds = True: of that class Flux\.2 Klein"):
        family_in({**backbone.unet.config, "guidance_embeds": True})


def test_a_folder_that_is_no_whole_transformer_is_refused_by_name(tiny_flux1, tiny_sd1, tmp_path):
    with pytest.raises(ValueError, match="is a transformer, on which concepts are learned and painted"):
        load(tiny_flux1)
    with pytest.raises(ValueError, match="for this base take bfloat16"):
        load_any(tiny_sd1, dtype=torch.float8_e4m3fn)
    (tmp_path / "transformer").mkdir()
    with pytest.raises(ValueError, match="transformer/config.json is missing"):
        load_any(tmp_path)
    for part in ("transformer", "vae", "scheduler"):
        (tmp_path / part).mkdir(exist_ok=True)
        for file in (tiny_flux1 / part).iterdir():
            (tmp_path / part / file.name).write_bytes(file.read_bytes())
    own: Any = load_any(tmp_path)
    with pytest.raises(ValueError, match="tokenizer_2 cannot be read as part of a model"):
        own.read("a dog")
    config = tmp_path / "transformer" / "config.json"
    config.write_text(config.read_text().replace("FluxTransformer2DModel", "HiDreamImageTransformer2DModel"))
    with pytest.raises(ValueError, match="class 'HiDreamImageTransformer2DModel': expected Flux.1"):
        load_any(tmp_path)


def test_a_folder_without_what_a_text_goes_through_is_refused_by_name(tiny_anima, tmp_path):
    """Other models are of Anima's class too, such as Cosmos-Predict2."""
    shutil.copytree(tiny_anima, tmp_path / "cosmos", ignore=shutil.ignore_patterns("text_conditioner", "t5_tokenizer"))
    with pytest.raises(ValueError, match="has no text_conditioner and no t5_tokenizer, through which Anima reads a text: give its whole"):
        load_any(tmp_path / "cosmos")


def test_the_engine_is_a_transformer_backbone(name, backbone):
    assert isinstance(backbone, DiffusersTransformer) and backbone.family.name == name
    assert backbone.architecture.split("-")[0] == name and len(backbone.fingerprint) == 12


def test_a_base_in_bf16_answers_as_it_does_in_fp32_but_for_rounding(backbone):
    """At a noise level that bf16 has: some models round it to that."""
    levels = backbone.schedule.sigma
    t = 200 + (levels - levels.bfloat16().float())[200:800].abs().argmin().view(1)
    half: Any = load_any(backbone.folder, dtype=torch.bfloat16)
    assert half.fingerprint == backbone.fingerprint
    single = {*(half.unet._keep_in_fp32_modules or ())}
    assert all(p.dtype == (torch.float32 if single & {*n.split(".")} else torch.bfloat16) for n, p in half.unet.named_parameters())
    times: list[torch.Tensor] = []
    half.unet.register_forward_pre_hook(lambda module, args, named: times.append(named.get("timestep", args[-2:-1])), with_kwargs=True)
    text, x = read_plain(backbone, LONG), torch.randn(1, backbone.family.latent_channels, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found, wanted = (each.predict(x, t, text.states[:, 0], text.pooled) for each in (half, backbone))
    (time,) = times[0] if isinstance(times[0], tuple) else times  # Z-Image takes it by its place
    assert time.dtype == torch.float32, "what rounds a noise level is the model itself"
    assert float((found - wanted).abs().max()) < 0.1 * float(wanted.abs().max())
