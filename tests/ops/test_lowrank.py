"""Stacks: merged, routed and a plain loop over the concepts are the same thing."""

import pytest
import torch

from cidm_ops.lowrank import LowRank, Stack, orthonormal_basis


@pytest.fixture(autouse=True)
def in_double():
    """Sums in fp64, where their order, which is a machine's own, does not show."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def factors(count: int, out: int = 24, into: int = 16) -> list[LowRank]:
    torch.manual_seed(count)
    return [LowRank(torch.randn(out, 2 + g % 3), torch.randn(2 + g % 3, into)) for g in range(count)]


def test_merged_equals_a_loop_over_the_deltas():
    each, weights = factors(5), torch.rand(5)
    loop = sum(w * f.delta() for w, f in zip(weights, each, strict=True))
    torch.testing.assert_close(Stack.of(each).merge(weights).delta(), loop)


def test_routed_equals_merged_when_the_weights_are_constant():
    stack, weights, x = Stack.of(factors(4)), torch.rand(4), torch.randn(2, 7, 16)
    torch.testing.assert_close(stack.route(x, weights), stack.merge(weights)(x))


def test_every_token_can_have_its_own_mixture():
    each, x = factors(3), torch.randn(2, 7, 16)
    weights = torch.rand(2, 7, 3)
    loop = sum(weights[..., g, None] * f(x) for g, f in enumerate(each))
    torch.testing.assert_close(Stack.of(each).route(x, weights), loop)


def test_the_norm_of_a_change_is_told_by_its_factors_even_where_they_cancel():
    for f in factors(4):
        assert f.norm() == pytest.approx(float(f.delta().norm()), rel=1e-9)
    up, down = torch.randn(24, 1), torch.randn(1, 16)
    cancelling = LowRank(torch.cat([up, -up], 1), torch.cat([down, down * (1 + 2**-20)]))
    assert cancelling.norm() == pytest.approx(2**-20 * float(up.norm() * down.norm()), rel=0.1)


def test_a_basis_spans_its_columns_and_drops_what_repeats():
    columns = torch.randn(20, 4)
    basis = orthonormal_basis(torch.cat([columns, columns @ torch.randn(4, 3)], 1), tolerance=1e-5)
    assert basis.shape == (20, 4)
    torch.testing.assert_close(basis.T @ basis, torch.eye(4))
    torch.testing.assert_close(basis @ (basis.T @ columns), columns)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LowRank(torch.ones(4, 2), torch.ones(3, 5)), "do not fit"),
        (lambda: Stack.of([]), "at least one"),
        (lambda: Stack.of([*factors(1), *factors(1, out=8)]), "different layers"),
        (lambda: Stack.of(factors(3)).merge(torch.ones(2)), "2 weights for a stack of 3"),
    ],
)
def test_what_cannot_fit_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
