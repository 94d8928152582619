"""What the host keeps of a graph, or does not: nodes paint, learn and read banks alike however it caches them."""

import json
from pathlib import Path

import pytest
import soak
from comfy_server import Server

SAVED = Path(__file__).with_name("saved")
MODES = {"as it comes": (), "classic": ("--cache-classic",), "the last three": ("--cache-lru", "3"), "none": ("--cache-none",)}


def painted(prompt):
    graph = json.loads((SAVED / "ten_concepts_any_prompt.json").read_text(encoding="utf-8"))
    for node in graph.values():
        node["inputs"] |= {key: value for key, value in (("steps", 2), ("batch_size", 1)) if key in node["inputs"]}
        if node["class_type"] == "CIDMEncodePrompt":
            node["inputs"]["text"] = prompt
    return graph


def learned(steps):
    graph = json.loads((SAVED / "watch_a_training.json").read_text(encoding="utf-8"))
    for node in graph.values():
        if "steps" in node["inputs"]:
            node["inputs"]["steps"] = steps if node["class_type"] == "CIDMTrainConcept" else 2
    return graph


def one_after_another(host, folder, options):
    """The digests of the pictures of each prompt, and the bytes of the concept that was learned, in one mode."""
    server = Server(host, folder, options)
    try:
        first, second = painted("a <dog> in the snow"), painted("a <cat> and a <duck> on the beach")
        pictures = [soak.run(server, graph)[2] for graph in (first, second, first, learned(2), learned(2), learned(3), first)]
        (concept,) = server.bank("doodle_watched").glob("*.safetensors")
        return pictures, concept.read_bytes()
    finally:
        server.close()


@pytest.mark.slow
def test_pictures_and_concepts_are_the_same_however_the_host_caches(comfy_host, tmp_path):
    found = {name: one_after_another(comfy_host, tmp_path / name.replace(" ", "_"), options) for name, options in MODES.items()}
    pictures, concept = found["as it comes"]
    assert all(pictures) and pictures[0] == pictures[2] == pictures[6] and pictures[3] == pictures[4] != pictures[5]
    for name, (shown, file) in found.items():
        assert shown == pictures, name
        assert file == concept, name
