"""A run can stop anywhere and goes on exactly; every mode learns; bad numbers end it with nothing lost."""

import multiprocessing
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from cidm_ops.bank.bank import Bank
from cidm_ops.engines.diffusers import load
from cidm_ops.method.consolidation import MODES, earlier_bases, overlap
from cidm_ops.models.sd import SD1
from cidm_ops.painting.compose import mix
from cidm_ops.painting.paint import SamplingConfig, paint, unit_noise
from cidm_ops.tokens import encode_layerwise
from cidm_ops.training import task
from cidm_ops.training.checkpoint import checkpoint_file
from cidm_ops.training.dataset import Dataset
from cidm_ops.training.method import Task
from cidm_ops.training.methods import configure
from cidm_ops.training.task import learn_into
from cidm_ops.training.trainer import Trainer

RECIPE = configure("cidm", steps=12, lr=1e-2, lr_tokens=1e-2, norm_stop=0.15, seed=3)


@pytest.fixture(scope="module")
def backbone(tiny_sd1):
    return load(tiny_sd1)


def dataset(shapes=((64, 64), (64, 64), (64, 64)), **how):
    pictures = [torch.rand(3, *shape, generator=torch.Generator().manual_seed(i)) for i, shape in enumerate(shapes)]
    return Dataset(pictures, [f"a dog, number {i}" for i in range(len(shapes))], **how)


def task_of(config=RECIPE, name="rex", **options):
    return Task(name=name, class_word="dog", config=config, **options)


class Stopped(Exception):
    pass


def learn(bank, backbone, data=None, *, name="rex", recipe=RECIPE, stop=0, on_picture=lambda done, count: None, **options):
    def on_step(run):
        if run.step == stop:
            raise Stopped

    task = task_of(recipe, name, **options)
    return learn_into(bank, backbone, data or dataset(), task, on_step=on_step, on_picture=on_picture)


def same(a: Path, b: Path) -> bool:
    """Whether two concept files say the same, bit for bit (safetensors writes metadata in any order)."""
    with safe_open(a, "pt") as one, safe_open(b, "pt") as other:
        tensors = all(torch.equal(one.get_tensor(k), other.get_tensor(k)) for k in {*one.keys(), *other.keys()})
        return tensors and one.metadata() == other.metadata()


@pytest.mark.parametrize("mode", ["corrected", "paper_literal"])
@pytest.mark.parametrize("stop", [2, 9], ids=["words-still-learning", "words-learned"])
def test_a_stopped_run_goes_on_bit_for_bit(backbone, tmp_path, mode, stop):
    recipe = RECIPE.update(mode=mode, accumulate=2, shuffle=True, dropout=0.2, shared=0.1)
    data = dataset(size=32, fit="random", flip=True)
    banks = []
    for folder, at in (("whole", 0), ("stopped", stop)):
        bank, _, _, _ = learn(Bank(tmp_path / folder), backbone, name="first")
        if at:
            with pytest.raises(Stopped):
                learn(bank, backbone, data, recipe=recipe, stop=at)
            assert bank.names == ["first"] and checkpoint_file(bank, "rex").exists()
        steps = []
        task = task_of(recipe)
        bank, concept, losses, _ = learn_into(bank, backbone, data, task, on_step=lambda run, seen=steps: seen.append(run.step))
        assert steps == list(range(at + 1, recipe.steps + 1)) and not checkpoint_file(bank, "rex").exists()
        banks.append((bank.file("rex"), losses))
    assert banks[0][1] == banks[1][1]
    assert same(banks[0][0], banks[1][0])


def test_the_words_stop_in_the_middle_of_the_run(backbone):
    run = Trainer(backbone, dataset(), task_of(RECIPE))
    with run.attach():
        learning = [bool(run.advance()) and run.learner.words_learn for _ in range(12)]
    assert learning[2] and not learning[8]


