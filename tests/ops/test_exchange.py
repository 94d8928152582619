"""Files of others go into a bank, are found by prompts, and concepts go out as files for others."""

import base64
import json
import math
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file
from test_community import BLOCK, KEY, plain, randn

from cidm_ops.bank.bank import Bank
from cidm_ops.bank.concept import Concept
from cidm_ops.bank.concept_file import load_concept
from cidm_ops.bank.exchange import import_file, import_into
from cidm_ops.bank.export import export_concept, export_merged
from cidm_ops.lowrank import LowRank
from cidm_ops.models import sd

DOODLE, SD1, SDXL = sd.DOODLE.architecture, sd.SD1.architecture, sd.SDXL.architecture


def test_triggers_and_authors_come_from_the_metadata(tmp_path):
    picture = base64.b64encode(b"\xff\xd8picture").decode()
    metadata = {
        "modelspec.trigger_phrase": "sks dog, fluffy", "modelspec.author": "someone", "modelspec.license": "CC0",
        "modelspec.thumbnail": f"data:image/jpeg;base64,{picture}", "ss_tag_frequency": json.dumps({"10_dog": {"dog": 3, "sks": 9}}),
    }  # fmt: skip
    save_file(plain(), tmp_path / "my dog v1.0.safetensors", metadata)
    (concept,), warnings = import_file(tmp_path / "my dog v1.0.safetensors")
    assert (concept.name, concept.words, concept.triggers) == ("my_dog_v1_0", (), ("sks dog", "fluffy"))
    assert concept.about == {"author": "someone", "license": "CC0"} and concept.preview == b"\xff\xd8picture" and not warnings
    assert import_file(tmp_path / "my dog v1.0.safetensors", triggers=["rex"])[0][0].triggers == ("rex",)
    del metadata["modelspec.trigger_phrase"]
    save_file(plain(), tmp_path / "x.safetensors", metadata)
    (concept,), (warning,) = import_file(tmp_path / "x.safetensors")
    assert concept.triggers == () and "<x>" in warning and "'sks'" in warning


def test_a_bank_takes_a_lora_once_and_prompts_find_it_by_its_trigger(tmp_path):
    save_file(plain(), tmp_path / "rex.safetensors")
    bank = Bank(tmp_path / "bank")
    bank, (concept,), _ = import_into(bank, tmp_path / "rex.safetensors", triggers=("sks dog",))
    assert bank.read("a SKS dog in the snow").strengths == {"rex": 1.0} and bank.read("<rex:0.5>").text == "sks dog"
    torch.testing.assert_close(bank.get("rex").factors[KEY].delta(), concept.factors[KEY].delta())
    again = import_into(bank, tmp_path / "rex.safetensors", triggers=("sks dog",))[0]
    assert again.names == ["rex"]
    with pytest.raises(ValueError, match="'rex' already"):
        import_into(bank, tmp_path / "rex.safetensors", triggers=("other",))
    bank = import_into(bank, tmp_path / "rex.safetensors", triggers=("other",), existing="replace")[0]
    assert bank.get("rex").triggers == ("other",)


EMBEDDINGS = {
    "emb_params": ({"emb_params": randn(2, 768)}, SD1),
    "diffusers": ({"<cat-toy>": randn(768)}, SD1),
    "automatic1111": ({"string_to_param": {"*": torch.nn.Parameter(randn(3, 768))}, "string_to_token": {"*": 265}, "name": "cat"}, SD1),
    "sdxl": ({"clip_l": randn(2, 768), "clip_g": randn(2, 1280)}, SDXL),
    "doodle": ({"clip_l": randn(2, 160)}, DOODLE),
}


@pytest.mark.parametrize("kind", EMBEDDINGS)
def test_an_embedding_becomes_words_that_all_layers_read_alike(kind, tmp_path):
    content, architecture = EMBEDDINGS[kind]
    if "string_to_param" in content:
        torch.save(content, file := tmp_path / "cat.pt")
    else:
        save_file(content, file := tmp_path / "cat.safetensors")
    (concept,), _ = import_file(file, class_word="cat")
    rows = next(iter(content.get("string_to_param", content).values())).reshape(-1, 160 if kind == "doodle" else 768)
    assert concept.architecture == architecture and not concept.all_factors
    assert concept.words == tuple(f"<cat.{i + 1}>" for i in range(len(rows)))
    assert torch.equal(concept.tokens["clip_l"][:, 0], rows)
    assert concept.token_layers == (0,) * int(architecture.split("-")[1].split("x")[0])
    bank = Bank(tmp_path / "bank").add(concept)
    assert bank.read("a <cat>").text == "a " + " ".join(concept.words)
    assert torch.equal(bank.get("cat").tokens["clip_l"], concept.tokens["clip_l"])


