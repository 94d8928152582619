"""Installs the pack with the extras that a command needs, in the versions of the lock: ``python .ci/install.py headless,test``.

PyTorch comes first, and for the CPU: what the package index gives for Linux by itself brings several GB of CUDA.
"""

import argparse
import platform
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

from lock import ROOT, pins_here, read_lock, read_pins, read_project, requirements_of
from pip._vendor.packaging.requirements import Requirement
from pip._vendor.packaging.specifiers import SpecifierSet
from pip._vendor.packaging.utils import canonicalize_name
from pip._vendor.packaging.version import Version

ASK_FIRST = """No PyTorch for the CPU is installed or offered here (torch{bounds}), and the one for CUDA takes several GB.
Repeat the command
  with PIP_EXTRA_INDEX_URL or PIP_FIND_LINKS naming a source of builds for the CPU (PyTorch's own pages name one), or
  with TORCH=cuda to take the one for CUDA, or
  with TORCH='torch==...', a requirement as pip takes it, for one of your own."""
NOT_HERE = """The package index has PyTorch for CUDA for Linux alone, and this is {system}: name a source of it in
PIP_EXTRA_INDEX_URL, and the build that you want with TORCH='torch==...'."""
OF_CUDA = ("nvidia-", "cuda-", "triton")  # names of what a PyTorch for CUDA brings with it


def choose_torch(
    wanted: str, bounds: SpecifierSet, pin: str | None, installed: str | None, offered: Callable[[], list[str]], system: str
) -> str | None:
    """What pip is to install as PyTorch, or None where the installed one stays.

    ``wanted`` is "" or what the user said: "cuda", or a requirement. ``pin`` is the version of the lock, ``offered`` asks pip's
    sources what they have for this Python. Raises ``SystemExit`` where only a PyTorch for CUDA is to be had and nobody asked for it, or
    the other way round.
    """
    if wanted == "cuda":
        if system != "Linux":
            raise SystemExit(NOT_HERE.format(system=system))
        return f"torch==={pin}" if pin else "torch"  # three: a build for the CPU (+cpu) is another version
    if wanted:
        return wanted
    if installed and bounds.contains(installed, prereleases=True):
        return None
    builds = [version for version in offered() if version.endswith("+cpu") and bounds.contains(version)]
    if builds:
        return f"torch=={f'{pin}+cpu' if f'{pin}+cpu' in builds else max(builds, key=Version)}"
    if system == "Linux":
        raise SystemExit(ASK_FIRST.format(bounds=bounds))
    return f"torch=={pin}" if pin else "torch"


def offered_torch() -> list[str]:
    """The versions of PyTorch that pip's sources have for this Python."""
    said = subprocess.run([sys.executable, "-m", "pip", "index", "versions", "torch"], capture_output=True, text=True)
    found = [line for line in said.stdout.splitlines() if line.startswith("Available versions:")]
    if not found:
        raise SystemExit(f"pip finds no torch for Python {platform.python_version()} on this machine:\n{said.stderr}")
    return found[0].partition(":")[2].replace(",", " ").split()


def installed_torch() -> str | None:
    """The version of PyTorch in this environment, None without one."""
    try:
        return metadata.version("torch")
    except metadata.PackageNotFoundError:
        return None


def constraints_beside(lock: str, torch: str) -> str:
    """The lock's text with PyTorch as it is installed: where that is not the lock's, its own requirements are not the lock's either."""
    pins = read_pins(lock)
    if pins_here(pins).get("torch") in (torch, torch.partition("+")[0]):
        free = {"torch"}
    else:
        free = {"torch", *(canonicalize_name(Requirement(line).name) for line in metadata.requires("torch") or [])}
        free |= {pin.name for pin in pins if pin.name.startswith(OF_CUDA)}
    kept = [line for line in lock.splitlines() if not line.startswith("#") and read_pins(line)[0].name not in free]
    return "\n".join([*kept, f"torch=={torch}", ""])


def lock_of(versions: str) -> str:
    """The text of the lock that holds for ``versions``: locked, lowest, or newest, which is held by none."""
    if versions == "locked":
        return read_lock()
    return find_lowest() if versions == "lowest" else ""


def find_lowest() -> str:
    """The lowest versions that ``pyproject.toml`` allows for this Python and that come as wheels, as a lock's text; ``uv`` finds them."""
    pip("install", "--quiet", "uv")
    out = Path(sys.prefix) / "lowest.txt"
    options = ["--resolution=lowest-direct", "--only-binary=:all:", "--all-extras", "--no-annotate", "--no-config", "--quiet"]
    compile = [sys.executable, "-m", "uv", "pip", "compile", "pyproject.toml", "--python", sys.executable]
    subprocess.run([*compile, *options, "--output-file", str(out)], check=True, cwd=ROOT)
    return out.read_text(encoding="utf-8")


def pip(*arguments: str) -> None:
    """Runs this Python's pip. Raises ``CalledProcessError`` where it fails; pip has said why."""
    subprocess.run([sys.executable, "-m", "pip", *arguments], check=True)


def install(extras: str, versions: str, wanted: str) -> None:
    """Installs PyTorch, what builds the pack, and the pack in place with its extras; ``versions`` is locked, lowest or newest."""
    project = read_project()
    place = Path(sys.prefix)
    pythons = project["project"]["requires-python"]
    if not SpecifierSet(pythons).contains(platform.python_version()):
        raise SystemExit(f"This is Python {platform.python_version()}, and the pack needs {pythons}: name another one with PYTHON=.")
    lock = lock_of(versions)
    pin = pins_here(read_pins(lock)).get("torch")
    bounds = next(asked.specifier for asked in requirements_of(project) if asked.name == "torch")
    bounds = SpecifierSet(f"=={pin}") if versions == "lowest" else bounds  # any other would not try the bound
    installed = installed_torch()
    torch = choose_torch(wanted, bounds, pin, installed, offered_torch, platform.system())
    file = place / "constraints.txt"
    if torch:
        of_the_lock = torch in (f"torch=={pin}", f"torch==={pin}", f"torch=={pin}+cpu")
        file.write_text(lock if of_the_lock else "", encoding="utf-8")
        pip("install", "-c", str(file), torch)
    version = installed_torch()
    if version is None:
        raise SystemExit(f"TORCH names {wanted}, and no torch is installed with it: say `cuda`, or a requirement of torch as pip takes it.")
    if pin and version.partition("+")[0] != pin:
        print(f"torch {version} is taken, as it is here; the {versions} one is {pin}", flush=True)
    file.write_text(constraints_beside(lock, version), encoding="utf-8")
    pip("install", "-c", str(file), *project["build-system"]["requires"])
    pip("install", "-c", str(file), "--no-build-isolation", "-e", f"{ROOT}[{extras}]")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("extras", help="names of pyproject.toml's extras, comma between")
    parser.add_argument("--versions", choices=["locked", "lowest", "newest"], default="locked")
    parser.add_argument("--torch", default="", help="`cuda`, or a requirement as pip takes it; by default the build for the CPU")
    given = parser.parse_args()
    try:
        install(given.extras, given.versions, given.torch)
    except subprocess.CalledProcessError as failed:
        raise SystemExit(failed.returncode) from None
