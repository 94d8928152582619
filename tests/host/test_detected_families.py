"""Every transformer as wide as it is released, found by the host's own detection: detected.py runs once for each in every ComfyUI."""

import json
import subprocess
from pathlib import Path

import pytest
from comfy_server import install

SCRIPT = Path(__file__).with_name("detected.py")
EVERYWHERE = ("Flux", "Chroma", "Lumina2", "QwenImage")
NEWEST = ("ZImage", "Flux2", "Anima", "Krea2")  # which 0.3.64 does not have, or not as it is there


@pytest.mark.slow
@pytest.mark.parametrize("kind", [*EVERYWHERE, *NEWEST])
def test_a_transformer_of_released_width_is_found_and_painted(comfy_host, kind, tmp_path):
    if kind in NEWEST and comfy_host.version == "0.3.64":
        pytest.skip(f"this ComfyUI does not know {kind}")
    found = tmp_path / "results.json"
    run = subprocess.run([comfy_host.python, SCRIPT, install(tmp_path), found, kind], cwd=comfy_host.path, capture_output=True, text=True)
    assert not run.returncode and found.exists(), run.stderr[-4000:]
    results = json.loads(found.read_text())
    assert len(results) == 3 and not any(results.values()), "\n".join(results.values())
