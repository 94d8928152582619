"""Joint attention in pieces against a plain loop over tokens, and the hooks of a transformer on toys of one layer."""

import pytest
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from cidm_ops.adapters import attach_parts
from cidm_ops.joint_sites import JointSites, intercept_joint, pad_texts, restart_positions
from cidm_ops.lowrank import LowRank
from cidm_ops.method.pieces import mask_with_texts, pieces_of, piecewise_attention
from cidm_ops.method.regions import RegionMask, box_mask, shares
from cidm_ops.models.module import Slice

LEFT, RIGHT, TOP = box_mask(0, 0, 0.5, 1), box_mask(0.5, 0, 1, 1), box_mask(0, 0, 1, 0.5)
PLACES = {
    "apart": [RegionMask(LEFT), RegionMask(RIGHT)],
    "one nowhere": [RegionMask(LEFT), RegionMask(torch.zeros(4, 4))],
    "shared": [RegionMask(LEFT), RegionMask(LEFT)],
    "by priority": [RegionMask(LEFT), RegionMask(TOP, priority=1)],
    "weak": [RegionMask(LEFT, strength=0.3), RegionMask(TOP)],
    "soft": [RegionMask(LEFT, feather=0.3), RegionMask(RIGHT, feather=0.1)],
}


def attend(q, k, v, mask):
    """Heads side by side, as hosts answer."""
    return scaled_dot_product_attention(q, k, v, mask).transpose(1, 2).flatten(2)


def sequence(*shape: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(*shape, generator=generator, dtype=torch.float64) for _ in range(3)]


@pytest.mark.parametrize("apart", [False, True], ids=["free", "kept apart"])
@pytest.mark.parametrize("opened", [(), (0, 2), (0, 1, 2)])
@pytest.mark.parametrize("places", PLACES.values(), ids=PLACES)
def test_attention_in_pieces_equals_a_plain_loop(places, opened, apart):
    lengths, held = (3, 5, 2), shares(places, 4, 4)
    q, k, v = sequence(2, 2, 26, 4)
    found = piecewise_attention(q, k, v, pieces_of(lengths, held, opened, apart), attend)
    texts, image = [list(range(3)), list(range(3, 8)), [8, 9]], list(range(10, 26))
    wanted = torch.zeros(2, 26, 8, dtype=torch.float64)
    for u, text in enumerate(texts):
        seen = image if u in opened else [10 + t for t in range(16) if held[u, t] >= 1e-3]
        wanted[:, text] = attend(q[:, :, text], k[:, :, text + seen], v[:, :, text + seen], None)
        around = text + [10 + t for t in range(16) if not (apart and u) or max(held[u, t], held[0, t]) >= 1e-3]
        for t in range(16):
            wanted[:, 10 + t] += held[u, t] * attend(q[:, :, [10 + t]], k[:, :, around], v[:, :, around], None)[:, 0]
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-2 if held[held > 0].min() < 1e-3 else 1e-6)  # small shares are left out


def test_one_text_alone_is_plain_attention():
    q, k, v = sequence(1, 2, 19, 4)
    (piece,) = pieces_of((3,), torch.ones(1, 16))
    torch.testing.assert_close(piecewise_attention(q, k, v, [piece], attend), attend(q, k, v, None), rtol=0, atol=0)


def test_texts_that_are_refined_alone_see_themselves_only():
    q, k, v = sequence(1, 2, 8, 4)
    found = piecewise_attention(q, k, v, pieces_of((3, 5), torch.zeros(2, 0)), attend)
    parts = [attend(q[:, :, part], k[:, :, part], v[:, :, part], None) for part in (slice(0, 3), slice(3, 8))]
    torch.testing.assert_close(found, torch.cat(parts, 1))


def test_a_mask_of_text_and_image_says_nothing_of_other_texts():
    q, k, v = sequence(1, 2, 10, 4)
    mask = torch.randn(5, 5, dtype=torch.float64)
    held = torch.tensor([[0.0, 1.0, 1.0], [1.0, 0.0, 0.0]])
    found = piecewise_attention(q, k, v, pieces_of((2, 5), held), attend, mask_with_texts(mask, (2, 5), 10))
    own = [0, 1, 7, 8, 9]
    whole = attend(q[:, :, own], k[:, :, own], v[:, :, own], mask)
    torch.testing.assert_close(found[:, 8:], whole[:, 3:])
    columns = list(range(2, 10))
    wide = torch.cat([torch.zeros(1, 5, dtype=torch.float64), mask[2:3, 2:]], 1)
    torch.testing.assert_close(found[:, 7], attend(q[:, :, [7]], k[:, :, columns], v[:, :, columns], wide)[:, 0])
    keys = mask_with_texts(mask[:1], (2, 5), 10)
    torch.testing.assert_close(keys, mask_with_texts(mask[:1].expand(5, 5), (2, 5), 10))
    with pytest.raises(ValueError, match="an attention mask of 4 x 4 tokens for a text and an image of 5"):
        mask_with_texts(mask[:4, :4], (2, 5), 10)


