"""Doodle's training at the smallest size: every stage runs, goes on bit for bit, and what comes of it is a base, a tower and a judge."""

import json
import shutil
import subprocess
import sys
import time
from dataclasses import fields

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from cidm_ops.__main__ import main
from cidm_ops.bank.bank import Bank
from cidm_ops.doodle.concepts import CONCEPTS
from cidm_ops.doodle.figures import FIGURES, individual
from cidm_ops.doodle.files import TEXT_CONFIG, WEIGHTS, full_token_table, text_state, unet_state, vae_state
from cidm_ops.doodle.training import train as making
from cidm_ops.doodle.training.alignment import align_unet, sights_of
from cidm_ops.doodle.training.autoencoder import Comparison, LatentRecipe, Painted, pass_through
from cidm_ops.doodle.training.base import RESULT, result_file, write_base
from cidm_ops.doodle.training.described import described_scene, described_wordings, draw_described, draw_things, marks_of, one_described
from cidm_ops.doodle.training.diffusion import draw_timesteps, new_unet, repaint, schedule_of, text_encoder
from cidm_ops.doodle.training.loop import Optimisation, OutOfTime, Session, save_tensors, train
from cidm_ops.doodle.training.measures import linear_bound, psnr, reconstruct
from cidm_ops.doodle.training.muon import orthogonalise
from cidm_ops.doodle.training.pieces import cut, join
from cidm_ops.doodle.training.stages import STEPS
from cidm_ops.doodle.training.tokens import Tokens, token_ids
from cidm_ops.doodle.training.train import SHIPPED
from cidm_ops.doodle.training.twins import MARKS, draw_pair, draw_twin_labels, draw_twins, twin
from cidm_ops.doodle.world import render
from cidm_ops.engines.diffusers import load, load_any
from cidm_ops.engines.parts import UNTOLD, PartsJudge, labels_of, load_judge
from cidm_ops.engines.towers import load_tower
from cidm_ops.measure.report import from_pixels
from cidm_ops.models.clip import CHUNK
from cidm_ops.models.sd import DOODLE
from cidm_ops.painting.paint import SamplingConfig, paint, unit_noise

STAGES = ("parts", "tower", "autoencoder", "diffusion", "decoder", "reader", "bridge", "base", "transformer")
SMALL = [
    *("--device", "cpu", "--workers", "1", "--pictures", "8", "--individuals", "3", "--batch", "2", "--latent-batch", "2"),
    *("--painted", "2", "--seer", "judge", *(f"--{stage}-steps=2" for stage in STEPS), "--stages", *STAGES),
]


