"""Scores against known answers: closed forms, models that differ by a known amount, and intervals that hold what they say."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from cidm_ops.measure.divergence import Levels, clean_estimates, divergence
from cidm_ops.measure.diversity import diversity, diversity_interval, diversity_ratio
from cidm_ops.measure.forgetting import forgetting, matrix, score_forgetting
from cidm_ops.measure.interval import bootstrap, mean_interval
from cidm_ops.measure.presence import Presence, area_under_curve, collapse_bound, score_presence, separation
from cidm_ops.measure.scores import align_images, alignments, caption_cosines, clip_scores, image_alignment, matching, text_alignment
from cidm_ops.measure.sections import presence_section
from cidm_ops.measure.wasserstein import noise_floor, terms, wasserstein, wasserstein_interval


def units(n, width, seed=0):
    return F.normalize(torch.randn(n, width, generator=torch.Generator().manual_seed(seed)), dim=-1)


def sample_with(covariance, mean, n, seed=0):
    """``[n, E]`` whose own mean and covariance are exactly these."""
    draw = torch.randn(n, len(mean), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    orthonormal = torch.linalg.qr(draw - draw.mean(0))[0] * n**0.5
    return orthonormal @ torch.linalg.cholesky(covariance).T + mean


class TestWasserstein:
    def test_of_diagonal_gaussians_is_the_closed_form(self):
        a, b = torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64), torch.tensor([3.0, 1.0, 0.5], dtype=torch.float64)
        x = sample_with(torch.diag(a**2), torch.zeros(3, dtype=torch.float64), 40)
        y = sample_with(torch.diag(b**2), torch.tensor([1.0, -2.0, 0.0], dtype=torch.float64), 25, seed=1)
        mean, covariance, spread_x, spread_y = terms(x, y)
        assert mean == pytest.approx(5.0) and covariance == pytest.approx(float((a - b).square().sum()))
        assert spread_x == pytest.approx(5.25) and spread_y == pytest.approx(10.25)

    @pytest.mark.parametrize("n, m, width", [(30, 50, 6), (7, 9, 40), (12, 6, 8)])
    def test_of_any_samples_is_the_formula_with_matrix_roots(self, n, m, width):
        draw = np.random.default_rng(n)
        x, y = draw.normal(size=(n, width)) @ draw.normal(size=(width, width)), draw.normal(size=(m, width)) + 0.3

        def root(s):
            values, vectors = np.linalg.eigh(s)
            return (vectors * np.sqrt(values.clip(0))) @ vectors.T

        s, t = (np.cov(z.T, bias=True) for z in (x, y))
        want = np.trace(s) + np.trace(t) - 2 * np.trace(root(root(s) @ t @ root(s)))
        mean, covariance, *_ = terms(torch.from_numpy(x), torch.from_numpy(y))
        assert covariance == pytest.approx(want, rel=1e-5)
        assert mean == pytest.approx(float(((x.mean(0) - y.mean(0)) ** 2).sum()))

    def test_of_large_samples_comes_to_that_of_the_distributions(self):
        draw = torch.Generator().manual_seed(0)
        x = torch.randn(20000, 4, generator=draw)
        y = torch.randn(20000, 4, generator=draw) * torch.tensor([2.0, 1.0, 0.5, 1.0]) + torch.tensor([0.0, 3.0, 0.0, 0.0])
        found = wasserstein(x, y)
        assert found.mean == pytest.approx(9.0, rel=0.03) and found.covariance == pytest.approx(1.25, rel=0.03)
        assert found.squared == found.mean + found.covariance and found.ratio == pytest.approx(6.25 / 4, rel=0.03)
        assert 0 < found.floor < 0.01

    def test_a_shift_moves_the_mean_only_and_a_collapse_the_covariance_only(self):
        x = torch.randn(40, 8, generator=torch.Generator().manual_seed(0))
        shifted, collapsed = wasserstein(x, x + 2), wasserstein(x, x.mean(0) + 0.5 * (x - x.mean(0)))
        assert shifted.mean == pytest.approx(32, rel=1e-5) and shifted.covariance < 1e-6 and shifted.ratio == pytest.approx(1)
        assert collapsed.mean < 1e-9 and collapsed.ratio == pytest.approx(0.25)
        assert collapsed.covariance == pytest.approx(0.25 * collapsed.spread_x)

    def test_the_floor_is_what_samples_of_one_distribution_are_apart(self):
        x = torch.randn(60, 16, generator=torch.Generator().manual_seed(0))
        y = torch.randn(30, 16, generator=torch.Generator().manual_seed(1))
        assert sum(terms(x[:30], y)[:2]) == pytest.approx(noise_floor(x), rel=0.25) and math.isnan(noise_floor(x[:3]))
        assert noise_floor(x) == noise_floor(x) != noise_floor(x, seed=1)

    def test_its_interval_holds_it_and_is_the_same_again(self):
        x, y = (
            torch.randn(30, 4, generator=torch.Generator().manual_seed(0)),
            torch.randn(30, 4, generator=torch.Generator().manual_seed(1)) + 1,
        )
        found = wasserstein_interval(x, y)
        assert found.value == pytest.approx(wasserstein(x, y).squared) and found.low < 4 < found.high
        assert found == wasserstein_interval(x, y) and "30 original and 30 customised pictures" in found.over

    def test_what_cannot_be_compared_is_said(self):
        with pytest.raises(ValueError, match=r"\(1, 4\).*at least 2"):
            wasserstein(torch.zeros(1, 4), torch.zeros(5, 4))
        with pytest.raises(ValueError, match="one tower"):
            wasserstein(torch.zeros(5, 3), torch.zeros(5, 4))


class TestDivergence:
    trained = torch.logspace(math.log10(0.03), math.log10(15), 1000)

    def measure(self, first, second, count=12, latents=None):
        levels = Levels.of(self.trained, count)
        latents = torch.randn(5, 4, 3, 3, generator=torch.Generator().manual_seed(0)) if latents is None else latents
        noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(1))
        return divergence(*(clean_estimates(model, latents, noise, levels) for model in (first, second)), levels)

    def test_of_a_model_with_itself_is_zero(self):
        found = self.measure(lambda x, s: 0.3 * x, lambda x, s: 0.3 * x)
        assert not found.eps.any() and not found.likelihood.any() and not found.curve.any()

    def test_of_noises_that_differ_by_a_constant_is_its_square(self):
        """eps_1 = eps_0 + c: c^2 per value, and c^2 ln(sigma_max / sigma_min) for each value in nats, at any number of levels."""
        for count in (1, 12, 40):
            found = self.measure(lambda x, s: 0.5 * x, lambda x, s: 0.5 * x - 0.2 * s, count)
            assert found.eps.tolist() == pytest.approx([0.04] * 5, rel=1e-4)
            assert found.likelihood.tolist() == pytest.approx([36 * 0.04 * math.log(500)] * 5, rel=1e-4)
            assert found.curve.tolist() == pytest.approx([0.04] * count, rel=1e-4)

    def test_of_two_gaussians_the_likelihood_form_is_their_divergence(self):
        """N(0, 1) and N(m, 1) known exactly: KL = m^2 / 2 for each value, as sigma runs from 0 to infinity."""
        levels = Levels.of(torch.logspace(-3, 3, 1000), 200)
        x, m = torch.randn(3, 8, generator=torch.Generator().manual_seed(0)), 0.7
        first, second = (lambda x, s, mu=mu: (x + s**2 * mu) / (1 + s**2) for mu in (0.0, m))
        noise = torch.randn(3, 8, generator=torch.Generator().manual_seed(1))
        found = divergence(clean_estimates(first, x, noise, levels), clean_estimates(second, x, noise, levels), levels)
        assert found.likelihood.tolist() == pytest.approx([8 * m**2 / 2] * 3, rel=1e-3)

    def test_the_eps_form_is_the_mean_over_trained_timesteps(self):
        """A difference in the noisy half of the timesteps only counts half."""
        middle = float(self.trained.median())
        found = self.measure(lambda x, s: x, lambda x, s: x - s * float(s > middle), 50)
        assert found.eps.tolist() == pytest.approx([0.5] * 5, abs=0.02)
        crowded = Levels.of(torch.cat([torch.logspace(-2, 0, 900), torch.logspace(0, 1, 101)[1:]]), 30)
        assert float(crowded.shares.sum()) == pytest.approx(1) and float(crowded.shares[crowded.sigmas > 1].sum()) == pytest.approx(
            0.1, abs=0.01
        )

    def test_levels_without_signal_are_left_out(self):
        assert Levels.of(torch.cat([self.trained, torch.tensor([math.inf])]), 5).span == pytest.approx(Levels.of(self.trained, 5).span)


class TestIntervals:
    @pytest.mark.parametrize("draw", [torch.randn, lambda n, generator: -torch.rand(n, generator=generator).log()])
    def test_of_a_mean_cover_the_truth_as_often_as_they_say(self, draw):
        truth, held = (0.0 if draw is torch.randn else 1.0), 0
        for repeat in range(400):
            values = draw(40, generator=torch.Generator().manual_seed(repeat))
            found = mean_interval(values, "pictures", draws=400, seed=repeat)
            held += found.low <= truth <= found.high
        assert 0.90 <= held / 400 <= 0.97

    def test_are_those_of_figures_that_were_published(self):
        """The documents' intervals were drawn by another generator: figures are the same, and bounds within the noise of 1000 draws."""
        values = torch.rand(48, generator=torch.Generator().manual_seed(0))
        published = {
            mean_interval(values, "x"): (0.45479096, 0.37606258, 0.53132792),
            mean_interval(values[:6], "x"): (0.40441463, 0.21590187, 0.60960353),
            diversity_interval(units(24, 16)): (0.99883378, 0.95383441, 1.03946250),
            diversity_ratio(units(24, 16), units(20, 16, 1)): (0.96804587, 0.91137858, 1.03605629),
            wasserstein_interval(units(30, 8), units(30, 8, 1)): (0.16623304, -0.17989131, 0.13001591),
        }
        for found, (value, low, high) in published.items():
            assert found.value == pytest.approx(value, abs=1e-7)
            assert (found.low, found.high) == pytest.approx((low, high), abs=0.06 * (high - low))

    def test_the_general_way_is_that_of_means(self):
        values = torch.randn(25, generator=torch.Generator().manual_seed(0)).double()
        one, other = bootstrap(lambda i: float(values[i].mean()), 25, over="x"), mean_interval(values, "x")
        assert one.value == pytest.approx(other.value)
        assert (one.low, one.high) == pytest.approx((other.low, other.high), abs=0.05)
        assert other.high - other.low == pytest.approx(2 * 1.96 * float(values.std()) / 5, rel=0.12)

    def test_are_the_same_for_a_seed_and_there_is_none_of_one(self):
        values = torch.rand(9)
        assert mean_interval(values, "x") == mean_interval(values, "x") != mean_interval(values, "x", seed=1)
        alone = mean_interval(values[:1], "1 picture")
        assert math.isnan(alone.low) and str(alone) == f"{float(values[0]):.3f}"
        assert math.isnan(bootstrap(lambda i: 1.0, 1, over="x").high)


