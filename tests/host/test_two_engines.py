"""ComfyUI and diffusers paint the same picture from the same noise, with a concept that ComfyUI learned."""

import torch
from safetensors.torch import load_file

from cidm_ops.adapters import attached, linears
from cidm_ops.bank.bank import Bank
from cidm_ops.engines.diffusers import load
from cidm_ops.run.painting import unit_noise
from cidm_ops.run.prompt import concepts_for, encode_prompts, factors_for
from cidm_ops.run.sampling import sample


def test_the_latents_agree(results, inside):
    assert not results["the_host_paints_for_a_comparison"]
    backbone, bank = load("doodle"), Bank(inside / "bank")
    text, concepts, warnings = concepts_for(bank, "a <dog> on the beach", "exact", backbone)
    assert not warnings, "both engines give the base one fingerprint"
    factors, _ = factors_for(backbone, text, concepts, "exact", 1.0)
    context, negative = encode_prompts(backbone, [text], concepts), encode_prompts(backbone, [""], [])
    with torch.no_grad(), attached(linears(backbone.blocks), factors):
        latents = sample(backbone, context, negative, unit_noise(1, 1, 128, 128), steps=10, guidance=4.0)
    difference = float((latents - load_file(inside / "painted.safetensors")["latents"]).abs().max())
    print(f"largest difference in the latent: {difference:.2e}")
    assert difference < 1e-3