@pytest.mark.parametrize("recipe", [RECIPE, RECIPE.update(lr_text=1e-3), configure("infusion", steps=3, batch=2, accumulate=1)])
def test_captions_of_any_length_share_a_batch(backbone, tmp_path, recipe):
    data = dataset(((64, 64),) * 4)
    tags = "a dog, " + ", ".join(f"tag{i}" for i in range(100))
    data.captions = [tags, "a dog", f"{tags}, {tags}", ""]
    learned = learn(Bank(tmp_path), backbone, data, recipe=recipe)
    assert len(learned.losses) == recipe.steps and all(loss > 0 for loss in learned.losses)


def test_a_short_text_is_filled_up_with_empty_chunks(backbone):
    long = " ".join(["dog"] * 100)
    both, short, empty = (encode_layerwise(backbone, texts, {}).states for texts in (["a dog", long], ["a dog"], [""]))
    assert both.shape[2] == 2 * short.shape[2]
    assert torch.equal(both[:1], torch.cat([short, empty], 2)) and torch.equal(both[1:], encode_layerwise(backbone, [long], {}).states)


def test_masks_that_are_all_empty_are_refused(backbone, tmp_path):
    with pytest.raises(ValueError, match="the masks of all 1 pictures cover nothing"):
        learn(Bank(tmp_path / "bank"), backbone, dataset(((64, 64),), masks=[torch.zeros(1, 64, 64)]))
    assert not (tmp_path / "bank").exists()


def test_a_shortage_without_a_text_is_a_shortage_like_any_other(backbone, tmp_path, monkeypatch):
    accumulate, tries = Trainer.accumulate, []

    def short(self, *args, **how):
        tries.append(self.plan)
        if len(tries) == 1:
            raise MemoryError
        return accumulate(self, *args, **how)

    monkeypatch.setattr(Trainer, "accumulate", short)
    learned = learn(Bank(tmp_path), backbone, recipe=RECIPE.update(steps=1))
    assert any("memory was short with" in warning and "checkpointing on" in warning for warning in learned.warnings)
    tries.clear()
    with pytest.raises(MemoryError, match=r"memory is short.*try checkpointing on.*\(there is not enough memory\)"):
        learn(Bank(tmp_path), backbone, recipe=RECIPE.update(steps=1, memory="as_set", seed=9))


def test_pictures_of_the_plain_class_without_captions_say_the_class_word(backbone):
    prior = dataset(((64, 64),))
    prior.captions = [""]
    assert Trainer(backbone, dataset(), task_of(RECIPE.update(prior=1.0), prior=prior)).prior.captions == ["dog"]


def test_another_task_does_not_take_the_state(backbone, tmp_path):
    bank = Bank(tmp_path)
    with pytest.raises(Stopped):
        learn(bank, backbone, stop=5)
    learned = learn(bank, backbone, recipe=RECIPE.update(seed=4))
    assert any("starts anew" in warning for warning in learned.warnings)


def test_a_damaged_state_is_not_taken(backbone, tmp_path):
    bank = Bank(tmp_path)
    with pytest.raises(Stopped):
        learn(bank, backbone, stop=5)
    file = checkpoint_file(bank, "rex")
    file.write_bytes(file.read_bytes()[:500])
    assert any("cannot be read" in warning for warning in learn(bank, backbone).warnings)


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_learns_a_second_concept(backbone, tmp_path, mode):
    recipe = RECIPE.update(mode=mode)
    bank, first, _, _ = learn(Bank(tmp_path), backbone, name="first", recipe=recipe)
    before = bank.file("first").read_bytes()
    bank, second, losses, _ = learn(bank, backbone, recipe=recipe)
    assert bank.file("first").read_bytes() == before and second.task == 2
    assert all(torch.isfinite(f.up).all() and f.up.abs().max() > 0 for f in second.factors.values())
    if mode == "orthogonal":
        reads = earlier_bases([first.factors], "down")
        assert max(float(overlap(f.down.T, reads[n])) for n, f in second.factors.items()) < 1e-5


def test_alpha_scales_while_learning_and_the_file_holds_the_full_scale(backbone):
    runs = []
    for alpha in (0.0, 2.0):
        recipe = RECIPE.update(alpha=alpha)
        runs.append(Trainer(backbone, dataset(), task_of(recipe)))
        with runs[-1].attach():
            for _ in range(3):
                runs[-1].advance()
    run = runs[1]
    x = torch.randn(5, run.learner.downs[0].shape[1])
    name = run.learner.names[0]
    torch.testing.assert_close(run.learner.deltas()[name](x), run.concept().factors[name](x))
    assert not torch.equal(runs[0].learner.ups[0], run.learner.ups[0])


