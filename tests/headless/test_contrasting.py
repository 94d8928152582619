"""Contrast of words on real models: whose rows change, what stays, what training goes on from, and the term in training."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from test_training import same
from transformers import CLIPConfig, CLIPModel, CLIPVisionConfig, CLIPVisionModelWithProjection

from cidm_ops.__main__ import main
from cidm_ops.bank.bank import Bank
from cidm_ops.doodle.concepts import CONCEPTS, examples
from cidm_ops.engines.diffusers import load
from cidm_ops.engines.towers import load_tower
from cidm_ops.evaluation.contrast import contrast_by, rendered_common, space_of
from cidm_ops.evaluation.doodle import training_pictures
from cidm_ops.training.canvases import Lesson
from cidm_ops.training.contrasting import ContrastConfig, contrast, contrast_into
from cidm_ops.training.dataset import Dataset
from cidm_ops.training.method import Task
from cidm_ops.training.methods import configure
from cidm_ops.training.spaces import CaptionSide, Contrast, Space, mean_rows
from cidm_ops.training.task import learn_into
from cidm_ops.training.trainer import Trainer

SHORT = ContrastConfig(steps=3, batch=8, canvases=12, lr=1e-2, norm_stop=0)


@pytest.fixture(scope="module")
def by(backbone) -> Contrast:
    return replace(contrast_by(backbone), common=rendered_common(4))


def lessons(*names: str) -> list[Lesson]:
    return [Lesson(name, CONCEPTS[name].class_word, training_pictures(CONCEPTS[name], masked=True)) for name in names]


def weights(backbone) -> list[torch.Tensor]:
    modules = (backbone.unet, backbone.vae, *backbone.texts.values())
    return [p for module in modules for p in module.state_dict().values()]


class Stopped(Exception):
    pass


def test_rows_of_no_other_word_change_and_nothing_of_the_model(backbone, by, tmp_path):
    before = [w.clone() for w in weights(backbone)]
    told = contrast_into(Bank(tmp_path), backbone, by, lessons("dog", "dog2"), SHORT)
    assert all(torch.equal(a, b) for a, b in zip(before, weights(backbone), strict=True))
    assert told.bank.names == ["dog", "dog2"] and len(told.losses) == 3
    for name in ("dog", "dog2"):
        concept = told.bank.get(name)
        assert concept.words == (f"<{name}.1>", f"<{name}.2>") and not concept.all_factors and not concept.residuals
        assert concept.tokens["clip_l"].shape == (2, 1, 160) and set(concept.token_layers) == {0}
        assert concept.training["method"] == "contrast" and concept.training["losses"] == [round(x, 5) for x in told.losses]
    begun = contrast(backbone, by, lessons("dog", "dog2"), [], replace(SHORT, lr=0.0))
    learned = contrast(backbone, by, lessons("dog", "dog2"), [], SHORT)
    for one, other in zip(begun.concepts, learned.concepts, strict=True):
        assert not torch.equal(one.tokens["clip_l"], other.tokens["clip_l"])
    assert begun.found == (begun.found[0], begun.found[0])


def test_earlier_concepts_stay_to_the_last_bit_and_are_kept_away_from(backbone, by, tmp_path):
    bank = contrast_into(Bank(tmp_path), backbone, by, lessons("dog"), SHORT).bank
    file = bank.file("dog").read_bytes()
    after = contrast_into(bank, backbone, by, lessons("dog2"), SHORT).bank
    assert after.names == ["dog", "dog2"] and after.file("dog").read_bytes() == file
    alone = contrast(backbone, by, lessons("dog2"), [], SHORT).concepts[0]
    assert not torch.equal(alone.tokens["clip_l"], after.get("dog2").tokens["clip_l"]), "the earlier concept counts"


def test_the_same_again_does_nothing_and_comes_out_the_same(backbone, by, tmp_path):
    steps = []

    def count(step, steps_of, loss):
        steps.append(step)

    one = contrast_into(Bank(tmp_path / "one"), backbone, by, lessons("dog", "cat"), SHORT, on_step=count)
    again = contrast_into(one.bank, backbone, by, lessons("dog", "cat"), SHORT, on_step=count)
    assert steps == [1, 2, 3] and again.losses == [] and again.found == pytest.approx(one.found, abs=1e-4)
    other = contrast_into(Bank(tmp_path / "other"), backbone, by, lessons("dog", "cat"), SHORT)
    assert all(same(one.bank.file(name), other.bank.file(name)) for name in ("dog", "cat"))
    with pytest.raises(ValueError, match="has a concept 'dog' already"):
        contrast_into(one.bank, backbone, by, lessons("dog"), replace(SHORT, seed=1), existing="refuse")


def test_a_stopped_contrast_leaves_the_bank_as_it_was(backbone, by, tmp_path):
    def stop(step, steps, loss):
        if step == 2:
            raise Stopped

    with pytest.raises(Stopped):
        contrast_into(Bank(tmp_path), backbone, by, lessons("dog"), SHORT, on_step=stop)
    assert not Bank(tmp_path).names


def test_words_stop_when_they_are_long_enough(backbone, by):
    done = contrast(backbone, by, lessons("dog"), [], replace(SHORT, steps=50, norm_stop=0.01))
    assert done.losses == [], "their first rows are longer than that"


def test_words_that_are_alike_are_told_apart(backbone, by):
    config = ContrastConfig(steps=40, batch=32, canvases=64, lr=1e-2, norm_stop=0)
    begun, done = (contrast(backbone, by, lessons("dog", "dog2"), [], c) for c in (replace(config, lr=0.0), config))
    side = CaptionSide(backbone, by.spaces[0])

    def mates(made) -> float:
        texts = [f"a photo of a {' '.join(c.words)}" for c in made.concepts]
        rows = {w: r for c in made.concepts for w, r in mean_rows(c, "clip_l").items()}
        one, other = side(texts, rows)
        return float(one @ other)

    assert sum(done.losses[-5:]) < sum(done.losses[:5])
    assert done.found[1] > done.found[0] + 0.1
    assert mates(done) < mates(begun) - 0.1


def test_training_goes_on_from_contrasted_words_and_the_whole_again_does_nothing(backbone, by, tmp_path):
    bank = contrast_into(Bank(tmp_path), backbone, by, lessons("dog"), SHORT).bank
    words, data = bank.get("dog"), training_pictures(CONCEPTS["dog"])
    config = configure("cidm", steps=2, lr_tokens=0.0, seed=1)
    task = Task(name="dog", class_word="dog", config=config, existing="continue")
    begun = Trainer(backbone, data, task, start=words).learner.tokens["clip_l"]
    assert begun.shape[1] > 1 and all(torch.equal(begun[:, i], words.tokens["clip_l"][:, 0]) for i in range(begun.shape[1]))
    learned = learn_into(bank, backbone, data, task)
    assert learned.concept.training["began"] == words.training["task"] and learned.concept.factors
    assert not any("contrasted" in line for line in learned.warnings)
    assert torch.equal(learned.concept.tokens["clip_l"][:, 0], words.tokens["clip_l"][:, 0]), "nothing was to be learned of them"
    again = contrast_into(learned.bank, backbone, by, lessons("dog"), SHORT)
    assert again.losses == [] and again.bank.get("dog").factors, "what was learned further is not replaced"
    same_again = learn_into(again.bank, backbone, data, task, on_step=lambda trainer: pytest.fail("learned again"))
    assert same_again.losses == learned.concept.training["losses"]
    other = Task(name="dog", class_word="teddy bear", config=config, existing="continue")
    with pytest.raises(ValueError, match="has other words than these settings"):
        Trainer(backbone, data, other, start=words)


def test_training_an_earlier_concept_on_does_not_undo_what_came_after_it(backbone, by, tmp_path):
    bank = contrast_into(Bank(tmp_path), backbone, by, lessons("dog"), SHORT).bank
    bank = contrast_into(bank, backbone, by, lessons("dog2"), SHORT).bank
    for name in ("dog", "dog2"):
        task = Task(name=name, class_word="dog", config=configure("cidm", steps=1), existing="continue")
        bank = learn_into(bank, backbone, training_pictures(CONCEPTS[name]), task).bank
    again = contrast_into(bank, backbone, by, lessons("dog2"), SHORT)
    assert again.losses == [] and again.bank.get("dog2").factors


def test_words_that_training_replaces_are_told(backbone, by, tmp_path):
    bank = contrast_into(Bank(tmp_path), backbone, by, lessons("dog"), SHORT).bank
    task = Task(name="dog", class_word="dog", config=configure("cidm", steps=1))
    told = learn_into(bank, backbone, training_pictures(CONCEPTS["dog"]), task).warnings
    assert any("set existing to continue" in line for line in told)


def trained(backbone, by, folder, method, **settings):
    task = Task(name="dog", class_word="dog", config=configure(method, steps=3, seed=2, **settings), contrast=by)
    return learn_into(Bank(folder), backbone, training_pictures(CONCEPTS["dog"], masked=True), task)


def test_the_term_at_weight_0_is_plain_training_bit_for_bit_and_else_moves_words_alone(backbone, by, tmp_path):
    plain = trained(backbone, None, tmp_path / "plain", "cidm")
    off = trained(backbone, None, tmp_path / "off", "clif", contrast_weight=0.0)
    on = trained(backbone, by, tmp_path / "on", "clif", contrast_weight=0.5)
    assert off.losses == plain.losses
    assert torch.equal(off.concept.tokens["clip_l"], plain.concept.tokens["clip_l"])
    assert all(torch.equal(f.up, off.concept.factors[n].up) for n, f in plain.concept.factors.items())
    assert not torch.equal(on.concept.tokens["clip_l"], plain.concept.tokens["clip_l"])
    assert on.losses[0] == plain.losses[0], "the loss that is told is the model's own"
    with pytest.raises(ValueError, match="give an image tower"):
        trained(backbone, None, tmp_path / "none", "clif")
    with pytest.raises(ValueError, match="for a style"):
        configure("clif", kind="style")


def test_the_term_gives_factors_no_gradient(backbone, by):
    def gradients(weight):
        config = configure("clif", steps=3, seed=2, contrast_weight=weight)
        task = Task(name="dog", class_word="dog", config=config, contrast=by)
        trainer = Trainer(backbone, training_pictures(CONCEPTS["dog"], masked=True), task)
        with trainer.attach():
            trainer.compute_gradients()
        learner = trainer.learner
        return [p.grad.clone() for p in (*learner.ups, *learner.downs) if p.grad is not None], learner.tokens["clip_l"].grad.clone()

    (factors, words), (with_factors, with_words) = gradients(0.0), gradients(1.0)
    assert all(torch.equal(a, b) for a, b in zip(factors, with_factors, strict=True))
    assert float((words - with_words).abs().max()) > 0


def whole_clip(folder, width=32, projection=24):
    """A tiny CLIP with both sides in transformers' layout, as a folder and as one file."""
    torch.manual_seed(0)
    text = dict(vocab_size=49408, hidden_size=width, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
    vision = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8)
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=projection))
    model.save_pretrained(folder / "clip")
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / "clip.safetensors")
    return folder / "clip"