class TestPresence:
    def test_the_nearest_by_mean_cosine_is_found(self):
        references = {"dog": units(4, 16), "cat": units(3, 16, 1), "nothing": units(5, 16, 2)}
        presence, pictures = Presence(references), units(20, 16, 3)
        want = torch.stack([torch.stack([F.cosine_similarity(p[None], r).mean() for r in references.values()]) for p in pictures])
        assert torch.allclose(presence.cosines(3 * pictures), want, atol=1e-6)
        assert presence.found(pictures) == [list(references)[i] for i in want.argmax(1).tolist()]
        assert presence.found(references["nothing"].mean(0, keepdim=True)) == ["nothing"]

    def test_the_table_counts_what_was_found_where(self):
        references = {"dog": torch.eye(3)[:1], "cat": torch.eye(3)[1:2], "nothing": torch.eye(3)[2:]}
        score = score_presence(references, torch.eye(3)[[0, 0, 1, 2]], ["dog", "dog", "dog", "cat"])
        rows, found = score.confusion()
        assert rows == ["dog", "cat"] and torch.allclose(found, torch.tensor([[2 / 3, 1 / 3, 0], [0, 0, 1.0]]))
        assert score.found == ["dog", "dog", "cat", "nothing"] and score.right.value == 0.5 and score.right.over == "4 pictures"
        assert score.margins.tolist() == [1, 1, -1, -1] and score.cosines.tolist() == [1, 1, 1, 1]

    def test_what_is_expected_must_have_references(self):
        with pytest.raises(ValueError, match="'bird'.*dog, cat"):
            score_presence({"dog": units(3, 4), "cat": units(3, 4, 1)}, units(1, 4), ["bird"])

    def test_one_concept_is_too_few(self):
        with pytest.raises(ValueError, match="at least 2"):
            Presence({"dog": units(3, 4)})

    def test_the_area_under_the_curve_is_that_of_all_pairs(self):
        draw = torch.Generator().manual_seed(0)
        a, b = torch.randint(9, (40,), generator=draw).float(), torch.randint(7, (30,), generator=draw).float()
        want = ((a[:, None] > b).float() + 0.5 * (a[:, None] == b).float()).mean()
        assert area_under_curve(a, b) == pytest.approx(float(want)) and area_under_curve(b + 9, a) == 1
        assert separation({"a": torch.eye(4)[[0, 0]], "b": torch.eye(4)[[1, 1, 1]]}) == 1
        assert separation({"a": units(30, 8), "b": units(30, 8, 1)}) == pytest.approx(0.5, abs=0.05)
        assert math.isnan(separation({"a": units(3, 4)}))


