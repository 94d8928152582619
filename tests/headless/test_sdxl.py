"""SDXL: two text encoders, a pooled text, and words that the layers of a block share."""

import pytest
import torch

from cidm_ops.bank.bank import Bank
from cidm_ops.bank.concept_file import load_concept
from cidm_ops.engines.diffusers import load
from cidm_ops.painting.paint import SamplingConfig, paint, unit_noise
from cidm_ops.tokens import Table, encode_layerwise
from cidm_ops.training.dataset import Dataset
from cidm_ops.training.method import Task
from cidm_ops.training.methods import configure
from cidm_ops.training.methods.cidm import row_of_layer
from cidm_ops.training.task import learn_into

RECIPE = configure("cidm", steps=4, lr=1e-2, lr_tokens=1e-2, norm_stop=10)


@pytest.fixture(scope="module")
def backbone(tiny_sdxl):
    return load(tiny_sdxl)


def learn(folder, backbone, name="rex", recipe=RECIPE):
    data = Dataset([torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(i)) for i in range(2)], ["a dog"] * 2)
    return learn_into(Bank(folder), backbone, data, Task(name=name, class_word="dog", config=recipe))


def test_the_second_tokenizer_pads_with_zero(backbone):
    first, second = (backbone.tokenize("a dog", encoder)[0].tolist() for encoder in backbone.encoders)
    assert first[:4] == second[:4] and set(first[4:]) == {49407} and set(second[4:]) == {0}


def test_the_pooled_state_and_both_widths_reach_the_model(backbone):
    assert backbone.architecture == "sdxl-8x80"
    with torch.no_grad():
        text, other = (encode_layerwise(backbone, [t], {}) for t in ("a dog", "a red car"))
        assert text.states.shape == (1, 1, 77, 80) and text.pooled.shape == (1, 48)
        x, t = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([500])
        plain = backbone.predict(x, t, text.context, text.pooled)
        assert not torch.allclose(backbone.predict(x, t, text.context, other.pooled), plain, atol=1e-6)


def test_the_groups_of_a_word(backbone):
    names = list(backbone.cross_attention)
    assert row_of_layer(backbone.family, names, "layer") == tuple(range(8))
    assert row_of_layer(backbone.family, names, "block") == (0, 0, 1, 1, 2, 2, 3, 3)
    assert row_of_layer(backbone.family, names, "one") == (0,) * 8


@pytest.mark.parametrize(("groups", "rows"), [("block", 4), ("layer", 8), ("one", 1)])
def test_a_concept_is_learned_for_both_encoders(backbone, tmp_path, groups, rows):
    bank, concept, _, _ = learn(tmp_path, backbone, recipe=RECIPE.update(groups=groups))
    assert {e: tuple(t.shape) for e, t in concept.tokens.items()} == {"clip_l": (2, rows, 32), "clip_g": (2, rows, 48)}
    assert load_concept(bank.file("rex")).tables["<rex.1>"].layers == row_of_layer(backbone.family, list(backbone.cross_attention), groups)
    first = concept.tokens["clip_g"]
    assert (first[0] - first[0, :1]).abs().max() > 0 or rows == 1, "the rows of the second encoder did not learn"


def test_layers_of_a_block_share_an_encoding_and_concepts_of_other_groups_mix(backbone):
    names = list(backbone.cross_attention)
    tables = {}
    for word, groups in (("<a.1>", "block"), ("<b.1>", "layer")):
        layers = row_of_layer(backbone.family, names, groups)
        generator = torch.Generator().manual_seed(len(tables))
        tables[word] = Table({e: torch.randn(1 + max(layers), w, generator=generator) for e, w in (("clip_l", 32), ("clip_g", 48))}, layers)
    with torch.no_grad():
        assert encode_layerwise(backbone, ["a <a.1>"], tables).states.shape[1] == 4
        both = encode_layerwise(backbone, ["a <a.1>", "a <a.1> and <b.1>", "a dog"], tables)
        assert both.states.shape[1] == 8
        for i, prompt in enumerate(("a <a.1>", "a <a.1> and <b.1>", "a dog")):
            torch.testing.assert_close(both.context[i : i + 1], encode_layerwise(backbone, [prompt], tables).context, atol=1e-5, rtol=1e-5)


def test_concepts_become_pictures(backbone, tmp_path):
    learn(tmp_path, backbone)
    bank, _, _, _ = learn(tmp_path, backbone, "ted", RECIPE.update(groups="layer"))
    noise = unit_noise(backbone.family, 0, 2, 64, 64)
    pictures = [paint(backbone, bank, prompt, noise, SamplingConfig(2))[0] for prompt in ("a dog", "a <rex>", "a <rex> and <ted>")]
    assert all(p.shape == (2, 3, 64, 64) and p.isfinite().all() for p in pictures)
    assert not torch.equal(pictures[0], pictures[1]) and not torch.equal(pictures[1], pictures[2])
