"""Several concepts of one picture: learned together they share their factors, which count once, and calibration tells their words apart."""

import os
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from faults import at_point, kill
from PIL import Image
from test_training import Stopped, same

from cidm_ops.__main__ import main
from cidm_ops.bank.bank import Bank
from cidm_ops.bank.concept_file import load_concept
from cidm_ops.bank.export import export_merged
from cidm_ops.engines.diffusers import load
from cidm_ops.method.aggregation import count_once
from cidm_ops.method.regions import RegionMask
from cidm_ops.painting.compose import AggregationConfig, compose
from cidm_ops.painting.config import EVERYWHERE, WORDS
from cidm_ops.painting.paint import SamplingConfig, paint, unit_noise
from cidm_ops.painting.scope import acting_at
from cidm_ops.painting.texts import text_deltas
from cidm_ops.training import task as tasks
from cidm_ops.training.captions import joint_captions, mirror_caption
from cidm_ops.training.checkpoint import checkpoint_file
from cidm_ops.training.dataset import Dataset
from cidm_ops.training.method import Task
from cidm_ops.training.methods import configure
from cidm_ops.training.task import learn_into
from cidm_ops.training.together import cut_out, cut_outs, learn_together, parse_names, square_around
from cidm_ops.training.trainer import Trainer

RECIPE = configure("disendiff", steps=4, batch=2, lr=0.02, lr_tokens=0.02, seed=3)
NAMES = {"rex": "dog", "tom": "cat"}
CAPTIONS = ["a dog on the left and a cat on the right"]


@pytest.fixture(scope="module")
def backbone(tiny_sd1):
    return load(tiny_sd1)


def picture(**how) -> Dataset:
    return Dataset([torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0))], CAPTIONS, **how)


def task(config=RECIPE, names=NAMES, **how) -> Task:
    (name, class_word), *others = names.items()
    return Task(name=name, class_word=class_word, others=dict(others), config=config, **how)


def cidm(config=RECIPE, **settings):
    """The same settings for the joint run that calibrates nothing."""
    own = {n: v for n, v in config.settings().items() if n not in ("calibration", "anchor")}
    return configure("cidm", **(own | settings))


def learn(folder, backbone, config=RECIPE, names=NAMES, stop=0, **how):
    def on_step(trainer):
        if trainer.step == stop:
            raise Stopped

    return learn_into(Bank(folder), backbone, picture(flip=True), task(config, names, **how), on_step=on_step)


@pytest.fixture(scope="module")
def learned(backbone, tmp_path_factory):
    return learn(tmp_path_factory.mktemp("learned"), backbone)


def painted(backbone, bank, prompt, regions=(), **how):
    config = SamplingConfig(2, 3.0, aggregation=AggregationConfig(**how))
    return paint(backbone, bank, prompt, unit_noise(backbone.family, 1, 1, 64, 64), config, regions)[0]


def numbers(concept):
    return [t for f in concept.factors.values() for t in (f.up, f.down)] + list(concept.tokens.values())


def test_one_run_makes_a_file_for_each_with_words_of_its_own_and_the_same_factors(learned):
    rex, tom = (learned.bank.get(name) for name in NAMES)
    assert (rex.class_word, tom.class_word, rex.task, tom.task) == ("dog", "cat", 1, 2)
    assert (rex.words, tom.words) == (("<rex.1>", "<rex.2>"), ("<tom.1>", "<tom.2>"))
    assert all(torch.equal(f.up, tom.factors[n].up) and torch.equal(f.down, tom.factors[n].down) for n, f in rex.factors.items())
    assert not torch.equal(rex.tokens["clip_l"], tom.tokens["clip_l"])
    assert rex.shared == tom.shared == rex.training["task"] and rex.training["together"] == ["rex", "tom"]
    assert rex.training["method"] == "disendiff"


