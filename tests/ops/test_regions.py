"""Regions on grids of any size, attention by region against a plain loop, and the completed Eq. 5."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from cidm_ops.method.blending import blend, blend_weights
from cidm_ops.method.regions import (
    RegionMask,
    box_mask,
    cells,
    hidden_regions,
    pad_to_common_length,
    partition,
    region_attention,
    shares,
    strongest_shares,
)


def test_a_region_covers_the_cells_that_it_has_by_half():
    assert cells(box_mask(0, 0, 0.5, 1), 2, 4).tolist() == [[1, 1, 0, 0]] * 2
    assert cells(box_mask(0, 0, 0.6, 1), 2, 4).tolist() == [[1, 1, 0, 0]] * 2
    assert cells(box_mask(0, 0, 0.65, 1), 2, 4).tolist() == [[1, 1, 1, 0]] * 2


def test_a_tiny_region_keeps_its_nearest_cell_and_an_empty_one_none():
    assert cells(box_mask(0.9, 0.9, 0.91, 0.91), 8, 8).nonzero().tolist() == [[7, 7]]
    assert not cells(torch.zeros(64, 64), 8, 8).any()


def test_shares_sum_to_one_and_priorities_win():
    left, right, all_over = box_mask(0, 0, 0.5, 1), box_mask(0.5, 0, 1, 1), box_mask(0, 0, 1, 1)
    of = lambda *places: shares(places, 4, 4)  # noqa: E731
    for places in (
        (RegionMask(left), RegionMask(right)),
        (RegionMask(all_over, 0.5), RegionMask(left, 1.0, 2)),
        (RegionMask(left), RegionMask(left)),
        (),
    ):
        torch.testing.assert_close(of(*places).sum(0), torch.ones(16))
    assert of(RegionMask(all_over), RegionMask(left, priority=1))[1].view(4, 4)[:, :2].sum() == 0
    assert (of(RegionMask(left), RegionMask(left))[1:, 0] == 0.5).all(), "equal priorities share"
    assert of(RegionMask(left, 0.25))[:, 0].tolist() == [0.75, 0.25]
    assert hidden_regions([RegionMask(left), RegionMask(all_over, priority=1)], 4, 4) == [0]
    assert not hidden_regions([RegionMask(left), RegionMask(right)], 4, 4)


def test_soft_edges_meet_without_a_gap():
    soft = [RegionMask(box_mask(0, 0, 0.5, 1), feather=0.2), RegionMask(box_mask(0.5, 0, 1, 1), feather=0.2)]
    held = shares(soft, 8, 8).view(3, 8, 8)[:, 4]
    torch.testing.assert_close(held[0], torch.zeros(8), atol=1e-6, rtol=0)
    assert held[1, 3] > 0.5 > held[1, 4] > 0.05 and held[1, 0] > 0.95
    front = shares([soft[0], RegionMask(box_mask(0, 0, 1, 1), priority=-1)], 8, 8).view(3, 8, 8)[:, 4]
    torch.testing.assert_close(front[1], held[1], atol=1e-6, rtol=0)
    torch.testing.assert_close(front[1] + front[2], torch.ones(8))


@pytest.mark.parametrize("box", [(-0.1, 0, 1, 1), (0.5, 0, 0.5, 1), (0, 0.8, 1, 0.2), (0, 0, 1.2, 1)])
def test_a_box_outside_or_without_area_is_refused(box):
    with pytest.raises(ValueError, match="expected 0 <= left < right <= 1"):
        box_mask(*box)


def test_attention_by_region_equals_a_plain_loop():
    torch.manual_seed(0)
    attend = scaled_dot_product_attention
    q, k, v = torch.randn(3, 16, 8), torch.randn(3, 5, 8), torch.randn(3, 5, 8)
    texts = torch.randn(3, 3, 2, 7, 8)  # of every row and region: keys and values
    whole, left, top, corner = torch.ones(4, 4), box_mask(0, 0, 0.5, 1), box_mask(0.25, 0, 1, 0.5), box_mask(0, 0, 0.25, 0.25)
    empty = torch.zeros(4, 4)
    soft = shares([RegionMask(left, 0.75), RegionMask(top), RegionMask(empty)], 4, 4)
    hard = shares([RegionMask(left), RegionMask(top, priority=1), RegionMask(corner, priority=2)], 4, 4)
    none, full = shares([RegionMask(empty)] * 3, 4, 4), shares([RegionMask(whole), RegionMask(corner, priority=1), RegionMask(empty)], 4, 4)
    for owners in ((soft, hard, none), (hard, hard, full), (none, none, none), (full, full, full)):
        by = partition(torch.stack(owners))
        kv = torch.stack([texts[b, u - 1] for b, u in by.owners] or [texts[0, 0]], 1)
        got = region_attention(q, by, lambda at: attend(q[:, at], k, v), lambda chunks, kv=kv: attend(chunks, *kv))
        for row, owner in enumerate(owners):
            for token in range(16):
                one = q[row, token : token + 1]
                want = owner[0, token] * attend(one, k[row], v[row])
                for u in range(3):
                    want = want + owner[u + 1, token] * attend(one, *texts[row, u])
                torch.testing.assert_close(got[row, token], want[0])


def test_regions_are_cut_into_pieces_that_waste_little():
    half = [RegionMask(box_mask(0, 0, 0.5, 1)), RegionMask(box_mask(0.5, 0, 1, 1))]
    by = partition(shares(half, 16, 16)[None])
    assert by.chunks.shape == (2, 128) and by.shares is None and not len(by.background)
    assert by.owners == [(0, 1), (0, 2)]
    tiny = [RegionMask(box_mask(0, 0, 1 / 16, 1 / 16), priority=1), RegionMask(box_mask(0, 0, 1, 1))]
    by = partition(shares(tiny, 16, 16)[None])
    assert by.chunks.shape == (2, 255)
    by = partition(
        shares(
            [RegionMask(box_mask(0, 0, 0.1, 0.1), priority=u) for u in range(8)] + [RegionMask(box_mask(0, 0, 1, 1), priority=-1)], 64, 64
        )[None]
    )
    assert by.chunks.numel() <= 2 * 64 * 64


def test_texts_of_different_lengths_are_read_alike():
    q, short, long = torch.randn(1, 3, 8), torch.randn(1, 2, 8), torch.randn(1, 3, 8)
    both = pad_to_common_length([short, long])
    assert both.shape == (2, 6, 8)
    torch.testing.assert_close(scaled_dot_product_attention(q, both[:1], both[:1]), scaled_dot_product_attention(q, short, short))


def test_equation_5_completed():
    left, right = RegionMask(box_mask(0, 0, 0.5, 1)), RegionMask(box_mask(0.25, 0, 0.75, 1), priority=1)
    w = blend_weights([left, right], 4, 8, alpha=0.1)
    torch.testing.assert_close(w.sum(0), torch.ones(4, 8))
    torch.testing.assert_close(
        w[:, 0],
        torch.tensor([[0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 1, 1], [0.9, 0.9, 0.45, 0.45, 0, 0, 0, 0], [0, 0, 0.45, 0.45, 0.9, 0.9, 0, 0]]),
    )
    assert blend_weights([left, right], 4, 8, overlap="priority")[1, 0, 2] == 0
    whole, own = torch.randn(1, 4, 4, 8), [torch.randn(1, 4, 4, 8), torch.randn(1, 4, 4, 8)]
    assert torch.equal(blend(whole, own, blend_weights([left, right], 4, 8, alpha=1.0)[None]), whole)
    assert torch.equal(blend(whole, [], blend_weights([], 4, 8)[None]), whole)
    soft = blend_weights([left], 4, 8, feather=0.25)
    torch.testing.assert_close(soft.sum(0), torch.ones(4, 8))
    assert 0 < soft[1, 0, 4] < 0.45 < soft[1, 0, 3] < 0.9
    for wrong in ({"alpha": 1.5}, {"overlap": "max"}):
        with pytest.raises(ValueError, match="expected"):
            blend_weights([left], 4, 4, **wrong)


class TestStrongest:
    """Of regions that share a token, the one whose answer is further from the base's has it."""

    masks = [RegionMask(box_mask(0, 0, 0.75, 1)), RegionMask(box_mask(0.5, 0, 1, 1))]
    by = partition(shares(masks, 1, 4)[None])
    q = torch.zeros(1, 4, 2)

    def answered(self, left, right, strongest=True, by=None, base=0.0):
        """The output where the left region answers ``left`` at its three tokens, the right one ``right`` at its two."""
        by = by or self.by
        values = {1: left, 2: right}

        def own(chunks):
            out = torch.zeros(*chunks.shape[:2], 2)
            for p, (_, u) in enumerate(by.owners):
                for m, token in enumerate(by.chunks[p].tolist()):
                    out[p, m] = values[u][token]
            return out

        whole = torch.full((1, 4, 2), base)
        return region_attention(self.q, by, lambda tokens: whole[:, tokens], own, (lambda: whole) if strongest else None)[0, :, 0]

    def test_the_one_that_answers_more_strongly_has_the_token(self):
        left, right = dict(enumerate([1.0, 1.0, 4.0, 0.0])), dict(enumerate([0.0, 0.0, 3.0, 3.0]))
        assert self.answered(left, right).tolist() == [1, 1, 4, 3]  # 4 of a mean of 2, against 3 of a mean of 3
        assert self.answered(left, right, strongest=False).tolist() == [1, 1, 3.5, 3]
        weak = dict(enumerate([4.0, 4.0, 1.0, 0.0]))
        assert self.answered(weak, right).tolist() == [4, 4, 3, 3]

    def test_how_large_answers_are_does_not_matter(self):
        left, right = dict(enumerate([1.0, 1.0, 4.0, 0.0])), dict(enumerate([0.0, 0.0, 300.0, 300.0]))
        assert self.answered(left, right).tolist() == [1, 1, 4, 300]
        assert self.answered(left, right, base=1.0)[2] == 4  # it is the distance to the base that counts

    def test_without_an_overlap_nothing_changes(self):
        apart = partition(shares([RegionMask(box_mask(0, 0, 0.5, 1)), RegionMask(box_mask(0.5, 0, 1, 1))], 1, 4)[None])
        left, right = dict.fromkeys(range(4), 1.0), dict.fromkeys(range(4), 2.0)
        assert torch.equal(self.answered(left, right, by=apart), self.answered(left, right, strongest=False, by=apart))

    def test_shares_still_add_up_to_one(self):
        right = self.masks[1].mask
        some = [RegionMask(self.masks[0].mask, 0.6), RegionMask(right, 0.8, feather=0.2), RegionMask(torch.ones(8, 8), 0.5)]
        nothing = torch.zeros(4, 64).index_fill(0, torch.tensor([0]), 1.0)
        by = partition(torch.stack([shares(some, 8, 8), nothing]))
        found = torch.randn(2 * len(by.background) + by.chunks.numel(), 5)
        made = strongest_shares(found, torch.randn(128, 5), by)
        torch.testing.assert_close(made.sum(0), by.shares.sum(0))
        regional = (by.sources >= 2 * len(by.background)) & (by.shares[..., 0] > 0)
        assert ((made[..., 0] > 0) & regional).sum(0).max() == 1

    def test_equal_regions_have_one_winner(self):
        same = dict.fromkeys(range(4), 2.0)
        assert self.answered(same, same).tolist() == [2, 2, 2, 2]
