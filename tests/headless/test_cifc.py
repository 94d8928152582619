"""The paper's protocol on its own data set (folder in CIDM_CIFC) and models of real size: it runs, resumes, and prints its table.

The weights are random, made on the spot: what is tested is the way, not the method.
"""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from test_command_line import cidm  # noqa: F401
from transformers import CLIPConfig, CLIPModel

from cidm_ops.adapters import linears
from cidm_ops.bank.bank import Bank
from cidm_ops.bank.concept import Concept
from cidm_ops.benchmarks.speed.checkpoints import write_checkpoint
from cidm_ops.engines.diffusers import load
from cidm_ops.lowrank import LowRank
from cidm_ops.tokens import concept_words

CIFC = Path(os.environ.get("CIDM_CIFC", ""))
TASKS = {
    "dog": "dog", "duck_toy": "duck toy", "cat": "cat", "backpack": "backpack", "teddybear": "teddy bear", "painting": "painting",
    "dog2": "dog", "drawing": "drawing", "cat2": "cat", "ink_painting": "ink painting",
}  # fmt: skip
NOTE = "Random weights: these numbers show that the protocol runs; they say nothing about the method or the model."

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not os.environ.get("CIDM_CIFC"), reason="CIDM_CIFC names no folder of the CIFC data set"),
]


def random_bank(folder: Path, backbone, names) -> Bank:
    """Concepts that change every cross-attention layer a little, with words of their own in each layer."""
    generator, bank = torch.Generator().manual_seed(0), Bank(folder)
    for name in names:
        factors = {
            n: LowRank(
                0.01 * torch.randn(m.weight.shape[0], 4, generator=generator), torch.randn(4, m.weight.shape[1], generator=generator)
            )
            for n, m in linears(backbone, "cross_attention").items()
        }
        words = tuple(concept_words(name, TASKS[name]))
        tokens = {"clip_l": 0.02 * torch.randn(len(words), len(backbone.cross_attention), 768, generator=generator)}
        bank = bank.add(
            Concept(
                name=name,
                class_word=TASKS[name],
                words=words,
                factors=factors,
                tokens=tokens,
                architecture=backbone.architecture,
                fingerprint=backbone.fingerprint,
            )
        )
    return bank


def test_the_papers_table_is_printed_and_a_second_run_paints_nothing(cidm, tmp_path):  # noqa: F811
    base, names = write_checkpoint(tmp_path / "sd15.safetensors"), list(TASKS)
    backbone = load(base)
    random_bank(tmp_path / "bank", backbone, names)
    del backbone
    torch.manual_seed(0)
    sizes = dict(hidden_size=768, num_hidden_layers=12, num_attention_heads=12, intermediate_size=3072)  # ViT-B/32
    words = dict(hidden_size=512, num_hidden_layers=12, num_attention_heads=8, intermediate_size=2048, eos_token_id=49407)
    model = CLIPModel(CLIPConfig(text_config=words, vision_config={**sizes, "patch_size": 32, "image_size": 224}, projection_dim=512))
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, tmp_path / "vit-b-32.safetensors")
    del model
    prompts, few = CIFC / "evaluation_prompts", tmp_path / "prompts"
    few.mkdir()
    for kind in ("pet", "plushy", "style"):  # two of the twenty
        lines = [line for line in (prompts / f"test_{kind}.txt").read_text().splitlines() if line.strip()]
        assert len(lines) == 20
        (few / f"{kind}.txt").write_text("\n".join(lines[::10]))
    argv = ["evaluate", "--model", base, "--bank", tmp_path / "bank", "--vision", tmp_path / "vit-b-32.safetensors", "--size", 64]
    argv += ["--references", CIFC / "images", "--prompts", few / "plushy.txt", "--prompts", f"dog,cat,dog2,cat2={few / 'pet.txt'}"]
    argv += ["--prompts", f"painting,drawing,ink_painting={few / 'style.txt'}", "--samples", 1, "--steps", 2, "--guidance", 7.5]
    argv += ["--seed", 2024, "--batch", 1, "--note", NOTE, "--out", tmp_path / "out"]
    code, out, err = cidm(*argv)
    assert code == 0 and "painted 20 of 20 pictures" in err and NOTE in out
    assert [f"V{i + 1} {name}" in out[0] for i, name in enumerate(names)] == [True] * 10 and "avg." in out[0]
    assert out[1].startswith("IA") and out[2].startswith("TA")
    found = json.loads((tmp_path / "out/scores.json").read_text())
    assert list(found["concepts"]) == names and found["doubts"][0] == NOTE
    code, again, err = cidm(*argv)
    assert code == 0 and "painted 0 of 20 pictures" in err and again == out
    print("\n".join(out))


def test_the_benchmark_takes_the_photos_and_prints_the_papers_figures_beside_its_own(cidm, tmp_path):  # noqa: F811
    base = write_checkpoint(tmp_path / "sd15.safetensors")
    argv = ["benchmark", "--suite", CIFC, "--base", base, "--folder", tmp_path / "run", "--tasks", 2, "--seeds", 0, "--size", 64]
    argv += ["--steps", 1, "--batch", 2, "--no-curves", "--set", "steps=1", "--set", "batch=1", "--note", NOTE]
    argv += ["--methods", "finetune", "cidm_released"]
    code, out, _ = cidm(*argv)
    assert code == 0 and NOTE in out and sum("the paper's" in line for line in out) == 4
    printed = [line.split() for line in out if "the paper's" in line]
    assert printed[0][2:] == ["77.6", "82.2", "79.9"] and printed[1][2:] == ["83.6", "86.4", "85.0"]
    assert (tmp_path / "run/report.html").exists()
    print("\n".join(out))