def test_without_calibration_it_is_the_joint_run_bit_for_bit(backbone, learned, tmp_path):
    off = learn(tmp_path / "off", backbone, RECIPE.update(calibration=0.0))
    plain = learn(tmp_path / "plain", backbone, cidm())
    assert off.losses == plain.losses
    for name in NAMES:
        one, other = (numbers(run.bank.get(name)) for run in (off, plain))
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(numbers(off.concept), numbers(learned.concept), strict=True))


def gradients(backbone, captions=CAPTIONS, **settings):
    trainer = Trainer(backbone, replace(picture(), captions=captions), task(RECIPE.update(**settings)))
    with trainer.attach():
        trainer.compute_gradients()
    return [p.grad.clone() for p in trainer.learner.parameters() if p.grad is not None]


def test_only_captions_that_name_all_are_calibrated(backbone):
    named, dropped = ([gradients(backbone, calibration=w, dropout=share) for w in (0.0, 1.0)] for share in (0.0, 0.999))
    assert any(not torch.equal(a, b) for a, b in zip(*named, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(*dropped, strict=True))


def test_gradients_are_the_same_with_checkpointing(backbone):
    found = [gradients(backbone, calibration=1.0, checkpointing=on) for on in (False, True)]
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)


def test_a_prompt_with_both_has_the_shared_factors_once(backbone, learned):
    bank, rex = learned.bank, learned.concept
    factors = compose(backbone, bank, "a <rex> and a <tom>").factors(backbone)
    for name, f in rex.factors.items():
        torch.testing.assert_close(factors[name].delta(), f.delta(), atol=1e-6, rtol=0)
    half = compose(backbone, bank, "a <rex:0.25> and a <tom:0.5>").factors(backbone)
    for name, f in rex.factors.items():
        torch.testing.assert_close(half[name].delta(), 0.5 * f.delta(), atol=1e-6, rtol=0)
    for mode in ("soft", "paper", "released"):
        mixed = compose(backbone, bank, "a <rex> and a <tom>", AggregationConfig(mode=mode))
        name = next(iter(rex.factors))
        largest = max(abs(float(w)) for w in mixed.weights[0])
        torch.testing.assert_close(mixed.factors(backbone)[name].norm(), largest * rex.factors[name].norm(), rtol=1e-4, atol=0)


def test_beside_the_layers_and_in_regions_they_count_once_too(backbone, learned, tmp_path):
    bank, prompt = learned.bank, "a <rex> and a <tom>"
    merged = painted(backbone, bank, prompt)
    torch.testing.assert_close(painted(backbone, bank, prompt, routed=True, scope=EVERYWHERE), merged, atol=1e-3, rtol=0)
    everywhere = RegionMask(torch.ones(8, 8))
    torch.testing.assert_close(painted(backbone, bank, prompt, [(prompt, everywhere)]), merged, atol=1e-3, rtol=0)
    apart = Bank(tmp_path)
    for name in NAMES:  # the same without the note that the factors are shared
        concept = bank.get(name)
        apart = apart.add(replace(concept, training={k: v for k, v in concept.training.items() if k != "shared_factors"}))
    assert float((painted(backbone, apart, prompt) - merged).abs().max()) > 1e-2, "twice is another picture"


def test_limited_to_words_the_shared_factors_act_at_the_words_of_both(learned):
    concepts = [learned.bank.get(name) for name in NAMES]
    masks = {"rex": torch.tensor([0.0, 1, 0, 0]), "tom": torch.tensor([0.0, 0, 0, 1])}
    acting = acting_at(masks, concepts, WORDS, 4)
    assert acting.T.tolist() == [[0, 1, 0, 1]] * 2
    assert count_once(concepts, torch.tensor([1.0, 1.0])).tolist() == [1, 0]
    alone = [replace(c, training={}) for c in concepts]
    assert acting_at(masks, alone, WORDS, 4).T.tolist() == [[0, 1, 0, 0], [0, 0, 0, 1]]
    assert count_once(alone, torch.tensor([1.0, 1.0])).tolist() == [1, 1]


