"""`cidm train --grow`: a data set grown by pictures that an edit model made, from folders to the concept's file."""

import numpy as np
import pytest
from PIL import Image
from test_command_line import cidm, refused  # noqa: F401 -- a fixture

from cidm_ops.bank.bank import Bank
from cidm_ops.doodle.concepts import CONCEPTS, examples


def draw(folder, name, count, seed, first=0):
    folder.mkdir(exist_ok=True)
    for i, example in enumerate(examples(CONCEPTS[name], count, seed)):
        Image.fromarray(np.asarray(example.picture)).save(folder / f"{name}{first + i}.png")


@pytest.fixture
def folders(tmp_path):
    draw(tmp_path / "photos", "dog", 3, 0)
    draw(tmp_path / "made", "dog", 3, 2)
    draw(tmp_path / "made", "dog2", 2, 2)
    return tmp_path


def test_what_shows_somebody_else_is_left_out_and_named(cidm, folders):  # noqa: F811
    given = ["train", "--bank", folders / "bank", "--images", folders / "photos", "--class-word", "dog", "--name", "rex", "--steps", 1]
    code, out, said = cidm(*given, "--grow", folders / "made")
    assert code == 0, said
    text = "\n".join(said) if isinstance(said, list) else said
    assert "3 of 5 pictures kept (2 somebody else)" in text and "dog20.png: somebody else (likeness" in text
    training = Bank(folders / "bank").headers["rex"]["training"]
    assert training["pictures"] == 6 and training["generated"] == 3
    code, *_ = cidm(*given[:-3], "tom", "--steps", 1, "--grow", folders / "made", "--per-original", 1)
    assert code == 0 and Bank(folders / "bank").headers["tom"]["training"]["generated"] == 3


def test_without_it_the_file_says_nothing_of_generated_pictures(cidm, folders):  # noqa: F811
    code, *_ = cidm(
        "train", "--bank", folders / "bank", "--images", folders / "photos", "--class-word", "dog", "--name", "rex", "--steps", 1
    )
    assert code == 0 and "generated" not in Bank(folders / "bank").headers["rex"]["training"]


def test_what_does_not_go_together_is_refused(cidm, folders):  # noqa: F811
    given = ["train", "--bank", folders / "bank", "--images", folders / "photos", "--class-word", "dog"]
    assert "--per-original is for --grow" in refused(cidm(*given, "--per-original", 2))
    grown = [*given, "--grow", folders / "made"]
    assert "needs an image tower" in refused(cidm(*grown, "--base", folders / "model.safetensors"))
    joint = ["train", "--bank", folders / "bank", "--images", folders / "photos", "--together", "rex=dog", "tom=cat"]
    assert "--grow is for one concept" in refused(cidm(*joint, "--grow", folders / "made"))
    assert "nowhere" in refused(cidm(*given, "--grow", folders / "nowhere"))
