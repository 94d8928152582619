"""What templates and the page know of nodes, held against what is promised of those: a browser tells the same, later."""

import json
import re
from pathlib import Path

import pytest
from promises import FILE

PACK = Path(__file__).resolve().parents[2]
NODES = json.loads(FILE.read_text(encoding="utf-8"))["nodes"]
TEMPLATES = sorted((PACK / "workflows").glob("*.json"))
TYPED = ("STRING", "INT", "FLOAT", "BOOLEAN")


def read(file):
    return json.loads(file.read_text(encoding="utf-8"))


def settable(kind):
    """The inputs of a node that a person can set in it; a text may be a socket alone."""
    inputs = NODES[kind]["required"] | NODES[kind]["optional"]
    return {name for name, about in inputs.items() if isinstance(about, list) or about in TYPED}


@pytest.mark.parametrize("file", TEMPLATES, ids=lambda file: file.stem)
def test_a_template_and_its_twin_for_the_server_set_all_that_a_node_has(file):
    twin = read(file.parent / "api" / file.name)
    for node in read(file)["nodes"]:
        if (kind := node["type"]) in NODES:
            widgets = {i["name"] for i in node["inputs"] if "widget" in i}
            assert {i["name"] for i in node["inputs"]} >= settable(kind), kind
            assert twin[str(node["id"])]["inputs"].keys() >= widgets, kind


def test_every_type_of_ours_has_a_colour_of_its_own():
    types = {
        part
        for node in NODES.values()
        for about in (*node["required"].values(), *node["optional"].values(), *node["outputs"])
        if isinstance(about, str)
        for part in about.split(",")
        if part.startswith("CIDM_")
    }
    coloured = re.findall(r"^  (CIDM_\w+): \"(#[0-9a-f]{6})\"", (PACK / "web" / "colours.js").read_text(encoding="utf-8"), re.M)
    assert {name for name, _ in coloured} == types and len({colour for _, colour in coloured}) == len(types)
