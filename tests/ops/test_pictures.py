"""Pictures of a bank: the figures in them are right, and they hold what they say at any size."""

import numpy as np
import pytest
import torch
from PIL import Image
from test_manage import filled, small

from cidm_ops.bank import manage
from cidm_ops.bank.bank import Bank
from cidm_ops.bank.concept_file import save_concept
from cidm_ops.lowrank import LowRank
from cidm_ops.measure.cards import bank_table, concept_card
from cidm_ops.measure.pictures import RED, fit_text, from_image, heat_map, overlap_map, pair_map, shade, to_image, width_of
from cidm_ops.measure.routing import routing_preview
from cidm_ops.method.overlap import closest, overlaps, principal_cosines


def ink(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture.convert("RGB")).astype(int)


def holds(picture: Image.Image, colour: tuple[int, int, int]) -> bool:
    return bool((ink(picture) == colour).all(-1).any())


def test_principal_angles_are_those_of_the_planes():
    a, b = torch.eye(4)[:, :2], torch.eye(4)[:, 1:3]
    assert torch.allclose(principal_cosines(a, b), torch.tensor([1.0, 0.0]), atol=1e-6)
    turned = torch.tensor([[1.0], [1.0], [0.0], [0.0]])
    assert principal_cosines(a[:, :1], 3 * turned).item() == pytest.approx(0.5**0.5)


def test_the_overlap_of_all_pairs_is_that_of_each_pair():
    draw = torch.Generator().manual_seed(0)

    def one(*ranks):
        return {
            f"layer{i}": LowRank(torch.randn(9, r, generator=draw), torch.randn(r, 5, generator=draw)) for i, r in enumerate(ranks) if r
        }

    concepts = [one(3, 2), one(2, 4), one(3), one(0, 0, 2)]
    found = overlaps(concepts)
    for i, a in enumerate(concepts):
        for j, b in enumerate(concepts):
            cosines = [principal_cosines(a[n].up, b[n].up).mean() for n in a if n in b]
            assert found[i, j].item() == pytest.approx(float(sum(cosines)) / max(1, len(cosines)), abs=1e-5)
    assert closest(found, list("abcd"), 1).startswith("<a> and <")


@pytest.mark.parametrize("rows, columns", [(16, 10), (16, 100), (70, 3), (1, 1), (0, 0)])
def test_a_heat_map_shows_every_cell_and_leaves_a_margin(rows, columns):
    values = torch.zeros(rows, columns)
    if rows:
        values[-1, -1] = 1
    picture = heat_map(values, [f"down_blocks.{i}" for i in range(rows)], [f"<concept{i}>" for i in range(columns)], "Weights", "A note.")
    seen = ink(picture)
    assert (seen[:4] == 255).all() and (seen[-4:] == 255).all() and (seen[:, :4] == 255).all() and (seen[:, -4:] == 255).all()
    assert picture.width < 2400 and picture.height < 2400 and (not rows or holds(picture, shade(1)))


def test_a_text_stays_in_its_line_and_its_width():
    long = fit_text("w" * 99, 12, 60)
    assert fit_text("a\nb  c", 12, 99) == "a b c" and long.endswith("...") and width_of(long, 12) <= 60


def test_less_than_nothing_is_red():
    red, _, blue = shade(-1)
    assert red > blue and shade(0) == shade(-1e-9)


def test_a_table_holds_a_row_for_each_and_what_is_wrong_in_red(tmp_path):
    bank = filled(tmp_path / "bank", "ant", "bee")
    whole = bank_table(bank)
    assert not holds(whole, RED)
    bank.file("bee").write_bytes(b"broken")
    assert holds(bank_table(Bank(bank.folder)), RED) and bank_table(Bank(bank.folder)).height == whole.height
    save_concept(small("cow", class_word="x\ny " * 200, about={"author": "A" * 500}), bank.file("cow"))
    assert bank_table(Bank(bank.folder)).width < 2000
    assert bank_table(Bank(tmp_path / "none")).height > 50


def test_a_card_shows_the_thumbnail(tmp_path):
    bank = manage.describe(filled(tmp_path / "bank", "ant"), "ant", {"description": "long " * 300}, Image.new("RGB", (64, 64), (0, 255, 0)))
    with_picture = ink(concept_card(bank.get("ant"), bank.file("ant")))
    assert ((with_picture[..., 1] > 240) & (with_picture[..., 0] < 20)).sum() > 40000
    assert bank.get("ant").preview != (plain := small("bee")).preview == b""
    assert concept_card(plain, bank.file("ant")).width == with_picture.shape[1]


def test_maps_of_all_and_of_two(tmp_path):
    ant, bee = small("ant"), small("bee")
    _, found = overlap_map([ant, bee])
    assert found.diagonal().tolist() == pytest.approx([1, 1], abs=1e-5)
    assert pair_map(ant, bee)[1].shape == (1, 2) and pair_map(ant, bee)[1].mean().item() == pytest.approx(found[0, 1].item(), abs=1e-5)


def test_a_prompt_is_shown_with_its_strengths_and_what_nobody_has(tmp_path):
    bank = filled(tmp_path / "bank", "ant", "bee").add(small("foreign", words=(), tokens={}, triggers=("red hat",)))
    prompt = "an <ant:0.5> with a Red Hat, <bee.1> and\n<cow>, " + "very " * 60
    parts = bank.vocabulary.parts(prompt)
    assert "".join(text for text, _ in parts) == prompt
    assert [(t, o) for t, o in parts if o is not None] == [("<ant:0.5>", "ant"), ("Red Hat", "foreign"), ("<bee.1>", "bee"), ("<cow>", "")]
    assert bank.vocabulary.parts("<ant><bee>") == [("<ant>", "ant"), ("<bee>", "bee")]
    picture, text = routing_preview(bank, prompt)
    assert holds(picture, RED) and "<ant>, a dog: 0.5" in text and "<foreign>, a dog: 1" in text and "<cow>: no concept" in text
    assert "encoded: an <ant.1> <ant.2> with a Red Hat, <bee.1> and , very" in text
    picture, text = routing_preview(bank, "")
    assert not holds(picture, RED) and text.startswith("no concept in the prompt")


def test_a_concept_without_a_class_word_is_its_name_alone(tmp_path):
    bank = filled(tmp_path / "bank", "ant").add(small("foreign", class_word="", words=(), tokens={}, triggers=("red hat",)))
    assert [bank.title(name) for name in bank.names] == ["<ant>, a dog", "<foreign>"]
    _, text = routing_preview(bank, "an <ant> with a red hat")
    assert text.startswith("<ant>, a dog: 1\n<foreign>: 1\n")


def test_pictures_go_to_the_host_and_back():
    picture = Image.effect_noise((9, 7), 80).convert("RGB")
    assert to_image(picture).shape == (1, 7, 9, 3) and (ink(from_image(to_image(picture))) == ink(picture)).all()