def test_accumulated_batches_are_averaged(backbone):
    run = Trainer(backbone, dataset(), task_of(RECIPE.update(batch=1, accumulate=2)))
    both = gradients(run)
    single = RECIPE.update(batch=1)
    parts = [gradients(Trainer(backbone, dataset(), task_of(single)), number) for number in (0, 1)]
    for mean, first, second in zip(both, *parts, strict=True):
        torch.testing.assert_close(mean, (first + second) / 2)


def gradients(run, number=None):
    """The gradients of a step, or of one batch of it."""
    with run.attach():
        if number is None:
            run.optimizer.step = lambda: None
            run.advance()
        else:
            run.accumulate(*run.batches.batch(number, run.config.batch))
    return [p.grad.clone() for p in (*run.learner.ups, *run.learner.tokens.values())]


def test_checkpointing_changes_no_gradient(backbone):
    runs = [Trainer(backbone, dataset(), task_of(RECIPE.update(checkpointing=on))) for on in (False, True)]
    for plain, again in zip(*map(gradients, runs), strict=True):
        torch.testing.assert_close(plain, again)
    assert not any("forward" in vars(m) for m in backbone.unet.modules())


def test_a_picture_in_mid_run_changes_nothing(backbone):
    losses = []
    for painting in (False, True):
        run = Trainer(backbone, dataset(), task_of(RECIPE))
        with run.attach():
            for _ in range(4):
                run.advance()
                if painting:
                    assert run.preview("a <rex>", steps=2).shape == (3, 64, 64)
        losses.append(run.losses)
    assert losses[0] == losses[1]


def test_pictures_of_different_shapes_share_a_batch(backbone):
    data = dataset(((64, 64), (64, 128), (96, 64)), size=64, fit="buckets")
    run = Trainer(backbone, data, task_of(RECIPE.update(batch=3)))
    with run.attach():
        assert run.advance() > 0
    assert {tuple(latent.shape[1:]) for latent in run.batches.latents.values()} == {(8, 8), (5, 12), (10, 6)}


def test_a_mask_that_covers_nothing_learns_nothing_and_is_no_nan(backbone):
    data = dataset(((64, 64),), masks=[torch.zeros(1, 64, 64)])
    run = Trainer(backbone, data, task_of(RECIPE))
    with run.attach():
        assert run.advance() == 0
    assert all((up == 0).all() for up in run.learner.ups)


def test_a_loss_that_is_no_number_ends_the_run_and_keeps_the_state(backbone, tmp_path, monkeypatch):
    bank, _, _, _ = learn(Bank(tmp_path), backbone, name="first")
    before = bank.file("first").read_bytes()
    predict = type(backbone).predict
    calls = []

    def break_later(self, *args):
        calls.append(1)
        return predict(self, *args) * (float("nan") if len(calls) > 60 else 1)

    monkeypatch.setattr(type(backbone), "predict", break_later)
    with pytest.raises(FloatingPointError, match="nan at step 61: lower the learning rates"):
        learn(bank, backbone, recipe=RECIPE.update(steps=100))
    monkeypatch.undo()
    assert Bank(tmp_path).names == ["first"] and bank.file("first").read_bytes() == before
    _, _, losses, _ = learn(bank, backbone, recipe=RECIPE.update(steps=100))  # goes on from step 50
    assert len(losses) == 100


@pytest.mark.parametrize(
    ("change", "error"),
    [(dict(rank=0), "rank 0: expected at least 1"), (dict(steps=0), "steps 0"), (dict(mode="new"), "mode 'new'")],
)
def test_settings_that_cannot_work_are_refused(change, error):
    with pytest.raises(ValueError, match=error):
        RECIPE.update(**change)


