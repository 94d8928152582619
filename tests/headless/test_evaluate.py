"""`cidm evaluate`: pictures are painted once, a stopped run goes on, figures are those of the pictures on disk, and mistakes are named."""

import json
import os
import re
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from faults import at_point, kill
from PIL import Image
from test_command_line import cidm, learned, photos, refused  # noqa: F401
from test_towers import tiny_clip  # noqa: F401

from cidm_ops.__main__ import main
from cidm_ops.bank import files
from cidm_ops.engines.diffusers import load
from cidm_ops.engines.towers import load_tower
from cidm_ops.evaluation import protocol as evaluation
from cidm_ops.evaluation.fisher import by_group
from cidm_ops.measure.divergence import Levels
from cidm_ops.measure.fisher import read_groups
from cidm_ops.measure.scores import alignments, embed_all, matching


@pytest.fixture
def ready(learned, tiny_sd1, tiny_clip, tmp_path):  # noqa: F811
    """A bank, references, prompts, a tower: the arguments of an evaluation of two concepts, two prompts, two pictures each."""
    bank = Path(shutil.copytree(learned, tmp_path / "bank"))
    (tmp_path / "references").mkdir()
    for name in ("rex", "ted"):
        photos(tmp_path / "references" / name, ["x", "y", "z"])
    (tmp_path / "prompts.txt").write_text("A <TOK>, in the forest\n\nA {} on a table\n")
    argv = [
        "evaluate",
        "--base",
        tiny_sd1,
        "--bank",
        bank,
        "--size",
        64,
        "--steps",
        1,
        "--samples",
        2,
        "--prompts",
        tmp_path / "prompts.txt",
    ]
    return [*argv, "--references", tmp_path / "references", "--vision", tiny_clip[0], "--out", tmp_path / "out"]


