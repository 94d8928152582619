"""A new method is what ``textual_inversion`` has: registered, it trains, saves, resumes and paints through everything that others do."""

import numpy as np
import pytest
from PIL import Image
from statements import IDS, MODELS, Case, Statements
from textual_inversion import TextualInversion

from cidm_ops.__main__ import main
from cidm_ops.training.methods import METHODS, register


@pytest.fixture(scope="module", autouse=True)
def registered():
    yield register(TextualInversion())
    del METHODS["inversion"]


class TestToyMethod(Statements):
    @pytest.fixture(scope="class", params=MODELS[:2], ids=IDS[:2])
    def case(self, request, registered):
        return Case.make("inversion", request.param, request)


def test_the_command_line_trains_and_paints_it(tiny_sd1, tmp_path, capsys):
    (tmp_path / "photos").mkdir()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(tmp_path / "photos" / "0.png")
    common = ["--base", str(tiny_sd1), "--bank", str(tmp_path / "bank"), "--size", "64", "--device", "cpu"]
    learn = ["train", *common, "--images", str(tmp_path / "photos"), "--name", "rex", "--class-word", "dog", "--method", "inversion"]
    assert main([*learn, "--steps", "2", "--set", "lr=0.5"]) == 0
    make = ["generate", *common, "--steps", "1", "--out", str(tmp_path / "out")]
    assert main([*make, "--prompt", "a <rex>", "--prompt", "a dog"]) == 0
    lines = capsys.readouterr().out.splitlines()
    concept, base = (np.asarray(Image.open(file)) for file in lines[-2:])
    assert lines[0].endswith("rex.safetensors") and (concept != base).any()
    assert main([*learn, "--rank", "2"]) == 2
    assert "'rank': neither the loop nor the method has it" in capsys.readouterr().err
    assert main(["bank", "list", str(tmp_path / "bank")]) == 0
    assert "<rex.1>" in capsys.readouterr().out
