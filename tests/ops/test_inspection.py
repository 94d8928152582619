"""`cidm doctor` and Inspect File say what import, training and loading would do, because they ask the same readers."""

import json
import os

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from test_community import KEY, kohya, randn
from test_manage import filled, small
from test_other_peoples_files import BUNDLES, NO_WORDS, NOT_DOWNLOADED, PRODUCTS, WORDS, pair

from cidm_ops.__main__ import main
from cidm_ops.bank.archive import compress_bank
from cidm_ops.bank.bank import Bank
from cidm_ops.bank.exchange import import_file
from cidm_ops.inspection import inspect, lines_of
from cidm_ops.lowrank import LowRank
from cidm_ops.models import sd
from cidm_ops.models.checkpoint import INPUT_KEY, TEXT_WIDTH_KEYS


def doctor(capsys, *paths):
    """Exit code, report and complaint of the command."""
    code = main(["doctor", *map(str, paths)])
    said = capsys.readouterr()
    return code, said.out, said.err


FILES = {f"words: {name}": content for name, (content, _) in WORDS.items()}
FILES |= {
    f"both: {name}": kohya(layer, randn(640, 2), randn(2, 768 if layer == KEY else 2048)) | rows
    for name, (layer, rows, _) in BUNDLES.items()
}
FILES |= {f"no sum: {name}": state for name, (state, _) in PRODUCTS.items()} | {
    f"no words: {name}": state for name, state in NO_WORDS.items()
}
FILES["with more"] = kohya(KEY, *pair()) | {"lora_unet_conv_in.diff_b": randn(320), "else": randn(2)}


@pytest.mark.parametrize("what", FILES)
def test_the_report_of_a_file_is_what_import_does(what, tmp_path, capsys):
    torch.save(FILES[what], file := tmp_path / "x.pt")
    code, report, complaint = doctor(capsys, file)
    try:
        (concept,), warnings = import_file(file)
    except ValueError as error:
        assert code == 2 and "cannot be used: " + str(error).removeprefix("x.pt: ") in report and "1 of 1 cannot be used" in complaint
        return
    assert code == 0 and not complaint and "cannot be used" not in report and concept.architecture in report
    left = [key for key, value in FILES[what].items() if any(repr(key) in w for w in warnings) and isinstance(value, torch.Tensor)]
    assert ("not used: " in report) == bool(left) and all(key in report for key in left)
    for part in (f"{len(concept.factors)} layers" if concept.factors else "", f"{len(concept.words)} words" if concept.words else ""):
        assert part in report


@pytest.mark.parametrize("what", NOT_DOWNLOADED)
def test_what_is_no_file_of_tensors_is_told(what, tmp_path, capsys):
    data, _ = NOT_DOWNLOADED[what]
    (tmp_path / "x.safetensors").write_bytes(data)
    code, report, complaint = doctor(capsys, tmp_path / "x.safetensors")
    assert code == 2 and "cannot be used: " in report and "Traceback" not in report + complaint


