"""The small Lumina 2 of the host, built from what diffusers writes, reads texts and answers as diffusers does."""

import json
from pathlib import Path

import torch
from diffusers import Lumina2Transformer2DModel
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from cidm_ops.engines.checkpoint import text_model
from cidm_ops.engines.transformer import DiffusersTransformer
from cidm_ops.models.doodle_transformer import DOODLE_TRANSFORMER
from cidm_ops.models.sd import DOODLE


def test_the_hosts_small_lumina_is_that_of_diffusers(results, inside):
    assert not results["the_host_has_a_small_lumina_from_what_diffusers_writes"]
    compare(inside / "native_transformer.safetensors")


def compare(file: Path) -> None:
    """What the host left in a file is what diffusers makes of the same weights, to 1e-5 of the largest value."""
    left = load_file(file)
    with safe_open(file, "pt") as opened:
        facts = opened.metadata()
    kind = DOODLE.encoder()
    assert json.loads(facts["model"]) == json.loads(json.dumps(DOODLE_TRANSFORMER.diffusers.model)), "the check has the family's sizes"
    assert json.loads(facts["text"]) == dict(DOODLE.diffusers.texts[kind.name])
    unet = Lumina2Transformer2DModel(**DOODLE_TRANSFORMER.diffusers.model)
    unet.load_state_dict({key[6:]: value for key, value in left.items() if key.startswith("model.")})
    unet.register_to_config(_class_name=type(unet).__name__)
    words = {key[5:]: value for key, value in left.items() if key.startswith("text.")}
    backbone = DiffusersTransformer(Path(), unet, nn.Identity(), 1.0, torch.device("cpu"), torch.float32)
    backbone.encoders_loaded[kind.diffusers] = text_model(kind, DOODLE.diffusers.texts[kind.name], words, file).eval()
    torch.testing.assert_close(left["sigma"], backbone.schedule.sigma)
    for name in ("short", "long"):
        states, _ = backbone.read(facts[name])
        with torch.no_grad():
            answer = backbone.predict(left["x"], left["t"], states.expand(len(left["x"]), -1, -1))
        for what, found in (("states", states), ("answer", answer)):
            wanted = left[f"{what} {name}"]
            difference = float((found - wanted).abs().max() / wanted.abs().max())
            print(f"{what} of the {name} text: largest difference {difference:.2e} of the largest value")
            assert difference < 1e-5