class TestAlignment:
    def test_is_that_of_an_independent_computation(self):
        """Against torch's own cosine, pair by pair, and CLIPScore as its paper writes it."""
        pictures, references, captions = units(6, 32), units(4, 32, 1), units(6, 32, 2)
        pairs = torch.stack([F.cosine_similarity(p[None], references) for p in pictures])
        assert image_alignment(pictures, references) == pytest.approx(float(pairs.mean()), abs=1e-6)
        assert torch.allclose(alignments(pictures, references), pairs.mean(1), atol=1e-6)
        cosines = F.cosine_similarity(pictures, captions)
        assert torch.allclose(caption_cosines(pictures, captions), cosines, atol=1e-6)
        assert cosines.min() < 0 and text_alignment(pictures, captions) == pytest.approx(float((2.5 * cosines.relu()).mean()), abs=1e-6)
        assert clip_scores(torch.tensor([0.3, -0.2])).tolist() == pytest.approx([0.75, 0])


class TestMatching:
    """IMS after MetaCloak's code, in our reading."""

    def test_is_the_cosine_with_the_mean_of_the_references(self):
        pictures, references = units(6, 32), units(5, 32, 1)
        found = matching(pictures, references)
        assert torch.allclose(found, F.cosine_similarity(pictures, references.mean(0, keepdim=True)), atol=1e-6)
        ia = image_alignment(pictures, references)
        assert float(found.mean()) * float(references.mean(0).norm()) == pytest.approx(ia, abs=1e-6)
        scored = align_images(pictures, references)
        assert torch.equal(scored.matches, found) and scored.matching.value == pytest.approx(float(found.mean()), abs=1e-6)

    def test_of_one_reference_is_image_alignment(self):
        pictures, reference = units(6, 32), units(1, 32, 1)
        assert torch.allclose(matching(pictures, reference), alignments(pictures, reference), atol=1e-6)

    def test_a_reference_that_is_there_twice_moves_it_as_the_mean_moves(self):
        pictures, references = units(6, 32), units(3, 32, 1)
        twice = torch.cat([references, references[:1]])
        want = F.cosine_similarity(pictures, (references.sum(0) + references[0])[None])
        assert torch.allclose(matching(pictures, twice), want, atol=1e-6)
        assert not torch.allclose(matching(pictures, references), want, atol=1e-3)

    def test_references_that_cancel_each_other_out_are_an_error(self):
        one = units(1, 8)
        with pytest.raises(ValueError, match="2 references has no direction"):
            matching(units(3, 8), torch.cat([one, -one]))


