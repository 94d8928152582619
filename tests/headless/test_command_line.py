"""`cidm`: learn, list and paint on the user's own base and pictures; an input that cannot work is one line and exit code 2."""

import inspect
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cidm_ops.__main__ import arguments, main
from cidm_ops.cli.bench import BENCHES, given


def photos(folder: Path, captions: list[str]) -> Path:
    """Random pictures with captions."""
    folder.mkdir()
    draw = np.random.default_rng(0)
    for i, caption in enumerate(captions):
        Image.fromarray(draw.integers(0, 255, (96, 80, 3), dtype=np.uint8)).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(caption)
    return folder


@pytest.fixture
def cidm(capsys):
    """Run a command; returns its exit code, the lines of stdout and those of stderr."""

    def run(*argv: object) -> tuple[int, list[str], list[str]]:
        try:
            code = main([str(a) for a in argv])
        except SystemExit as end:
            code = end.code
        out, err = capsys.readouterr()
        return code, out.splitlines(), err.splitlines()

    return run


@pytest.fixture(scope="module")
def learned(tiny_sd1, tmp_path_factory) -> Path:
    """A bank in which a dog and a teddy bear were learned from the command line, three steps each."""
    place = tmp_path_factory.mktemp("learned")
    for name, class_word in (("rex", "dog"), ("ted", "teddy bear")):
        images = photos(place / name, [f"a {class_word} on grass", f"a {class_word}"])
        argv = ["train", "--base", tiny_sd1, "--images", images, "--class-word", class_word, "--bank", place / "bank", "--steps", 3]
        assert main([*map(str, argv), "--size", "64"]) == 0
    return place / "bank"


@pytest.fixture
def bank(learned, tmp_path) -> Path:
    return Path(shutil.copytree(learned, tmp_path / "bank"))


@pytest.mark.parametrize("name", BENCHES)
def test_a_bench_starts_without_an_option_and_keeps_what_is_done_where_its_help_says(name):
    run = inspect.signature(import_module(f"cidm_ops.benchmarks.speed.{name}").run)
    alone = run.bind(**given(arguments().parse_args(["bench", name])))
    alone.apply_defaults()
    if "folder" in alone.arguments and name != "routing":
        assert alone.arguments["folder"] == Path("runs") / name


def test_the_list_is_in_the_order_learned(cidm, bank):
    code, out, _ = cidm("bank", "list", bank)
    assert code == 0
    assert [line.split()[:2] for line in out] == [["1", "<rex>"], ["2", "<ted>"]]
    assert "<ted.1> <ted.2> <ted.3>" in out[1]


def test_prompts_become_pictures_that_depend_on_concept_and_seed(cidm, bank, tiny_sd1, tmp_path):
    argv = ["generate", "--base", tiny_sd1, "--bank", bank, "--size", 64, "--steps", 2, "--out", tmp_path / "out"]
    code, out, _ = cidm(*argv, "--prompt", "a photo of <rex>", "--prompt", "a photo of <rex> and <ted>", "--count", 2)
    assert code == 0
    pictures = [np.asarray(Image.open(file)) for file in out]
    assert [picture.shape for picture in pictures] == [(64, 64, 3)] * 4
    assert len({picture.tobytes() for picture in pictures}) == 4
    _, again, _ = cidm(*argv, "--prompt", "a photo of <rex>", "--seed", 1, "--out", tmp_path / "again")
    assert (np.asarray(Image.open(again[0])) == pictures[1]).all()


def test_a_picture_may_be_wider_than_high(cidm, bank, tiny_sd1, tmp_path):
    argv = ["generate", "--base", tiny_sd1, "--bank", bank, "--steps", 1, "--prompt", "a <rex>", "--out", tmp_path / "out", "--size"]
    code, out, _ = cidm(*argv, "128x64")
    assert code == 0 and Image.open(out[0]).size == (128, 64)
    for wrong in ("128x", "128x60", "x64", "64x64x64"):
        assert "expected a whole number of at least 64, a multiple of 8, or two of them" in refused(cidm(*argv, wrong))


@pytest.mark.parametrize("mode", ["released", "paper"])
def test_the_soft_modes_paint_too(cidm, bank, tiny_sd1, tmp_path, mode):
    argv = ["generate", "--base", tiny_sd1, "--bank", bank, "--size", 64, "--steps", 1, "--mode", mode, "--out", tmp_path]
    assert cidm(*argv, "--prompt", "a <rex>")[0] == 0


def test_learning_again_replaces_the_concept_in_its_place(cidm, bank, tiny_sd1, tmp_path):
    images = photos(tmp_path / "rex", ["a dog"])
    code, out, _ = cidm("train", "--base", tiny_sd1, "--images", images, "--class-word", "dog", "--bank", bank, "--steps", 1, "--size", 64)
    assert code == 0 and Path(out[-1]).name == "rex.safetensors"
    assert [line.split()[1] for line in cidm("bank", "list", bank)[1]] == ["<rex>", "<ted>"]


