"""Infusion in closed form: what a residual at the class word adds to cross-attention, and how its files keep and tell it."""

import json

import pytest
import torch
from safetensors import safe_open
from torch import nn
from torch.nn import functional as F

from cidm_ops.bank import manage
from cidm_ops.bank.archive import compress_bank, expand_into
from cidm_ops.bank.bank import Bank
from cidm_ops.bank.concept import Concept
from cidm_ops.bank.concept_file import load_concept, save_concept
from cidm_ops.bank.export import export_concept, export_merged
from cidm_ops.hub import Sites, intercept
from cidm_ops.method.attention import word_attention
from cidm_ops.method.infusion import (
    foundation_anchor,
    infused_value,
    infusion,
    masked_error,
    residual_layers,
)
from cidm_ops.models.sd import SD1
from cidm_ops.painting.config import ResidualConfig
from cidm_ops.painting.rows import Job, Row
from cidm_ops.painting.scene import Scene
from cidm_ops.painting.state import RunState
from cidm_ops.painting.unet_call import Moment, UnetCall
from cidm_ops.row_plan import RowPlan, TokenResidual

HEADS = 2


class Attention(nn.Module):
    """A cross-attention layer as both engines have it."""

    def __init__(self, width=8, text=6, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.heads = HEADS
        self.to_q, self.to_k, self.to_v = (nn.Linear(n, width, bias=False).double() for n in (width, text, text))
        self.to_out = nn.Sequential(nn.Linear(width, width).double(), nn.Dropout(0.0))

    def attend(self, q, k, v):
        q, k, v = (x.unflatten(-1, (HEADS, -1)).transpose(1, 2) for x in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)

    def forward(self, x, context):
        return self.to_out(self.attend(self.to_q(x), self.to_k(context), self.to_v(context)))


def infused(layer, residuals, sources, stream="dual"):
    """While open, row 0 of what goes through the layer carries residuals, and takes its attention from the row that ``sources`` says."""
    scene = Scene(infusion=ResidualConfig(stream))
    state = RunState(scene, ["a"], layer.attend, lambda part: part)
    plan = RowPlan(residuals=tuple(residuals))
    rows = [Row(plan, 0, Job(0, foundation=bool(b)), source, None) for b, source in enumerate(sources)]
    call = UnetCall(state, Sites({}, {"a": layer}, {}, ()), rows, (4, 4), Moment(residuals=True))
    call.grid = [4, 4]
    return intercept({"a": layer}, call.attention, call.residuals.change_keys if stream == "released_code" else None)


@pytest.fixture
def layer():
    return Attention()


def given(rows=2, seed=1):
    g = torch.Generator().manual_seed(seed)
    x, context = (torch.randn(rows, n, c, generator=g).double() for n, c in ((16, 8), (5, 6)))
    return x, context, torch.tensor([0.0, 1, 1, 0, 0]), torch.randn(8, generator=g).double()


def test_the_closed_form_is_attention_to_the_infused_value(layer):
    x, context, marks, r = given()
    q, k, v = layer.to_q(x), layer.to_k(context), layer.to_v(context)
    slow = layer.attend(q, k, infused_value(v, marks, r)) - layer.attend(q, k, v)
    assert torch.allclose(infusion(word_attention(q, k, marks, HEADS), r).double(), slow, atol=1e-6)


def test_a_text_that_the_host_repeats_is_marked_in_every_copy(layer):
    x, context, marks, _ = given()
    q = layer.to_q(x)
    once, twice = (word_attention(q, layer.to_k(context.repeat(1, n, 1)), marks, HEADS) for n in (1, 2))
    assert torch.allclose(once, twice, atol=1e-6)


def test_in_a_dual_stream_the_map_is_the_foundations(layer):
    x, context, marks, r = given()
    x[0] += 1  # the customised features have moved
    context = context[:1].expand(2, -1, -1)
    with infused(layer, [TokenResidual({"a.to_v": r}, marks)], [1, 1]), torch.no_grad():
        out = layer(x, context)
    q, k, v = layer.to_q(x), layer.to_k(context), layer.to_v(context)
    want = layer.to_out(layer.attend(q[1:], k[1:], infused_value(v[:1], marks, r)))
    assert torch.allclose(out[:1], want, atol=1e-6)
    assert torch.equal(out[1:], layer(x, context)[1:]), "the foundation is the base"


def test_in_a_single_stream_the_map_is_its_own_and_the_released_code_infuses_keys_too(layer):
    x, context, marks, r = given()
    residual = TokenResidual({"a.to_v": r, "a.to_k": 2 * r}, marks)
    q, k, v = layer.to_q(x), layer.to_k(context), layer.to_v(context)
    for keys in (False, True):
        with infused(layer, [residual], [0, 1], "released_code" if keys else "single"), torch.no_grad():
            out = layer(x, context)
        own = infused_value(k[:1], marks, 2 * r) if keys else k[:1]
        assert torch.allclose(out[:1], layer.to_out(layer.attend(q[:1], own, infused_value(v[:1], marks, r))), atol=1e-6)
        assert torch.equal(out[1:], layer(x, context)[1:])


def test_two_concepts_add_up_and_a_mask_limits_one(layer):
    x, context, marks, r = given(1)
    other = torch.tensor([0.0, 0, 0, 1, 0])
    left = torch.zeros(8, 8)
    left[:, :4] = 1
    q, k, v = layer.to_q(x), layer.to_k(context), layer.to_v(context)
    both = [TokenResidual({"a.to_v": r}, marks), TokenResidual({"a.to_v": -2 * r}, other)]
    plain = layer.attend(q, k, v)
    inner = Attention()
    inner.load_state_dict(layer.state_dict())
    inner.to_out = nn.Sequential(nn.Identity())

    def painted(residuals):
        with infused(inner, residuals, [0], "single"), torch.no_grad():
            return inner(x, context)

    want = layer.attend(q, k, infused_value(infused_value(v, marks, r), other, -2 * r))
    assert torch.allclose(painted(both), want, atol=1e-6)
    half = painted([TokenResidual({"a.to_v": r}, marks, left)]).unflatten(1, (4, 4))
    assert torch.equal(half[:, :, 2:], plain.unflatten(1, (4, 4))[:, :, 2:])
    assert torch.allclose(half[:, :, :2], painted([both[0]]).unflatten(1, (4, 4))[:, :, :2], atol=1e-6)


def test_the_losses_weigh_by_the_mask():
    guess, target, foundation = (torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(i)) for i in range(3))
    mask = torch.zeros(2, 1, 4, 4)
    mask[:, :, :2] = 1
    inside = (guess - target)[:, :, :2].square().mean((1, 2, 3))
    assert torch.allclose(masked_error(guess, target, mask), inside / 2), "not divided by the mask's area"
    assert torch.allclose(masked_error(guess, target, None), (guess - target).square().mean((1, 2, 3)))
    outside = (guess - foundation)[:, :, 2:].square().mean((1, 2, 3))
    assert torch.allclose(foundation_anchor(guess, foundation, mask), outside / 2)
    assert not foundation_anchor(guess, foundation, None).any()


