"""A model family is one value: whatever has another's names, ids and sizes passes through the pack without another file being touched."""

import ast
import random
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from cidm_ops.adapters import linears
from cidm_ops.bank.bank import Bank
from cidm_ops.bank.concept import Concept
from cidm_ops.bank.concept_file import load_concept, save_concept
from cidm_ops.bank.exchange import import_file
from cidm_ops.bank.export import export_concept
from cidm_ops.bank.names import canonical
from cidm_ops.lowrank import LowRank
from cidm_ops.method.aggregation import aggregate, route, table
from cidm_ops.method.infusion import residual_layers
from cidm_ops.models.architecture import Architecture
from cidm_ops.models.blocks import Blocks, Linear, Sublayer
from cidm_ops.models.encoder import Encoder
from cidm_ops.models.family import Family
from cidm_ops.models.lora_files import LoraFiles
from cidm_ops.models.registry import families, family_of, forget, register
from cidm_ops.models.sd import DOODLE, SD1, SDXL
from cidm_ops.painting.config import WORDS, WORDS_AND_END
from cidm_ops.painting.paint import unit_noise
from cidm_ops.painting.scope import acting_at, limit_to_scope, token_masks
from cidm_ops.painting.weights import weights
from cidm_ops.schedule import Schedule
from cidm_ops.tokens import hide, positions_of, stand_for
from cidm_ops.training.dataset import Dataset
from cidm_ops.training.methods.cidm import row_of_layer
from cidm_ops.training.objective import add_noise, error

SCHEDULES = [Schedule.straight(3.0, 100), *(Schedule.of_alphas(torch.linspace(0.99, 0.01, 100), kind) for kind in ("eps", "v"))]
CIDM_OPS = Path(__file__).resolve().parents[2] / "cidm_ops"


def read_layer(flat: str) -> str | None:
    """``stack_0_reads_k`` and so on."""
    match = re.fullmatch(r"stack_(\d+)_(\w+)", flat)
    return f"stack.{match[1]}.{match[2].replace('_', '.')}" if match else None


def read_text_layer(flat: str) -> str | None:
    match = re.fullmatch(r"depth_(\d+)_proj", flat)
    return f"depth.{match[1]}.proj" if match else None


READING = Sublayer("reads", "cross", [Linear("reads.q", "query"), Linear("reads.k", "key", "text"), Linear("reads.v", "value", "text")])
THINKING = Sublayer("thinks", "feed_forward", [Linear("thinks.in", "inner"), Linear("thinks.out", "outer")])
WORD = {"qux": 90, "zap": 91, "gli": 92}
READER = Encoder(
    name="reader",
    width=6,
    chunk=7,
    start=None,
    end=3,
    pad=0,
    placeholders=WORD,
    kohya="lora_reader_",
    roots=("lora_reader", "the_reader"),
    read_layer=read_text_layer,
)
CROSS = Family(
    name="made",
    title="Made Up",
    architecture="made-2x6",
    encoders=[READER],
    blocks=[Blocks(r"stack\.\d+", [READING, THINKING])],
    latent_channels=16,
    factor=8,
    patch=2,
    size=64,
    order=["stack"],
    decoder=r"^stack\.1",
    files=LoraFiles(kohya="lora_made_", roots=("lora_made", "made_model"), read_layer=read_layer, modelspec="made-up/lora"),
)
# A transformer whose image and text tokens attend to each other: first in two streams, then in one.
JOINT = Family(
    name="joint",
    title="Made Of Joints",
    architecture="joint-1+1x12",
    encoders=[READER],
    blocks=[
        Blocks(
            r"double\.\d+",
            [
                Sublayer(
                    "mix", "joint", [Linear("mix.q", "query"), Linear("mix.text_q", "query", "text"), Linear("mix.text_v", "value", "text")]
                ),
                Sublayer("text_mlp", "feed_forward", [Linear("text_mlp.0", "inner", "text")]),
            ],
        ),
        Blocks(r"single\.\d+", [Sublayer("mix", "joint", [Linear("mix.q", "query", "both"), Linear("mix.v", "value", "both")])]),
    ],
    latent_channels=16,
    factor=8,
    patch=2,
    size=64,
    order=["double", "single"],
    layerwise=False,
)


@pytest.fixture
def made():
    for family in (CROSS, JOINT):
        register(family)
    yield CROSS
    for family in (CROSS, JOINT):
        forget(family)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.reads, self.thinks = nn.Module(), nn.Module()
        for name, width in (("q", 8), ("k", 6), ("v", 6)):
            setattr(self.reads, name, nn.Linear(width, 8, bias=False))
        self.thinks.add_module("in", nn.Linear(8, 16, bias=False))
        self.thinks.add_module("out", nn.Linear(16, 8, bias=False))