def run(folder, *more: str) -> int:
    return main(["doodle", "train", "--folder", str(folder), *SMALL, *more])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A whole training of two steps a stage, and its pieces."""
    folder = tmp_path_factory.mktemp("marks")
    assert run(folder, "--pieces", str(folder / "pieces")) == 0
    return folder


def test_every_stage_leaves_its_result(trained):
    assert all(result_file(trained, name).is_file() for name in RESULT)
    for name in ("parts", "vae", "text", "tower", "reader", "bridge"):
        assert result_file(trained, name).stat().st_size < 6e6
    assert result_file(trained, "unet").stat().st_size < 24e6
    assert result_file(trained, "transformer").stat().st_size < 10e6


def test_a_training_in_many_parts_is_bit_for_bit_the_one_in_one(trained, tmp_path):
    """With no time at all every call makes one step and stops with a checkpoint."""
    calls = 0
    while not (tmp_path / "transformer").exists() and calls < 40:
        assert run(tmp_path, "--minutes", "0") == 0
        calls += 1
    assert calls >= 8, "two steps of eight stages are not made in one call"
    for name in RESULT:
        assert result_file(tmp_path, name).read_bytes() == result_file(trained, name).read_bytes(), name


def test_a_folder_is_of_one_training(trained, capsys):
    assert run(trained, "--prediction", "flow") == 2
    assert "holds a training with prediction v, now it is flow: give another --folder" in capsys.readouterr().err


def test_a_folder_that_was_begun_before_a_stage_was_known_goes_on(trained):
    settings = json.loads((trained / "settings.json").read_text())
    older = settings | {"steps": {stage: steps for stage, steps in settings["steps"].items() if stage != "transformer"}}
    (trained / "settings.json").write_text(json.dumps(older))
    assert run(trained) == 0
    assert json.loads((trained / "settings.json").read_text()) == settings


@pytest.mark.parametrize(
    ("option", "given", "expected"),
    [
        ("--middle", "1.5", "a number from 0 to 1"),
        ("--things", "0", "a number of at least 1"),
        ("--align", "x", "a number of at least 0"),
        ("--latent-noise", "nan", "a number of at least 0"),
    ],
)
def test_weights_that_cannot_be_are_refused_before_anything_is_drawn(tmp_path, capsys, option, given, expected):
    with pytest.raises(SystemExit):
        run(tmp_path / "none", option, given)
    assert f"argument {option}: {given!r}: expected {expected}" in capsys.readouterr().err and not (tmp_path / "none").exists()


def test_what_comes_of_it_is_a_base_of_its_own(trained):
    base = load(trained / "base")
    assert base.family is DOODLE and base.architecture == "sd1-7x160" and base.size == 128 and base.schedule.prediction == "v"
    picture = torch.rand(1, 3, 128, 128) * 2 - 1
    assert base.encode_image(picture).shape == (1, 16, 16, 16) == (1, *DOODLE.latent_shape(128, 128))
    text = load_file(result_file(trained, "text"))
    table = full_token_table(text["token_ids"].long(), text["token_rows"].float())
    assert torch.equal(base.texts["clip_l"].get_input_embeddings().weight, table.half().float())
    weights = load_file(result_file(trained, "unet"))
    assert all(torch.equal(weight, weights[name].float()) for name, weight in base.unet.state_dict().items())
    painted, _ = paint(base, Bank(trained / "none"), "a dog", unit_noise(DOODLE, 0, 1, 128, 128), SamplingConfig(2, 2.0))
    assert painted.shape == (1, 3, 128, 128) and bool(painted.isfinite().all())


def test_what_was_made_ships_under_its_names(trained, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(making, "WEIGHTS", tmp_path)
    assert run(trained, "--stages", "ship") == 0
    assert {file.stem for file in tmp_path.iterdir()} == {file.stem for file in WEIGHTS.glob("*.safetensors")}
    for name, shipped in SHIPPED.items():
        assert (tmp_path / f"{shipped}.safetensors").read_bytes() == result_file(trained, name).read_bytes()
    assert run(tmp_path / "none", "--stages", "ship") == 2
    assert "has no part of a Doodle" in capsys.readouterr().err


@pytest.mark.parametrize("prediction", ["flow", "eps"])
def test_a_base_says_what_it_predicts(trained, tmp_path, prediction):
    shutil.copytree(trained / "result", tmp_path / "result")
    settings = json.loads((trained / "settings.json").read_text())
    (tmp_path / "settings.json").write_text(json.dumps(settings | {"prediction": prediction}))
    assert load(write_base(tmp_path)).schedule.prediction == prediction


def test_the_tower_and_the_judge_are_taken_by_other_commands(trained):
    pictures = torch.rand(2, 3, 128, 128) * 2 - 1
    assert load_tower(str(trained / "tower"))(pictures).shape == (2, 128)
    assert load_judge(result_file(trained, "parts")).read(pictures).there.shape == (2, len(FIGURES))


def test_what_ships_is_measured_without_a_folder_and_no_judge_is_passed_over_in_silence(tmp_path, capsys, caplog):
    nothing = ("doodle", "measure", "psnr", "--folder", str(tmp_path), "--shipped", "--count", "2")
    assert main([*nothing]) == 0 and "parts_right_in_reconstructions" in json.loads(capsys.readouterr().out)
    assert main([*nothing, "--judge", str(tmp_path / "none")]) == 2 and "none: no such judge of parts" in capsys.readouterr().err
    save_tensors({k: v.float() for k, v in vae_state().items()}, result_file(tmp_path, "latents"))
    assert main(["doodle", "measure", "psnr", "--folder", str(tmp_path), "--count", "2"]) == 0
    assert "no parts are read" in caplog.text and "parts_right" not in capsys.readouterr().out


@pytest.mark.parametrize("what", ["psnr", "parts", "tower", "captions"])
def test_every_figure_is_measured(trained, tmp_path, what, capsys):
    sheet = ["--sheet", str(tmp_path / "sheet.png")] if what == "captions" else []
    argv = ["doodle", "measure", what, "--folder", str(trained), "--count", "4", "--steps", "1", "--json", str(tmp_path / "f.json"), *sheet]
    assert main(argv) == 0, capsys.readouterr().err
    found = json.loads((tmp_path / "f.json").read_text())
    expected = {"psnr": "ten_concepts", "parts": "all", "tower": "twins", "captions": "painted"}[what]
    assert expected in found and (not sheet or (tmp_path / "sheet.png").is_file())


def test_pieces_are_put_together_elsewhere(trained, tmp_path):
    pieces = sorted((trained / "pieces").iterdir())
    assert len(pieces) > 1 and all(piece.stat().st_size <= 16 * 2**20 for piece in pieces)
    assert main(["doodle", "join", str(trained / "pieces"), "--folder", str(tmp_path / "joined")]) == 0
    for name in RESULT:
        assert result_file(tmp_path / "joined", name).read_bytes() == result_file(trained, name).read_bytes()
    assert load(tmp_path / "joined" / "base").fingerprint == load(trained / "base").fingerprint
    joined, own = (load_any(folder / "transformer") for folder in (tmp_path / "joined", trained))
    assert joined.fingerprint == own.fingerprint and joined.architecture == "lumina2-7x192"


def test_pieces_that_are_missing_damaged_or_strange_are_refused(tmp_path):
    for name in ("unet.safetensors", "text.safetensors"):
        (tmp_path / name).write_bytes(np.random.default_rng(0).bytes(2500))
    files, known = [tmp_path / "unet.safetensors", tmp_path / "text.safetensors"], ["unet.safetensors", "text.safetensors"]
    pieces = cut(files, tmp_path / "pieces", largest=2000)
    assert [piece.name for piece in pieces] == ["doodle-1-of-3.part", "doodle-2-of-3.part", "doodle-3-of-3.part"]
    with pytest.raises(ValueError, match=r"holds 'text\.safetensors', which is no part of a Doodle"):
        join(tmp_path / "pieces", tmp_path / "out", known[:1])
    assert [file.read_bytes() for file in join(tmp_path / "pieces", tmp_path / "out", known)] == [file.read_bytes() for file in files]
    pieces[1].write_bytes(pieces[1].read_bytes()[::-1])
    with pytest.raises(ValueError, match="damaged, or of different trainings"):
        join(tmp_path / "pieces", tmp_path / "out", known)
    pieces[1].unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks doodle-2-of-3\.part: bring all 3 pieces"):
        join(tmp_path / "pieces", tmp_path / "out", known)


def test_steps_are_fitted_into_a_time_once_and_the_weights_stay(tmp_path):
    layer = nn.Linear(4, 4)
    before = layer.weight.detach().clone()

    def loss_at(rng: np.random.Generator, generator: torch.Generator) -> torch.Tensor:
        time.sleep(0.002)
        return layer(torch.randn(2, 4, generator=generator)).square().mean()

    with pytest.raises(OutOfTime, match="toy is at step 1 of "):
        train("toy", layer, loss_at, Session(tmp_path, deadline=0.0, seconds={"toy": 0.5}), Optimisation(100_000, 0.0, weight_decay=0.0))
    assert torch.equal(layer.weight, before), "neither the steps that were timed nor one at rate 0 change anything"
    steps = json.loads((tmp_path / "toy-steps.json").read_text())["steps"]
    assert 5 <= steps <= 250
    train("toy", layer, loss_at, Session(tmp_path), Optimisation(100_000, 0.0))  # as many as were counted
    assert json.loads((tmp_path / "toy-steps.json").read_text())["steps"] == steps


def test_matrices_of_one_shape_are_made_orthogonal_together_as_each_alone():
    """Newton-Schulz iteration takes singular values near 1, in either direction."""
    for shape in ((6, 4, 9), (6, 9, 4)):
        matrices = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
        together = orthogonalise(matrices).float()
        assert torch.allclose(together, torch.cat([orthogonalise(one[None]) for one in matrices]).float(), atol=2e-2)
        values = torch.linalg.svdvals(together)
        assert bool((values > 0.5).all()) and bool((values < 1.4).all())


def test_captions_name_marks_and_only_those_that_are_there():
    assert marks_of(CONCEPTS["dog2"].look) == ["black spots", "a red hat", "black ears"]
    assert marks_of(CONCEPTS["dog"].look) == ["a white patch", "a scarf"], "teal and wine have no name"
    named = 0
    for seed in range(150):
        scene = described_scene(seed)
        looks = [thing.look for thing in scene.things]
        for text in described_wordings(seed):
            assert all(look.kind in text for look in looks)
            for mark in ("spots", "stripes", "patch"):
                assert f" {mark}" not in text or any(look.marking == mark for look in looks), text
            for thing in ("hat", "scarf", "flower", "star"):
                assert f" {thing} " not in f"{text} ".replace(",", " ") or any(look.accessory == thing for look in looks), text
            named += any(f" {word}" in text for word in ("spots", "stripes", "patch", "hat", "scarf", "flower", "star"))
    assert named > 200, "a third of all wordings names a mark"
    assert max(map(len, token_ids([described_wordings(seed) for seed in range(300)]))) <= DOODLE.encoder().room


def test_a_described_individual_is_described_whole():
    for seed in range(30):
        scene, text = one_described(seed)
        assert all(mark in text for mark in marks_of(scene.things[0].look))


def test_twins_differ_in_one_mark():
    for seed in range(60):
        rng = np.random.default_rng(seed)
        look = individual(list(FIGURES)[seed % len(FIGURES)], rng)
        other = twin(look, rng)
        changed = [f.name for f in fields(look) if getattr(look, f.name) != getattr(other, f.name)]
        assert len(changed) == 1 and changed[0] in MARKS
        own, its = labels_of(look), labels_of(other)
        assert ((own != its) & (own != UNTOLD) & (its != UNTOLD)).any(), "the mark can be seen on both"
    assert draw_twins(3).shape == (4, 128, 128, 3) and (draw_twins(3) == draw_twins(3)).all()


def test_twins_are_labelled_as_they_are_drawn():
    for seed in range(40):
        labels, shown = draw_twin_labels(seed).astype(int) - 1, draw_pair(seed)
        assert (labels[0] == labels[1]).all() and (labels[2] == labels[3]).all()
        told = labels[0] != UNTOLD
        assert (labels[0] == labels_of(shown.looks[0])).all() if told.any() else shown.styles[0].name != "flat"
        assert not told.any() or (labels[0] != labels[2]).any()


def test_an_autoencoder_begins_as_the_average_of_cells_with_any_channels():
    flat = torch.full((1, 3, 32, 32), 0.3)
    for channels in (4, DOODLE.latent_channels):
        vae = pass_through(channels)
        with torch.no_grad():
            latents = vae.encode(flat).latents
            assert latents.shape == (1, channels, 4, 4)
            assert float(psnr(vae.decode(latents).sample[..., 8:24, 8:24], flat[..., 8:24, 8:24])) > 25


def test_a_comparison_weighs_edges_and_layers():
    one, other = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)), torch.zeros(2, 3, 16, 16)
    plain = Comparison(edge=0, squared=0).loss(one, other)
    assert torch.allclose(plain, (one - other).abs().mean())
    assert Comparison(edge=1, squared=0).loss(one, other) > plain
    features = Comparison(edge=0, squared=0, perceptual=1.0, features=lambda pictures: [pictures])
    assert float(features.loss(one, one)) == 0 and features.loss(one, other) > plain


def test_painted_latents_are_cropped_with_their_pictures():
    latents = torch.arange(16.0).view(1, 1, 4, 4).expand(2, 3, 4, 4)
    pictures = np.arange(16, dtype=np.uint8).reshape(4, 4).repeat(8, 0).repeat(8, 1)[None, ..., None].repeat(2, 0).repeat(3, 3)
    own, shown = Painted(latents, pictures).crops(np.random.default_rng(0), 5, 2, torch.device("cpu"))
    assert torch.allclose(((shown + 1) * 127.5)[:, :, ::8, ::8], own)


@pytest.mark.parametrize("prediction", ["flow", "v", "eps"])
def test_repainting_by_a_model_that_knows_the_picture_gives_the_picture(prediction):
    """A U-Net that answers exactly what is asked for takes the noise away again."""
    schedule = schedule_of(prediction)
    clean = torch.randn(2, 16, 8, 8, generator=torch.Generator().manual_seed(1))

    class Knowing(nn.Module):
        device = torch.device("cpu")

        def forward(self, x, t, context):
            i = int((schedule.times - t[0]).abs().argmin())
            signal, sigma = schedule.signal[i], schedule.sigma[i]
            noise = (x - signal * clean) / sigma
            steps = torch.full((len(x),), i)
            return type("Answer", (), {"sample": schedule.target(clean, noise, steps)})

    text = text_encoder(TEXT_CONFIG, 32, 31)
    found = repaint(Knowing(), text, clean, torch.full((2, 5), 31), prediction).float()
    assert float((found - clean).abs().max()) < 0.05


def test_latents_begin_near_those_that_ship(tmp_path):
    """One step from the weights that ship shows a picture better than one from the pass-through."""
    found = []
    for start in ("shipped", "nothing"):
        assert run(tmp_path / start, "--begin-with", start, "--stages", "autoencoder", "--seer", "none") == 0
        vae = pass_through(16)
        vae.load_state_dict(load_file(result_file(tmp_path / start, "latents")))
        pictures = from_pixels(np.stack([draw_described(seed) for seed in range(100, 108)]))
        found.append(float(psnr(reconstruct(vae.eval(), pictures), pictures).mean()))
    assert found[0] > found[1] + 1


@pytest.mark.parametrize(("start", "near"), [("shipped", True), ("nothing", False)])
def test_a_base_begins_with_what_ships(tmp_path, start, near):
    asked = ("--begin-with", start, "--stages", "autoencoder", "diffusion", "--seer", "none", "--align", "0")
    assert run(tmp_path, *asked) == 0
    unet, text = (load_file(result_file(tmp_path, name)) for name in ("unet", "text"))
    shipped = text_state()
    known = shipped.pop("text_model.embeddings.token_embedding.weight")[text["token_ids"].long()]
    pairs = [(text["token_rows"], known), *((text[k], w) for k, w in shipped.items()), *((unet[k], w) for k, w in unet_state().items())]
    assert (max(float((made.float() - weight).abs().max()) for made, weight in pairs) < 2e-3) is near


def test_processes_share_a_batch_and_keep_no_time(tmp_path):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "cidm_ops"]
    asked = ("--stages", "autoencoder", "diffusion", "--seer", "none", "--align", "0", "--begin-with", "nothing")
    given = ["doodle", "train", "--folder", str(tmp_path), *SMALL, *asked]

    def call(*more: str) -> tuple[int, str]:
        done = subprocess.run([*torchrun, *given, *more], capture_output=True, text=True, timeout=300)
        return done.returncode, done.stderr

    code, said = call("--minutes", "5")
    assert code and "torchrun keeps no time: --minutes 5 was given; leave it out, and end the training with Ctrl-C" in said
    code, said = call("--batch", "3")
    assert code and "2 processes cannot share a batch of 3 evenly: give --batch a multiple of 2" in said
    shutil.rmtree(tmp_path)
    code, said = call()
    assert code == 0, said
    assert all(result_file(tmp_path, name).is_file() for name in ("latents", "unet", "text"))


def test_cells_with_things_are_those_that_things_cover():
    """What is drawn outside of them is the background: nearly all of each thing's mask lies inside."""
    for seed in range(40):
        scene, cells = described_scene(seed), draw_things(seed)
        masks = render(scene)[1].max(0) > 128
        covered = cells.repeat(8, 0).repeat(8, 1).astype(bool)
        assert cells.shape == (16, 16) and (masks & covered).sum() > 0.97 * masks.sum()
        assert cells.any() and not cells.all()


