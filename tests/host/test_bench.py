"""Benchmarks that run inside a ComfyUI, at their smallest: that they measure, not what."""

import pytest

from cidm_ops.measure.bench.comfy import run_inside


def test_the_bench_of_regions(comfy_host):
    figures = run_inside(comfy_host.path, "host_regions.py", "doodle", 1, 64)
    names = {f"step_ratio_{count}" for count in (2, 4, 8)} | {f"blending_per_evaluation_{count}" for count in (2, 4)}
    names |= {f"speedup_over_{kind}_{count}" for kind in ("hooks", "cropped_hooks") for count in (4, 8)}
    assert all(figures[name] > 0 for name in names)
    sides = {"plain", "regions_2", "regions_4", "regions_8", "blending_2", "blending_4", "hooks_4", "hooks_8", "cropped_hooks_4"}
    assert all({f"{side}_seconds", f"{side}_spread", f"{side}_gb"} <= set(figures) for side in sides)
    assert figures["pixels"] == 64 and figures["comfyui"] == comfy_host.version
    assert figures["hooks_8_seconds"] > figures["hooks_4_seconds"] > figures["regions_8_seconds"], "nine passes, five, one"


def test_a_folder_without_a_comfyui_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="expected a ComfyUI checkout"):
        run_inside(tmp_path, "host_regions.py")