def tokenize(text: str, encoder: str = "") -> torch.Tensor:
    """Words by their length, the family's rare words by their ids, in its own chunks."""
    ids = [WORD.get(word, 10 + len(word)) for word in text.split()]
    parts = [ids[i : i + READER.room] for i in range(0, len(ids), READER.room)] or [[]]
    return torch.tensor([[*part, READER.end, *[READER.pad] * (READER.room - len(part))] for part in parts])


@pytest.fixture
def backbone(made) -> Any:
    blocks = {f"stack.{i}": Block() for i in range(2)}
    sites = {name: blocks[name.rpartition(".")[0]].reads for name in made.text_sites(blocks)}
    return SimpleNamespace(family=made, architecture="made-2x6", blocks=blocks, cross_attention=sites, tokenize=tokenize)


def concept(backbone, name: str = "rex", kind: str = "") -> Concept:
    torch.manual_seed(0)
    factors = {n: LowRank(torch.randn(m.out_features, 2), torch.randn(2, m.in_features)) for n, m in linears(backbone).items()}
    texts = {"reader.depth.0.proj": LowRank(torch.randn(6, 2), torch.randn(2, 6))}
    words = (f"<{name}.1>", f"<{name}.2>")
    tokens = {"reader": torch.randn(2, 2, 6)}
    return Concept(
        name=name,
        class_word="dog",
        architecture="made-2x6",
        fingerprint="abc",
        words=words,
        factors=factors,
        tokens=tokens,
        text_factors=texts,
        training={"kind": kind},
    )


def test_an_architecture_is_written_and_read_in_one_place():
    for text in ("sd1-16x768", "sdxl-70x2048", "sd1-7x160", "flux1-19+38x3072"):
        assert str(Architecture.parse(text)) == text
    assert Architecture.parse("flux1-19+38x3072").count == 57
    for wrong in ("sd1", "sd1-16", "16x768", "sd1-x768", ""):
        with pytest.raises(ValueError, match="such as sd1-16x768"):
            Architecture.parse(wrong)


def test_a_family_is_told_by_its_size_and_else_by_its_name(made):
    assert family_of("sd1-7x160") is DOODLE and family_of("sd1-16x768") is SD1 and family_of("sdxl-70x2048") is SDXL
    assert family_of("sd1-4x32") is SD1, "another size of the same kind"
    assert family_of("made-9x99") is made
    with pytest.raises(ValueError, match="strange-19x3072 is a model family that this version does not know"):
        family_of("strange-19x3072")
    with pytest.raises(ValueError, match="same architecture"):
        register(Family("made", "Other", "made-2x6", [READER], [], 4, 8, 64))


def test_layers_are_found_by_what_they_do(made, backbone):
    assert made.text_sites(backbone.blocks) == ["stack.0.reads", "stack.1.reads"] == list(backbone.cross_attention)
    assert list(linears(backbone, "cross_attention")) == [f"stack.{i}.reads.{p}" for i in range(2) for p in "qkv"]
    assert len(linears(backbone, "attention_ff")) == 10 and list(linears(backbone, r"thinks\.in")) == [
        "stack.0.thinks.in",
        "stack.1.thinks.in",
    ]
    assert made.block_of("stack.1.thinks.out") == "stack.1" and made.block_of("stem") == ""
    assert residual_layers(made, list(backbone.cross_attention), "decoder") == ["stack.1.reads"]
    assert row_of_layer(made, list(backbone.cross_attention), "block") == (0, 1)
    assert [n for n in linears(backbone) if made.reads_text(n)] == [f"stack.{i}.reads.{p}" for i in range(2) for p in "kv"]


def test_text_and_image_meet_in_joint_attention():
    names = ["double.0.mix.q", "double.0.mix.text_q", "double.0.mix.text_v", "double.0.text_mlp.0", "single.0.mix.q", "single.0.mix.v"]
    assert [JOINT.reads_text(n) for n in names] == [False, True, True, True, False, False]
    assert [JOINT.looks_at_text(n) for n in names] == [True, False, False, False, True, False]
    assert sorted(["single.0", "double.10", "double.9"], key=JOINT.place) == ["double.9", "double.10", "single.0"]
    assert not JOINT.text_sites(["double.0"]) and JOINT.sites(["double.0", "single.0"], "joint") == ["double.0.mix", "single.0.mix"]
    assert JOINT.parts("single.0", "joint") == ["mix.q", "mix.v"]
    assert (JOINT.cell, JOINT.grids(9, 16)) == (16, [(5, 8)])