def test_timesteps_lie_where_marks_are_settled():
    schedule = schedule_of("v")
    rng = np.random.default_rng(0)
    even = draw_timesteps(schedule, 1000, 0.0, rng)
    assert (np.sort(even) == np.arange(1000)).all(), "one in each of as many parts"
    logs = schedule.ratios().log().numpy()[draw_timesteps(schedule, 4000, 1.0, rng)]
    assert abs(logs.mean() - 0.5) < 0.1 and abs(logs.std() - 1) < 0.1
    assert len(draw_timesteps(schedule, 7, 0.75, rng)) == 7


def test_latents_bear_noise_evenly_or_each_its_own_part():
    clean = torch.zeros(64, 16, 8, 8)
    for uneven in (False, True):
        noised = LatentRecipe(noise=0.8, uneven=uneven).noised(clean, torch.Generator().manual_seed(0))
        spread = noised.std((1, 2, 3))
        assert float(spread.max()) < 0.85 and (float(spread.min()) < 0.1) is uneven


def test_a_unet_that_sees_what_the_judge_sees_has_nothing_to_align():
    unet = new_unet().requires_grad_(False)
    alignment = align_unet(unet, 4).requires_grad_(False)
    unet(torch.randn(2, 16, 16, 16), torch.tensor([5, 7]), torch.randn(2, 3, 160))
    assert alignment.features is not None and alignment.features.shape == (2, 128, 16, 16)
    seen = alignment.project(alignment.features)
    assert float(alignment(2 * seen)) < 1e-5, "lengths do not count"