def test_as_one_lora_and_in_the_text_encoders_they_count_once(backbone, learned, tmp_path):
    concepts = [learned.bank.get(name) for name in NAMES]
    assert export_merged(concepts, [1.0, 1.0], 4, tmp_path / "both.safetensors") < 1e-6, "the sum has the rank of one"
    spoken = [replace(c, text_factors={"clip_l.layer": next(iter(c.factors.values()))}) for c in concepts]
    (both,) = text_deltas(spoken, {"rex": 1.0, "tom": 1.0}, torch.device("cpu")).values()
    (one,) = text_deltas(spoken[:1], {"rex": 1.0}, torch.device("cpu")).values()
    torch.testing.assert_close(both.delta(), one.delta())


def test_a_stopped_run_goes_on_bit_for_bit_and_the_same_task_again_learns_nothing(backbone, learned, tmp_path):
    with pytest.raises(Stopped):
        learn(tmp_path, backbone, stop=2)
    assert not Bank(tmp_path).names and checkpoint_file(Bank(tmp_path), "rex").exists()
    again = learn(tmp_path, backbone)
    assert again.losses == learned.losses
    assert all(same(again.bank.file(name), learned.bank.file(name)) for name in NAMES)
    assert learn(tmp_path, backbone, stop=1).bank.names == ["rex", "tom"], "there was no first step"
    assert not checkpoint_file(Bank(tmp_path), "rex").exists()


@pytest.mark.skipif(os.name != "posix", reason="fork and kill -9")
def test_a_kill_between_the_files_loses_none(backbone, learned, tmp_path):
    def work(root):
        learn(root, backbone)

    status, count = at_point(tmp_path / "whole", work, 0, kill)
    assert status == 0
    found = set()
    for point in range(int(count) - 15, int(count) + 1):
        root = tmp_path / str(point)
        at_point(root, work, point, kill)
        found.add(tuple(Bank(root).names))
        again = learn(root, backbone)
        assert all(same(again.bank.file(name), learned.bank.file(name)) for name in NAMES), f"killed at change {point} of {count}"
    assert ("rex",) in found, "one kill came between the files"


def test_what_is_there_is_replaced_together_refused_or_cannot_be_learned_further(backbone, learned, tmp_path):
    bank = Bank(tmp_path).add(replace(learned.bank.get("tom"), training={"task": "another"}))
    with pytest.raises(ValueError, match="has a concept 'tom' already"):
        learn(tmp_path, backbone, existing="refuse")
    with pytest.raises(ValueError, match="'tom' cannot be learned further together with others"):
        learn(tmp_path, backbone, existing="continue")
    bank = learn(tmp_path, backbone).bank
    assert bank.names == ["tom", "rex"] and all(same(bank.file(n), learned.bank.file(n)) is False for n in ("rex",))
    steps = []
    learn_into(bank, backbone, picture(flip=True), task(), on_step=lambda trainer: steps.append(1))
    assert not steps


def test_the_next_concept_is_kept_apart_from_them_and_they_from_those_before(backbone, learned, tmp_path):
    bank = Bank(tmp_path).add(replace(load_concept(learned.bank.file("rex")), name="old", words=("<old.1>", "<old.2>")))
    trainer_of = {}
    learn_into(bank, backbone, picture(), task(), on_step=lambda trainer: trainer_of.setdefault("now", trainer))
    assert trainer_of["now"].number == 2 and tasks.earlier_names(Bank(tmp_path), task()) == ["old"]


def test_names_that_are_alike_and_a_method_for_one_are_refused(backbone, tmp_path):
    with pytest.raises(ValueError, match="two are alike"):
        task(names={"rex": "dog", "Rex": "cat"})
    with pytest.raises(ValueError, match="two are alike"):
        Task(name="rex", class_word="dog", others={"rex": "cat"}, config=RECIPE)
    with pytest.raises(ValueError, match="the class word is empty"):
        task(names={"rex": "dog", "tom": " "})
    with pytest.raises(ValueError, match="'infusion' learns one concept at a time, and 2 were given"):
        learn(tmp_path, backbone, configure("infusion", steps=1, batch=1, accumulate=1))
    for wrong in ({"calibration": -1.0}, {"anchor": -1.0}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))} -1.0"):
            RECIPE.update(**wrong)


