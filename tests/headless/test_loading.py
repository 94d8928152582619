"""A base model is loaded from a diffusers folder or one original file, offline, or refused in one clear sentence."""

import json
import shutil
import socket
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import save_file

from cidm_ops.benchmarks.speed.checkpoints import empty, original_names, write_checkpoint
from cidm_ops.engines.checkpoint import from_original
from cidm_ops.engines.diffusers import load, noise_schedule
from cidm_ops.models.checkpoint import TEXT_WIDTH_KEYS, inventory, schedule_of_checkpoint
from cidm_ops.models.sd import SD1, SDXL
from cidm_ops.tokens import encode_layerwise


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError(f"loading a model reached for the network: {args}")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture(scope="module")
def backbone(tiny_sd1):
    return load(tiny_sd1)


@pytest.fixture
def broken(tiny_sd1, tmp_path) -> Path:
    """A copy of the folder to break."""
    return Path(shutil.copytree(tiny_sd1, tmp_path / "model"))


def change(path: Path, **values) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_layers_are_in_the_order_down_mid_up(backbone):
    assert backbone.architecture == "sd1-4x32"
    assert [name.split(".")[0] for name in backbone.cross_attention] == ["down_blocks", "mid_block", "up_blocks", "up_blocks"]


def test_the_schedule_is_that_of_sd1(backbone):
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    torch.testing.assert_close(backbone.schedule.signal.square().double(), (1 - betas).cumprod(0), rtol=1e-5, atol=0)
    assert backbone.schedule.prediction == "eps"


def test_text_of_the_tables_own_rows_is_the_plain_encoding(backbone):
    ids = backbone.tokenize("a photo of a dog")
    with torch.no_grad():
        plain = backbone.texts["clip_l"](ids).last_hidden_state
        torch.testing.assert_close(backbone.encode_text(ids, backbone.token_rows(ids))[0], plain)  # up to the rounding of float32


def test_a_new_row_changes_what_follows_it_and_learns(backbone):
    ids = backbone.tokenize("a photo of a dog")
    plain = backbone.token_rows(ids)
    rows = plain.clone()
    rows[:, 5] += 1
    rows.requires_grad_()
    before, after = backbone.encode_text(ids, plain)[0], backbone.encode_text(ids, rows)[0]
    assert torch.equal(after[:, :5], before[:, :5])  # CLIP is causal
    assert not torch.allclose(after[:, 5:], before[:, 5:])
    after[:, 6:].square().sum().backward()
    assert rows.grad[:, 5].abs().sum() > 0 and rows.grad.isfinite().all()


def test_each_layer_reads_its_own_text(backbone):
    x, t = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([10, 900])
    context = torch.randn(2, 77, 32, generator=torch.Generator().manual_seed(1))
    layers = context[:, None].repeat(1, 4, 1, 1)
    with torch.no_grad():
        plain = backbone.predict(x, t, context)
        assert torch.equal(backbone.predict(x, t, layers), plain)
        for layer in range(4):
            other = layers.clone()
            other[:, layer] = other[:, layer].flip(-1)
            assert not torch.allclose(backbone.predict(x, t, other), plain, atol=1e-5), layer
        assert torch.equal(backbone.predict(x, t, context), plain)


def test_pictures_become_scaled_latents_and_pictures_again(backbone):
    pictures = torch.rand(1, 3, 64, 48) * 2 - 1
    latents = backbone.encode_image(pictures)
    assert latents.shape == (1, 4, 8, 6)
    assert torch.equal(latents, backbone.vae.encode(pictures).latent_dist.mean * 0.18215)
    decoded = backbone.decode_latent(latents)
    assert decoded.shape == pictures.shape and decoded.abs().max() <= 1


def test_nothing_of_a_base_learns(backbone):
    assert not [
        name for part in (backbone.unet, *backbone.texts.values(), backbone.vae) for name, p in part.named_parameters() if p.requires_grad
    ]


def test_half_precision_computes_in_half_and_gives_fp32(tiny_sd1):
    half, full = load(tiny_sd1, dtype=torch.bfloat16), load(tiny_sd1)
    assert half.fingerprint == full.fingerprint
    ids = half.tokenize("dog")
    context = half.encode_text(ids, half.token_rows(ids))[0]
    output = half.predict(torch.zeros(1, 4, 8, 8), torch.tensor([1]), context)
    assert half.unet.dtype == torch.bfloat16 and context.dtype == output.dtype == torch.float32


def test_another_checkpoint_has_another_fingerprint(tiny_sd1, broken):
    unet = UNet2DConditionModel.from_pretrained(broken / "unet")
    with torch.no_grad():
        for parameter in unet.parameters():
            parameter += 0.01 * torch.randn_like(parameter)
    unet.save_pretrained(broken / "unet")
    assert load(broken).fingerprint != load(tiny_sd1).fingerprint


