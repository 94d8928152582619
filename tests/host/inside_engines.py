"""Checks inside a ComfyUI, as in inside.py, that leave behind what it paints of transformers, for test_transformers_of_two_engines.py."""

from typing import Any

from inside import RESULTS, host
from inside_joint import OTHER, OWN, THIRD, UNWANTED, conditioning, differ, filled, latent_of

# isort: split

import comfy.sample
import torch
from host_transformers import CONFIGS, NEWEST, POOLED, built
from pack.cidm_ops.bank.concept import Concept
from pack.cidm_ops.lowrank import LowRank
from pack.cidm_ops.method.regions import RegionMask, box_mask
from pack.cidm_ops.painting.config import NoiseEstimation
from pack.cidm_ops.painting.scene import ConceptStack, Scene
from pack.cidm_ops.schedule import Schedule
from pack.nodes import scenes
from safetensors.torch import save_file

KINDS = {"Flux": {}, "QwenImage": {}, "SD3": {}, "Lumina2": {"ffn_dim_multiplier": 4.0 if NEWEST else 1.0}} | (
    # wide enough that both engines round the feed-forward alike
    {"Flux2": {}, "Anima": {}, "Krea2": {}, "ZImage": {"dim": 384, "n_heads": 3, "n_kv_heads": 3, "n_refiner_layers": 1}} if NEWEST else {}
)
MASKS = (RegionMask(box_mask(0, 0, 0.6, 1), feather=0.2), RegionMask(box_mask(0.5, 0.2, 1, 1), 0.8, priority=1))
SCENES: dict[str, dict[str, Any]] = {
    "one pass": {"guidance": 1.2},
    "apart": {"apart": 0.5},
    "passes": {"estimation": NoiseEstimation(alpha=0.3, end=0.6, bootstrap=0.3), "negative": False},
}


def the_host_paints_transformers_in_regions_for_a_comparison():
    for kind in KINDS:
        model, draw = built(kind, CONFIGS[kind] | KINDS[kind]), torch.Generator().manual_seed(4)
        backbone_layers, family = host.layout(model), host.known_family(model)
        architecture = family.architecture_of(backbone_layers)
        factors = {
            layer: LowRank(0.3 * torch.randn(at.rows, 2, generator=draw), 0.3 * torch.randn(2, at.columns, generator=draw))
            for layer, at in sorted(backbone_layers.items())
            if not (family.is_turned(layer, architecture) or family.adapts(layer))
        }
        rex = Concept(name="rex", class_word="dog", architecture=architecture, factors=factors)
        layers = len(family.sites(dict.fromkeys(map(family.block_of, backbone_layers)), "cross", "joint"))
        weights = torch.tensor([0.2, 1.0, -0.5])[None, :, None, None].expand(1, -1, layers, 1)
        half = float(model.get_model_object("model_sampling").percent_to_sigma(0.5))
        shift = half / (1 - half)
        sigmas = Schedule.straight(shift).levels(4)[0]
        # of an odd number of rows or columns of tokens, host and diffusers place the middle of Qwen-Image one token apart
        latent = latent_of(kind, *((8, 12) if kind == "QwenImage" else (6, 10)), 2)
        noise = comfy.sample.prepare_noise(latent, 1)
        left = {f"model.{key}": value.contiguous() for key, value in model.model.diffusion_model.state_dict().items()}
        left |= {f"up.{layer}": f.up for layer, f in factors.items()} | {f"down.{layer}": f.down for layer, f in factors.items()}
        left |= {"shift": torch.tensor(shift, dtype=torch.float64), "noise": noise, "pooled": torch.ones(1, POOLED)}
        texts = {"whole": OTHER, "first": OWN, "second": THIRD, "negative": UNWANTED}
        left |= {name: filled(kind, text).clone() for name, text in texts.items()}
        for name, how in SCENES.items():
            stack = ConceptStack([rex], weights, negative=how.get("negative", True))
            painter = scenes.with_more(model, Scene(stacks=(stack,), masks=MASKS, **how))
            said, unwanted = conditioning(kind, OTHER, OWN, THIRD), conditioning(kind, UNWANTED)
            found = comfy.sample.sample(painter, noise, 4, 1.5, "euler", "simple", said, unwanted, latent, sigmas=sigmas, seed=1)
            left[f"painted {name}"] = model.model.process_latent_in(found).contiguous()
        differ(left["painted one pass"], left["painted passes"], kind)
        save_file(left, RESULTS.with_name(f"joint_{kind}.safetensors"))
