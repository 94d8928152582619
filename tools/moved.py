"""Says which installed packages are not in the lock's version: ``python -m tools.moved``."""

from importlib import metadata

from pip._vendor.packaging.utils import canonicalize_name

from tools.lock import ROOT, pins_here, read_pins


def moved(locked: dict[str, str], installed: dict[str, str]) -> list[str]:
    """One line for each package whose installed version is another than the locked one, or that the lock lacks."""
    public = {name: version.partition("+")[0] for name, version in installed.items()}  # a build for the CPU is the same version
    return [f"{name} {locked.get(name, '(not locked)')} -> {version}" for name, version in sorted(public.items()) if locked.get(name) != version]


if __name__ == "__main__":
    locked = pins_here(read_pins((ROOT / "constraints.txt").read_text(encoding="utf-8")))
    ours = {"cidm", "pip", "uv"}  # the pack, and what installed it
    here = {canonicalize_name(found.metadata["Name"]): found.version for found in metadata.distributions()}
    lines = moved(locked, {name: version for name, version in here.items() if name not in ours})
    print("\n".join([f"{len(lines)} packages are not in the version of the lock:", *lines]) if lines else "every package is in the version of the lock")
