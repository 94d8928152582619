"""What a training takes where nothing is set: what suits its base, and a word where something cannot."""

import pytest

from cidm_ops.evaluation.doodle import INFUSED, RECIPE
from cidm_ops.models.sd import DOODLE, SD1, SDXL
from cidm_ops.training.method import Task
from cidm_ops.training.methods import METHODS, configure, configure_for
from cidm_ops.training.task import unsuited_rates


@pytest.mark.parametrize("family", [SD1, SDXL, DOODLE], ids=lambda family: family.title)
@pytest.mark.parametrize("name", ["cidm", "infusion"])
def test_what_suits_a_family_can_be_configured_and_overruled(family, name):
    suiting = configure_for(family, name)
    assert suiting == configure(name, **family.recipes.get(name, {}))
    assert configure_for(family, name, steps=7).steps == 7
    assert configure_for(family, name, steps=7).update(steps=suiting.steps) == suiting


def test_doodle_is_taught_by_its_recipe_everywhere():
    assert configure_for(DOODLE, "cidm") == RECIPE and configure_for(DOODLE, "infusion") == INFUSED
    assert (RECIPE.steps, RECIPE.batch) == (350, 4)


def test_a_rate_that_cannot_suit_the_base_is_told_by_its_name():
    def told(**settings):
        return unsuited_rates(Task(name="rex", class_word="dog", config=configure("cidm", **settings)), METHODS["cidm"], DOODLE)

    (low, words) = told()
    assert low == "lr is 0.0001, 40 times below what suits Doodle, 0.004"
    assert words == "lr_tokens is 0.001, 10 times below what suits Doodle, 0.01"
    assert told(lr=4e-3, lr_tokens=1e-2) == [] == told(lr=1e-2, lr_tokens=0.0)