@pytest.mark.parametrize("content", [{"emb_params": randn(2, 1024)}, {"clip_g": randn(2, 1280)}, {"emb_params": randn(1, 768) * math.nan}])
def test_an_embedding_for_another_model_is_refused(content, tmp_path):
    save_file(content, tmp_path / "bad.safetensors")
    with pytest.raises(ValueError, match=r"bad\.safetensors: "):
        import_file(tmp_path / "bad.safetensors")


def ours(name="dog", rank=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    pairs = {k: (torch.randn(8, rank, generator=generator), torch.randn(rank, 6, generator=generator)) for k in (KEY, f"{BLOCK}.ff.net.2")}
    conv = LowRank(torch.randn(4, rank, generator=generator), torch.randn(rank, 45, generator=generator), (3, 3))
    layers = {layer: LowRank(*pair) for layer, pair in pairs.items()} | {"conv_in": conv}
    tokens = {"clip_l": torch.randn(2, 3, 160, generator=generator)}
    words = (f"<{name}.1>", f"<{name}.2>")
    return Concept(
        name=name,
        class_word="dog",
        words=words,
        factors=layers,
        tokens=tokens,
        architecture=DOODLE,
        fingerprint="abc",
        token_layers=(0, 0, 1, 1, 1, 2, 2),
        about={"author": "me"},
    )


def test_an_export_is_a_lora_and_an_embedding_and_comes_back(tmp_path):
    concept = ours()
    lora, words = export_concept(concept, tmp_path)
    assert [file.name for file in (lora, words)] == ["dog.safetensors", "dog_words.safetensors"]
    (back,), _ = import_file(lora, architecture=DOODLE.replace("160", "6"))
    for layer, f in concept.factors.items():
        assert torch.equal(back.factors[layer].delta(), f.delta()) and back.factors[layer].kernel == f.kernel
    assert back.about == {"author": "me"}
    (spoken,), _ = import_file(words, name="dog")
    mean = concept.tokens["clip_l"][:, [0, 0, 1, 1, 1, 2, 2]].mean(1)
    torch.testing.assert_close(spoken.tokens["clip_l"][:, 0], mean)


def test_our_own_file_is_imported_whole_under_any_name(tmp_path):
    odd = Bank(tmp_path / "odd").add(ours())
    with pytest.raises(ValueError, match=rf"^dog\.safetensors: a change of a weight \[8, 6\], which does not fit {DOODLE}: "):
        import_file(odd.file("dog"))
    bank = Bank(tmp_path).add(replace(ours(), architecture=DOODLE.replace("160", "127")))  # a size whose layers are not known
    (back,), warnings = import_file(bank.file("dog"), name="rex")
    assert back.words == ("<rex.1>", "<rex.2>") and not warnings
    assert replace(back, name="dog", words=ours().words, factors={}, tokens={}) == replace(
        load_concept(bank.file("dog")), factors={}, tokens={}
    )


def test_several_concepts_as_one_lora_and_its_error(tmp_path):
    concepts, weights = [ours("dog"), ours("cat", 3, 1)], [1.0, -0.5]
    layers = concepts[0].factors
    whole = {layer: sum(w * c.factors[layer].delta() for w, c in zip(weights, concepts, strict=True)) for layer in layers}
    assert export_merged(concepts, weights, 5, tmp_path / "all.safetensors") < 1e-6
    (exact,), _ = import_file(tmp_path / "all.safetensors", architecture="sd1-7x6")
    error = export_merged(concepts, weights, 2, tmp_path / "two.safetensors")
    (near,), _ = import_file(tmp_path / "two.safetensors", architecture="sd1-7x6")
    for layer in layers:
        torch.testing.assert_close(exact.factors[layer].delta(), whole[layer], atol=1e-5, rtol=1e-5)
        assert near.factors[layer].rank == 2 and near.factors[layer].kernel == layers[layer].kernel
    lost = sum(float((near.factors[layer].delta() - whole[layer]).norm() ** 2) for layer in layers)
    assert error == pytest.approx(math.sqrt(lost / sum(float(d.norm() ** 2) for d in whole.values())), rel=1e-4)
    with pytest.raises(ValueError, match="1 strengths for 2 concepts"):
        export_merged(concepts, [1.0], 2, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="sd1-16x768 and for sd1-7x160"):
        export_merged([ours(), replace(ours("cat"), architecture=SD1)], weights, 2, tmp_path / "x.safetensors")
