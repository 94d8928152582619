"""What `pip install` takes out of this folder works without the folder."""

import shutil
import subprocess
import sys
from pathlib import Path

PACK = Path(__file__).resolve().parents[2]
FILES_OF_THE_WHEEL = """
from setuptools import Distribution
wheel = Distribution({"script_name": "setup.py"})
wheel.parse_config_files(["pyproject.toml"])
build = wheel.get_command_obj("build_py")
build.build_lib = "."
build.ensure_finalized()
print(*build.get_outputs(include_bytecode=False), sep="\\n")
"""


def test_every_file_of_the_package_is_in_the_wheel(tmp_path):
    unwritten = shutil.ignore_patterns("__pycache__", "index.json")  # the index of a bank is made anew by whoever opens it
    shutil.copytree(PACK / "cidm_ops", tmp_path / "cidm_ops", ignore=unwritten)  # a copy: setuptools remembers what it packed once
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(PACK / file, tmp_path)
    told = subprocess.run([sys.executable, "-c", FILES_OF_THE_WHEEL], cwd=tmp_path, capture_output=True, text=True, check=True)
    packed = {Path(line).as_posix() for line in told.stdout.splitlines() if "/" in line or "\\" in line}
    written = {file.relative_to(tmp_path).as_posix() for file in (tmp_path / "cidm_ops").rglob("*") if file.is_file()}
    assert packed == written