def test_sights_have_one_spread_and_are_kept(tmp_path):
    pictures = np.stack([draw_described(seed) for seed in range(6)])
    judge = PartsJudge().eval()
    sights = sights_of(tmp_path, "six", pictures, lambda: judge, torch.device("cpu"))
    assert sights.shape == (6, 128, 16, 16) and sights.dtype == torch.float16
    assert float(sights.float().mean((0, 2, 3)).abs().max()) < 0.01
    assert float((sights.float().std((0, 2, 3)) - 1).abs().max()) < 0.01

    def missing() -> PartsJudge:
        raise AssertionError("they are kept")

    assert torch.equal(sights_of(tmp_path, "six", pictures, missing, torch.device("cpu")), sights)


def test_captions_are_dropped_or_bear_words_without_meaning():
    tokens = Tokens(token_ids([["a dog, on the grass", "a cat"]]))
    plain = tokens.batch(np.array([1, 0]), np.random.default_rng(0), dropout=0.0, rare=0.0)
    assert plain[0].tolist() == [tokens.bos, *tokens.captions[1], *(CHUNK - 3) * [tokens.end]]
    dropped = tokens.batch(np.array([1, 0]), np.random.default_rng(0), dropout=1.0, rare=1.0)
    assert dropped.tolist() == 2 * [[tokens.bos, *(CHUNK - 1) * [tokens.end]]]
    strange = tokens.batch(np.array(50 * [1, 0]), np.random.default_rng(0), dropout=0.0, rare=1.0)
    added = (strange >= len(tokens.used)).sum(1)
    assert {*added.tolist()} == {1, 2, 3}, "at most three, and in every one"
    for row, which in zip(strange.tolist(), 50 * [1, 0], strict=True):
        known = [i for i in row[1:] if i < len(tokens.used) and i != tokens.end]
        assert known == [*tokens.captions[which]], "the caption is there in order"
    lengths = (strange == tokens.end).int().argmax(1) + 1
    assert int(lengths.max()) <= tokens.longest


def test_a_linear_code_of_all_numbers_keeps_everything():
    pictures = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    few, all_of_them = linear_bound(pictures, pictures, 4), linear_bound(pictures, pictures, 192)
    assert bool((all_of_them > 60).all()) and bool((few < all_of_them).all())
