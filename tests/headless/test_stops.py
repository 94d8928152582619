"""A run that is ended anywhere in a step, by Ctrl-C, SIGTERM or an error, keeps its last whole step, says so, and goes on bit for bit."""

import json
import signal
import sys
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from test_command_line import photos
from test_training import dataset, learn, same, task_of

from cidm_ops.__main__ import main
from cidm_ops.bank.bank import Bank
from cidm_ops.engines.diffusers import load
from cidm_ops.training import task
from cidm_ops.training.checkpoint import checkpoint_file
from cidm_ops.training.methods import configure
from cidm_ops.training.stops import end_as_interrupts, hold_signals, keep_together
from cidm_ops.training.task import learn_into
from cidm_ops.training.trainer import Trainer

RECIPE = configure("cidm", steps=5, lr=1e-2, lr_tokens=1e-2, norm_stop=0.15, seed=3)
STOPPED = 3  # the step in which a signal comes, from 1
POINTS = 8  # instants of that step


@pytest.fixture(scope="module")
def backbone(tiny_sd1):
    return load(tiny_sd1)


@pytest.fixture(autouse=True)
def from_a_terminal():
    """What a shell starts in the background ignores Ctrl-C, and so does what runs in it: these tests run as from a terminal anywhere."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class At:
    """While open, does ``act`` when the ``count``-th function is called in step ``STOPPED``; ``seen`` counts the calls of that step."""

    def __init__(self, count: int, act):
        self.count, self.act, self.seen, self.steps = count, act, 0, 0

    def __enter__(self):
        self.advance = Trainer.advance

        def counted(trainer):
            self.steps += 1
            if self.steps != STOPPED:
                return self.advance(trainer)
            sys.setprofile(self.called)
            try:
                return self.advance(trainer)
            finally:
                sys.setprofile(None)

        Trainer.advance = counted
        return self

    def __exit__(self, *error):
        Trainer.advance = self.advance

    def called(self, frame, event, argument):
        if event in ("call", "c_call"):
            self.seen += 1
            if self.seen == self.count:
                self.act()


def kept_step(bank: Bank) -> int:
    with safe_open(checkpoint_file(bank, "rex"), "pt") as f:
        return len(json.loads(f.metadata()["facts"])["losses"])


@pytest.fixture(scope="module")
def whole(backbone, tmp_path_factory):
    """The file of a run that nobody stopped, and how many calls a step takes."""
    with At(0, lambda: None) as watched:
        bank = learn(Bank(tmp_path_factory.mktemp("whole")), backbone, recipe=RECIPE).bank
    return bank.file("rex"), watched.seen


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_a_signal_at_any_instant_of_a_step_keeps_the_last_whole_one(backbone, whole, tmp_path, number):
    file, calls = whole
    places = {round(1 + part * (calls - 2) / (POINTS - 1)) for part in range(POINTS)} | set(
        range(calls - 60, calls, 9)
    )  # it ends with the update
    kept = set()
    for place in sorted(places):
        bank, said = Bank(tmp_path / str(place)), []
        with At(place, lambda: signal.raise_signal(number)), pytest.raises(KeyboardInterrupt), end_as_interrupts():
            learn_into(bank, backbone, dataset(), task_of(RECIPE), tell=said.append)
        kept.add(step := kept_step(bank))
        assert said[-1].startswith(f"stopped at step {step} of 5: run it again") and str(checkpoint_file(bank, "rex")) in said[-1]
        seen = []
        learn_into(bank, backbone, dataset(), task_of(RECIPE), on_step=lambda run, seen=seen: seen.append(run.step))
        assert seen == list(range(step + 1, 6)) and same(bank.file("rex"), file), place
    assert kept == {STOPPED - 1, STOPPED}, "before the update and after it, never within"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_the_command_says_where_it_goes_on_and_goes_on_there(tiny_sd1, tmp_path, capsys, number):
    images = photos(tmp_path / "rex", ["a dog on grass", "a dog"])
    argv = ["train", "--base", str(tiny_sd1), "--images", str(images), "--class-word", "dog", "--size", "64", "--steps", "5", "--bank"]
    before = signal.getsignal(number)
    with At(100, lambda: signal.raise_signal(number)):
        assert main([*argv, str(tmp_path / "bank")]) == 2
    err = capsys.readouterr().err
    assert "stopped at step 2 of 5" in err and "rex.safetensors" in err and "Traceback" not in err
    assert kept_step(Bank(tmp_path / "bank")) == 2 and signal.getsignal(number) == before
    for bank in ("bank", "whole"):
        assert main([*argv, str(tmp_path / bank)]) == 0
    assert same(tmp_path / "bank" / "rex.safetensors", tmp_path / "whole" / "rex.safetensors")
    assert not checkpoint_file(Bank(tmp_path / "bank"), "rex").exists()


def test_an_error_in_mid_step_keeps_the_last_whole_one(backbone, tmp_path, monkeypatch):
    """As when the host notices Cancel while it loads a model for a step."""

    class Cancelled(Exception):
        pass

    calls, encode, data = [], type(backbone).encode_image, dataset(size=32, fit="random")

    def cancel(self, pictures):
        calls.append(1)
        if len(calls) == 8:
            raise Cancelled
        return encode(self, pictures)

    monkeypatch.setattr(type(backbone), "encode_image", cancel)
    bank, said = Bank(tmp_path), []
    with pytest.raises(Cancelled):
        learn_into(bank, backbone, data, task_of(RECIPE), tell=said.append)
    assert kept_step(bank) == 3 and "stopped at step 3 of 5" in said[-1]
    assert learn_into(bank, backbone, data, task_of(RECIPE)).bank.names == ["rex"]


def test_what_cannot_be_stored_is_not_learned_again(backbone, tmp_path):
    bank, steps = Bank(tmp_path / "bank"), []
    other = Trainer(backbone, dataset(), task_of(RECIPE, "other")).concept()

    def another_base(trainer):
        steps.append(trainer.step)
        if trainer.step == 5:
            Bank(bank.folder).add(replace(other, architecture="sd1-3x4"))

    with pytest.raises(ValueError, match="use another bank"):
        learn_into(bank, backbone, dataset(), task_of(RECIPE), on_step=another_base)
    bank.file("other").unlink()
    assert learn_into(Bank(bank.folder), backbone, dataset(), task_of(RECIPE), on_step=another_base).bank.names == ["rex"]
    assert steps == [1, 2, 3, 4, 5], "no step is taken twice"


def test_a_second_signal_does_not_cut_the_saving(backbone, tmp_path, monkeypatch):
    save = task.save_run

    def impatient(*args):
        signal.raise_signal(signal.SIGINT)
        save(*args)

    monkeypatch.setattr(task, "save_run", impatient)
    bank = Bank(tmp_path)
    with At(50, lambda: signal.raise_signal(signal.SIGINT)), pytest.raises(KeyboardInterrupt):
        learn(bank, backbone, recipe=RECIPE)
    assert kept_step(bank) == 2


def test_a_step_that_was_cut_in_two_is_not_kept(backbone, tmp_path, monkeypatch):
    step, said = torch.optim.AdamW.step, []

    def short(self, *args):
        if self.state:
            raise RuntimeError("out of memory")
        return step(self, *args)

    monkeypatch.setattr(torch.optim.AdamW, "step", short)
    with pytest.raises(RuntimeError):
        learn_into(Bank(tmp_path), backbone, dataset(), task_of(RECIPE), tell=said.append)
    assert "could not be kept (it was cut in two)" in said[-1] and not checkpoint_file(Bank(tmp_path), "rex").exists()


def test_what_belongs_together_is_done_before_a_signal_acts():
    done = []
    with pytest.raises(KeyboardInterrupt), keep_together():
        signal.raise_signal(signal.SIGINT)
        done.append(1)
    with hold_signals() as came:
        signal.raise_signal(signal.SIGINT)
    assert done == [1] and came == [signal.SIGINT] and signal.getsignal(signal.SIGINT) is signal.default_int_handler
