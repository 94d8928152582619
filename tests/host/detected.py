"""Checks of a transformer as wide as it is released, with one block of each make, found by a ComfyUI's own detection.

``python detected.py PACK RESULTS KIND``, in the checkout; test_detected_families.py makes tests of it.
"""

import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import inside  # takes the rest of the line for the host

# isort: split

import comfy.lora
import comfy.model_patcher
import comfy.sd
import torch
from host_transformers import ANIMA, CHROMA, FLUX, FLUX2, KREA2, LUMINA, NEWEST, QWEN, Z_IMAGE, built
from inside_joint import conditioning, differ, painted, same
from pack.cidm_ops.bank.bank import Bank
from pack.cidm_ops.bank.exchange import import_into
from pack.cidm_ops.method.regions import RegionMask
from pack.cidm_ops.painting.scene import Scene
from pack.nodes import host, scenes
from safetensors.torch import save_file
from subjects import call

KIND = sys.orig_argv[-1]
AXES = [16, 56, 56]
ONE = {"depth": 1, "depth_single_blocks": 1, "hidden_size": 3072, "num_heads": 24}
# By the class that the host has to find: the configuration, our architecture, and the widths of text and pooled text.
RELEASED: dict[str, tuple[dict[str, Any], str, int, int]] = {
    "Flux": (FLUX | ONE | {"vec_in_dim": 768, "context_in_dim": 4096, "axes_dim": AXES}, "flux1-1+1x3072", 4096, 768),
    "Chroma": (
        CHROMA | ONE | {"context_in_dim": 4096, "axes_dim": AXES, "out_dim": 3072, "hidden_dim": 5120, "n_layers": 5},
        "chroma-1+1x3072", 4096, 768,
    ),
    "Flux2": (FLUX2 | ONE | {"context_in_dim": 7680, "axes_dim": [32] * 4}, "flux2-1+1x3072", 7680, 0),
    "Lumina2": (
        LUMINA
        | {"dim": 2304, "cap_feat_dim": 2304, "n_layers": 1, "n_heads": 24, "n_kv_heads": 8, "axes_dims": [32] * 3}
        | {"ffn_dim_multiplier": 4.0 if NEWEST else 1.0},  # of four times the width in the older host
        "lumina2-1x2304", 2304, 0,
    ),
    "ZImage": (
        Z_IMAGE | {"dim": 3840, "cap_feat_dim": 2560, "n_layers": 1, "n_heads": 30, "n_kv_heads": 30, "axes_dims": [32, 48, 48]},
        "zimage-1x3840", 2560, 0,
    ),
    "QwenImage": (
        QWEN
        | {"num_layers": 1, "attention_head_dim": 128, "num_attention_heads": 24, "joint_attention_dim": 3584, "axes_dims_rope": AXES},
        "qwenimage-1x3072", 3584, 0,
    ),
    "Anima": (
        ANIMA | {"model_channels": 2048, "crossattn_emb_channels": 1024, "num_blocks": 1, "num_heads": 16, "adaln_lora_dim": 256},
        "anima-1x2048", 1024, 0,
    ),
    "Krea2": (
        KREA2
        | {"features": 6144, "heads": 48, "kvheads": 12, "layers": 1, "txtlayers": 12, "txtdim": 2560, "txtheads": 20, "txtkvheads": 20},
        "krea2-1x6144", 12 * 2560, 0,
    ),
}  # fmt: skip
CONFIG, ARCHITECTURE, TEXT, POOLED = RELEASED[KIND]


@cache
def found() -> comfy.model_patcher.ModelPatcher:
    """The model as the host loads its weights from a file."""
    state = {key: value.bfloat16() for key, value in built(KIND, CONFIG).model.diffusion_model.state_dict().items()}
    return comfy.sd.load_diffusion_model_state_dict(state, model_options={"dtype": torch.float32})


@cache
def file() -> dict[str, torch.Tensor]:
    """A LoRA of all layers that are known, as kohya's tools write it."""
    generator, state = torch.Generator().manual_seed(1), {}
    for module in sorted({at.module for at in host.layout(found()).values()}):
        weight, key = found().model.diffusion_model.get_submodule(module).weight, f"lora_unet_{module.replace('.', '_')}"
        state[f"{key}.lora_up.weight"] = 0.1 * torch.randn(weight.shape[0], 2, generator=generator)
        state[f"{key}.lora_down.weight"] = torch.randn(2, weight.shape[1], generator=generator)
    return state


def said(*texts: int) -> list:
    """A CONDITIONING of random texts of so many tokens, the first of the whole picture, the others of regions."""
    drawn = [0.5 * torch.randn(1, length, TEXT, generator=torch.Generator().manual_seed(length)) for length in texts]
    return conditioning(KIND, *drawn, **({"pooled_output": torch.ones(1, POOLED)} if POOLED else {}))


def the_host_finds_it_and_its_layers_are_known():
    assert type(found().model.model_config).__name__ == KIND
    family, layers = host.known_family(found()), host.layout(found())
    assert family.architecture_of(layers) == ARCHITECTURE


def the_file_of_it_says_what_it_is_for_and_is_merged_as_the_host_does():
    with tempfile.TemporaryDirectory() as folder:
        save_file(file(), Path(folder) / "rex.safetensors")
        bank, (rex,), _ = import_into(Bank(Path(folder) / "bank"), Path(folder) / "rex.safetensors")
        family = host.known_family(found())
        assert rex.architecture.split("-")[0] in (family.name, family.files.kin), f"taken for {rex.architecture}"
        bank = import_into(bank, Path(folder) / "rex.safetensors", architecture=ARCHITECTURE, existing="replace")[0]
        ours = call("CIDMAggregate", model=found(), clip=inside.doodle()[1], bank=bank, text="a <rex>")[0]
    theirs = comfy.sd.load_lora_for_models(found(), None, file(), 1.0, 0)[0]
    assert set(ours.patches) == set(theirs.patches) and len(theirs.patches) > 3
    for key in theirs.patches:
        weight = found().model.state_dict()[key].float()
        one, other = (comfy.lora.calculate_weight(model.patches[key], weight.clone(), key) - weight for model in (ours, theirs))
        assert float((one - other).abs().max()) <= 1e-5 * float(other.abs().max()), key


def the_text_of_a_place_that_is_everywhere_is_read_as_it_is_alone():
    alone, elsewhere = (painted(KIND, found(), said(length), size=(8, 16)) for length in (11, 5))
    places = scenes.with_more(found(), Scene(masks=(RegionMask(torch.ones(8, 8)),)))
    same(painted(KIND, places, said(5, 11), size=(8, 16)), alone, KIND)
    differ(elsewhere, alone, KIND)


if __name__ == "__main__":
    inside.run(globals())
