"""The dependence term of ACCORD against known answers, and captions that split into the concept and the rest."""

import pytest
import torch

from cidm_ops.method.dependence import dependence
from cidm_ops.training.captions import split_caption

WORDS = ("<rex.1>", "<rex.2>")


def predictions():
    """What nothing, a concept and a context say, each a change of its own that is orthogonal to the other's."""
    nothing, concept, context = torch.zeros(3, 2, 4, 2, 2)
    concept[:, :2], context[:, 2:] = 3.0, 2.0
    return nothing, concept, context


def test_what_adds_up_does_not_depend_on_each_other():
    nothing, concept, context = predictions()
    assert dependence(concept + context, concept, context, nothing, torch.ones(2)).tolist() == [0, 0]


def test_it_is_how_far_the_squares_are_from_adding_up():
    """The whole is the concept alone: it lies 0 from that, 3^2 / 2 + 2^2 / 2 from the context, and 3^2 / 2 from nothing."""
    nothing, concept, context = predictions()
    found = dependence(concept, concept, context, nothing, torch.tensor([1.0, 0.25]))
    assert found.tolist() == pytest.approx([2.0, 0.5])
    assert dependence(concept, concept, nothing, nothing, torch.ones(2)).tolist() == [0, 0]  # an empty rest says nothing


def test_only_the_caption_learns():
    whole, alone, rest, nothing = (torch.randn(2, 4, 3, 3, requires_grad=True) for _ in range(4))
    dependence(whole, alone, rest, nothing, torch.ones(2)).sum().backward()
    assert whole.grad.any() and alone.grad is None and rest.grad is None and nothing.grad is None


@pytest.mark.parametrize(
    ("caption", "rest"),
    [
        ("a <rex.1> <rex.2> on the beach", "on the beach"),
        ("A photo of a <rex.1> <rex.2>, at night.", "A photo of , at night"),
        ("the <rex.1> <rex.2> and a cat", "and a cat"),
        ("<rex.1> <rex.2>", ""),
        ("a <rex.1> <rex.2>.", ""),
    ],
)
def test_a_caption_is_the_concept_and_the_rest(caption, rest):
    assert split_caption(caption, WORDS) == ("a <rex.1> <rex.2>", rest)


def test_a_caption_without_the_concept_is_all_rest():
    assert split_caption("a cat on the beach", WORDS) == ("", "a cat on the beach") and split_caption("", WORDS) == ("", "")
