"""The release check: ``python .ci/release.py [TAG]`` says what keeps this version from being published, a sentence each.

It reads what the registry would publish, asks every ComfyUI of this machine what its nodes are, and compares that with what was promised.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from archive import files_to_publish, find_large_files
from banned import find_banned
from lock import ROOT, read_project
from promises import find_broken, find_misstated, find_unwritten, published_nodes, read_formats, read_promises

METADATA = {  # where in pyproject.toml -> what it says
    "project.name": "the name that the pack is installed by",
    "project.version": "three numbers",
    "project.description": "one sentence",
    "project.license": "the licence's short name",
    "project.requires-python": "the versions of Python",
    "project.classifiers": "systems and versions of Python",
    "project.urls.Repository": "the address that the registry links to",
    "tool.comfy.PublisherId": "who publishes",
    "tool.comfy.DisplayName": "the name that people see",
    "tool.comfy.Icon": "a picture in the archive",
    "tool.comfy.Banner": "a picture in the archive",
    "tool.comfy.requires-comfyui": "the oldest ComfyUI",
}


def find_missing(project: dict[str, Any]) -> list[str]:
    """A sentence for each thing that the registry shows and ``pyproject.toml`` does not say."""
    return [f"pyproject.toml has no {place}: write {what} there." for place, what in METADATA.items() if not look_up(project, place)]


def look_up(project: dict[str, Any], place: str) -> Any:
    found: Any = project
    for name in place.split("."):
        found = found.get(name) if isinstance(found, dict) else None
    return found


def find_misnamed(project: dict[str, Any], published: list[str]) -> Iterator[str]:
    """What the registry's rules on names, versions and pictures refuse, a sentence each."""
    about, comfy = project["project"], project["tool"]["comfy"]
    if not re.fullmatch(r"[A-Za-z]([-_.]?[A-Za-z0-9])*", about["name"]) or len(about["name"]) >= 100 or "comfyui" in about["name"].lower():
        yield f"project.name is {about['name']}: at most 99 letters and digits, single - _ . between, a letter first, no ComfyUI."
    if not re.fullmatch(r"\d+\.\d+\.\d+", about["version"]):
        yield f"project.version is {about['version']}: the registry takes three numbers, such as 1.2.0."
    pictures = [comfy[kind] for kind in ("Icon", "Banner") if comfy.get(kind) and "://" not in comfy[kind]]
    for name in [*pictures, *about.get("license-files", [])]:
        if name not in published:
            yield f"pyproject.toml names {name}, and no such file is published: add it, or correct the name."


def find_untold(changelog: str, version: str) -> list[str]:
    """What CHANGELOG.md does not tell of a version: anything at all, or the day it came out."""
    heading = re.search(rf"^## \[{re.escape(version)}\](.*)$", changelog, re.MULTILINE)
    if not heading:
        return [f"CHANGELOG.md tells nothing of {version}: write `## [{version}] - YYYY-MM-DD` and what changed under it."]
    if not re.fullmatch(r" - \d{4}-\d{2}-\d{2}", heading[1]):
        return [f"CHANGELOG.md has no day for {version}: write `## [{version}] - YYYY-MM-DD` where it says `{heading[0]}`."]
    return []


def find_foreign_tag(tag: str, version: str) -> list[str]:
    return [] if tag == f"v{version}" else [f"The tag is {tag} and pyproject.toml has {version}: make it v{version}, or correct the other."]


def find_faults(tag: str | None, root: Path = ROOT) -> Iterator[str]:
    """Everything that keeps this version from being published, the quick checks first."""
    project, published = read_project(root), files_to_publish(root)
    version = project["project"]["version"]
    yield from find_foreign_tag(tag, version) if tag else []
    yield from find_missing(project)
    yield from find_misnamed(project, published)
    yield from find_untold((root / "CHANGELOG.md").read_text(encoding="utf-8"), version)
    yield from find_large_files(root)
    for name in published:
        if name.endswith((".py", ".js")):
            yield from find_banned(name, (root / name).read_text(encoding="utf-8"))
    promised, formats = read_promises(), read_formats(root)
    yield from find_misstated(promised["migrations"])
    for host, nodes in published_nodes():
        broken = [str(fault) for fault in find_broken(promised, nodes, formats, version)]
        yield from (f"{host}: {said}" for said in broken or find_unwritten(promised, nodes, formats))


def main() -> None:
    faults = 0
    for said in find_faults(sys.argv[1] if len(sys.argv) > 1 else None):
        print(said, flush=True)
        faults += 1
    if faults:
        raise SystemExit(f"{faults} to settle before this version is published")
    print("This version can be published.")


if __name__ == "__main__":
    main()