def pictures() -> Dataset:
    return Dataset([torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(i)) for i in range(2)], ["", ""])


def test_on_stable_diffusion_a_whole_clip_gives_the_space(tiny_sd1, tmp_path):
    backbone, place = load(tiny_sd1), whole_clip(tmp_path)
    for tower in (place, tmp_path / "clip.safetensors"):
        space = space_of(backbone, load_tower(str(tower)))
        assert space.encoder == "clip_l" and space.read is not None and space.side == 32
    learned = contrast(backbone, Contrast((space,)), [Lesson("rex", "dog", pictures())], [], SHORT)
    assert learned.concepts[0].tokens["clip_l"].shape == (2, 1, 32)
    text = "a dog on the left"
    ids = backbone.tokenize(text)
    states = backbone.encode_text(ids, backbone.token_rows(ids))[0]
    end = int((ids[0] == 49407).nonzero()[0])
    got = CaptionSide(backbone, space)([text], {})
    torch.testing.assert_close(got, torch.nn.functional.normalize(space.read(states[:, end]), dim=-1), atol=1e-6, rtol=1e-5)


def test_on_sdxl_the_second_encoder_has_its_own_projection(tiny_sdxl, tmp_path):
    backbone = load(tiny_sdxl)
    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8, projection_dim=48
    )
    CLIPVisionModelWithProjection(config).save_pretrained(tmp_path / "vision")
    space = space_of(backbone, load_tower(str(tmp_path / "vision")))
    assert space.encoder == "clip_g" and space.read is None
    text = "a dog"
    ids = backbone.tokenize(text, "clip_g")
    pooled = backbone.encode_text(ids, backbone.token_rows(ids, "clip_g"), "clip_g")[1]
    got = CaptionSide(backbone, space)([text], {})
    torch.testing.assert_close(got, torch.nn.functional.normalize(pooled, dim=-1), atol=1e-6, rtol=1e-5)
    learned = contrast(backbone, Contrast((space,)), [Lesson("rex", "dog", pictures())], [], SHORT)
    begun = contrast(backbone, Contrast((space,)), [Lesson("rex", "dog", pictures())], [], replace(SHORT, lr=0.0))
    ((one,), (other,)) = learned.concepts, begun.concepts
    assert torch.equal(one.tokens["clip_l"], other.tokens["clip_l"]) and not torch.equal(one.tokens["clip_g"], other.tokens["clip_g"])
    assert any("no image tower goes with clip_l" in line for line in learned.warnings)
    both = Contrast((space, space_of(backbone, load_tower(str(whole_clip(tmp_path))))))
    told = contrast(backbone, both, [Lesson("rex", "dog", pictures())], [], SHORT)
    assert not torch.equal(told.concepts[0].tokens["clip_l"], other.tokens["clip_l"])
    assert not any("stay as they begin" in line for line in told.warnings)