def test_a_bank_is_told_by_its_concepts_and_nothing_is_written(tmp_path, capsys):
    bank = filled(tmp_path / "bank", "ant").add(small("bee", class_word="dog\x1b[2J"))
    (bank.folder / "broken.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    before = {file: file.stat().st_mtime_ns for file in bank.folder.rglob("*")}
    code, report, _ = doctor(capsys, bank.folder)
    assert code == 0 and f"a bank of {len(bank.names)} concepts" in report and "ant.safetensors: a concept of this pack" in report
    assert "broken.safetensors" in report and "\x1b" not in report
    assert {file: file.stat().st_mtime_ns for file in bank.folder.rglob("*")} == before
    packed, _ = compress_bank(Bank(filled(tmp_path / "other", "cow").folder))
    assert "a compressed bank of 1 concepts" in doctor(capsys, packed)[1]


def test_a_concept_of_sizes_that_its_base_does_not_have_cannot_be_used(tmp_path, capsys):
    layer = "mid_block.attentions.0.transformer_blocks.0.attn2.to_q"
    factors = {layer: LowRank(randn(333, 4), randn(4, 777))}
    bank = Bank(tmp_path).add(small("odd", architecture=sd.DOODLE.architecture, factors=factors))
    code, report, _ = doctor(capsys, bank.folder)
    assert code == 2 and layer in report and "[333, 777]" in report and "[128, 128]" in report


def test_a_checkpoint_is_told_by_its_shapes_and_marks(tmp_path, capsys):
    state = {
        INPUT_KEY: torch.zeros(320, 4, 3, 3),
        TEXT_WIDTH_KEYS[1]: torch.zeros(640, 2048),
        "v_pred": torch.zeros(0),
        "ztsnr": torch.zeros(0),
    }
    state |= {
        f"{part}.x": torch.zeros(1) for part in ("conditioner.embedders.0", "conditioner.embedders.1", "first_stage_model", "model_ema")
    }
    save_file(state, tmp_path / "x.safetensors")
    code, report, _ = doctor(capsys, tmp_path / "x.safetensors")
    assert code == 0 and "a checkpoint of SDXL (sdxl-70x2048) that predicts v and ends in pure noise" in report
    assert "not used: 1, moving averages of the U-Net: model_ema.x" in report and "used: U-Net: 2 tensors" in report
    del state["first_stage_model.x"]
    torch.save({"state_dict": state}, tmp_path / "x.ckpt")
    code, report, _ = doctor(capsys, tmp_path / "x.ckpt")
    assert code == 2 and "cannot be used: it has no autoencoder" in report
    save_file({**state, "edm_mean": torch.zeros(1)}, tmp_path / "x.safetensors")
    assert "EDM" in doctor(capsys, tmp_path / "x.safetensors")[1]


def test_folders_are_told_by_what_is_in_them(tmp_path, capsys):
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (80, 60)).save(tmp_path / "photos" / "one.png")
    code, report, _ = doctor(capsys, tmp_path / "photos", tmp_path / "photos" / "one.png")
    assert code == 0 and "a folder of 1 pictures to learn from" in report and "a picture of 80 x 60 pixels" in report
    (tmp_path / "loras").mkdir()
    save_file(kohya(KEY, *pair()), tmp_path / "loras" / "good.safetensors")
    (tmp_path / "loras" / "bad.safetensors").write_text("<!doctype html>")
    code, report, _ = doctor(capsys, tmp_path / "loras")
    assert code == 0 and "a folder of 2 files of tensors" in report and "a web page" in report and "good.safetensors: a LoRA" in report
    for part in ("unet", "vae", "scheduler"):
        (tmp_path / "model" / part).mkdir(parents=True)
        (tmp_path / "model" / part / "config.json").write_text(json.dumps({}))
    code, report, _ = doctor(capsys, tmp_path / "model")
    assert code == 2 and "it lacks the folder text_encoder" in report
    (tmp_path / "empty").mkdir()
    assert doctor(capsys, tmp_path / "empty")[0] == 2 and doctor(capsys, tmp_path / "gone")[0] == 2


@pytest.mark.skipif(os.name != "posix", reason="pipes and devices")
def test_what_is_no_ordinary_file_is_told_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "device.safetensors").symlink_to("/dev/zero")
    assert "no ordinary file" in inspect(tmp_path / "pipe.png").refused
    assert "no ordinary file" in inspect(tmp_path / "device.safetensors").refused
    assert all("\n" not in line for line in lines_of(inspect(tmp_path / "pipe.png")))


def test_without_a_path_it_tells_what_the_machine_has(capsys):
    code, report, _ = doctor(capsys)
    assert code == 0 and report.startswith("Python 3.") and f"torch {torch.__version__.split('+')[0]}" in report and "device: " in report