class TestCollapse:
    def test_the_bound_is_where_references_are_told_apart_best(self):
        """Every bound is tried: none has a larger gain of right over wrong."""
        draw = torch.Generator().manual_seed(0)
        references = {
            name: F.normalize(units(1, 16, seed) + 0.45 * torch.randn(6, 16, generator=draw), dim=-1)
            for seed, name in enumerate(("dog", "dog2", "cat"))
        }
        same, other = [], []
        for name, own in references.items():
            for rival, theirs in references.items():
                for i, r in enumerate(own):
                    rest = torch.cat([own[:i], own[i + 1 :]]) if rival == name else theirs
                    (same if rival == name else other).append(float((rest @ r).mean()))

        def gain(bound):
            return np.mean(np.array(same) >= bound) - np.mean(np.array(other) >= bound)

        bound = collapse_bound(references)
        assert gain(bound) == pytest.approx(max(gain(b) for b in np.linspace(-1, 1, 4001)), abs=1e-9)
        assert max(other) > min(same) and 0 < gain(bound) < 1  # they cannot be told apart fully, so the bound is a choice

    def test_a_picture_near_nobody_has_collapsed_although_it_is_found(self):
        references = {"dog": torch.eye(4)[[0, 0]], "cat": torch.eye(4)[[1, 1]]}
        pictures = F.normalize(torch.tensor([[1.0, 0, 0, 0], [0.2, 0.1, 1, 0], [0, 1, 0, 0]]), dim=-1)
        score = score_presence(references, pictures, ["dog", "dog", "dog"])
        assert score.found == ["dog", "dog", "cat"] and score.right.value == pytest.approx(2 / 3)
        assert 0 < score.bound < 1 and score.collapsed.value == pytest.approx(2 / 3) and score.collapsed.over == "3 pictures"
        assert torch.allclose(score.own, pictures[:, 0])
        section = presence_section(score, [torch.zeros(3, 8, 8)] * 3)
        assert section.columns[-1] == "collapsed" and section.rows[0][-1] == pytest.approx(2 / 3) and "Collapsed are 0.667" in section.about

    def test_without_two_references_of_any_concept_there_is_no_bound(self):
        score = score_presence({"dog": units(1, 8), "cat": units(1, 8, 1)}, units(2, 8, 2), ["dog", "cat"])
        assert score.bound is None and score.collapsed is None
        assert "Collapsed" not in presence_section(score, [torch.zeros(3, 8, 8)] * 2).about


