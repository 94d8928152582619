"""What docs/beside_packs.md says of nodes and wires is what the script counts, and it counts alike what is alike."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from count_nodes import HEAD, ONE, ROWS, TWO, Counted, Row, count, main, parse
from PIL import Image, PngImagePlugin

PACK = Path(__file__).resolve().parents[2]
PAGE = (PACK / "docs" / "beside_packs.md").read_text(encoding="utf-8")
OURS = [row for row in ROWS if not row.repository]
TEMPLATES = sorted((PACK / "workflows").glob("*.json"))


def read(file):
    return json.loads(file.read_text(encoding="utf-8"))


def node(number, kind, inputs=(), outputs=(), mode=0):
    """A node as the front end saves it: inputs with the link that each has, and the types of outputs."""
    given = [{"name": name, "type": type, "link": link} for name, type, link in inputs]
    return {"id": number, "type": kind, "mode": mode, "inputs": given, "outputs": [{"type": type} for type in outputs]}


def painted_by_blueprint():
    """The blueprint *Paint concepts* with what it needs around it."""
    graph = read(PACK / "subgraphs" / "Paint concepts.json")
    (paint,) = graph["nodes"]
    base = node(1, "CheckpointLoaderSimple", outputs=("MODEL", "CLIP", "VAE"))
    bank = node(2, "CIDMOpenBank", outputs=("CIDM_BANK",))
    wired = {"model": 1, "clip": 2, "vae": 3, "bank": 4}
    for given in paint["inputs"]:
        given["link"] = wired.get(given["name"])
    graph["nodes"] += [base, bank, node(3, "SaveImage", [("images", "IMAGE", 5)])]
    graph["links"] = [[1, 1, 0, 10, 0, "MODEL"], [2, 1, 1, 10, 1, "CLIP"], [3, 1, 2, 10, 5, "VAE"], [4, 2, 0, 10, 2, "CIDM_BANK"]]
    graph["links"].append([5, 10, 0, 3, 0, "IMAGE"])
    return graph


def test_the_page_has_every_row_and_ours_as_they_are_counted():
    start = PAGE.index(HEAD)
    lines = PAGE[start : PAGE.index("\n\n", start)].splitlines()[2:]
    assert len(lines) == len(ROWS)
    for row, line in zip(ROWS, lines, strict=True):
        if row.repository:  # theirs are counted where clones are
            assert re.fullmatch(re.escape(row.write(("N", "N"))).replace(r"\ N\ ", r"\ \d+\ "), line), line
        else:
            assert line == row.write(row.count(None))


def test_readme_says_the_same():
    readme = (PACK / "README.md").read_text(encoding="utf-8")
    for job in (ONE, TWO):
        counted = next(row for row in OURS if row.job == job).count(None)
        assert re.search(rf"^\| {job}: nodes, wires \| {counted.nodes}, {counted.wires} \|", readme, re.M)


def test_one_concept_takes_at_most_seven_nodes_and_ten_wires():
    counted = next(row for row in OURS if row.job == ONE).count(None)
    assert counted.nodes <= 7 and counted.wires <= 10


@pytest.mark.parametrize("file", TEMPLATES, ids=lambda file: file.stem[:2])
def test_a_template_counts_the_same_for_the_front_end_and_for_the_server(file):
    assert count(read(file)) == count(read(file.with_name("api") / file.name))


def test_a_subgraph_counts_as_what_is_in_it():
    assert count(painted_by_blueprint()) == count(read(PACK / "tests" / "counted" / "one_concept.json"))


def test_what_never_reaches_the_server_or_the_picture_does_not_count():
    graph = painted_by_blueprint()
    before = count(graph)
    model = next(one for one in graph["nodes"][0]["inputs"] if one["name"] == "model")
    model["link"] = 12
    both = [("model", "MODEL", 11), ("clip", "CLIP", None)]
    graph["nodes"] += [
        node(20, "Reroute", [("", "*", 1)], ("*",)),
        node(21, "LoraLoader", both, ("MODEL", "CLIP"), mode=4),
        node(22, "PreviewImage", [("images", "IMAGE", 13)]),
        node(23, "SaveImage", [("images", "IMAGE", 14)], mode=2),
        node(24, "MarkdownNote"),
        node(25, "PrimitiveNode", outputs=("STRING",)),
    ]
    graph["links"] += [[11, 20, 0, 21, 0, "MODEL"], [12, 21, 0, 10, 0, "MODEL"], [13, 10, 0, 22, 0, "IMAGE"], [14, 10, 0, 23, 0, "IMAGE"]]
    prompt = next(one for one in graph["nodes"][0]["inputs"] if one["name"] == "prompt")
    prompt["link"] = 15
    graph["links"].append([15, 25, 0, 10, 3, "STRING"])
    assert count(graph) == before


def test_a_graph_that_saves_nothing_is_counted_from_its_previews():
    links = [[1, 1, 0, 2, 0, "IMAGE"]]
    graph = {"nodes": [node(1, "LoadImage", outputs=("IMAGE",)), node(2, "PreviewImage", [("images", "IMAGE", 1)])], "links": links}
    assert count(graph) == Counted(2, 1)


def test_the_graph_of_a_picture_that_the_host_saved_is_read(tmp_path):
    about = PngImagePlugin.PngInfo()
    about.add_text("workflow", json.dumps(painted_by_blueprint()))
    Image.new("RGB", (8, 8)).save(picture := tmp_path / "saved.png", pnginfo=about)
    assert count(parse(picture.name, picture.read_bytes())) == count(painted_by_blueprint())


def test_a_graph_of_others_is_counted_at_its_commit(tmp_path):
    def git(*words):
        given = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
        return subprocess.run(["git", "-C", clone, *given, *words], check=True, capture_output=True, text=True).stdout.strip()

    (clone := tmp_path / "pack").mkdir()
    git("init")
    for graph in (painted_by_blueprint(), {"nodes": [], "links": []}):
        (clone / "a graph.json").write_text(json.dumps(graph))
        git("add", ".")
        git("commit", "-m", "a graph")
    row = Row("a job", "a way", "a graph.json", "somebody/pack", git("rev-parse", "--short", "HEAD~1"))
    assert row.count(tmp_path) == count(painted_by_blueprint())
    with pytest.raises(SystemExit, match="has no a graph.json at 0000000, clone somebody/pack there"):
        Row("", "", "a graph.json", "somebody/pack", "0000000").count(tmp_path)


def test_a_graph_of_ones_own_is_counted(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["count_nodes.py", str(PACK / "tests" / "counted" / "one_concept.json")])
    main()
    assert capsys.readouterr().out.splitlines()[-1] == "| 7 | 10 | one_concept.json |"
