"""Regions on grids of any size, attention by region against a plain loop, and the completed Eq. 5."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from cidm_ops.method.blending import blend, blend_weights
from cidm_ops.method.regions import Field, Place, alike, box_mask, cells, cut, grid_of, lost, region_attention, shares


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
    for places in ((Place(left), Place(right)), (Place(all_over, 0.5), Place(left, 1.0, 2)), (Place(left), Place(left)), ()):
        torch.testing.assert_close(of(*places).sum(0), torch.ones(16))
    assert of(Place(all_over), Place(left, priority=1))[1].view(4, 4)[:, :2].sum() == 0
    assert (of(Place(left), Place(left))[1:, 0] == 0.5).all(), "equal priorities share"
    assert of(Place(left, 0.25))[:, 0].tolist() == [0.75, 0.25]
    assert lost([Place(left), Place(all_over, priority=1)], 4, 4) == [0] and not lost([Place(left), Place(right)], 4, 4)


@pytest.mark.parametrize("box", [(-0.1, 0, 1, 1), (0.5, 0, 0.5, 1), (0, 0.8, 1, 0.2), (0, 0, 1.2, 1)])
def test_a_box_outside_or_without_area_is_refused(box):
    with pytest.raises(ValueError, match="expected 0 <= left < right <= 1"):
        box_mask(*box)


def test_every_layer_finds_its_grid():
    for height, width in ((64, 64), (96, 64), (13, 21), (128, 72)):
        rows, columns = height, width
        while rows > 1:
            assert grid_of(rows * columns, height, width) == (rows, columns)
            rows, columns = -(-rows // 2), -(-columns // 2)
    with pytest.raises(ValueError, match="a layer has 17 tokens"):
        grid_of(17, 8, 8)
    field = Field([Place(box_mask(0, 0, 0.5, 1))], 8, 8)
    assert field(torch.zeros(2, 16, 3)).shape == (2, 16) and field(torch.zeros(2, 16, 3)) is field(torch.zeros(1, 16, 5))


def test_attention_by_region_equals_a_plain_loop():
    torch.manual_seed(0)
    attend = scaled_dot_product_attention
    q, k, v = torch.randn(3, 16, 8), torch.randn(3, 5, 8), torch.randn(3, 5, 8)
    texts = torch.randn(3, 3, 2, 7, 8)  # of every row and region: keys and values
    whole, left, top, corner = torch.ones(4, 4), box_mask(0, 0, 0.5, 1), box_mask(0.25, 0, 1, 0.5), box_mask(0, 0, 0.25, 0.25)
    empty = torch.zeros(4, 4)
    soft = shares([Place(left, 0.75), Place(top), Place(empty)], 4, 4)
    hard = shares([Place(left), Place(top, priority=1), Place(corner, priority=2)], 4, 4)
    none, full = shares([Place(empty)] * 3, 4, 4), shares([Place(whole), Place(corner, priority=1), Place(empty)], 4, 4)
    for owners in ((soft, hard, none), (hard, hard, full), (none, none, none), (full, full, full)):
        by = cut(torch.stack(owners))
        kv = torch.stack([texts[b, u - 1] for b, u in by.readers] or [texts[0, 0]], 1)
        got = region_attention(q, by, lambda at: attend(q[:, at], k, v), lambda pieces, kv=kv: attend(pieces, *kv))
        for row, owner in enumerate(owners):
            for token in range(16):
                one = q[row, token : token + 1]
                want = owner[0, token] * attend(one, k[row], v[row])
                for u in range(3):
                    want = want + owner[u + 1, token] * attend(one, *texts[row, u])
                torch.testing.assert_close(got[row, token], want[0])


def test_regions_are_cut_into_pieces_that_waste_little():
    half = [Place(box_mask(0, 0, 0.5, 1)), Place(box_mask(0.5, 0, 1, 1))]
    by = cut(shares(half, 16, 16)[None])
    assert by.pieces.shape == (2, 128) and by.shares is None and not len(by.rest)
    assert by.readers == [(0, 1), (0, 2)]
    tiny = [Place(box_mask(0, 0, 1 / 16, 1 / 16), priority=1), Place(box_mask(0, 0, 1, 1))]
    by = cut(shares(tiny, 16, 16)[None])
    assert by.pieces.shape == (2, 255)
    by = cut(
        shares([Place(box_mask(0, 0, 0.1, 0.1), priority=u) for u in range(8)] + [Place(box_mask(0, 0, 1, 1), priority=-1)], 64, 64)[None]
    )
    assert by.pieces.numel() <= 2 * 64 * 64


def test_texts_of_different_lengths_are_read_alike():
    q, short, long = torch.randn(1, 3, 8), torch.randn(1, 2, 8), torch.randn(1, 3, 8)
    both = alike([short, long])
    assert both.shape == (2, 6, 8)
    torch.testing.assert_close(scaled_dot_product_attention(q, both[:1], both[:1]), scaled_dot_product_attention(q, short, short))


def test_equation_5_completed():
    left, right = Place(box_mask(0, 0, 0.5, 1)), Place(box_mask(0.25, 0, 0.75, 1), priority=1)
    w = blend_weights([left, right], 4, 8, alpha=0.1)
    torch.testing.assert_close(w.sum(0), torch.ones(4, 8))
    torch.testing.assert_close(
        w[:, 0],
        torch.tensor([[0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 1, 1], [0.9, 0.9, 0.45, 0.45, 0, 0, 0, 0], [0, 0, 0.45, 0.45, 0.9, 0.9, 0, 0]]),
    )
    assert blend_weights([left, right], 4, 8, overlap="priority")[1, 0, 2] == 0
    whole, own = torch.randn(1, 4, 4, 8), [torch.randn(1, 4, 4, 8), torch.randn(1, 4, 4, 8)]
    assert torch.equal(blend(whole, own, blend_weights([left, right], 4, 8, alpha=1.0)), whole)
    assert torch.equal(blend(whole, [], blend_weights([], 4, 8)), whole)
    soft = blend_weights([left], 4, 8, feather=1.0)
    torch.testing.assert_close(soft.sum(0), torch.ones(4, 8))
    assert 0 < soft[1, 0, 4] < 0.45 < soft[1, 0, 3] < 0.9
    for wrong in ({"alpha": 1.5}, {"overlap": "max"}):
        with pytest.raises(ValueError, match="expected"):
            blend_weights([left], 4, 4, **wrong)
