"""Benchmarks that run inside a ComfyUI, at their smallest: that they measure, not what."""

import json

import pytest

from cidm_ops.benchmarks.speed.comfy import run_inside

scenes = pytest.importorskip("cidm_ops.benchmarks.speed.scenes", reason="the captions' tower needs transformers")


def test_the_bench_of_regions(comfy_host):
    figures = run_inside(comfy_host.path, "host_regions.py", "doodle", 1, 64)
    names = {f"step_ratio_{count}" for count in (2, 4, 8)} | {f"blending_per_evaluation_{count}" for count in (2, 4)}
    names |= {f"speedup_over_{kind}_{count}" for kind in ("hooks", "cropped_hooks") for count in (4, 8)}
    assert all(figures[name] > 0 for name in names)
    sides = {"plain", "regions_2", "regions_4", "regions_8", "blending_2", "blending_4", "hooks_4", "hooks_8", "cropped_hooks_4"}
    assert all({f"{side}_seconds", f"{side}_spread", f"{side}_gb"} <= set(figures) for side in sides)
    assert figures["pixels"] == 64 and figures["comfyui"] == comfy_host.version


def test_the_bench_of_scenes_goes_on_where_it_was(comfy_hosts, tmp_path):
    newest = comfy_hosts[-1].path
    figures = scenes.run(newest, tmp_path, 3, 1, ("hooks", "fast"))
    for way in ("hooks", "fast"):
        for count in (2, 3, 4):
            assert all(0 <= figures[f"{way}_{key}_{count}"] <= 1 for key in ("present", "bleed", "ia"))
    assert figures["fast_present_2"] >= 0.5 and (tmp_path / "sheet.png").is_file()
    kept = json.loads((tmp_path / "scores.json").read_text())
    kept["fast 0"][0]["ia"] = [0.5, 0.7]
    (tmp_path / "scores.json").write_text(json.dumps(kept))
    assert scenes.run(newest, tmp_path, 3, 1, ("fast",))["fast_ia_2"] == 0.6, "what is there is not painted again"


def test_a_folder_without_a_comfyui_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="expected a ComfyUI checkout"):
        run_inside(tmp_path, "host_regions.py")