@pytest.mark.parametrize(
    ("targets", "per_block"), [("cross_attention", 4), ("attention", 8), ("attention_ff", 10), (r"attn2\.to_[kv]$", 2)]
)
def test_other_layers_learn_and_paint(backbone, tmp_path, targets, per_block):
    bank, concept, _, _ = learn(Bank(tmp_path), backbone, recipe=RECIPE.update(steps=2, targets=targets))
    assert len(concept.factors) == per_block * len(backbone.blocks)
    assert mix(backbone, bank, "a <rex>").factors(backbone).keys() == concept.factors.keys()
    assert paint(backbone, bank, "a <rex>", unit_noise(SD1, 0, 1, 64, 64), SamplingConfig(1))[0].isfinite().all()


def test_targets_that_no_layer_has_are_refused(backbone):
    for targets, error in (("attn3", "no layer has that"), ("(", "regular expression")):
        with pytest.raises(ValueError, match=error):
            Trainer(backbone, dataset(), task_of(RECIPE.update(targets=targets)))


def test_settings_are_given_by_name():
    assert RECIPE.parse(["min_snr=5", "checkpointing=true", "mode=off"]) == RECIPE.update(min_snr=5.0, checkpointing=True, mode="off")
    for setting, error in (
        ("speed=1", "expected name=value with one of steps, batch"),
        ("rank=four", "such as 4"),
        ("wording=1", "name=value"),
    ):
        with pytest.raises(ValueError, match=error):
            RECIPE.parse([setting])


def test_a_rank_above_a_layers_width_is_refused(backbone):
    with pytest.raises(ValueError, match=r"rank 64: .*attn2.* is 32 wide"):
        Trainer(backbone, dataset(), task_of(RECIPE.update(rank=64)))


def test_a_name_that_exists_can_be_refused(backbone, tmp_path):
    bank, _, _, _ = learn(Bank(tmp_path), backbone)
    with pytest.raises(ValueError, match="has a concept 'rex' already"):
        learn(bank, backbone, recipe=RECIPE.update(seed=9), existing="refuse")


def test_a_folder_that_cannot_be_written_is_found_before_learning(backbone, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot be written to"):
        learn(Bank(tmp_path / "file"), backbone, stop=1)


def learn_five(base, folder):
    """In a process of its own: five concepts, whatever of them is not there yet."""
    torch.set_num_threads(1)
    task.SAVE_EVERY = 2
    bank = Bank(folder)
    for n in range(1, 6):
        data = dataset(((32, 32),) * 3)
        bank = learn_into(bank, load(base), data, task_of(configure("cidm", steps=8, lr=1e-2), f"dog{n}")).bank


def test_twenty_kills_at_any_instant_lose_nothing(tiny_sd1, tmp_path):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])

    def learning(folder):
        child = context.Process(target=learn_five, args=(tiny_sd1, folder))
        child.start()
        return child

    seen: dict[Path, bytes] = {}
    kills = finished = 0
    while kills < 20:
        folder = tmp_path / f"bank{finished}"
        child = learning(folder)
        child.join(0.2 + 3 * ((kills * 0.618) % 1))
        if child.exitcode is None:
            child.kill()
            child.join()
            kills += 1
        else:
            assert child.exitcode == 0
            finished += 1
        bank = Bank(folder)
        assert not bank.damaged
        for file in map(bank.file, bank.names):
            assert seen.setdefault(file, file.read_bytes()) == file.read_bytes()
    for folder in (tmp_path / "bank0", tmp_path / "whole"):
        child = learning(folder)
        child.join()
        assert child.exitcode == 0
    for name in Bank(tmp_path / "whole").names:
        assert same(tmp_path / "bank0" / f"{name}.safetensors", tmp_path / "whole" / f"{name}.safetensors")


def test_the_same_task_of_another_kind_learns_nothing_and_acts_as_said(backbone, tmp_path):
    bank, thing, _, _ = learn(Bank(tmp_path), backbone)
    bank, style, _, _ = learn(bank, backbone, recipe=RECIPE.update(kind="style"), stop=1)
    assert (thing.kind, style.kind, bank.get("rex").kind) == ("thing", "style", "style")
    assert style.training["task"] == thing.training["task"] and style.task == thing.task
    assert all(torch.equal(f.up, bank.get("rex").factors[n].up) for n, f in thing.factors.items())