def test_words_take_the_familys_own_ids_and_chunks(backbone):
    text, hidden = hide("a <rex.1> <rex.2> there", ["<rex.1>", "<rex.2>"], WORD)
    assert text.split() == ["a", "qux", "zap", "there"] and hidden == {90: "<rex.1>", 91: "<rex.2>"}
    assert positions_of(backbone, "a <rex.1> <rex.2>", ["<rex.2>", "<rex.1>"]) == [2, 1]
    said, found = stand_for(backbone, "see <rex> and more words in another chunk", {"<rex>": "teddy bear"})
    assert said.split()[1:3] == ["teddy", "bear"] and found["<rex>"].nonzero()[:, 0].tolist() == [1, 2]
    assert len(found["<rex>"]) == 2 * READER.chunk
    with pytest.raises(ValueError, match="at most 3 fit"):
        hide(" ".join(f"<x.{i}>" for i in range(4)), [f"<x.{i}>" for i in range(4)], WORD)


def test_concepts_act_where_they_are_named(backbone):
    rex = concept(backbone, kind="style")
    masks = token_masks(backbone, "a <rex.1> <rex.2>", [rex])
    assert acting_at(masks, [rex], WORDS, 7)[:, 0].tolist() == [0, 1, 1, 0, 0, 0, 0]
    assert acting_at(masks, [rex], WORDS_AND_END, 7)[:, 0].tolist() == [0, 1, 1, 1, 1, 1, 1]
    (less,) = limit_to_scope([rex], WORDS)
    assert {*rex.factors} - {*less.factors} == {"stack.0.reads.q", "stack.1.reads.q"}
    routes = route([rex])
    assert [n for n, way in routes.items() if way.reads_text] == [n for n in rex.factors if n.endswith(("reads.k", "reads.v"))]


def test_weights_are_those_of_the_layer_in_the_same_block(backbone):
    rex, layers = concept(backbone), list(backbone.cross_attention)
    assert weights("exact", backbone, "", [rex], {"rex": 0.5}).tolist() == [[0.5], [0.5]]
    given = torch.tensor([[0.25], [0.75]])
    for name, f in aggregate([rex], given, layers).items():
        torch.testing.assert_close(f.delta(), given[int(name[6]), 0] * rex.factors[name].delta())
    assert "stack.1.reads" in table(given, [rex], layers)


def test_a_concept_is_kept_and_exchanged_under_the_familys_names(backbone, tmp_path):
    rex = concept(backbone)
    bank = Bank(tmp_path / "bank").add(rex)
    assert {key.partition(".")[0] for key in load_file(bank.file("rex"))} == {
        *(f"lora_made_{n.replace('.', '_')}" for n in rex.factors),
        "lora_reader_depth_0_proj",
    }
    back = load_concept(bank.file("rex"))
    assert back.architecture == "made-2x6" and {*back.factors} == {*rex.factors} and {*back.text_factors} == {*rex.text_factors}
    lora, words = export_concept(rex, tmp_path)
    (read,), _ = import_file(lora, name="rex")
    assert read.architecture == "made-2x6", "told by the width of what reads the text"
    assert {*read.factors} == {*rex.factors} and {*read.text_factors} == {*rex.text_factors}
    for name, f in rex.factors.items():
        torch.testing.assert_close(read.factors[name].delta(), f.delta())
    (spoken,), _ = import_file(words, name="rex")
    assert spoken.architecture == "made-2x6" and spoken.tokens["reader"].shape == (2, 1, 6) and spoken.token_layers == (0, 0)


def test_files_of_others_are_read_by_the_familys_own_words(made, tmp_path):
    assert canonical("made_model.stack.1.thinks.in", made) == canonical("lora_made_stack_1_thinks_in", made) == "stack.1.thinks.in"
    assert canonical("the_reader.depth.3.proj", made) == "reader.depth.3.proj"
    assert canonical("lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k", made) is None
    state = {"made_model.stack.0.reads.k.lora_A.weight": torch.randn(2, 6), "made_model.stack.0.reads.k.lora_B.weight": torch.randn(8, 2)}
    save_file(state, tmp_path / "x.safetensors")
    (read,), _ = import_file(tmp_path / "x.safetensors")
    assert read.architecture == "made-2x6" and list(read.factors) == ["stack.0.reads.k"]
    save_file({"reader": torch.randn(1, 6)}, tmp_path / "words.safetensors")
    with pytest.raises(ValueError, match="it does not fit sdxl-70x2048"):
        import_file(tmp_path / "words.safetensors", architecture="sdxl-70x2048")


def test_a_concept_of_an_unknown_family_is_named_and_stays_listed(backbone, tmp_path):
    save_concept(concept(backbone), tmp_path / "rex.safetensors")
    forget(CROSS)
    assert list(Bank(tmp_path).names) == ["rex"]
    with pytest.raises(ValueError, match=r"rex\.safetensors: made-2x6 is a model family that this version does not know"):
        load_concept(tmp_path / "rex.safetensors")


