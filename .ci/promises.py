"""What saved workflows and files rely on, and whether it still holds: ``python .ci/promises.py`` says what is broken, with ``--write``
what is new is promised too.

A workflow that was saved knows a node by its id, its links by the names of inputs and the places of outputs, and its widgets by their place
in a list; a prompt for the server knows inputs by name. ``promises.json`` has all of that as it was promised, the versions of the file
formats, and ``migrations``: a promise that is taken back stands there by its name, with the version that does so and what takes its place.
It counts in that version alone, so that the next change of the same name is seen again.
"""

import argparse
import ast
import json
import subprocess
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from archive import write_archive
from hosts import NO_HOST, Host, find_hosts
from lock import ROOT, read_project

FILE = ROOT / ".ci" / "promises.json"
FORMATS = {  # the modules whose FORMAT is the newest version that is written
    "concept file": "cidm_ops/bank/header.py",
    "index of a bank": "cidm_ops/bank/index.py",
    "compressed bank": "cidm_ops/bank/archive.py",
}
GROUPS = ("required", "optional")
Nodes = dict[str, dict[str, Any]]  # id -> required, optional: name -> a type or the options of a combo; outputs: types


@dataclass(frozen=True)
class Fault:
    """One broken promise: its name in ``migrations``, what happened, and what to do other than migrate."""

    name: str
    what: str
    instead: str

    def __str__(self) -> str:
        return f"{self.name}: {self.what}. {self.instead}, or say under migrations in promises.json what takes its place in this version."


def promise_nodes(described: dict[str, Any]) -> Nodes:
    """What is promised of nodes that a host has described as in ``/object_info``."""
    return {
        name: {
            **{group: {n: promise_input(about) for n, about in node["input"].get(group, {}).items()} for group in GROUPS},
            "outputs": list(node["output"]),
        }
        for name, node in sorted(described.items())
    }


def promise_input(about: list[Any]) -> str | list[Any]:
    """The type of an input as a host describes it, or the options of a combo, but for files that lie in the host's folders.

    A workflow keeps an option itself and not its place, so their order is no promise, and they are sorted.
    """
    kind, details = about[0], about[1] if len(about) > 1 else {}
    options = kind if isinstance(kind, list) else details.get("options", []) if kind == "COMBO" else None
    return kind if options is None else sorted((option for option in options if "/" not in str(option)), key=str)


