"""A wish granted without a host: by a concept of the bank, by a picture it refers to, or by words alone; the best of some is kept."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from test_command_line import cidm, refused  # noqa: F401

from cidm_ops.bank.bank import Bank
from cidm_ops.engines.towers import load_tower
from cidm_ops.evaluation.wishing import Order, candidates, grant
from cidm_ops.measure.picking import pick
from cidm_ops.painting.wish_reading import read_wish

WISH = "my dog at the beach, as an ink drawing"


@pytest.fixture(scope="module")
def tower():
    return load_tower("doodle")


@pytest.fixture(scope="module")
def nothing(tmp_path_factory):
    return Bank(tmp_path_factory.mktemp("nothing"))


@pytest.fixture(scope="module")
def photo():
    return torch.rand(3, 150, 200, generator=torch.Generator().manual_seed(0)) * 2 - 1


def order(bank, text=WISH, images=(), masks=(), **more):
    return Order(read_wish(text, bank.vocabulary)[0], images, masks, **{"count": 2, "steps": 2, "bound": -1.0} | more)


class TestGranting:
    def test_a_concept_of_the_bank_is_painted_and_the_picture_picks(self, backbone, bank, tower, photo):
        granted, told = grant(backbone, bank, order(bank, images=[photo]), tower, 128)
        assert granted.pictures.shape == (2, 3, 128, 128) and granted.pick and granted.pick.images is not None
        assert "<dog> is in the bank" in told[0]
        without, _ = candidates(backbone, bank, order(bank), [], 128, 0)
        assert torch.equal(granted.pictures, without)

    def test_a_picture_is_followed_where_the_bank_has_nothing(self, backbone, nothing, tower, photo):
        granted, told = grant(backbone, nothing, order(nothing, images=[photo]), tower, 128)
        plain, said = grant(backbone, nothing, order(nothing), tower, 128)
        assert float((granted.pictures - plain.pictures).abs().max()) > 1e-2 and not told
        assert "neither a picture nor a concept" in said[0]
        masked, _ = grant(backbone, nothing, order(nothing, images=[photo], masks=[torch.ones(1, 150, 200)]), tower, 128)
        assert torch.equal(masked.pictures, granted.pictures)

    def test_the_seed_says_which_candidates(self, backbone, nothing, tower):
        three = grant(backbone, nothing, order(nothing, count=3), tower, 128, seed=4)[0].pictures
        assert torch.equal(three[1:], grant(backbone, nothing, order(nothing), tower, 128, seed=5)[0].pictures)

    def test_what_shows_something_else_is_painted_once_more_with_less_identity(self, backbone, nothing, tower, photo):
        asked = order(nothing, images=[photo], bound=1.0)
        granted, told = grant(backbone, nothing, asked, tower, 128)
        assert len(granted.pictures) == 4 and "once more with identity 0.6" in told[-1]
        less = replace(asked, wish=replace(asked.wish, identity=0.6), bound=-1.0)
        again, _ = grant(backbone, nothing, less, tower, 128)
        assert torch.equal(granted.pictures[2:], again.pictures)
        assert len(grant(backbone, nothing, order(nothing, bound=1.0), tower, 128)[0].pictures) == 2  # nothing to have less of

    def test_without_a_tower_the_first_is_taken_and_that_is_told(self, backbone, nothing):
        granted, told = grant(backbone, nothing, order(nothing), None, 128)
        assert granted.best == 0 and granted.pick is None and "no image tower" in told[-1]

    def test_things_with_places_are_painted_in_regions(self, backbone, bank):
        asked = order(bank, "my dog on the left and my cat on the right in the snow")
        found, _ = candidates(backbone, bank, asked, [], 128, 0)
        plain = candidates(backbone, bank, order(bank, asked.wish.prompt.replace(" on the left", "")), [], 128, 0)[0]
        assert found.shape == plain.shape and not torch.equal(found, plain)

    def test_what_cannot_be_is_named(self, bank):
        for told, more in (("bound 2", {"bound": 2.0}), ("likeness 3", {"likeness": 3.0})):
            with pytest.raises(ValueError, match=told):
                order(bank, **more)


class TestPicking:
    seen = torch.nn.functional.normalize(torch.tensor([[1.0, 0, 0], [0.8, 0.6, 0], [0, 1, 0], [0, 0, 1]]), dim=1)
    alike, words = seen[:1], seen[2:3]

    def test_the_best_is_alike_and_shows_the_words(self):
        found = pick(self.seen, self.alike, self.seen, self.words)
        assert found.best == 1
        torch.testing.assert_close(found.scores, torch.tensor([0.5, 0.7, 0.5, 0.0]))
        assert pick(self.seen, self.alike, self.seen, self.words, 1.0).best == 0
        assert pick(self.seen, self.alike, self.seen, self.words, 0.0).best == 2

    def test_a_side_that_is_missing_does_not_count(self):
        assert pick(self.seen, self.alike).best == 0 and pick(None, None, self.seen, self.words).best == 2
        with pytest.raises(ValueError, match="neither references nor a caption"):
            pick(self.seen, None)

    def test_whether_it_obeys_is_by_its_words(self):
        found = pick(self.seen, self.alike, self.seen, self.words)
        assert found.obeys(0.6) and not found.obeys(0.61) and pick(self.seen, self.alike).obeys(1.0)
        assert found.table.splitlines()[1] == "* 2: score 0.700, likeness 0.800, text 0.600"


def test_the_command_line_grants_a_wish(cidm, bank, tmp_path):  # noqa: F811
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (150, 200, 3), dtype=np.uint8)).save(tmp_path / "dog.jpg")
    given = ["wish", WISH, "now at night", "--image", tmp_path / "dog.jpg", "--count", 2, "--steps", 1, "--out", tmp_path / "out"]
    code, out, err = cidm(*given)
    assert code == 0 and out[0] == "restyle: an ink drawing of a dog at night" and out[-1] == "Here is an ink drawing of a dog at night."
    assert sum(line.startswith("*") for line in out) == 1 and len(list((tmp_path / "out").glob("wish-*.png"))) == 1
    code, out, err = cidm(*given, "--bank", bank.folder, "--all")
    assert code == 0, err
    assert "a <dog> at night" in out[1] and any("<dog> is in the bank" in line for line in err)
    assert len(list((tmp_path / "out").glob("wish-*.png"))) == 2  # the first among them, of the same name
    (tmp_path / "answer.txt").write_text("Sure! " + json.dumps({"subject": "a red cup", "scene": "in the snow", "reply": "Enjoy."}))
    code, out, _ = cidm("wish", "a cup", "--answer", tmp_path / "answer.txt", "--count", 1, "--steps", 1, "--out", tmp_path / "cup")
    assert code == 0 and out[0] == "recontext: a red cup in the snow" and out[-1] == "Enjoy."
    code, out, _ = cidm("wish", WISH, "--ask", "--bank", bank.folder)
    assert code == 0 and "<dog2>, a dog" in out[1]
    Image.new("L", (200, 150), 255).save(tmp_path / "mask.png")
    code, out, _ = cidm(*given, "--mask", tmp_path / "mask.png")
    assert code == 0 and sum(line.startswith("*") for line in out) == 1
    assert "names nothing to paint" in refused(cidm("wish", "please", "--out", tmp_path))
    assert "1 masks for 0 pictures" in refused(cidm("wish", WISH, "--mask", tmp_path / "dog.jpg", "--out", tmp_path))
    assert "identity 9" in refused(cidm(*given, "--identity", 9))
    assert "nobody.jpg" in refused(cidm("wish", WISH, "--image", tmp_path / "nobody.jpg", "--out", tmp_path))
