"""What saved workflows and files rely on: what may be added, what is a broken promise, and what a migration takes back."""

from copy import deepcopy

import pytest
from promises import find_broken, find_misstated, find_unwritten, promise_nodes, read_formats, read_promises

PROMISED = {
    "nodes": {
        "CIDMAdd": {
            "required": {"model": "MODEL", "mode": ["exact", "soft"], "strength": "FLOAT"},
            "optional": {"images": "IMAGE,MASK", "seed": "INT"},
            "outputs": ["MODEL", "STRING"],
        }
    },
    "formats": {"concept file": 2},
    "migrations": {},
}


def broken(change, migrations=(), formats=None, version="1.0.0"):
    """The names of the promises that a change of the node breaks."""
    nodes = deepcopy(PROMISED["nodes"])
    change(nodes)
    promised = {**PROMISED, "migrations": {name: {"version": "1.0.0", "instead": "another"} for name in migrations}}
    return [fault.name for fault in find_broken(promised, nodes, formats or PROMISED["formats"], version)]


def add(group, name, kind="INT"):
    return lambda nodes: nodes["CIDMAdd"][group].update({name: kind})


def without(group, *names):
    def change(nodes):
        for name in names:
            del nodes["CIDMAdd"][group][name]

    return change


def instead(group, **inputs):
    return lambda nodes: nodes["CIDMAdd"].update({group: inputs})


@pytest.mark.parametrize(
    "change",
    [
        lambda nodes: None,
        lambda nodes: nodes.update(CIDMNew={"required": {"a": "INT"}, "optional": {}, "outputs": []}),
        add("optional", "new"),
        lambda nodes: nodes["CIDMAdd"]["required"]["mode"].insert(0, "new"),
        lambda nodes: nodes["CIDMAdd"]["outputs"].append("IMAGE"),
        instead("optional", images="IMAGE,MASK,LATENT", seed="INT"),
    ],
    ids=["nothing", "a node", "an optional input", "an option", "an output at the end", "a type more"],
)
def test_what_grows_breaks_nothing(change):
    assert broken(change) == []


@pytest.mark.parametrize(
    "change, name",
    [
        (lambda nodes: nodes.clear(), "CIDMAdd"),
        (without("required", "strength"), "CIDMAdd.strength"),
        (without("optional", "seed"), "CIDMAdd.seed"),
        (add("required", "strength", "INT"), "CIDMAdd.strength"),
        (add("required", "mode", "STRING"), "CIDMAdd.mode"),
        (add("required", "strength", ["1.0"]), "CIDMAdd.strength"),
        (add("required", "new"), "CIDMAdd.new"),
        (add("optional", "images", "IMAGE"), "CIDMAdd.images"),
        (lambda nodes: nodes["CIDMAdd"]["required"]["mode"].remove("soft"), "CIDMAdd.mode=soft"),
        (lambda nodes: nodes["CIDMAdd"]["outputs"].pop(), "CIDMAdd output 1"),
        (lambda nodes: nodes["CIDMAdd"]["outputs"].insert(1, "IMAGE"), "CIDMAdd output 1"),
        (instead("optional", new="INT", images="IMAGE,MASK", seed="INT"), "CIDMAdd order"),
        (instead("optional", seed="INT", images="IMAGE,MASK"), "CIDMAdd order"),
    ],
)
def test_what_a_saved_workflow_would_miss_is_named_and_a_migration_takes_it_back_once(change, name):
    assert broken(change) == [name]
    assert broken(change, migrations=[name]) == []
    assert broken(change, migrations=[name], version="1.1.0") == [name], "a migration counts in its own version alone"
    assert broken(change, migrations=["CIDMAdd.other"]) == [name]


def test_an_input_that_becomes_required_is_named():
    def require(nodes):
        nodes["CIDMAdd"]["required"]["seed"] = nodes["CIDMAdd"]["optional"].pop("seed")

    assert broken(require) == ["CIDMAdd.seed", "CIDMAdd order"]


@pytest.mark.parametrize("formats", [{"concept file": 3}, {"concept file": 1}, {}])
def test_another_version_of_a_file_format_is_named(formats):
    name = "format of a concept file"
    nodes = PROMISED["nodes"]
    assert [fault.name for fault in find_broken(PROMISED, nodes, formats, "1.0.0")] == [name]
    migrated = {**PROMISED, "migrations": {name: {"version": "1.0.0", "instead": "the new one"}}}
    assert find_broken(migrated, nodes, formats, "1.0.0") == []


def test_a_fault_is_a_sentence_that_says_what_to_do():
    (fault,) = find_broken(PROMISED, {}, PROMISED["formats"], "1.0.0")
    assert str(fault) == (
        "CIDMAdd: this node went away, and workflows that have it cannot be opened. Bring it back, "
        "or say under migrations in promises.json what takes its place in this version."
    )


def test_what_is_new_is_promised_before_it_is_published():
    nodes = {**PROMISED["nodes"], "CIDMNew": {"required": {}, "optional": {}, "outputs": []}}
    assert find_unwritten(PROMISED, PROMISED["nodes"], PROMISED["formats"]) == []
    (said,) = find_unwritten(PROMISED, nodes, PROMISED["formats"])
    assert said.startswith("CIDMNew: ") and "--write" in said
    assert len(find_unwritten(PROMISED, {}, {"concept file": 3})) == 2


def test_a_migration_says_in_which_version_and_what_takes_the_place():
    assert find_misstated({"CIDMAdd": {"version": "1.0.0", "instead": "CIDMSum"}}) == []
    for about in ({}, {"version": "1.0.0"}, {"version": "1.0.0", "instead": ""}):
        assert len(find_misstated({"CIDMAdd": about})) == 1


def test_a_node_is_promised_as_a_host_describes_it():
    described = {
        "CIDMAdd": {
            "input": {
                "required": {
                    "mode": ["COMBO", {"options": ["exact"], "tooltip": "How."}],
                    "old": [["a", "b"], {}],
                    "strength": ["FLOAT", {}],
                },
                "hidden": {"unique_id": ["UNIQUE_ID"]},
            },
            "output": ["MODEL"],
            "display_name": "Add",
        }
    }
    assert promise_nodes(described) == {
        "CIDMAdd": {"required": {"mode": ["exact"], "old": ["a", "b"], "strength": "FLOAT"}, "optional": {}, "outputs": ["MODEL"]}
    }
    before = promise_nodes(described)
    described["CIDMAdd"]["input"]["required"]["old"][0].reverse()
    assert promise_nodes(described) == before, "a workflow keeps an option, not its place"


def test_the_formats_that_are_promised_are_those_that_are_written():
    assert read_promises()["formats"] == read_formats() == {"concept file": 2, "index of a bank": 1, "compressed bank": 2}
    assert find_misstated(read_promises()["migrations"]) == []