def read_formats(root: Path = ROOT) -> dict[str, int]:
    """The version of each file format as its module states it."""
    versions = {}
    for name, module in FORMATS.items():
        for node in ast.parse((root / module).read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "FORMAT":
                versions[name] = ast.literal_eval(node.value)
    return versions


def find_broken(promised: dict[str, Any], nodes: Nodes, formats: dict[str, int], version: str) -> list[Fault]:
    """The promises that do not hold of ``nodes`` and ``formats``, and that ``version`` does not take back."""
    found = [*broken_nodes(promised["nodes"], nodes), *broken_formats(promised["formats"], formats)]
    return [fault for fault in found if promised["migrations"].get(fault.name, {}).get("version") != version]


def broken_nodes(promised: Nodes, nodes: Nodes) -> Iterator[Fault]:
    for name, node in promised.items():
        if name not in nodes:
            yield Fault(name, "this node went away, and workflows that have it cannot be opened", "Bring it back")
        else:
            yield from broken_inputs(name, node, nodes[name])
            yield from broken_outputs(name, node["outputs"], nodes[name]["outputs"])


def broken_inputs(name: str, old: dict[str, Any], new: dict[str, Any]) -> Iterator[Fault]:
    """Inputs of a node that went away or changed, that are asked for all at once, or that push old widgets from their places."""
    was, now = {**old["required"], **old["optional"]}, {**new["required"], **new["optional"]}
    for one, kind in was.items():
        if one not in now:
            yield Fault(f"{name}.{one}", "this input went away", "Bring it back, under this name")
            continue
        yield from broken_kind(f"{name}.{one}", kind, now[one])
        if one in old["optional"] and one in new["required"]:
            yield Fault(f"{name}.{one}", "this input was optional, and saved prompts leave it out", "Make it optional again")
    added = [one for one in new["required"] if one not in was]
    for one in added:
        yield Fault(f"{name}.{one}", "this new input is required, and no saved prompt has it", "Make it optional")
    kept = [one for one in was if one in now]
    if [one for one in now if one not in added][: len(kept)] != kept:
        yield Fault(f"{name} order", "older inputs left their places, and saved widgets go by them", "Put new inputs behind all others")


def broken_kind(name: str, old: str | list[Any], new: str | list[Any]) -> Iterator[Fault]:
    """What changed about the type of an input, or about the options of a combo. A type may take more kinds than before."""
    if isinstance(old, list) and isinstance(new, list):
        for option in old:
            if option not in new:
                yield Fault(f"{name}={option}", "this option went away, and workflows that chose it are refused", "Bring it back")
    elif isinstance(old, list) or isinstance(new, list) or not set(old.split(",")) <= set(new.split(",")):
        words = ["a combo" if isinstance(kind, list) else kind for kind in (old, new)]
        yield Fault(name, f"this input was {words[0]} and is {words[1]}", "Give it its type back, and the new one to a new optional input")


def broken_outputs(name: str, old: list[str], new: list[str]) -> Iterator[Fault]:
    for place, kind in enumerate(old):
        if place >= len(new) or new[place] != kind:
            now = new[place] if place < len(new) else "nothing"
            yield Fault(
                f"{name} output {place}", f"it was {kind} and is {now}, and links go by the place", "Bring it back, with new ones behind"
            )


def broken_formats(promised: dict[str, int], formats: dict[str, int]) -> Iterator[Fault]:
    for name, version in promised.items():
        if formats.get(name) != version:
            now = f"is {formats[name]}" if name in formats else "is stated nowhere"
            yield Fault(f"format of a {name}", f"it was {version} and {now}, and older packs read it no more", "Keep the version")


def find_unwritten(promised: dict[str, Any], nodes: Nodes, formats: dict[str, int]) -> list[str]:
    """A sentence where something is new, or migrated, and ``promises.json`` does not know it."""
    changed = [name for name, node in nodes.items() if promised["nodes"].get(name) != node]
    changed += sorted(promised["nodes"].keys() - nodes.keys())
    changed += [f"format of a {name}" for name, version in formats.items() if promised["formats"].get(name) != version]
    return [f"{name}: promises.json does not have it as it is. Run `.ci/promises.py --write`." for name in changed]


def find_misstated(migrations: dict[str, dict[str, str]]) -> list[str]:
    """A sentence for each migration that does not say in which version, and what takes the place."""
    return [
        f'{name}: its migration has to be {{"version": "1.2.0", "instead": "what takes its place"}}.'
        for name, about in migrations.items()
        if about.keys() != {"version", "instead"} or not all(about.values())
    ]


def read_promises() -> dict[str, Any]:
    return json.loads(FILE.read_text(encoding="utf-8"))


def write_promises(promised: dict[str, Any]) -> None:
    FILE.write_text(json.dumps(promised, indent=1) + "\n", encoding="utf-8", newline="\n")


def nodes_in(host: Host, pack: Path) -> Nodes:
    """The nodes of a pack as the real ComfyUI of ``host`` makes them. Raises ``SystemExit`` with what it said where it does not."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "schemas.json"
        command = [str(host.python), str(ROOT / ".ci" / "schemas.py"), str(pack), str(result)]
        said = subprocess.run(command, cwd=host.path, capture_output=True, text=True)
        if said.returncode or not result.is_file():
            raise SystemExit(f"{host} does not load the pack:\n{said.stderr[-4000:]}")
        return promise_nodes(json.loads(result.read_text(encoding="utf-8")))


def hosts_that_run() -> list[Host]:
    """The checkouts of this machine that can run. Raises ``SystemExit`` where there is none: no mock knows what the nodes are."""
    hosts = [host for host in find_hosts() if host.python]
    if not hosts:
        raise SystemExit(f"What the nodes are is asked of a real ComfyUI, and there is {NO_HOST}")
    return hosts


def published_nodes() -> Iterator[tuple[Host, Nodes]]:
    """Each host with the nodes of the pack as it is published: unpacked from its archive, with nothing beside it."""
    with tempfile.TemporaryDirectory() as folder:
        pack = Path(folder) / "comfyui-cidm-1.0"
        write_archive(Path(folder) / "published.zip")
        with zipfile.ZipFile(Path(folder) / "published.zip") as archive:
            archive.extractall(pack)
        for host in hosts_that_run():
            yield host, nodes_in(host, pack)


def main() -> None:
    parser = argparse.ArgumentParser(description="Says which promises about saved workflows and files are broken.")
    parser.add_argument("--write", action="store_true", help="promise what is new and what is migrated too")
    write = parser.parse_args().write
    promised = read_promises() if FILE.exists() else {"nodes": {}, "formats": {}, "migrations": {}}
    formats, version = read_formats(), read_project()["project"]["version"]
    for host, nodes in published_nodes():
        broken = [*find_misstated(promised["migrations"]), *map(str, find_broken(promised, nodes, formats, version))]
        if broken:
            raise SystemExit("\n".join([f"{host}:", *broken]))
        if write:
            promised |= {"nodes": nodes, "formats": formats}
    if write:
        write_promises(promised)


if __name__ == "__main__":
    main()
