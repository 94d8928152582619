"""The help pages in web/docs say what the nodes have: an item for every input and output, and none for what is not there."""

import re
import urllib.request
from pathlib import Path
from typing import Any

PAGES = Path(__file__).resolve().parents[2] / "web" / "docs"
ITEM = re.compile(r"^- \*\*(\w+)\*\*( \(optional\))?: \S", re.M)


def parts_of(page: str) -> dict[str, str]:
    """The text under every heading of a page; under "" the title and what the node is for."""
    first, *rest = re.split(r"^## (.+)\n", page, flags=re.M)
    return {"": first, **dict(zip(rest[::2], rest[1::2], strict=True))}


def items_of(part: str) -> tuple[list[str], list[str]]:
    """The names of a list in order: those that a node needs, and those that are marked as optional."""
    found = ITEM.findall(part)
    return [name for name, optional in found if not optional], [name for name, optional in found if optional]


def wrong_with(name: str, node: dict[str, Any]) -> list[str]:
    """Say what a node's page and its schema disagree about."""
    if not (file := PAGES / f"{name}.md").is_file():
        return ["there is no page"]
    parts = parts_of(file.read_text(encoding="utf-8"))
    needed, optional = (list(node["input"].get(group, {})) for group in ("required", "optional"))
    title, _, about = parts[""].strip().partition("\n")
    wrong = [] if title == f"# {node['display_name']}" else [f"its title is {title!r}: expected '# {node['display_name']}'"]
    wrong += [] if about.strip() else ["it does not say what the node is for"]
    for heading, has in (("Inputs", (needed, optional)), ("Outputs", (list(node["output_name"]), []))):
        said = items_of(parts.get(heading, ""))
        wrong += [] if said == has else [f"under {heading} it has {said}: the node has {has}"]
        wrong += [] if any(has) == (heading in parts) else [f"a heading {heading} without anything to say, or none where there is"]
    return wrong + [f"there is a heading {heading!r}" for heading in parts if heading not in ("", "Inputs", "Outputs", "Good to know")]


def test_every_node_has_a_page_that_says_what_the_node_has(server):
    nodes = {name: node for name, node in server.get("/object_info").items() if name.startswith("CIDM")}
    wrong = {name: found for name, node in nodes.items() if (found := wrong_with(name, node))}
    assert nodes and not wrong


def test_a_page_is_served_in_every_language_where_the_front_end_looks_for_it(server):
    folder = server.get("/object_info/CIDMPaint")["CIDMPaint"]["python_module"].partition(".")[2]
    for page in sorted(PAGES.glob("CIDMPaint/*.md")):
        with urllib.request.urlopen(f"{server.url}/extensions/{folder}/docs/CIDMPaint/{page.name}", timeout=60) as answer:
            assert answer.read().decode() == page.read_text(encoding="utf-8")