class TestDiversity:
    def test_is_the_mean_over_pairs_of_different_pictures(self):
        pictures = units(7, 12)
        pairs = [1 - float(pictures[i] @ pictures[j]) for i in range(7) for j in range(7) if i != j]
        assert diversity(pictures) == pytest.approx(np.mean(pairs), abs=1e-6) and diversity(pictures[:1].repeat(5, 1)) == pytest.approx(
            0, abs=1e-6
        )

    def test_pictures_drawn_twice_do_not_make_it_smaller(self):
        pictures = units(12, 64)
        found = diversity_interval(pictures)
        assert found.low < found.value < found.high and found.high - found.low < 0.2

    def test_more_alike_than_the_base_is_below_one(self):
        base = units(20, 16)
        alike = F.normalize(base + 3 * base[:1], dim=-1)
        assert diversity_ratio(alike, base).high < 1 and diversity_ratio(base, base).value == pytest.approx(1)

    def test_draws_of_one_picture_say_nothing(self):
        few, same = units(4, 8), units(1, 8).repeat(4, 1)
        found = diversity_ratio(few, units(4, 8, 1))  # in 16 of 1000 draws of four all are the same picture
        assert 0 < found.low <= found.value <= found.high
        assert diversity_interval(few).low > 0
        assert np.isnan(diversity_ratio(few, same).value)

    def test_one_picture_is_too_few(self):
        with pytest.raises(ValueError, match="at least 2"):
            diversity(units(1, 4))


class TestForgetting:
    points = [{"dog": 0.7}, {"dog": 0.75, "cat": 0.9}, {"dog": 0.6, "cat": 0.95, "duck": 0.5}]

    def test_is_the_best_less_the_last(self):
        names, scores = matrix(self.points)
        assert names == ["dog", "cat", "duck"] and scores.shape == (3, 3) and int(scores.isnan().sum()) == 3
        assert forgetting(scores).tolist() == pytest.approx([0.15, 0, 0])
        found = score_forgetting(self.points)
        assert (
            found.mean.value == pytest.approx(0.05)
            and found.mean.over == "3 concepts"
            and found.lost.tolist() == forgetting(scores).tolist()
        )

    def test_a_sequence_that_says_nothing_is_refused(self):
        with pytest.raises(ValueError, match="at least one task"):
            matrix([])
        with pytest.raises(ValueError, match="dog"):
            matrix([{"dog": 1.0}, {"cat": 1.0}])
