"""What is no plain LoRA becomes factors: each kind against its own formula, exactly where the rank allows, else as near as can be."""

import pytest
import torch
from test_community import randn

from cidm_ops.bank.community import read_lora
from cidm_ops.bank.factorised import truncated
from cidm_ops.lowrank import LowRank

SD1 = "sd1-15x768"  # a size of its own, whose layers may be as small as a test likes


def hadamard(a, b, c, d):
    return (a @ b) * (c @ d)


CONV = "down_blocks_0_resnets_0_conv1"
K = "down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"
TUCKER = "i j h w, j r, i p -> p r h w"
OTHERS = {
    # layer, parts, the formula of LyCORIS, whether it is exact at rank 16
    "loha": (
        K, dict(hada_w1_a=randn(6, 2), hada_w1_b=randn(2, 768), hada_w2_a=randn(6, 2), hada_w2_b=randn(2, 768)),
        lambda p: hadamard(p["hada_w1_a"], p["hada_w1_b"], p["hada_w2_a"], p["hada_w2_b"]), 2,
    ),
    "loha of a convolution": (
        CONV, dict(hada_w1_a=randn(6, 2), hada_w1_b=randn(2, 45), hada_w2_a=randn(6, 2), hada_w2_b=randn(2, 45)),
        lambda p: hadamard(p["hada_w1_a"], p["hada_w1_b"], p["hada_w2_a"], p["hada_w2_b"]), 2,
    ),
    "loha with a core": (
        CONV, dict(hada_w1_a=randn(2, 6), hada_w1_b=randn(2, 5), hada_t1=randn(2, 2, 3, 3),
                   hada_w2_a=randn(2, 6) + 1, hada_w2_b=randn(2, 5) + 1, hada_t2=randn(2, 2, 3, 3) + 1),
        lambda p: torch.einsum(TUCKER, p["hada_t1"], p["hada_w1_b"], p["hada_w1_a"])
        * torch.einsum(TUCKER, p["hada_t2"], p["hada_w2_b"], p["hada_w2_a"]), 2,
    ),
    "lokr, both whole": (K, dict(lokr_w1=randn(2, 4), lokr_w2=randn(3, 192)), lambda p: torch.kron(p["lokr_w1"], p["lokr_w2"]), 0),
    "lokr of products": (
        K, dict(lokr_w1_a=randn(2, 3), lokr_w1_b=randn(3, 4), lokr_w2_a=randn(3, 2), lokr_w2_b=randn(2, 192)),
        lambda p: torch.kron(p["lokr_w1_a"] @ p["lokr_w1_b"], p["lokr_w2_a"] @ p["lokr_w2_b"]), 2,
    ),
    "lokr of a convolution": (
        CONV, dict(lokr_w1=randn(2, 2), lokr_w2=randn(3, 4, 3, 3)),
        lambda p: torch.kron(p["lokr_w1"][:, :, None, None], p["lokr_w2"]), 0,
    ),
    "lokr with a core": (
        CONV, dict(lokr_w1=randn(2, 2), lokr_w2_a=randn(2, 3), lokr_w2_b=randn(2, 4), lokr_t2=randn(2, 2, 3, 3)),
        lambda p: torch.kron(
            p["lokr_w1"][:, :, None, None], torch.einsum(TUCKER, p["lokr_t2"], p["lokr_w2_b"], p["lokr_w2_a"]).contiguous()
        ), 2,
    ),
    "locon in three parts": (
        CONV, {"lora_up.weight": randn(6, 2, 1, 1), "lora_down.weight": randn(2, 5, 1, 1), "lora_mid.weight": randn(2, 2, 3, 3)},
        lambda p: torch.einsum(
            "op,prhw,ri->oihw", p["lora_up.weight"].flatten(1), p["lora_mid.weight"], p["lora_down.weight"].flatten(1)
        ), 2,
    ),
    "full delta": (K, dict(diff=randn(6, 768)), lambda p: p["diff"], 0),
    "full delta of a convolution": (CONV, dict(diff=randn(6, 5, 3, 3)), lambda p: p["diff"], 0),
}  # fmt: skip


@pytest.mark.parametrize("kind", OTHERS)
def test_what_is_no_plain_lora_becomes_factors(kind):
    module, parts, formula, dim = OTHERS[kind]
    state = {f"lora_unet_{module}.{part}": t for part, t in parts.items()} | {f"lora_unet_{module}.alpha": torch.tensor(1.0)}
    whole = formula(parts).flatten(1) * (1 / dim if dim else 1.0)
    read = read_lora(state, {}, SD1)
    assert not read.warnings
    (found,) = read.factors.values()
    torch.testing.assert_close(found.delta(), whole, atol=1e-6 * whole.abs().max().item(), rtol=1e-5)
    assert found.kernel == ((3, 3) if module == CONV else ())


@pytest.mark.parametrize("kind", ["loha", "lokr, both whole", "full delta", "loha with a core"])
def test_a_lower_rank_is_the_nearest_and_its_error_is_told(kind):
    module, parts, formula, dim = OTHERS[kind]
    whole = formula(parts).flatten(1) * (1 / dim if dim else 1.0)
    state = {f"lora_unet_{module}.{part}": t for part, t in parts.items()} | {f"lora_unet_{module}.alpha": torch.tensor(1.0)}
    read = read_lora(state, {}, SD1, rank=2)
    (found,) = read.factors.values()
    s = torch.linalg.svdvals(whole)
    best = float(s[2:].norm() / s.norm())
    assert found.rank == 2
    assert float((found.delta() - whole).norm() / whole.norm()) == pytest.approx(best, abs=1e-5)
    assert f"relative error at most {best:.3f}" in read.warnings[0]


def test_truncating_factors_is_truncating_their_delta():
    f = LowRank(randn(30, 12), randn(12, 40))
    short, error = truncated(f, 5)
    best, known = LowRank.nearest(f.delta(), 5)
    torch.testing.assert_close(short.delta(), best.delta(), atol=1e-4, rtol=1e-4)
    assert error == pytest.approx(known, abs=1e-6)