def test_a_caption_without_the_class_word_is_warned_about_by_name(cidm, tiny_sd1, tmp_path):
    images = photos(tmp_path / "rex", ["a dog", "something furry"])
    argv = ["train", "--base", tiny_sd1, "--images", images, "--class-word", "dog", "--bank", tmp_path / "bank", "--steps", 1, "--size", 64]
    code, _, err = cidm(*argv)
    assert code == 0
    assert [line for line in err if "warning" in line and "something furry" in line]


def test_the_module_runs_as_a_program(bank):
    run = subprocess.run(
        [sys.executable, "-m", "cidm_ops", "bank", "list", bank], capture_output=True, text=True, cwd=Path(__file__).parents[2]
    )
    assert run.returncode == 0 and "<rex>" in run.stdout


def refused(result: tuple[int, list[str], list[str]]) -> str:
    code, out, err = result
    assert code == 2 and not out
    lines = [line for line in err if not line.startswith(("usage:", " ", "step"))]
    assert len(lines) == 1 and lines[0].startswith("cidm"), err
    return lines[0]


class TestRefusals:
    @pytest.fixture
    def train(self, cidm, tiny_sd1, tmp_path):
        def run(images: Path, *more: object):
            return cidm(
                *("train", "--base", tiny_sd1, "--images", images, "--class-word", "dog", "--bank", tmp_path / "own", "--name", "rex"),
                *("--steps", 1, "--size", 64, *more),
            )

        return run

    @pytest.fixture
    def generate(self, cidm, tiny_sd1, tmp_path):
        def run(bank: Path, prompt: str, *more: object):
            return cidm("generate", "--base", tiny_sd1, "--bank", bank, "--prompt", prompt, "--steps", 1, "--out", tmp_path / "out", *more)

        return run

    def test_an_empty_folder(self, train, tmp_path):
        (tmp_path / "none").mkdir()
        assert "no pictures" in refused(train(tmp_path / "none"))
        assert not (tmp_path / "own").exists()

    def test_a_missing_folder(self, train, tmp_path):
        assert "no such folder" in refused(train(tmp_path / "none"))

    def test_a_truncated_picture(self, train, tmp_path):
        images = photos(tmp_path / "rex", ["a dog", "a dog"])
        (images / "1.png").write_bytes((images / "1.png").read_bytes()[:200])
        assert "1.png" in refused(train(images))
        assert not (tmp_path / "own").exists()

    def test_a_name_that_is_no_name(self, train, tmp_path):
        assert "'my dog!'" in refused(train(photos(tmp_path / "rex", ["a dog"]), "--name", "my dog!"))

    @pytest.mark.parametrize("option", [("--steps", 0), ("--steps", "many"), ("--rank", -1), ("--size", 100), ("--dtype", "int8")])
    def test_a_number_that_cannot_be(self, train, tmp_path, option):
        assert str(option[1]) in refused(train(tmp_path, *option))

    def test_a_base_that_is_not_there(self, train, tmp_path):
        assert str(tmp_path / "no.safetensors") in refused(train(tmp_path, "--base", tmp_path / "no.safetensors"))

    def test_a_word_that_no_concept_has(self, generate, bank):
        reason = refused(generate(bank, "a photo of <max>"))
        assert "<max>" in reason and "<rex>" in reason

    def test_a_damaged_concept(self, cidm, train, generate, bank, tmp_path):
        file = bank / "rex.safetensors"
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
        assert "rex.safetensors" in refused(generate(bank, "a photo of <rex>"))
        assert generate(bank, "a photo of <ted>", "--size", 64)[0] == 0
        code, out, err = cidm("bank", "list", bank)
        assert code == 0 and len(out) == 1 and "rex.safetensors" in err[0]
        assert "rex.safetensors" in refused(train(photos(tmp_path / "max", ["a dog"]), "--bank", bank, "--name", "max"))

    def test_a_concept_of_another_architecture(self, generate, train, bank, tiny_sd1, tmp_path):
        from diffusers import UNet2DConditionModel

        other = Path(shutil.copytree(tiny_sd1, tmp_path / "other"))
        config = dict(UNet2DConditionModel.load_config(other / "unet")) | {"layers_per_block": 2}
        UNet2DConditionModel.from_config(config).save_pretrained(other / "unet")
        assert "sd1-4x32" in refused(generate(bank, "a photo of <rex>", "--base", other))
        assert "sd1-4x32" in refused(train(photos(tmp_path / "max", ["a dog"]), "--base", other, "--bank", bank, "--name", "max"))

    def test_a_bank_that_is_not_there(self, cidm, tmp_path):
        assert str(tmp_path / "no") in refused(cidm("bank", "list", tmp_path / "no"))

    def test_an_argument_that_does_not_exist(self, cidm, bank):
        assert "--colour" in refused(cidm("bank", "list", bank, "--colour", "red"))


