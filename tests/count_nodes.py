"""What a picture takes to place and to wire, here and with other packs: ``python tests/count_nodes.py CLONES`` writes the table of
docs/beside_packs.md, where CLONES is a folder of git clones of the repositories that it names; ``python tests/count_nodes.py FILE...``
counts graphs of one's own.

A node is counted where the picture that is saved depends on it, and a wire where both its ends are counted. So notes and previews are not,
nor what the front end sets aside before the server sees it: reroutes, primitives, muted and bypassed nodes. Subgraphs count as what is in
them. A graph that saves nothing is counted from its previews.
"""

import argparse
import io
import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

PACK = Path(__file__).resolve().parents[1]
NOTES = ("Note", "MarkdownNote")
MUTED, BYPASSED = 2, 4
INPUTS_OF_SUBGRAPH, OUTPUTS_OF_SUBGRAPH = -10, -20  # the ids that a subgraph's links give to its two sides

Node = tuple[int | str, ...]  # the ids of the subgraphs around it, and its own


class Counted(NamedTuple):
    nodes: int
    wires: int


class Origin(NamedTuple):
    """Where a link comes from: a node and the place of its output."""

    node: int | str
    slot: int


@dataclass
class Scope:
    """A front-end graph, or a subgraph in the place where it is used."""

    graph: dict[str, Any]
    definitions: dict[str, dict[str, Any]]
    path: Node = ()
    around: "Scope | None" = None
    nodes: dict[int, dict[str, Any]] = field(init=False)
    links: dict[int, Origin] = field(init=False)

    def __post_init__(self) -> None:
        self.nodes = {node["id"]: node for node in self.graph["nodes"]}
        # A link is a list in a graph and an object in a subgraph.
        self.links = {
            **{link[0]: Origin(link[1], link[2]) for link in self.graph["links"] if isinstance(link, list)},
            **{link["id"]: Origin(link["origin_id"], link["origin_slot"]) for link in self.graph["links"] if isinstance(link, dict)},
        }

    def inside(self, node: dict[str, Any]) -> "Scope":
        """The subgraph that a node stands for."""
        return Scope(self.definitions[node["type"]], self.definitions, (*self.path, node["id"]), self)

    def reach(self) -> Iterator[tuple["Scope", dict[str, Any]]]:
        """All nodes that reach the server, in this scope and in its subgraphs."""
        for node in self.nodes.values():
            if node.get("mode") in (MUTED, BYPASSED) or node["type"] in (*NOTES, "Reroute", "PrimitiveNode"):
                continue
            if node["type"] in self.definitions:
                yield from self.inside(node).reach()
            else:
                yield self, node

    def source(self, link: int | None) -> Node | None:
        """The node that a link comes from when the server sees it; None where it comes from none."""
        if link is None or link not in self.links:
            return None
        origin, slot = self.links[link]
        if origin == INPUTS_OF_SUBGRAPH:
            return self.source_around(self.graph["inputs"][slot]["name"])
        node = self.nodes[int(origin)]
        if node.get("mode") == MUTED or node["type"] == "PrimitiveNode":
            return None
        if node["type"] == "Reroute":
            return self.source(node["inputs"][0].get("link"))
        if node.get("mode") == BYPASSED:  # hands on its first input of that type
            kind = node["outputs"][slot]["type"]
            return next((self.source(given.get("link")) for given in node["inputs"] if given["type"] == kind), None)
        if node["type"] in self.definitions:
            inner = self.inside(node)
            ends = (end for end in inner.graph["links"] if end["target_id"] == OUTPUTS_OF_SUBGRAPH and end["target_slot"] == slot)
            return inner.source(next((end["id"] for end in ends), None))
        return (*self.path, node["id"])

    def source_around(self, name: str) -> Node | None:
        """What is wired to an input of this subgraph from around it."""
        if self.around is None:
            return None
        given = self.around.nodes[int(self.path[-1])]["inputs"]
        return self.around.source(next((one.get("link") for one in given if one["name"] == name), None))


def read_front_end(graph: dict[str, Any]) -> tuple[dict[Node, str], list[tuple[Node, Node]]]:
    """The nodes with their types, and the wires from node to node, of a graph as the front end saves it."""
    definitions = {one["id"]: one for one in graph.get("definitions", {}).get("subgraphs", [])}
    nodes, wires = {}, []
    for scope, node in Scope(graph, definitions).reach():
        place = (*scope.path, node["id"])
        nodes[place] = node["type"]
        for given in node.get("inputs", []):  # these say what is wired; a list of links may lack one that two inputs share
            if (source := scope.source(given.get("link"))) is not None:
                wires.append((source, place))
    return nodes, wires


def read_prompt(prompt: dict[str, Any]) -> tuple[dict[Node, str], list[tuple[Node, Node]]]:
    """The same of a graph as the server takes it, where an input that is wired is a list of a node and the place of its output."""
    nodes: dict[Node, str] = {(name,): node["class_type"] for name, node in prompt.items()}
    given = [((name,), value) for name, node in prompt.items() for value in node["inputs"].values()]
    return nodes, [((value[0],), place) for place, value in given if isinstance(value, list) and len(value) == 2 and value[0] in prompt]


def count(graph: dict[str, Any]) -> Counted:
    """How many nodes and wires what a graph saves depends on."""
    nodes, wires = read_front_end(graph) if "nodes" in graph else read_prompt(graph)
    read = {source for source, _ in wires}
    saving = [place for place, kind in nodes.items() if kind.startswith("Save")]
    needed, left = set[Node](), saving or [place for place in nodes if place not in read]
    while left:
        place = left.pop()
        if place not in needed:
            needed.add(place)
            left += [source for source, target in wires if target == place]
    return Counted(len(needed), sum(target in needed for _, target in wires))


