"""Every registered method, on every small model that it learns on, in the precisions that train (see ``Statements``), and refused by name
on the others.
"""

import pytest
from statements import IDS, MODELS, TRANSFORMERS, Case, Statements, pictures, task

from cidm_ops.bank.bank import Bank
from cidm_ops.engines.diffusers import load_any
from cidm_ops.training.methods import METHODS
from cidm_ops.training.task import learn_into

NAMES = [*IDS, *(f"{name}-{str(dtype).removeprefix('torch.')}" for name, dtype in TRANSFORMERS)]
PAIRS = [(method, name, model) for name, model in zip(NAMES, [*MODELS, *TRANSFORMERS], strict=True) for method in METHODS]
SUITED = [pair for pair in PAIRS if (pair[0] == "lora") == (pair[2] in TRANSFORMERS)]


class TestMethods(Statements):
    @pytest.fixture(scope="class", params=SUITED, ids=[f"{name}-{method}" for method, name, _ in SUITED])
    def case(self, request):
        method, _, model = request.param
        return Case.make(method, model, request)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("base", ["doodle", "tiny_flux1", "tiny_lumina2"])
def test_a_method_is_refused_by_name_where_it_cannot_learn(method, base, request, tmp_path):
    backbone = load_any(base if base == "doodle" else request.getfixturevalue(base))
    if (method == "lora") == (not backbone.family.layerwise):
        return
    said = "take method 'cidm'" if method == "lora" else "take method 'lora'"
    with pytest.raises(ValueError, match=f"method '{method}' .*{said}"):
        learn_into(Bank(tmp_path), backbone, pictures(), task(method))
    assert not Bank(tmp_path).names
