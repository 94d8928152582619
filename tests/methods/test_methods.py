"""Every registered method, on every small model, in the precisions that train: see ``Statements``."""

import pytest
from statements import IDS, MODELS, Case, Statements

from cidm_ops.training.methods import METHODS


class TestMethods(Statements):
    @pytest.fixture(scope="class", params=MODELS, ids=IDS)
    def model(self, request):
        return request.param

    @pytest.fixture(scope="class", params=list(METHODS))
    def case(self, request, model):
        return Case.make(request.param, model, request)