def test_a_folder_of_half_precision_files_only_loads(broken, backbone):
    for file in [*broken.rglob("*.safetensors")]:
        file.rename(file.with_suffix(".fp16.safetensors"))
    assert load(broken).fingerprint == backbone.fingerprint


@pytest.mark.parametrize("family", [SD1, SDXL], ids=lambda f: f.name)
def test_one_original_file_becomes_the_same_weights(family):
    """Every weight of a full-size model arrives where it belongs; each is one number, seen through its shape."""
    count = 0

    def numbered(state):
        nonlocal count
        count += len(state)
        return {key: torch.tensor(float(count + i)).expand(weight.shape) for i, (key, weight) in enumerate(state.items())}

    unet, texts, vae = empty(family)
    parts = numbered(unet), {name: numbered(state) for name, state in texts.items()}, numbered(vae)
    made_unet, made_texts, made_vae = from_original(dict(original_names(parts, family)), Path("x.safetensors"))
    assert made_texts.keys() == texts.keys()
    pairs = [(made_unet, parts[0]), (made_vae, parts[2]), *((made_texts[name], parts[1][name]) for name in texts)]
    for module, part in pairs:
        state = module.state_dict()
        assert state.keys() == part.keys()
        for key, weight in part.items():
            assert state[key].shape == weight.shape and state[key].flatten()[0] == weight.flatten()[0], key


@pytest.mark.parametrize(
    ("marks", "metadata", "prediction", "rescaled"),
    [
        ((), {}, "eps", False),
        (("v_pred",), {}, "v", False),
        (("v_pred", "ztsnr"), {}, "v", True),
        ((), {"modelspec.prediction_type": "v"}, "v", False),
        (("ztsnr",), {"modelspec.prediction_type": "v"}, "v", True),
        (("v_pred",), {"modelspec.prediction_type": "epsilon"}, "v", False),
        ((), {"modelspec.prediction_type": "epsilon"}, "eps", False),
    ],
)
def test_a_file_says_by_its_marks_what_it_predicts(marks, metadata, prediction, rescaled):
    """The schedule of zero terminal SNR is that of Lin et al. 2024, algorithm 1."""
    schedule = noise_schedule(schedule_of_checkpoint(["x", *marks], metadata, SDXL))
    root = (1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2).cumprod(0).sqrt()
    wanted = (root - root[-1]) * root[0] / (root[0] - root[-1]) if rescaled else root
    assert schedule.prediction == prediction
    torch.testing.assert_close(schedule.signal.double(), wanted, rtol=1e-4, atol=2e-6)
    levels, times = schedule.levels(4)
    assert levels.isfinite().all() and times[0] == 999
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    assert schedule.denoised(schedule.scale_noise(x, levels[0]), x, levels[0]).isfinite().all()
    t = torch.tensor([0, 500, 999])
    assert schedule.min_snr_weight(t, 5.0).isfinite().all()


@pytest.mark.parametrize(
    ("marks", "metadata", "named"),
    [
        (("ztsnr",), {}, "zero terminal SNR"),
        (("edm_mean", "edm_std"), {}, "EDM"),
        (("edm_vpred.sigma_max",), {}, "CosXL"),
        ((), {"modelspec.prediction_type": "rectified_flow"}, "'rectified_flow'"),
    ],
)
def test_marks_of_what_cannot_be_painted_are_refused(tmp_path, marks, metadata, named):
    state = {key: torch.zeros(shape) for key, shape in KEYS.items()} | {mark: torch.zeros(0) for mark in marks}
    save_file(state, tmp_path / "model.safetensors", metadata)
    assert named in refused(tmp_path / "model.safetensors")


@pytest.mark.parametrize("family", [SD1, SDXL], ids=lambda f: f.name)
def test_every_tensor_of_a_checkpoint_is_of_a_part_or_is_named(family):
    keys = [key for key, _ in original_names(empty(family), family)]
    found = inventory([*keys, "v_pred", "model_ema.decay", "alphas_cumprod", "global.x"])
    assert sum(found.parts.values()) == len(keys) + 1 and {*found.unused} == {"model_ema.decay", "alphas_cumprod", "global.x"}
    assert len(found.parts) == 4 + (family is SDXL)


@pytest.mark.slow
@pytest.mark.parametrize(("family", "architecture"), [(SD1, "sd1-16x768"), (SDXL, "sdxl-70x2048")], ids=["sd1", "sdxl"])
def test_a_full_size_original_file_loads_and_runs(tmp_path, family, architecture):
    file = write_checkpoint(tmp_path / "model.safetensors", family)
    backbone = load(file, dtype=torch.float16 if family is SDXL else torch.float32)
    file.unlink()
    assert backbone.architecture == architecture
    with torch.no_grad():
        text = encode_layerwise(backbone, ["a photo of a dog"], {})
        assert text.context.shape == (1, len(backbone.cross_attention), 77, family.width)
        assert backbone.predict(torch.randn(1, 4, 16, 16), torch.tensor([500]), text.context, text.pooled).isfinite().all()
        assert backbone.decode_latent(backbone.encode_image(torch.zeros(1, 3, 64, 64))).shape == (1, 3, 64, 64)


