"""ComfyUI and diffusers paint the same picture from the same noise, with a concept that ComfyUI learned."""

import torch
from safetensors.torch import load_file

from cidm_ops.adapters import attached
from cidm_ops.bank.bank import Bank
from cidm_ops.engines.diffusers import load
from cidm_ops.run.infusion import Way, infuse, predictor
from cidm_ops.run.painting import unit_noise
from cidm_ops.run.prompt import Said, encode, mix
from cidm_ops.run.sampling import sample


def test_the_latents_agree(results, inside):
    assert not results["the_host_paints_for_a_comparison"]
    backbone, bank = load("doodle", dtype=torch.float64), Bank(inside / "bank")
    mixture = mix(backbone, bank, "a <dog> on the beach")
    assert not mixture.warnings, "both engines give the base one fingerprint"
    context, negative = encode(backbone, mixture), encode(backbone, Said(""))
    with torch.no_grad(), attached(backbone.layers, mixture.factors(backbone)):
        latents = sample(backbone, context, negative, unit_noise(backbone.family, 1, 1, 128, 128), steps=10, guidance=4.0)
    difference = float((latents - load_file(inside / "painted.safetensors")["latents"]).abs().max())
    print(f"largest difference in the latent: {difference:.2e}")
    assert difference < 1e-3


def test_the_latents_of_infusion_agree(results, inside):
    assert not results["the_infusion_learns_and_both_engines_paint_it"]
    backbone, bank = load("doodle", dtype=torch.float64), Bank(inside / "infused")
    mixture, charges = infuse(backbone, bank, "a <dog:2> on the beach")
    context, negative = encode(backbone, mixture), encode(backbone, Said(""))
    predict = predictor(backbone, charges, Way())
    with torch.no_grad():
        latents = sample(backbone, context, negative, unit_noise(backbone.family, 1, 1, 128, 128), steps=10, guidance=4.0, predict=predict)
    difference = float((latents - load_file(inside / "infused.safetensors")["latents"]).abs().max())
    print(f"largest difference in the latent: {difference:.2e}")
    assert difference < 1e-3
