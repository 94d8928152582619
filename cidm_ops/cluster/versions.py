"""What has to be alike on every machine: the pack itself, file by file, and the libraries whose numbers go into a concept."""

import hashlib
import platform
from collections.abc import Mapping
from functools import cache
from importlib import metadata
from pathlib import Path

PACK = Path(__file__).resolve().parents[1]
LIBRARIES = ("torch", "diffusers", "transformers", "safetensors")


@cache
def versions_here() -> dict[str, str]:
    """Returns versions by name; that of the pack is a digest of its files, since two checkouts may both be called 0.1.0."""
    digest = hashlib.sha256()
    for file in sorted(PACK.rglob("*.py")):
        digest.update(file.relative_to(PACK).as_posix().encode() + file.read_bytes())
    found = {"cidm": digest.hexdigest()[:12], "python": platform.python_version().rpartition(".")[0]}
    return found | {name: installed(name) for name in LIBRARIES}


def installed(name: str) -> str:
    """Returns the version of a library without what its build adds, so that CPU and GPU builds of one release are alike."""
    try:
        return metadata.version(name).partition("+")[0]
    except metadata.PackageNotFoundError:
        return "none"


def check_versions(theirs: Mapping[str, str], mine: Mapping[str, str] | None = None) -> None:
    """Raises ``ValueError`` naming every version of this machine that is not that of the one where the command runs."""
    here = versions_here() if mine is None else mine
    if wrong := [f"{name} {here.get(name, 'none')} instead of {version}" for name, version in theirs.items() if here.get(name) != version]:
        raise ValueError(f"{platform.node()} has {', '.join(wrong)}: install the same on every machine")
