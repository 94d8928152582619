"""The page on notebooks says what works: its code is run as it stands, with fewer steps."""

import re
from pathlib import Path

import pytest
from PIL import Image

import cidm_ops
from cidm_ops.doodle.concepts import CONCEPTS, examples

PAGE = Path(__file__).resolve().parents[2] / "docs" / "python.md"


@pytest.fixture
def photos(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, concept in (("rex", "dog"), ("toy", "bear")):
        folder = tmp_path / "photos" / name
        folder.mkdir(parents=True)
        for i, example in enumerate(examples(CONCEPTS[concept], 3)):
            Image.fromarray(example.picture).save(folder / f"{i}.png")
    return tmp_path


def test_the_page_on_notebooks_runs(photos):
    code = re.search(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S).group(1)
    exec(code.replace("steps=350", "steps=2").replace("guidance=3.0", "steps=2, guidance=3.0"), names := {})
    assert names["bank"].names == ["rex", "toy"] and Image.open("both.png").size == (256, 128) and len(names["images"]) == 2
    assert names["scores"]["concepts"].keys() == {"rex", "toy"} and Path("scores/report.html").exists()


def test_every_public_name_is_there_and_no_other():
    assert all(getattr(cidm_ops, name) for name in cidm_ops.__all__)
    with pytest.raises(AttributeError, match="no attribute 'learn'"):
        cidm_ops.learn  # noqa: B018