def test_a_tower_that_no_encoder_leads_to_is_refused(tiny_sd1, tiny_sdxl, tmp_path):
    sd1, sdxl = load(tiny_sd1), load(tiny_sdxl)
    with pytest.raises(ValueError, match="there is no image tower"):
        contrast_by(sd1)
    wide = load_tower(str(whole_clip(tmp_path, width=64)))
    with pytest.raises(ValueError, match="reads states of width 64"):
        space_of(sd1, wide)
    wide.projection = None
    for base in (sd1, sdxl):
        with pytest.raises(ValueError, match="leads into the image tower's space of width 24"):
            space_of(base, wide)
    with pytest.raises(ValueError, match="0 concepts and 1 image towers"):
        contrast(sd1, Contrast((Space("", lambda x: x),)), [], [], SHORT)
    with pytest.raises(ValueError, match="two are"):
        contrast(sd1, Contrast((Space("", lambda x: x),)), [Lesson("a", "dog", pictures())] * 2, [], SHORT)


def folder_of(name, root, count=2):
    (root / name).mkdir()
    for i, example in enumerate(examples(CONCEPTS[name], count)):
        Image.fromarray(example.picture).save(root / name / f"{i}.png")
        Image.fromarray(example.mask).save(root / name / f"{i}_mask.png")
    return str(root / name)