class TestWhatPeopleBring:
    """Folders and prompts that are amiss: used, or named in one line each, with exit code 2 where nothing can be made of them."""

    @pytest.fixture
    def train(self, cidm, tiny_sd1, tmp_path):
        def run(images: Path):
            argv = ["train", "--base", tiny_sd1, "--images", images, "--class-word", "dog", "--name", "x", "--bank", tmp_path / "own"]
            return cidm(*argv, "--steps", 1, "--size", 64)

        return run

    @pytest.fixture
    def generate(self, cidm, tiny_sd1, bank, tmp_path):
        def run(*more: object):
            argv = ["generate", "--base", tiny_sd1, "--bank", bank, "--size", 64, "--steps", 2, "--out", tmp_path / "out"]
            return cidm(*argv, *more)

        return run

    def test_masks_that_cover_nothing_are_told_and_all_of_them_refused(self, train, tmp_path):
        images = photos(tmp_path / "dogs", ["a dog", "a dog"])
        Image.new("L", (80, 96), 0).save(images / "0_mask.png")
        code, _, err = train(images)
        assert code == 0 and any(line.startswith("cidm: warning: 0.png: its mask covers nothing") for line in err)
        for i in range(2):
            Image.new("RGBA", (96, 96), (9, 9, 9, 0)).save(images / f"{i}.png")
        (images / "0_mask.png").unlink()
        assert "the masks of all 2 pictures cover nothing" in refused(train(images))

    def test_what_is_left_out_is_told_before_learning(self, train, tmp_path, monkeypatch):
        images = photos(tmp_path / "dogs", ["a dog"])
        (images / "g.jxl").write_bytes(b"\xff\x0a")
        (images / "notes.md").write_text("dogs")
        monkeypatch.setattr("cidm_ops.training.task.run_to_end", lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train(images)
        monkeypatch.undo()
        code, _, err = train(images)
        lines = [line for line in err if "warning" in line and "stopped" not in line]
        assert code == 0 and all(lines.count(line) == 2 for line in lines), "each is told once, in the first run before learning"
        assert any("g.jxl" in line and "convert it to JPEG" in line for line in lines) and any("notes.md" in line for line in lines)

    def test_a_giant_picture_a_pipe_and_a_wrong_encoding_are_one_line(self, train, tmp_path):
        images = photos(tmp_path / "dogs", ["a dog"])
        (images / "giant.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\1\0\0\0\1\0\0\1\0\0\0\0\x9d\xc7\xac\xd6")
        assert "giant.png" in refused(train(images))
        (images / "giant.png").unlink()
        (images / "0.txt").write_bytes("a dog in a caf\xe9".encode("cp1252"))
        assert "0.txt is no text in UTF-8: save it as UTF-8" in refused(train(images))

    def test_the_negative_is_read_like_the_prompt(self, generate):
        argv = ["--prompt", "a photo of <rex>", "--seed", 3]
        code, plain, _ = generate(*argv, "--negative", "rex, blurry")
        assert code == 0
        pictures = {"plain": np.asarray(Image.open(plain[0]))}
        code, own, _ = generate(*argv, "--negative", "<rex>, blurry")
        pictures["own"] = np.asarray(Image.open(own[0]))
        assert code == 0 and (pictures["own"] != pictures["plain"]).any()
        _, words, _ = generate(*argv, "--negative", "<rex.1> <rex.2>, blurry")
        assert (np.asarray(Image.open(words[0])) == pictures["own"]).all(), "handles are written out"
        for negative, said in (("<unknown>, blurry", "no concept has the word <unknown>"), ("<rex: 0.8>", "did you mean <rex:0.8>")):
            assert said in refused(generate(*argv, "--negative", negative))

    @pytest.mark.parametrize("handle", ["<rex: 0.8>", "<rex:0,8>", "<rex:+0.8>", "< rex >", "<rex:>"])
    def test_a_malformed_handle_is_an_error(self, generate, handle):
        assert "rex" in refused(generate("--prompt", f"a {handle} in snow"))

    def test_a_file_of_regions_is_read_as_it_was_saved(self, generate, tmp_path):
        boxes = tmp_path / "boxes.json"
        boxes.write_bytes('[{"text": "a <rex> in a caf\xe9", "box": [0, 0, 0.5, 1]}]'.encode("utf-16"))
        assert generate("--prompt", "a dog", "--regions", boxes)[0] == 0
        boxes.write_bytes(b"\xe9")
        assert "boxes.json is no text in UTF-8" in refused(generate("--prompt", "a dog", "--regions", boxes))
        assert "none.json: there is no such file" in refused(generate("--prompt", "a dog", "--regions", tmp_path / "none.json"))
