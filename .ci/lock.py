"""The lock, ``constraints.txt``: exact versions by markers, which have to fit what ``pyproject.toml`` asks for."""

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pip._vendor.packaging.markers import Marker
from pip._vendor.packaging.requirements import Requirement
from pip._vendor.packaging.utils import canonicalize_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    from pip._vendor import tomli as tomllib  # what the venv module brings: this runs before anything is installed

ROOT = Path(__file__).resolve().parents[1]
SYSTEMS = (
    {"sys_platform": "linux", "platform_system": "Linux", "platform_machine": "x86_64", "os_name": "posix"},
    {"sys_platform": "darwin", "platform_system": "Darwin", "platform_machine": "arm64", "os_name": "posix"},
    {"sys_platform": "win32", "platform_system": "Windows", "platform_machine": "AMD64", "os_name": "nt"},
)


@dataclass(frozen=True)
class Pin:
    """One line of a lock: ``name==version ; marker``."""

    name: str
    version: str
    marker: Marker | None

    def holds(self, environment: dict[str, str] | None = None) -> bool:
        """Whether the pin counts in an environment (names of markers to values); without one, in this Python."""
        return self.marker is None or self.marker.evaluate(environment)


def read_pins(text: str) -> list[Pin]:
    """The pins of a lock's text, comments left out."""
    requirements = [Requirement(line) for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [Pin(canonicalize_name(r.name), next(iter(r.specifier)).version, r.marker) for r in requirements]


def pins_here(pins: Iterable[Pin]) -> dict[str, str]:
    """Versions by name, as far as the pins hold in this Python."""
    return {pin.name: pin.version for pin in pins if pin.holds()}


def read_project(root: Path = ROOT) -> dict[str, Any]:
    """``pyproject.toml`` as tables."""
    return tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))


def requirements_of(project: dict[str, Any]) -> list[Requirement]:
    """Everything that a project asks for: to be built, to run, and with each of its extras."""
    extras = project["project"]["optional-dependencies"].values()
    asked = [*project["build-system"]["requires"], *project["project"]["dependencies"], *(line for extra in extras for line in extra)]
    return [Requirement(line) for line in asked]


def environments_of(project: dict[str, Any]) -> list[dict[str, str]]:
    """Every Python that the classifiers name on every system, in the words of markers."""
    language = "Programming Language :: Python :: "
    pythons = [line.removeprefix(language) for line in project["project"]["classifiers"] if line.startswith(language)]
    return [{"python_version": python, "python_full_version": f"{python}.0", **system} for python in pythons for system in SYSTEMS]


def misfits(project: dict[str, Any], lock: str) -> list[str]:
    """What a project asks for and the text of its lock does not give, a sentence each; empty where the lock fits."""
    pins = read_pins(lock)
    said: dict[str, None] = {}
    for environment in environments_of(project):
        where = f"Python {environment['python_version']} on {environment['platform_system']}"
        for asked in requirements_of(project):
            if asked.marker and not asked.marker.evaluate(environment):
                continue
            versions = {pin.version for pin in pins if pin.name == canonicalize_name(asked.name) and pin.holds(environment)}
            if not versions:
                said.setdefault(f"{asked.name} has no version for {where}")
            elif len(versions) > 1:
                said.setdefault(f"{asked.name} has several versions for {where}: {', '.join(sorted(versions))}")
            elif not asked.specifier.contains(version := versions.pop(), prereleases=True):
                said.setdefault(f"{asked.name}{asked.specifier} is asked for, and {version} is locked")
    return list(said)


def read_lock(root: Path = ROOT) -> str:
    """The text of the lock. Raises ``SystemExit`` with what to do where it is missing or does not fit ``pyproject.toml``."""
    file = root / "constraints.txt"
    wrong = misfits(read_project(root), file.read_text(encoding="utf-8")) if file.is_file() else ["there is none"]
    if wrong:
        raise SystemExit(
            f"The lock, constraints.txt, does not fit pyproject.toml: {'; '.join(wrong)}.\n"
            "Run `make lock` to renew it, and `make test` to try what it brings."
        )
    return file.read_text(encoding="utf-8")
