"""Checks inside a ComfyUI, as in inside.py, of the small Lumina 2 that is built from what diffusers writes; what it answers is left behind
for test_native_transformer.py.
"""

import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from inside import RESULTS, equal, host

# isort: split

import comfy.sample
import torch
from pack.cidm_ops.models.clip import clip_shapes
from pack.cidm_ops.models.nextdit import LUMINA, lumina_shapes
from pack.cidm_ops.models.sd import DOODLE
from pack.nodes.joint_learning import ComfyTransformerBackbone
from safetensors.torch import save_file

# It ships as soon as there are weights, and a node that loads them: until then it is no part of the pack, and put into it here.
NAME = "native_transformer"
spec = importlib.util.spec_from_file_location(f"pack.nodes.{NAME}", Path(__file__).resolve().parents[2] / "nodes" / f"{NAME}.py")
assert spec and spec.loader
native_transformer = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(native_transformer)

MODEL: dict[str, Any] = {
    "sample_size": 16,
    "patch_size": 2,
    "in_channels": 16,
    "hidden_size": 192,
    "num_layers": 7,
    "num_refiner_layers": 1,
    "num_attention_heads": 6,
    "num_kv_heads": 2,
    "multiple_of": 384,
    "ffn_dim_multiplier": 0.5,
    "axes_dim_rope": (8, 12, 12),
    "cap_feat_dim": 160,
}
TEXT: dict[str, Any] = {
    **DOODLE.diffusers.texts["clip_l"],
    "hidden_size": 160,
    "intermediate_size": 640,
    "num_hidden_layers": 3,
    "projection_dim": 160,
}
SHORT, LONG = "a dog", "a white dog with black spots, and a red hat"


def weights(shapes: dict[str, tuple[int, ...]], seed: int) -> dict[str, torch.Tensor]:
    """Random weights of the size that layers are trained to."""
    draw = torch.Generator().manual_seed(seed)
    found = {}
    for name, shape in shapes.items():
        value = torch.randn(shape, generator=draw)
        scale = "norm" in name and name.endswith("weight") and len(shape) == 1
        found[name] = 1 + 0.1 * value if scale else 0.5 * value / value.numel() ** 0.25
    return found


def model_weights() -> dict[str, torch.Tensor]:
    """Of the transformer, in diffusers' names."""
    width, head = MODEL["hidden_size"], MODEL["hidden_size"] // MODEL["num_attention_heads"]
    family = replace(LUMINA, architecture="lumina2-7x192")
    linears = lumina_shapes(family, keys=2 * head, wide=384, text=160, refiners=1)
    biased = ("x_embedder", "time_caption_embed", "norm_out", "norm1.linear")
    shapes: dict[str, tuple[int, ...]] = {f"{name}.weight": shape for name, shape in linears.items()}
    shapes |= {f"{name}.bias": shape[:1] for name, shape in linears.items() if any(part in name for part in biased)}
    for block in sorted({name.partition(".attn")[0] for name in linears if ".attn" in name}):
        first = "norm1" if block.startswith("context") else "norm1.norm"
        shapes |= {f"{block}.{name}.weight": (width,) for name in (first, "norm2", "ffn_norm1", "ffn_norm2")}
        shapes |= {f"{block}.attn.norm_{part}.weight": (head,) for part in "qk"}
    return weights(shapes | {"time_caption_embed.caption_embedder.0.weight": (160,)}, 0)


def text_weights() -> dict[str, torch.Tensor]:
    """Of the text encoder, in CLIP's names."""
    width, linears = TEXT["hidden_size"], clip_shapes(TEXT)
    shapes: dict[str, tuple[int, ...]] = {f"{name}.weight": shape for name, shape in linears.items()}
    shapes |= {f"{name}.bias": shape[:1] for name, shape in linears.items()}
    norms = ["final_layer_norm", *(f"encoder.layers.{i}.layer_norm{n}" for i in range(3) for n in (1, 2))]
    shapes |= {f"{name}.{kind}": (width,) for name in norms for kind in ("weight", "bias")}
    shapes |= {"embeddings.token_embedding.weight": (49408, width), "embeddings.position_embedding.weight": (77, width)}
    return {f"text_model.{name}": value for name, value in weights(shapes, 1).items()}


def the_host_has_a_small_lumina_from_what_diffusers_writes():
    state, words = model_weights(), text_weights()
    model, clip = native_transformer.model(state, MODEL), native_transformer.clip(words, TEXT)
    for name, weight in native_transformer.in_host_names(state).items():
        equal(model.model.diffusion_model.state_dict()[name], weight)
    own = clip.cond_stage_model.clip_l.transformer.state_dict()
    for name, weight in words.items():
        equal(own[name], weight)
    for text in ("", SHORT, LONG, 100 * "dog "):
        (row,) = clip.tokenize(text)["l"]
        ids = [token for token, _ in row]
        assert ids[0] == 49406 and ids.index(49407) == len(ids) - 1 and len(ids) <= 77, ids
        ((states, more),) = clip.encode_from_tokens_scheduled(clip.tokenize(text))
        assert states.shape == (1, len(ids), 160) and more["attention_mask"].tolist() == [[1] * len(ids)]
    assert host.base_of(model, clip).architecture == "lumina2-7x192"
    learner = ComfyTransformerBackbone(model, clip, None)
    draw = torch.Generator().manual_seed(2)
    x, t = torch.randn(2, 16, 16, 16, generator=draw), torch.tensor([900, 150])
    left = {f"model.{key}": value for key, value in state.items()} | {f"text.{key}": value for key, value in words.items()}
    left |= {"x": x, "t": t, "sigma": learner.schedule.sigma}
    for name, text in {"short": SHORT, "long": LONG}.items():
        states, _ = learner.read(text)
        left |= {f"states {name}": states, f"answer {name}": learner.predict(x, t, states)}
    facts = {"model": json.dumps(MODEL), "text": json.dumps(TEXT), "short": SHORT, "long": LONG}
    save_file({key: value.clone().contiguous() for key, value in left.items()}, RESULTS.with_name("native_transformer.safetensors"), facts)


def the_small_lumina_paints_a_text_beside_another_of_another_length():
    model, clip = native_transformer.model(model_weights(), MODEL), native_transformer.clip(text_weights(), TEXT)
    wanted, unwanted = (clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in (LONG, ""))
    latent = torch.zeros(2, 16, 16, 16)
    noise = comfy.sample.prepare_noise(latent, 1)
    found = comfy.sample.sample(model, noise, 2, 2.0, "euler", "simple", wanted, unwanted, latent, seed=1)
    plain = comfy.sample.sample(model, noise, 2, 1.0, "euler", "simple", wanted, unwanted, latent, seed=1)
    assert found.shape == latent.shape and bool(found.isfinite().all()) and not torch.equal(found, plain)


def the_small_lumina_takes_no_weights_that_are_missing_or_another_models():
    state = model_weights()
    for key, other, said in (
        ("layers.6.norm2.weight", None, "lacks layers.6.attention_norm2.weight and 0 others"),
        ("layers.6.norm2.weight", "layers.6.norm9.weight", "layers.6.norm9.weight is no weight of Lumina 2"),
    ):
        changed = {(other if name == key else name): value for name, value in state.items() if name != key or other}
        try:
            native_transformer.model(changed, MODEL)
        except ValueError as error:
            assert said in str(error), error
        else:
            raise AssertionError("the host took it")