def sites(**own) -> JointSites:
    return JointSites(**{"blocks": {}, "streams": {}, "modules": {}, "layers": {}, "reads": {}, **own})


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("at_once", [True, False])
def test_every_text_ends_next_to_the_image(first, at_once):
    seen, positions = [], nn.Identity()
    numbers = torch.cat([torch.arange(10) + first, torch.full((4,), 10 + first), torch.zeros(2)])
    places = torch.stack([numbers, torch.arange(16.0), torch.zeros(16)], -1)[None]
    with restart_positions(sites(positions=positions), [3, 5, 2]):
        for part in [places] if at_once else [places[:, :10], places[:, 10:]]:
            seen.append(positions(part))
    found = torch.cat(seen, 1)
    wanted = [0, 1, 2, -2, -1, 0, 1, 2, 1, 2, 3, 3, 3, 3]
    assert found[0, :14, 0].tolist() == [n + first for n in wanted] and not found[0, 14:, 0].any()
    torch.testing.assert_close(found[..., 1:], places[..., 1:])
    torch.testing.assert_close(positions(places), places)
    with restart_positions(sites(positions=positions), [10]):
        torch.testing.assert_close(positions(places), places)


def test_every_text_is_filled_up_on_its_own():
    embedder, pad = nn.Linear(2, 3), torch.full((1, 3), 7.0)
    text, own = torch.randn(2, 8, 2), sites(embedder=embedder, pad=lambda: pad, multiple=4)
    with pad_texts(own, [3, 5]):
        found = embedder(text)
    assert own.padded([3, 5]) == [4, 8] and found.shape == (2, 12, 3)
    torch.testing.assert_close(found[:, [0, 1, 2, 4, 5, 6, 7, 8]], embedder(text))
    assert (found[:, [3, 9, 10, 11]] == 7).all()


def test_factors_of_a_part_change_its_rows_of_a_fused_layer():
    layer, x = nn.Linear(4, 9), torch.randn(2, 5, 4)
    parts = {"a": Slice("fused", 0, 6, 4), "b": Slice("fused", 6, 3, 4)}
    factors = {"a": LowRank(torch.randn(6, 2), torch.randn(2, 4)), "b": LowRank(torch.randn(3, 1), torch.randn(1, 4))}
    with attach_parts({"fused": layer}, parts, factors):
        found = layer(x)
    wanted = layer(x) + x @ torch.cat([factors["a"].delta(), factors["b"].delta()]).T
    torch.testing.assert_close(found, wanted)
    assert not layer._forward_hooks
    with pytest.raises(KeyError, match="no layer 'c'"), attach_parts({"fused": layer}, parts, {"c": factors["a"]}):
        pass


class Block(nn.Module):
    """A block that asks a slot for its attention as often as it is told."""

    def __init__(self, times: int):
        super().__init__()
        self.times = times

    def forward(self, slot, q, k):
        return [slot(q, k, k, None, attend) for _ in range(self.times)]


def test_attention_is_seen_by_the_block_that_asks_for_it():
    blocks = {"one": Block(1), "two": Block(2), "none": Block(0)}
    own, asked = sites(blocks=blocks, streams={"one": ("both",), "two": ("text", "image"), "none": ("both",)}), []
    q, k = torch.zeros(1, 1, 5, 2), torch.zeros(1, 1, 3, 2)

    def change(stream, q, k, v, mask, attend):
        asked.append(stream)
        return attend(q, k, v, mask)

    with intercept_joint(own, change) as seen:
        own.slot(q, q, q, None, attend)  # before any block: another pack's
        for block in blocks.values():
            block(own.slot, q, q)
        blocks["one"](own.slot, q, k)  # of other keys, as an IP-Adapter's
    assert asked == ["both", "text", "image"] and seen == {"one": 0, "two": 2, "none": 0}
    assert own.slot.change is None and not blocks["one"]._forward_pre_hooks