def test_layers_are_chosen_by_name():
    names = ["down_blocks.0.attn2", "mid_block.attn2", "up_blocks.1.attn2"]
    assert residual_layers(SD1, names) == names
    assert residual_layers(SD1, names, "decoder") == names[2:]
    assert residual_layers(SD1, names, r"mid|up_blocks\.1") == names[1:]
    for wrong in ("nowhere", "("):
        with pytest.raises(ValueError, match="layers"):
            residual_layers(SD1, names, wrong)


def concept(name="rex", seed=0):
    g = torch.Generator().manual_seed(seed)
    residuals = {f"up_blocks.{i}.attentions.0.transformer_blocks.0.attn2.to_v": torch.randn(8, generator=g) for i in range(3)}
    return Concept(name=name, class_word="dog", architecture="sd1-3x6", residuals=residuals)


def test_a_file_holds_the_residuals_and_old_versions_refuse_it(tmp_path):
    file = tmp_path / "rex.safetensors"
    save_concept(concept(), file)
    known = load_concept(file)
    assert known.method == "infusion" and all(torch.equal(r, known.residuals[n]) for n, r in concept().residuals.items())
    with safe_open(file, "pt") as f:
        header = json.loads(f.metadata()["cidm"])
        assert all(key.startswith("infusion.") for key in f.keys())  # noqa: SIM118
    assert header["format"] == 2 and header["method"] == "infusion"
    assert file.stat().st_size < 4000
    save_concept(Concept(name="tom", class_word="cat", architecture="sd1-3x6"), file)
    with safe_open(file, "pt") as f:
        old = json.loads(f.metadata()["cidm"])
    assert old["format"] == 1 and "method" not in old, "what older versions can read stays as it was"


def test_a_bank_says_what_it_is_and_keeps_it(tmp_path):
    bank = Bank(tmp_path / "bank").add(concept()).add(concept("max", 1))
    for opened in (bank, Bank(bank.folder)):  # from the files, from the index
        assert opened.headers["rex"]["method"] == "infusion"
        assert opened.read("a <rex:0.5> here").text == "a <rex> here"
    bank = manage.rename(bank, "max", "moritz")
    assert torch.equal(next(iter(bank.get("moritz").residuals.values())), next(iter(concept("max", 1).residuals.values())))
    bank = bank.add(concept("twin"))
    assert manage.duplicates(bank) == [["rex", "twin"]]
    small, _ = compress_bank(bank)
    expanded = expand_into(small, tmp_path / "again")
    assert all(torch.equal(r, expanded.get("rex").residuals[n]) for n, r in bank.get("rex").residuals.items())
    for call in (lambda: export_concept(concept(), tmp_path), lambda: export_merged([concept()], [1.0], 4, tmp_path / "x.safetensors")):
        with pytest.raises(ValueError, match="Infusion"):
            call()
