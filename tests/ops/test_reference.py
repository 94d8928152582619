"""The reference implementation's checkpoints become concepts, and a checkpoint that wants to run code runs none."""

import os
import pickle

import pytest
import torch

from cidm_ops.bank.bank import Bank
from cidm_ops.bank.exchange import import_file, import_into
from cidm_ops.models import sd

SD1, SDXL = sd.SD1.architecture, sd.SDXL.architecture

PLACES = [(f"down_blocks.{b}", i) for b in range(3) for i in range(2)] + [("mid_block", 0)]
PLACES += [(f"up_blocks.{b}", i) for b in range(1, 4) for i in range(3)]
LAYERS = [f"{block}.attentions.{i}.transformer_blocks.0.attn2.to_{p}" for block, i in PLACES for p in ("q", "k", "v", "out.0")]


def checkpoint(words=("<dog1>", "<dog2>"), **more):
    """What CIDM's trainer writes: factors of rank 4 that act as they are, 16 rows for each word."""
    torch.manual_seed(0)
    unet = {}
    for layer in LAYERS:
        out, width = sd.SD1.shapes[layer]
        unet |= {f"{layer}.lora_up.weight": torch.randn(out, 4), f"{layer}.lora_down.weight": torch.randn(4, width)}
    rows = {word: torch.randn(16, 768) for word in words}
    return {"params": {"new_concept_embedding": rows, "unet": unet, "text_encoder": {}, "lag": {}} | more}


def test_a_checkpoint_of_the_reference_becomes_a_concept(tmp_path):
    content = checkpoint()
    torch.save(content, tmp_path / "edlora_model-latest.pth")
    (concept,), warnings = import_file(tmp_path / "edlora_model-latest.pth", class_word="dog")
    assert (concept.name, concept.architecture, concept.words) == ("dog", SD1, ("<dog.1>", "<dog.2>"))
    assert list(concept.factors) == LAYERS and not concept.text_factors
    for layer, f in concept.factors.items():
        up, down = (content["params"]["unet"][f"{layer}.lora_{side}.weight"] for side in ("up", "down"))
        assert torch.equal(f.delta(), up @ down)
    for i, rows in enumerate(content["params"]["new_concept_embedding"].values()):
        assert torch.equal(concept.tokens["clip_l"][i], rows)
    assert warnings == ["the words <dog1> <dog2> are now <dog.1> <dog.2>"]
    bank, _, _ = import_into(Bank(tmp_path / "bank"), tmp_path / "edlora_model-latest.pth")
    assert bank.read("a <dog>").text == "a <dog.1> <dog.2>"
    assert torch.equal(bank.get("dog").tables["<dog.2>"].rows["clip_l"], concept.tokens["clip_l"][1])


def test_words_of_two_encoders_are_sdxl(tmp_path):
    content = checkpoint()
    params = content["params"]
    params["unet"] = {
        f"down_blocks.1.attentions.0.transformer_blocks.1.attn2.to_k.lora_{side}.weight": torch.randn(*shape)
        for side, shape in (("up", (640, 4)), ("down", (4, 2048)))
    }
    params["new_concept_embedding"] = {"<dog1>": torch.randn(70, 768)}
    params["new_concept_embedding_2"] = {"<dog1>": torch.randn(70, 1280)}
    torch.save(content, tmp_path / "x.pth")
    (concept,), _ = import_file(tmp_path / "x.pth")
    assert concept.architecture == SDXL and {e: t.shape for e, t in concept.tokens.items()} == {
        "clip_l": (1, 70, 768), "clip_g": (1, 70, 1280)
    }  # fmt: skip


def test_words_of_several_names_take_that_of_the_file_and_what_is_unknown_is_told(tmp_path):
    torch.save(checkpoint(("<dog1>", "<cat1>"), lag={"dog": torch.ones(2)}), tmp_path / "both.pth")
    (concept,), warnings = import_file(tmp_path / "both.pth")
    assert concept.words == ("<both.1>", "<both.2>") and "params.lag.dog" in warnings[-1]


class Malicious:
    """Unpickling it makes a folder."""

    def __init__(self, place):
        self.place = place

    def __reduce__(self):
        return os.mkdir, (str(self.place),)


def test_a_checkpoint_that_wants_to_run_code_is_refused_and_nothing_runs(tmp_path):
    torch.save(checkpoint(lag=Malicious(tmp_path / "owned")), tmp_path / "bad.pth")
    with pytest.raises(ValueError, match=r"^bad\.pth: it wants to run code \(\w+\.mkdir\): refused, and nothing was executed$"):
        import_file(tmp_path / "bad.pth")
    assert not (tmp_path / "owned").exists()
    torch.load(tmp_path / "bad.pth", weights_only=False)
    assert (tmp_path / "owned").exists(), "the file does no harm: the test shows nothing"


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_bare_pickle_that_wants_to_run_code_is_refused_in_the_same_words(protocol, tmp_path, recwarn):
    data = pickle.dumps({"params": Malicious(tmp_path / "owned")}, protocol)
    (tmp_path / "bad.pth").write_bytes(data)
    with pytest.raises(ValueError, match=r"^bad\.pth: it wants to run code \(\w+\.mkdir\): refused, and nothing was executed$"):
        import_file(tmp_path / "bad.pth")
    assert not (tmp_path / "owned").exists() and not recwarn.list
    pickle.loads(data)
    assert (tmp_path / "owned").exists(), "the file does no harm: the test shows nothing"


BROKEN = {
    "rows": (dict(new_concept_embedding={"<dog1>": torch.zeros(15, 768)}), r"\['<dog1>'\] is \(15, 768\): expected .*\[16, D\]"),
    "not a number": (dict(new_concept_embedding={"<dog1>": torch.full((16, 768), torch.nan)}), "finite"),
    "no words": (dict(new_concept_embedding={}), "has no words"),
    "other words": (dict(new_concept_embedding_2={"<dog2>": torch.zeros(16, 1280)}), "other words"),
    "no factors": (dict(unet={}), "no LoRA"),
    "a list": (dict(unet=[1]), "params.unet is list"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_checkpoint_that_is_not_whole_is_named_with_its_part(what, tmp_path):
    change, said = BROKEN[what]
    torch.save(checkpoint(**change), tmp_path / "x.pth")
    with pytest.raises(ValueError, match=rf"^x\.pth: .*{said}"):
        import_file(tmp_path / "x.pth")


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04 cut", b"\x80\x02.", b"\x10\0\0\0\0\0\0\0{ not json", b"hello"])
def test_a_file_of_no_kind_is_named(data, tmp_path):
    (tmp_path / "x.pth").write_bytes(data)
    with pytest.raises(ValueError, match=r"^x\.pth: "):
        import_file(tmp_path / "x.pth")
    with pytest.raises(FileNotFoundError, match=r"y\.pth"):
        import_file(tmp_path / "y.pth")