def test_captions_get_the_words_of_all_and_a_mirrored_picture_has_its_sides_changed():
    words = {"rex": ["<rex.1>", "<rex.2>"], "tom": ["<tom.1>", "<tom.2>"]}
    said, warnings = joint_captions(["a dog left of a cat", "<tom> and a dog", "a cat", ""], NAMES, words)
    assert said == [
        "a <rex.1> <rex.2> left of a <tom.1> <tom.2>",
        "<tom.1> <tom.2> and a <rex.1> <rex.2>",
        "<rex.1> <rex.2>, a <tom.1> <tom.2>",
        "<rex.1> <rex.2> and a <tom.1> <tom.2>",
    ]
    assert len(warnings) == 2 and "does not hold the class word 'dog'" in warnings[1]
    bears = {"rex": "bear", "tom": "teddy bear"}
    assert joint_captions(["a teddy bear beside a bear"], bears, words) == (["a <tom.1> <tom.2> beside a <rex.1> <rex.2>"], [])
    assert mirror_caption("a <left.1> on the Left, leftover, right of it") == "a <left.1> on the right, leftover, left of it"


def test_a_mirrored_picture_is_worded_for_its_sides(backbone):
    trainer = Trainer(backbone, picture(flip=True), task())
    plain = trainer.batches.draw(0, False, random.Random(0))[0]
    seen = set()
    for number in range(8):
        for sample in trainer.batches.batch(number, 1)[0]:
            flipped = not torch.equal(sample.latent, plain)
            seen.add(flipped)
            assert ("<rex.2> on the right" in sample.text) == flipped
    assert seen == {True, False}


def masks_of_halves():
    left = torch.zeros(1, 64, 64)
    left[:, 20:40, 4:24] = 1
    return {"rex": [left], "tom": [left.flip(-1)]}


def test_with_masks_each_is_learned_alone_from_its_cut_out(backbone, tmp_path):
    runs = learn_together(Bank(tmp_path), backbone, cut_outs(picture(size=64), masks_of_halves()), task())
    rex, tom = (runs[-1].bank.get(name) for name in NAMES)
    assert runs[-1].bank.names == ["rex", "tom"] and not rex.shared and not tom.shared
    assert any(not torch.equal(a, b) for a, b in zip(numbers(rex), numbers(tom), strict=True))
    assert [len(run.losses) for run in runs] == [4, 4]


def test_a_cut_out_is_a_square_around_the_concept_that_lies_in_the_picture():
    mask = masks_of_halves()["rex"][0]
    rows, columns = square_around(mask)
    assert (rows, columns) == (slice(16, 43), slice(0, 27)), "1.35 times 20 is 27, and moved to the picture's edge"
    assert square_around(torch.ones(1, 30, 50)) == (slice(0, 30), slice(0, 50))


def test_in_a_cut_out_the_others_are_not_learned_or_with_an_anchor_the_concept_alone_is():
    near = {"rex": masks_of_halves()["rex"], "tom": [masks_of_halves()["rex"][0].roll(18, -1)]}  # the two overlap by two columns
    rows, columns = square_around(near["rex"][0])
    data = cut_out(picture(), near, "rex")
    assert torch.equal(data.pictures[0], picture().pictures[0][:, rows, columns]) and data.fit == "buckets"
    assert torch.equal(data.masks[0], 1 - near["tom"][0][:, rows, columns]) and data.masks[0].min() == 0
    assert torch.equal(cut_out(picture(), near, "rex", inside=True).masks[0], near["rex"][0][:, rows, columns])
    seen = torch.zeros(1, 64, 64)
    shown = cut_out(picture(masks=[seen]), near, "rex").masks[0]
    assert not shown.any(), "what the picture's own mask leaves out stays out"