def test_latents_have_the_familys_channels(made):
    assert made.latent_shape(64, 96) == (16, 8, 12) and unit_noise(made, 3, 2, 64, 96).shape == (2, 16, 8, 12)
    assert torch.equal(unit_noise(SD1, 3, 2, 64, 96)[1:], unit_noise(SD1, 4, 1, 64, 96)), "image i has the noise of its own seed"
    for schedule in SCHEDULES:
        draw = add_noise(torch.randn(2, 16, 8, 12), schedule, torch.Generator().manual_seed(0), 0.1, 5.0)
        assert draw.target.shape == (2, 16, 8, 12) and error(torch.zeros(2, 16, 8, 12), draw, torch.ones(2, 1, 8, 12)).shape == (2,)


def test_pictures_are_cut_to_the_familys_cells(made):
    data = Dataset([torch.rand(3, 40, 56)], ["a dog"], fit="as_given")
    assert data.draw(0, False, random.Random(0), made.cell)[0].shape == (3, 32, 48)
    assert data.draw(0, False, random.Random(0), SD1.cell)[0].shape == (3, 40, 56)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: s.prediction)
def test_a_schedule_finds_the_clean_latent_again(schedule):
    """Whatever is predicted: noise, scale, answer perfectly, and the clean latent comes back at every level."""
    torch.manual_seed(0)
    clean, noise = torch.randn(3, 16, 4, 4), torch.randn(3, 16, 4, 4)
    t = torch.tensor([0, 40, 99])
    x, answer = schedule.add_noise(clean, noise, t), schedule.target(clean, noise, t)
    for i in range(3):
        ratio = schedule.ratios()[t[i]].clamp(max=1e4)
        if schedule.signal[t[i]] < 1e-3:
            continue
        own, level = schedule.level_of(clean[i] + ratio * noise[i], ratio)
        torch.testing.assert_close(schedule.scale_input(own, level), x[i], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(schedule.denoised(own, answer[i], level), clean[i], atol=1e-3, rtol=1e-3)
    levels, timesteps = schedule.levels(5)
    assert levels[-1] == 0 and (levels.diff() < 0).all() and timesteps[0] == len(schedule.sigma) - 1 and timesteps[-1] == 0


def test_a_model_trained_to_the_very_noise_is_painted_from_a_finite_level():
    alphas = torch.linspace(0.99, 0, 100)
    levels, timesteps = Schedule.of_alphas(alphas, "v").levels(4)
    assert levels.isfinite().all() and timesteps[0] == 99


def test_families_need_nothing_but_python():
    """A family is data: what reads it may be a host, a test, or a machine without torch."""
    for file in sorted((CIDM_OPS / "models").glob("*.py")):
        names = [n.module or "" for n in ast.walk(ast.parse(file.read_text())) if isinstance(n, ast.ImportFrom) and n.level == 0]
        names += [a.name for n in ast.walk(ast.parse(file.read_text())) if isinstance(n, ast.Import) for a in n.names]
        assert {n.split(".")[0] for n in names} <= {"re", "typing", "dataclasses", "functools", "collections"}, file


IMPORTERS = {"bank/reference.py", "engines/checkpoint.py", "doodle/world.py", "benchmarks/quality/paper.py"}


def test_nobody_else_spells_a_familys_names():
    """Importers of foreign files name what those files name; ``world.py`` and ``paper.py`` hold other numbers."""
    spelled = re.compile(r"attn2|\bclip_[lg]\b|49406|49407|\b77\b|(img|txt)_attn|\b(double|single)_blocks|(context|noise)_refiner")
    for file in sorted(CIDM_OPS.rglob("*.py")):
        own = str(file.relative_to(CIDM_OPS))
        if own not in IMPORTERS and not own.startswith("models/"):
            found = [line for line in file.read_text(encoding="utf-8").splitlines() if spelled.search(line)]
            assert not found, f"{own}: {found[0].strip()}"


def test_every_known_family_is_whole():
    for family in families():
        assert family_of(family.architecture) is family and Architecture.parse(family.architecture).family == family.name
        assert {e.name for e in family.encoders} == {*family.diffusers.texts}
        for encoder in family.encoders:
            assert family.diffusers.texts[encoder.name]["hidden_size"] == encoder.width and encoder.end in encoder.special
        if not family.layerwise:
            assert family.latent_shape(1024, 1024) in ((16, 128, 128), (128, 64, 64)) and family.cell == 16
            continue
        assert family.diffusers.vae["latent_channels"] == family.latent_channels
        assert family.diffusers.model["sample_size"] * family.factor == family.size
        assert family.diffusers.model["cross_attention_dim"] == family.width == sum(e.width for e in family.encoders)