def parse(name: str, content: bytes) -> dict[str, Any]:
    """The graph of a file: JSON, or a picture that the host saved, in which the graph lies."""
    if name.endswith(".png"):
        return json.loads(Image.open(io.BytesIO(content)).info["workflow"])
    return json.loads(content)


@dataclass(frozen=True)
class Row:
    """One line of the table: what is done with what, and the graph that does it; without a repository it is ours."""

    job: str
    way: str
    file: str
    repository: str = ""
    commit: str = ""

    def count(self, clones: Path | None) -> Counted:
        if not self.repository:
            return count(parse(self.file, (PACK / self.file).read_bytes()))
        if clones is None:
            raise ValueError(f"{self.repository} is not ours: give a folder of clones")
        clone = clones / self.repository.partition("/")[2]
        shown = subprocess.run(["git", "-C", clone, "show", f"{self.commit}:{self.file}"], capture_output=True)
        if shown.returncode:
            raise SystemExit(f"{clone} has no {self.file} at {self.commit}, clone {self.repository} there: {shown.stderr.decode().strip()}")
        return count(parse(self.file, shown.stdout))

    def write(self, counted: tuple[int | str, int | str]) -> str:
        place = f"{self.repository} {self.commit}: `{self.file}`" if self.repository else f"`{self.file}`"
        return f"| {self.job} | {self.way} | {counted[0]} | {counted[1]} | {place} |"


PROMPT_CONTROL = ("asagi4/comfyui-prompt-control", "b24d93b")
IPADAPTER = ("cubiq/ComfyUI_IPAdapter_plus", "9d076a3")
FREEFUSE = ("yaoliliu/FreeFuse", "720644e")
EXAMPLES = ("comfyanonymous/ComfyUI_examples", "f9431bb")
LAZY = "example_workflows/Basic Text to Image.json"
ONE, SEVERAL = "one concept", "two, both everywhere"
TWO, FOUR = "two, each in its place", "four, each in its place"
LEARN = "learn one, then paint it"
ROWS = (
    Row(ONE, "CIDM, *Paint with Concepts*", "tests/counted/one_concept.json"),
    Row(ONE, "the host's *Load LoRA*", "lora/lora.png", *EXAMPLES),
    Row(ONE, "prompt-control, `<lora:name:1>` in the text", LAZY, *PROMPT_CONTROL),
    Row(ONE, "IPAdapter_plus, a picture instead of a concept", "examples/ipadapter_simple.json", *IPADAPTER),
    Row(SEVERAL, "CIDM, the same graph, both names in the prompt", "tests/counted/one_concept.json"),
    Row(SEVERAL, "the host's *Load LoRA* in a chain", "lora/lora_multiple.png", *EXAMPLES),
    Row(SEVERAL, "prompt-control, the same graph, both in the text", LAZY, *PROMPT_CONTROL),
    Row(SEVERAL, "IPAdapter_plus, two pictures", "examples/ipadapter_weighted_embeds.json", *IPADAPTER),
    Row(TWO, "CIDM, boxes that are drawn", "workflows/02 Two in one picture - draw boxes.json"),
    Row(TWO, "CIDM, places that are found", "workflows/04 Two in one picture - no boxes.json"),
    Row(TWO, "the host's hooks, rectangles", "tests/counted/two_with_hooks_in_rectangles.json"),
    Row(TWO, "the host's hooks, masks that are drawn", "tests/counted/two_with_hooks.json"),
    Row(TWO, "prompt-control, `COUPLE` in the text: the words only", LAZY, *PROMPT_CONTROL),
    Row(TWO, "FreeFuse, places that are found, SDXL", "freefuse_comfyui/workflows/sdxl_freefuse_complete.json", *FREEFUSE),
    Row(TWO, "FreeFuse, places that are found, Flux", "freefuse_comfyui/workflows/flux_freefuse_complete.json", *FREEFUSE),
    Row(TWO, "FreeFuse, found masks that are mended by hand, SDXL", "freefuse_comfyui/workflows/sdxl_freefuse_with_editor.json", *FREEFUSE),
    Row("three, each in its place", "IPAdapter_plus, pictures and a mask", "examples/ipadapter_regional_conditioning.json", *IPADAPTER),
    Row(FOUR, "CIDM, a grid and one more box", "workflows/03 Four in one picture - grid and place.json"),
    Row(FOUR, "the host's hooks, masks that are drawn", "tests/counted/four_with_hooks.json"),
    Row(LEARN, "CIDM, a folder, settings of one's own", "workflows/06 Learn from a folder - watch and score.json"),
    Row(LEARN, "CIDM, four photos from the desktop", "workflows/05 Learn from your photos.json"),
    Row(LEARN, "the host's *Train LoRA*, a folder", "tests/counted/learn_with_train_lora.json"),
)
HEAD = "| what is painted | with what | nodes | wires | the graph |\n|---|---|---|---|---|"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="+", type=Path, metavar="CLONES|FILE", help="a folder of clones, or graphs: JSON, or the host's PNG")
    paths = parser.parse_args().paths
    if paths[0].is_dir():
        print(HEAD, *(row.write(row.count(paths[0])) for row in ROWS), sep="\n")
        return
    print("| nodes | wires | the graph |\n|---|---|---|")
    for path in paths:
        counted = count(parse(path.name, path.read_bytes()))
        print(f"| {counted.nodes} | {counted.wires} | {path.name} |")


if __name__ == "__main__":
    main()