def pictures(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {str(f.relative_to(folder)): (f.stat().st_mtime_ns, f.read_bytes()) for f in sorted((folder / "samples").rglob("*.png"))}


def test_a_second_run_paints_nothing_and_says_the_same(cidm, ready, tmp_path, monkeypatch):  # noqa: F811
    code, out, err = cidm(*ready)
    assert code == 0 and "painted 8 of 8 pictures" in err
    first, scores = pictures(tmp_path / "out"), (tmp_path / "out/scores.json").read_bytes()
    assert len(first) == 8 and "V1 rex" in out[0] and "V2 ted" in out[0] and out[1].startswith("IA") and out[2].startswith("TA")
    monkeypatch.setattr(evaluation, "paint", None)
    monkeypatch.setattr(evaluation, "embed_all", None)
    code, again, err = cidm(*ready)
    assert code == 0 and again == out and "painted 0 of 8 pictures" in err
    assert pictures(tmp_path / "out") == first and (tmp_path / "out/scores.json").read_bytes() == scores


@pytest.mark.skipif(os.name != "posix", reason="fork and kill -9")
def test_killed_at_any_point_it_goes_on_and_ends_the_same(cidm, ready, tmp_path, monkeypatch):  # noqa: F811
    """One picture of one concept; the second run reads what the first one left."""
    monkeypatch.setattr(files.os, "fsync", lambda _: None)
    (tmp_path / "prompts.txt").write_text("A {} on a table\n")
    argv = [*map(str, ready), "--concepts", "rex", "--samples", "1", "--out"]

    def evaluate(root: Path) -> None:
        assert main([*argv, str(root)]) == 0

    evaluate(tmp_path / "whole")
    whole = contents(tmp_path / "whole")
    status, count = at_point(tmp_path / "counted", evaluate, 0, kill)
    assert status == 0 and contents(tmp_path / "counted") == whole and int(count) >= 3 * len(whole)
    for point in range(1, int(count) + 1):
        root = tmp_path / f"cut{point}"
        assert at_point(root, evaluate, point, kill)[0] == signal.SIGKILL
        left = contents(root)
        assert all(whole[name] == left[name] for name in left), f"point {point}: a file is neither there nor whole"
        evaluate(root)
        assert contents(root) == whole, f"point {point}: going on ends elsewhere"


def contents(root: Path) -> dict[str, bytes]:
    """What a person keeps of an evaluation, by name."""
    return {str(f.relative_to(root)): f.read_bytes() for f in root.rglob("*") if f.is_file() and not f.name.endswith(".partial")}


def test_what_is_missing_is_painted_as_it_was(cidm, ready, tmp_path):  # noqa: F811
    cidm(*ready, "--batch", 1)
    first = pictures(tmp_path / "out")
    gone = list(first)[3]
    (tmp_path / "out" / gone).unlink()
    code, _, err = cidm(*ready, "--batch", 1)
    assert code == 0 and "painted 1 of 8 pictures" in err
    assert {k: v[1] for k, v in pictures(tmp_path / "out").items()} == {k: v[1] for k, v in first.items()}
    code, _, err = cidm(*ready, "--samples", 3)
    assert code == 0 and "painted 4 of 12 pictures" in err


def test_the_figures_are_those_of_the_pictures_on_disk(cidm, ready, tiny_clip, tmp_path):  # noqa: F811
    _, out, _ = cidm(*ready)
    found = json.loads((tmp_path / "out/scores.json").read_text())
    tower, means = load_tower(str(tiny_clip[0])), []
    for name, figures in found["concepts"].items():
        seen = [
            embed_all(tower, [torch.from_numpy(np.array(Image.open(f))).permute(2, 0, 1).float() / 127.5 - 1 for f in sorted(files)])
            for files in ((tmp_path / "out/samples" / name).rglob("*.png"), (tmp_path / "references" / name).glob("*.png"))
        ]
        assert figures["ia"] == pytest.approx(float(alignments(*seen).mean()), abs=2e-5)
        assert figures["ims"] == pytest.approx(float(matching(*seen).mean()), abs=2e-5) and 0 <= figures["collapsed"] <= 1
        assert figures["ia_interval"][0] <= figures["ia"] <= figures["ia_interval"][1] and figures["pictures"] == 4
        assert figures["ta"] == pytest.approx(2.5 * max(figures["cosine"], 0), abs=0.2)
        means.append(figures["ia"])
    assert found["mean"]["ia"] == pytest.approx(np.mean(means), abs=1e-5)
    assert f"{100 * found['mean']['ia']:.1f}" in out[1]
    assert out[3].split()[0] == "IMS" and out[3].split()[-1] == f"{100 * found['mean']['ims']:.1f}"
    page = (tmp_path / "out/report.html").read_text()
    assert page.count("<section") == 3 and "data:image/png;base64," in page and not re.search(r"(src|href)=.http", page)
    assert any("cannot" in d or "hardly" in d or "does not tell" in d for d in found["doubts"])


def test_the_note_stands_under_the_table(cidm, ready, tmp_path):  # noqa: F811
    _, out, _ = cidm(*ready, "--note", "Random weights: no figure here says anything about the method.")
    assert "Random weights: no figure here says anything about the method." in out
    assert "Random weights" in (tmp_path / "out/report.html").read_text()


def test_forgetting_and_divergence_are_sections_of_the_report(cidm, ready, tmp_path):  # noqa: F811
    cidm(*ready)
    shutil.copytree(tmp_path / "out", tmp_path / "before")
    (tmp_path / "groups.txt").write_text("alone: a red boat\nwith: a <rex> in the snow\n")
    assert cidm(*ready, "--earlier", tmp_path / "before", "--fisher", tmp_path / "groups.txt")[0] == 0
    page, found = (tmp_path / "out/report.html").read_text(), json.loads((tmp_path / "out/scores.json").read_text())
    assert "Forgetting" in page and "Latent Fisher divergence (our estimator)" in page
    assert found["forgetting"] == {"rex": 0.0, "ted": 0.0}


def test_prompts_without_concepts_diverge_by_nothing(learned, tiny_sd1):  # noqa: F811
    from cidm_ops.bank.bank import Bank

    backbone, bank = load(tiny_sd1), Bank(learned)
    groups = read_groups("alone: a red boat\nalone: a dog\nwith: a <rex> in the snow")
    assert groups == {"alone": ["a red boat", "a dog"], "with": ["a <rex> in the snow"]}
    assert bank.vocabulary.plain("a <rex:0.5> in the snow, <ted>") == "a dog in the snow, teddy bear"
    found, levels = by_group(backbone, bank, groups, evaluation.SampleSettings(64, steps=1))
    assert not found["alone"].eps.any() and len(found["alone"].eps) == 8
    assert (found["with"].eps > 0).all() and (found["with"].likelihood > 0).all() and found["with"].curve.shape == (12,)
    assert float(levels.shares.sum()) == pytest.approx(1) and levels.span == pytest.approx(Levels.of(backbone.schedule.ratios(), 3).span)


class TestRefusals:
    def test_samples_of_other_settings_are_not_mixed(self, cidm, ready):  # noqa: F811
        cidm(*ready)
        assert "steps 1, now it is 2" in refused(cidm(*ready, "--steps", 2))

    def test_samples_of_another_concept_are_not_mixed(self, cidm, ready, tiny_sd1, tmp_path):  # noqa: F811
        cidm(*ready)
        images = photos(tmp_path / "rex", ["a dog"])
        argv = ["train", "--base", tiny_sd1, "--images", images, "--class-word", "dog", "--bank", tmp_path / "bank", "--steps", 1]
        cidm(*argv, "--size", 64)
        assert "another <rex>" in refused(cidm(*ready))

    def test_a_prompt_without_the_concept(self, cidm, ready, tmp_path):  # noqa: F811
        (tmp_path / "prompts.txt").write_text("A dog\n")
        assert "'A dog'" in refused(cidm(*ready)) and not (tmp_path / "out").exists()

    def test_references_that_are_not_there(self, cidm, ready, tmp_path):  # noqa: F811
        shutil.rmtree(tmp_path / "references/ted")
        assert "ted" in refused(cidm(*ready)) and not (tmp_path / "out").exists()

    def test_a_damaged_sample_is_named(self, cidm, ready, tmp_path):  # noqa: F811
        cidm(*ready)
        file = next((tmp_path / "out/samples").rglob("*.png"))
        file.write_bytes(file.read_bytes()[:60])
        os.remove(next((tmp_path / "out/features").glob(f"{file.parts[-3]}*")))
        code, _, err = cidm(*ready)
        assert code == 2 and file.name in err[-1] and "painted again" in err[-1]

    def test_a_name_that_is_not_evaluated(self, cidm, ready, tmp_path):  # noqa: F811
        assert "max" in refused(cidm(*ready, "--prompts", f"max={tmp_path / 'prompts.txt'}"))
