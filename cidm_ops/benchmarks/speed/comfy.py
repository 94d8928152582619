"""Scripts that run inside a real ComfyUI, for the benchmarks that compare with it."""

import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PACK = HERE.parents[2]


def run_inside(comfy: Path, script: str, *arguments: Any) -> dict[str, Any]:
    """Run a script of this folder with the checkout's own Python, and return what it tells.

    ``comfy`` is a ComfyUI checkout with its ``.venv``. Raises ``FileNotFoundError`` if it is none and ``RuntimeError`` with
    the end of its log if it fails.
    """
    comfy = comfy.expanduser().resolve()
    python = comfy / ".venv" / "bin" / "python"
    if not (comfy / "main.py").is_file() or not python.is_file():
        raise FileNotFoundError(f"{comfy}: expected a ComfyUI checkout with a .venv in it; give one with --comfy")
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.json"
        command = [python, HERE / script, PACK, out, *arguments]
        done = subprocess.run([str(c) for c in command], cwd=comfy, capture_output=True, text=True)
        if done.returncode or not out.exists():
            raise RuntimeError(f"{script} in {comfy.name} failed: {' '.join((done.stderr or done.stdout)[-1500:].split())}")
        return json.loads(out.read_text())