def refused(base: Path | str) -> str:
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        load(base)
    assert str(base) in str(error.value) and "\n" not in str(error.value)
    return str(error.value)


def test_a_missing_base_is_named(tmp_path):
    assert "there is no base model" in refused(tmp_path / "nothing.safetensors")


def test_a_folder_that_is_no_model_says_what_is_missing(tmp_path):
    assert "unet/config.json is missing" in refused(tmp_path)


def test_a_folder_without_weights_is_refused(broken):
    for file in (broken / "vae").glob("*.safetensors"):
        file.unlink()
    assert "cannot be read" in refused(broken)


def test_a_folder_with_damaged_weights_is_refused(broken):
    file = next((broken / "unet").glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:1000])
    assert "cannot be read" in refused(broken)


@pytest.mark.parametrize(
    ("part", "values", "named"),
    [
        ("unet", {"addition_embed_type": "text_time"}, "text_encoder_2/config.json is missing"),
        ("unet", {"use_linear_projection": True}, "Stable Diffusion 2"),
        ("text_encoder", {"hidden_act": "gelu"}, "Stable Diffusion 2"),
        ("unet", {"in_channels": 9}, "9 input channels"),
        ("unet", {"cross_attention_dim": 1024}, "width 1024"),
        ("vae", {"_class_name": "AutoencoderDC"}, "AutoencoderDC"),
    ],
)
def test_a_folder_of_another_architecture_is_named(broken, part, values, named):
    change(broken / part / "config.json", **values)
    assert named in refused(broken)


KEY = "model.diffusion_model.input_blocks.0.0.weight"
KEYS = {KEY: (320, 4, 3, 3), TEXT_WIDTH_KEYS[0]: (320, 768)}


@pytest.mark.parametrize(
    ("shapes", "named"),
    [
        ({**KEYS, TEXT_WIDTH_KEYS[0]: (320, 1280)}, "SDXL refiner"),
        ({KEY: (320, 4, 3, 3), TEXT_WIDTH_KEYS[1]: (640, 2048)}, "incomplete"),
        ({**KEYS, TEXT_WIDTH_KEYS[0]: (320, 1024)}, "Stable Diffusion 2"),
        ({**KEYS, KEY: (320, 9, 3, 3)}, "9 input channels"),
        ({"lora_unet_x.lora_up.weight": (4, 4)}, "no U-Net of Stable Diffusion 1"),
        (KEYS, "lacks 684 of 686 weights of the UNet2DConditionModel"),
    ],
)
def test_a_file_of_another_kind_is_named(tmp_path, shapes, named):
    save_file({key: torch.zeros(shape) for key, shape in shapes.items()}, tmp_path / "model.safetensors")
    assert named in refused(tmp_path / "model.safetensors")


def test_a_damaged_file_is_named(tmp_path):
    save_file({key: torch.zeros(shape) for key, shape in KEYS.items()}, tmp_path / "model.safetensors")
    for size, said in ((0, "an empty file"), (4, "get it again"), (100, "cut-off download"), (1000, "cut-off download")):
        (tmp_path / "cut.safetensors").write_bytes((tmp_path / "model.safetensors").read_bytes()[:size])
        assert said in refused(tmp_path / "cut.safetensors")
    torch.save({"state_dict": {}}, tmp_path / "model.ckpt")
    for size, said in ((0, "an empty file"), (4, "get it again"), (100, "cut-off download"), (300, "cut-off download")):
        (tmp_path / "cut.ckpt").write_bytes((tmp_path / "model.ckpt").read_bytes()[:size])
        assert said in refused(tmp_path / "cut.ckpt")
    for ending in ("safetensors", "ckpt"):
        (tmp_path / f"pointer.{ending}").write_text("version https://git-lfs.github.com/spec/v1\nsize 1\n")
        assert "git lfs pull" in refused(tmp_path / f"pointer.{ending}")


def test_a_pickle_with_more_than_tensors_is_not_loaded(tmp_path):
    torch.save({"state_dict": {}, "callbacks": Path("x")}, tmp_path / "model.ckpt")
    assert "it wants to run code (" in refused(tmp_path / "model.ckpt")


def test_a_pickle_of_tensors_is_read_like_a_safetensors_file(tmp_path):
    torch.save({"state_dict": {key: torch.zeros(shape) for key, shape in KEYS.items()}}, tmp_path / "model.ckpt")
    assert "lacks 684 of 686 weights" in refused(tmp_path / "model.ckpt")


def test_another_kind_of_file_is_refused(tmp_path):
    (tmp_path / "model.txt").write_text("x")
    assert "is no model file" in refused(tmp_path / "model.txt")