def test_names_are_read_from_lines_and_options():
    assert parse_names(["rex: dog", "", " tom : teddy bear "], ":") == {"rex": "dog", "tom": "teddy bear"}
    for entries, error in (
        (["rex dog"], "'rex dog': expected a name and what kind of thing it is, such as rex=dog"),
        (["rex=dog", "rex=cat"], "'rex' is there twice"),
        (["rex=dog"], "1 concept given: expected at least 2"),
    ):
        with pytest.raises(ValueError, match=error):
            parse_names(entries, "=")


def test_the_command_learns_both_from_one_picture_and_says_what_does_not_go_together(tiny_sd1, tmp_path, capsys):
    shown = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(shown).save(tmp_path / "photo.png")
    (tmp_path / "photo.txt").write_text("a dog on the left and a cat on the right")
    for name, mask in masks_of_halves().items():
        Image.fromarray((mask[0][0].numpy() * 255).astype(np.uint8)).save(tmp_path / f"{name}.png")
    common = ["train", "--base", str(tiny_sd1), "--size", "64", "--device", "cpu", "--steps", "2", "--images", str(tmp_path / "photo.png")]
    both = ["--together", "rex=dog", "tom=cat"]
    masks = ["--masks", str(tmp_path / "rex.png"), str(tmp_path / "tom.png")]
    for folder, more, shared in (("joint", [], True), ("cut", masks, False)):
        assert main([*common, *both, *more, "--bank", str(tmp_path / folder)]) == 0
        written = capsys.readouterr().out.split()
        assert [file.rpartition("/")[2] for file in written] == ["rex.safetensors", "tom.safetensors"]
        concepts = [load_concept(file) for file in written]
        assert [c.training["method"] for c in concepts] == ["disendiff"] * 2 and all(bool(c.shared) is shared for c in concepts)
    for wrong, error in (
        ([*both, "--class-word", "dog"], "leave out --name and --class-word"),
        ([], "--class-word is missing"),
        (["--class-word", "dog", *masks], "--masks is for --together"),
        ([*both, *masks[:2]], "1 masks for rex, tom: give one for each"),
        (["--together", "rex"], "'rex': expected a name"),
        ([*both, "--method", "infusion"], "'infusion' learns one concept at a time"),
    ):
        assert main([*common, *wrong, "--bank", str(tmp_path / "wrong")]) == 2
        assert error in capsys.readouterr().err


def test_masks_that_do_not_fit_are_refused_by_name():
    masks = masks_of_halves()
    with pytest.raises(ValueError, match="<tom> has 0 masks for 1 pictures"):
        cut_outs(picture(), masks | {"tom": []})
    with pytest.raises(ValueError, match="the mask of <rex> is 32 x 64 and the picture 64 x 64"):
        cut_out(picture(), {"rex": [torch.ones(1, 64, 32)]}, "rex")
    with pytest.raises(ValueError, match="the masks of <rex> cover nothing"):
        cut_out(picture(), {"rex": [torch.zeros(1, 64, 64)]}, "rex")


def test_the_anchor_draws_what_is_outside_of_masks_to_the_base(backbone):
    mask = masks_of_halves()["rex"][0]
    data = Dataset(picture().pictures, ["a dog"], [mask])

    def gradients(weight, masks):
        trainer = Trainer(backbone, replace(data, masks=masks), task(RECIPE.update(anchor=weight), {"rex": "dog"}))
        with trainer.attach():
            trainer.compute_gradients()
            first = [p.grad.clone() for p in trainer.learner.parameters() if p.grad is not None]
            trainer.optimizer.step()
            trainer.compute_gradients()
        return first, [p.grad.clone() for p in trainer.learner.parameters() if p.grad is not None]

    for part in zip(gradients(0.0, [torch.ones(1, 64, 64)]), gradients(1.0, [torch.ones(1, 64, 64)]), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(*part, strict=True)), "there is no outside"
    inside, anchored = gradients(0.0, [mask])[1], gradients(1.0, [mask])[1]
    assert any(not torch.allclose(a, b) for a, b in zip(inside, anchored, strict=True))
