"""The nodes and the command line say the same of the same input: remarks on pictures, masks, captions and prompts, and refusals."""

import os
import time

import numpy as np
import pytest
from graphs import learn, load, node, speak
from PIL import Image

from cidm_ops.__main__ import main


def amiss(folder):
    """Three pictures that can be learned from, and one of everything that is amiss in a folder."""
    folder.mkdir(parents=True)
    draw = np.random.default_rng(0)
    captions = ("a <lora:dog:1> dog", "my <my-dog>", None)
    for i, caption in enumerate(captions):
        Image.fromarray(draw.integers(0, 255, (48, 60, 3), dtype=np.uint8)).save(folder / f"p{i}.png")
        if caption:
            (folder / f"p{i}.txt").write_text(caption)
    Image.new("L", (60, 48), 0).save(folder / "p0_mask.png")
    Image.new("L", (60, 48), 255).save(folder / "p1_mask.png")
    Image.new("L", (60, 48), 0).save(folder / "nobody_mask.png")
    frames = [Image.new("RGB", (48, 48), colour) for colour in ("red", "blue")]
    frames[0].save(folder / "q.gif", save_all=True, append_images=frames[1:])
    for name in ("g.jxl", "notes.md", "._p0.png", "nobody.txt", "p0.caption"):
        (folder / name).write_bytes(b"x")
    for name in ("more", "0_dog"):
        (folder / name).mkdir()
    os.mkfifo(folder / "f.png")
    return folder


@pytest.fixture
def told(tmp_path, capsys):
    """What the command line says of a command: its lines of warning, or the one of its refusal."""

    def run(*argv):
        code = main([str(word) for word in argv])
        err = capsys.readouterr().err.splitlines()
        if code:
            return next(line.removeprefix("cidm: ") for line in err if not line.startswith("cidm: warning"))
        return {line.removeprefix("cidm: warning: ") for line in err if line.startswith("cidm: warning: ")}

    return run


def train(images, bank):
    return "train", "--images", images, "--class-word", "dog", "--name", "dog", "--bank", bank, "--steps", 1, "--size", 128


def learn_from(folder, bank):
    """A prompt that learns from a folder as ``train`` does, and shows it."""
    dataset = node("CIDMDatasetFromFolder", folder=str(folder), size=128, fit="centre", flip=False)
    prompt = learn(bank, steps=1, images=("6", 0), captions=()) | {"6": dataset}
    del prompt["4"]["inputs"]["captions"]
    return prompt


def warnings_of(shown):
    return {line.removeprefix("Warning: ") for line in shown["text"][0].splitlines() if line.startswith("Warning: ")}


@pytest.mark.skipif(os.name != "posix", reason="a pipe")
def test_remarks_on_a_folder_are_the_same(server, told, tmp_path):
    folder = amiss(server.folder / "input" / "amiss")
    said = told(*train(folder, tmp_path / "bank"))
    outputs = server.run(learn_from(folder, "faces"))
    assert said == warnings_of(outputs["4"])
    unused = ("g.jxl", "notes.md", "._p0.png", "nobody.txt", "p0.caption", "nobody_mask.png", "more", "0_dog", "f.png", "q.gif")
    assert all(any(name in line for line in said) for name in unused), said
    assert warnings_of(outputs["6"]) <= said


def test_refusals_of_a_folder_are_the_same(server, told, tmp_path):
    folder = server.folder / "input" / "refused"
    folder.mkdir()

    def both():
        said = told(*train(folder, tmp_path / "bank"))
        assert said in server.error(learn_from(folder, "refusing"))
        return said

    assert "no pictures in it" in both()
    Image.new("RGBA", (96, 96), (9, 9, 9, 0)).save(folder / "clear.png")
    assert "cover nothing" in both()
    Image.new("RGB", (96, 96)).save(folder / "p.png")
    (folder / "p.txt").write_bytes("a dog in a caf\xe9".encode("cp1252"))
    assert "save it as UTF-8" in both()
    (folder / "p.png").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    assert "git lfs pull" in both()
    assert not server.bank("refusing").exists() and not (tmp_path / "bank").exists()


@pytest.mark.parametrize("text", ["<unknown>, blurry", "<dog: 0.8>", "<dog", "<Dog:0,8>"])
def test_a_handle_in_the_negative_is_refused_alike(server, told, tmp_path, text):
    bank = server.bank("negatives")
    if not bank.exists():
        server.run(learn("negatives", steps=1))
    generate = ("generate", "--bank", bank, "--prompt", "a <dog>", "--negative", text, "--steps", 1, "--out", tmp_path)
    assert told(*generate) in server.error(speak("negatives", text))


def test_the_root_of_the_disk_is_refused_at_once_and_cancel_is_answered(server):
    began = time.monotonic()
    assert "no pictures in it" in server.error(load("/"))
    assert time.monotonic() - began < 10
