"""The lock fits what the pack asks for, holds nothing of a machine, and PyTorch is the one for the CPU unless somebody asks otherwise."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from install import choose_torch, constraints_beside
from lock import misfits, pins_here, read_pins, read_project
from moved import moved
from pip._vendor.packaging.specifiers import SpecifierSet

PACK = Path(__file__).resolve().parents[2]
LOCK = (PACK / "constraints.txt").read_text(encoding="utf-8")
BOUNDS = SpecifierSet(">=2.6")


def test_the_lock_fits_the_project():
    assert misfits(read_project(), LOCK) == []


def test_the_lock_has_names_versions_and_markers_only():
    lines = [line for line in LOCK.splitlines() if not line.startswith("#")]
    assert len(lines) > 50
    assert [line for line in lines if not re.fullmatch(r"[a-z0-9-]+==[a-z0-9.]+( ; [a-zA-Z0-9_.'() =<>!*]+)?", line)] == []
    assert not re.search(r"[/\\@]|hash|index", LOCK)


@pytest.mark.parametrize(
    "table, asked, said",
    [
        ("headless", "torch>=99", "torch>=99 is asked for, and "),
        ("test", "a-new-package>=1", "a-new-package has no version for Python 3.10 on Linux"),
        ("dev", "numpy>=2.3; python_version<'3.11'", "numpy>=2.3 is asked for, and 2.2"),
    ],
)
def test_a_bound_that_the_lock_does_not_meet_is_named(table, asked, said):
    project = read_project()
    project["project"]["optional-dependencies"][table].append(asked)
    assert any(wrong.startswith(said) for wrong in misfits(project, LOCK))


def test_two_versions_of_one_package_in_one_place_are_named():
    assert misfits(read_project(), LOCK + "einops==0.7.0 ; sys_platform == 'win32'\n")[0].startswith("einops has several versions for")


@pytest.mark.parametrize("lock", [LOCK.replace("einops==", "einops==0."), None], ids=["another lock", "no lock"])
def test_a_lock_that_does_not_fit_stops_the_installation_and_says_how_to_renew_it(lock, tmp_path):
    shutil.copytree(PACK / ".ci", tmp_path / ".ci")
    shutil.copy(PACK / "pyproject.toml", tmp_path)
    if lock:
        (tmp_path / "constraints.txt").write_text(lock, encoding="utf-8")
    ran = subprocess.run([sys.executable, ".ci/install.py", "headless"], cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 1 and ran.stdout == ""
    assert ("einops>=0.8 is asked for, and 0.0" if lock else "there is none") in ran.stderr
    assert "`make lock`" in ran.stderr and "Traceback" not in ran.stderr


@pytest.mark.parametrize(
    "wanted, installed, offered, system, chosen",
    [
        ("", None, ["2.15.0", "2.13.0+cpu", "2.13.0"], "Linux", "torch==2.13.0+cpu"),
        ("", None, ["2.14.1+cpu", "2.13.0+cpu"], "Linux", "torch==2.13.0+cpu"),
        ("", None, ["2.14.1+cpu", "2.9.0+cpu", "2.14.1"], "Linux", "torch==2.14.1+cpu"),
        ("", None, ["2.13.0", "2.13.0+cpu"], "Windows", "torch==2.13.0+cpu"),
        ("", None, ["2.15.0", "2.13.0"], "Darwin", "torch==2.13.0"),
        ("", "2.9.0+cu130", ["2.13.0+cpu"], "Linux", None),
        ("", "2.5.1", ["2.13.0+cpu"], "Linux", "torch==2.13.0+cpu"),
        ("cuda", "2.13.0+cpu", [], "Linux", "torch===2.13.0"),
        ("torch==2.9.0+cu130", None, [], "Linux", "torch==2.9.0+cu130"),
    ],
)
def test_the_torch_that_is_taken(wanted, installed, offered, system, chosen):
    assert choose_torch(wanted, BOUNDS, "2.13.0", installed, lambda: offered, system) == chosen


@pytest.mark.parametrize("installed, offered", [(None, ["2.15.0", "2.13.0"]), ("2.5.1", ["2.13.0", "2.5.1+cpu"]), (None, ["2.13.0+cu126"])])
def test_gigabytes_of_cuda_come_only_when_asked_for(installed, offered):
    with pytest.raises(SystemExit, match="TORCH=cuda"):
        choose_torch("", BOUNDS, "2.13.0", installed, lambda: offered, "Linux")


@pytest.mark.parametrize("system", ["Darwin", "Windows"])
def test_cuda_where_the_index_has_none_is_refused(system):
    with pytest.raises(SystemExit, match=f"this is {system}"):
        choose_torch("cuda", BOUNDS, "2.13.0", None, list, system)


def test_what_is_installed_later_leaves_torch_as_it_is():
    pin = pins_here(read_pins(LOCK))["torch"]
    held = constraints_beside(LOCK, f"{pin}+cpu")
    assert f"torch=={pin}+cpu" in held.splitlines() and f"torch=={pin}" not in [line.partition(" ")[0] for line in held.splitlines()]
    names = {name.name for name in read_pins(held)}
    assert names == {name.name for name in read_pins(LOCK)}
    other = {name.name for name in read_pins(constraints_beside(LOCK, "2.9.0+cu130"))}
    assert "torch" in other and not [name for name in other if name.startswith("nvidia-")] and "sympy" not in other and "numpy" in other


def test_what_moved_is_named_with_both_versions():
    assert moved({"a": "1", "b": "2"}, {"b": "3", "a": "1+cpu", "c": "1"}) == ["b 2 -> 3", "c (not locked) -> 1"]