def test_the_command_contrasts_and_training_goes_on(tmp_path, capsys):
    folders = [folder_of(name, tmp_path) for name in ("dog", "dog2")]
    bank = ["--bank", str(tmp_path / "bank"), "--device", "cpu"]
    words = ["--words", "rex=dog", "spot=dog", "--images", *folders]
    few = ["--steps", "2", "--canvases", "16", "--batch", "8"]
    assert main(["contrast", *bank, *words, *few, "--sheet", str(tmp_path / "sheet.png")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.rpartition("/")[2] for line in lines[:2]] == ["rex.safetensors", "spot.safetensors"]
    assert "is found by its text" in lines[2]
    assert np.asarray(Image.open(tmp_path / "sheet.png")).std() > 10
    learn = ["train", *bank, "--images", folders[0], "--name", "rex", "--class-word", "dog", "--steps", "1"]
    assert main([*learn, "--existing", "continue"]) == 0
    assert Bank(tmp_path / "bank").get("rex").training["began"]
    assert main([*learn[:-6], "--name", "tom", "--class-word", "dog", "--steps", "1", "--method", "clif", "--set", "canvases=4"]) == 0
    assert Bank(tmp_path / "bank").get("tom").training["method"] == "clif"
    capsys.readouterr()
    assert main(["contrast", *bank, "--words", "rex=dog", "--images", *folders]) == 2
    assert "2 folders for rex" in capsys.readouterr().err
    assert main(["contrast", *bank, *words, "--lr", "-1"]) == 2
    assert "lr -1.0" in capsys.readouterr().err
