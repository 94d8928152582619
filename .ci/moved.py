"""Says which installed packages are not in the lock's version: ``python .ci/moved.py``."""

from importlib import metadata

from lock import ROOT, pins_here, read_pins
from pip._vendor.packaging.utils import canonicalize_name


def moved(locked: dict[str, str], installed: dict[str, str]) -> list[str]:
    """One line for each package whose installed version is another than the locked one, or that the lock lacks."""
    public = {name: version.partition("+")[0] for name, version in sorted(installed.items())}  # +cpu is a build of the same version
    return [f"{name} {locked.get(name, '(not locked)')} -> {version}" for name, version in public.items() if locked.get(name) != version]


def main() -> None:
    locked = pins_here(read_pins((ROOT / "constraints.txt").read_text(encoding="utf-8")))
    beside = {"cidm", "pip", "uv"}  # the pack, and what installed it
    found = {str(canonicalize_name(one.metadata["Name"])): one.version for one in metadata.distributions()}
    installed = {name: version for name, version in found.items() if name not in beside}
    lines = moved(locked, installed)
    print(f"{len(lines)} of {len(installed)} packages are not in the version of the lock")
    print(*lines, sep="\n")


if __name__ == "__main__":
    main()
