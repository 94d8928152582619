"""What the registry would publish, alone in a real ComfyUI: its nodes are those that saved workflows rely on."""

from lock import read_project
from promises import find_broken, find_unwritten, promise_nodes, read_formats, read_promises


def test_the_nodes_are_those_that_saved_workflows_were_promised(server):
    described = {name: node for name, node in server.get("/object_info").items() if name.startswith("CIDM")}
    nodes, promised, formats = promise_nodes(described), read_promises(), read_formats()
    assert list(map(str, find_broken(promised, nodes, formats, read_project()["project"]["version"]))) == []
    assert find_unwritten(promised, nodes, formats) == []
