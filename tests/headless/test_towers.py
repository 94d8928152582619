"""Image towers: what is told apart, the user's own CLIP read as transformers reads it, and scores equal to the library's own."""

import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, CLIPModel, ViTConfig, ViTModel

from cidm_ops.doodle.concepts import CONCEPTS, examples
from cidm_ops.engines.doodle import DoodleReader, DoodleTower
from cidm_ops.engines.tokenizer import tokenize
from cidm_ops.engines.towers import load_tower, prepare
from cidm_ops.evaluation.doodle import pictured
from cidm_ops.measure.presence import Presence, area_under_curve, separation
from cidm_ops.measure.scores import caption_cosines, embed, image_alignment, text_alignment


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory):
    """A small CLIP of both sides in transformers' layout, weights random."""
    torch.manual_seed(0)
    small = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=1, hidden_act="quick_gelu")
    text = {**small, "vocab_size": 49408, "eos_token_id": 49407, "bos_token_id": 49406}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config={**small, "image_size": 64, "patch_size": 16}, projection_dim=48))
    folder = tmp_path_factory.mktemp("clip")
    model.save_pretrained(folder)
    return folder, model.eval()


def test_the_shipped_tower_tells_individuals_apart():
    """Pairs of one individual above pairs of two, of all concepts and of those of one class only."""
    tower = DoodleTower()
    seen = {name: embed(tower, pictured(examples(concept, 5, seed=2))) for name, concept in CONCEPTS.items()}
    assert separation(seen) >= 0.99
    own, other = [], []
    for a, b in (("dog", "dog2"), ("cat", "cat2")):
        for name in (a, b):
            own.append((seen[name] @ seen[name].T)[~torch.eye(5, dtype=torch.bool)])
        other.append((seen[a] @ seen[b].T).flatten())
    assert area_under_curve(torch.cat(own), torch.cat(other)) >= 0.99
    fresh = Presence({name: embed(tower, pictured(examples(concept, 3, seed=3))) for name, concept in CONCEPTS.items()})
    right = [found == name for name, embeddings in seen.items() for found in fresh.found(embeddings)]
    assert np.mean(right) >= 0.95  # 48 of 50 with three references each


def test_alignment_is_what_transformers_computes(tiny_clip):
    """TA of a picture is 2.5 max(0, cosine), and CLIP's own logits are that cosine times its scale."""
    folder, model = tiny_clip
    tower = load_tower(str(folder))
    pictures = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    words = ["a dog on the beach", "a cat", "the red boat, at night"]
    pixels = prepare(pictures, 64, (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
    with torch.no_grad():
        out = model(input_ids=torch.cat([tokenize(w) for w in words]), pixel_values=pixels)
    cosines = out.logits_per_image / model.logit_scale.exp().item()
    seen, read = embed(tower, pictures), torch.nn.functional.normalize(tower.captions(words), dim=-1)
    assert torch.allclose(seen @ read.T, cosines, atol=1e-5)
    assert torch.allclose(caption_cosines(seen, read), cosines.diagonal(), atol=1e-5)
    assert text_alignment(seen, read) == pytest.approx(float((2.5 * cosines.diagonal().relu()).mean()), abs=1e-5)
    assert image_alignment(seen, seen) == pytest.approx(float((out.image_embeds @ out.image_embeds.T).mean()), abs=1e-5)


def test_a_single_file_of_clip_is_its_folder(tiny_clip, tmp_path):
    folder, _ = tiny_clip
    shutil.copy(folder / "model.safetensors", tmp_path / "clip.safetensors")
    one, other = load_tower(str(tmp_path / "clip.safetensors")), load_tower(str(folder))
    picture = torch.rand(2, 3, 80, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert torch.allclose(one(picture), other(picture), atol=1e-5)
    assert torch.allclose(one.captions(["a dog"]), other.captions(["a dog"]), atol=1e-5) and one.fingerprint == other.fingerprint


def test_an_image_side_alone_has_no_captions(tiny_clip, tmp_path):
    folder, _ = tiny_clip
    state = {k: v for k, v in load_file(folder / "model.safetensors").items() if k.startswith("vis")}
    save_file(state, tmp_path / "vision.safetensors")
    assert load_tower(str(tmp_path / "vision.safetensors")).captions(["a dog"]) is None


def test_a_dino_is_its_class_token(tmp_path):
    torch.manual_seed(0)
    model = ViTModel(
        ViTConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=8)
    )
    model.save_pretrained(tmp_path)
    picture = torch.rand(2, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        want = model.eval()(pixel_values=prepare(picture, 32, (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)))
    assert torch.allclose(load_tower(str(tmp_path))(picture), want.last_hidden_state[:, 0], atol=1e-6)


def test_what_is_no_tower_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such image tower"):
        load_tower(str(tmp_path / "none"))
    with pytest.raises(ValueError, match="config.json"):
        load_tower(str(tmp_path))
    save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="a.safetensors lacks vision_model"):
        load_tower(str(tmp_path / "a.safetensors"))
    (tmp_path / "b.safetensors").write_bytes(b"x" * 40)
    with pytest.raises(ValueError, match="b.safetensors is damaged"):
        load_tower(str(tmp_path / "b.safetensors"))


def test_captions_lie_near_their_pictures():
    reader = DoodleReader()
    captions = torch.nn.functional.normalize(reader.captions(["a dog in the snow", "a duck in the snow"]), dim=-1)
    dogs, ducks = (embed(reader, pictured(examples(CONCEPTS[name], 4))) for name in ("dog", "duck"))
    assert (dogs @ captions.T).mean(0).argmax() == 0 and (ducks @ captions.T).mean(0).argmax() == 1
