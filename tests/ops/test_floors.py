"""The house rules: a file imports from lower floors only, never from the host, and shipped code stays clear of risky calls."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from archive import files_to_publish
from banned import find_banned

PACK = Path(__file__).resolve().parents[2]
FLOORS = {
    "__main__": 7,
    "cli": 7,
    "notebook": 7,
    "benchmarks": 6,
    "cluster": 6,
    "doodle.training": 6,
    "evaluation": 6,
    "measure": 5,
    "inspection": 5,
    "painting": 4,
    "training": 4,
    "method": 3,
    "bank": 3,
    "hub": 2,
    "joint_sites": 2,
    "adapters": 2,
    "recompute": 2,
    "kept": 1,
    "lowrank": 1,
    "concept_text": 1,
    "row_plan": 1,
    "text_table": 1,
    "tokens": 1,
    "backbone": 1,
    "causal": 1,
    "schedule": 1,
    "fingerprint": 1,
    "file_fault": 1,
    "file_kind": 1,
    "tensor_file": 1,
    "printable": 1,
    "grammar": 1,
    "text_file": 1,
    "models": 0,
}
BESIDE = {
    "engines": {
        "backbone", "causal", "schedule", "hub", "fingerprint", "tokens", "tensor_file", "text_file", "printable", "doodle", "models",
    },
    "doodle": {"grammar", "lowrank", "tokens", "backbone", "fingerprint", "models"},
}  # fmt: skip
HOST = {"comfy", "comfy_api", "comfy_execution", "comfy_extras", "execution", "folder_paths", "node_helpers", "nodes", "server"}
HEADLESS = {"accelerate", "diffusers", "tokenizers", "transformers"}

IN_HOST = {*(PACK / "cidm_ops" / "benchmarks" / "speed").glob("*host*.py")}  # scripts for the host's Python, on their own
OPS = sorted({*(PACK / "cidm_ops").rglob("*.py")} - IN_HOST)
FACE = sorted((PACK / "nodes").rglob("*.py")) + [file for file in [PACK / "__init__.py"] if file.exists()]


PUBLIC = PACK / "cidm_ops" / "__init__.py"  # its names are loaded when a notebook asks for them (PEP 562), and never by a node


def name_of(file: Path) -> str:
    return str(file.relative_to(PACK))


def is_module(parts: list[str]) -> bool:
    place = PACK.joinpath(*parts)
    return place.with_suffix(".py").is_file() or (place / "__init__.py").is_file()


def module_of(file: Path) -> str:
    """The dotted name of a file, from the pack: "cidm_ops.hub"; of a package its own, "cidm_ops.bank"."""
    return ".".join(file.relative_to(PACK).with_suffix("").parts).removesuffix(".__init__")


def imports(file: Path) -> list[str]:
    """Every module that a file imports: absolute names, and relative ones written out from the pack ("cidm_ops.hub")."""
    if file == PUBLIC:
        return []
    package = file.relative_to(PACK).parts[:-1]
    found = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.append(node.module or "")
        elif isinstance(node, ast.ImportFrom):
            base = list(package[: len(package) - node.level + 1]) + (node.module.split(".") if node.module else [])
            found += [".".join(base)] if node.module else []
            found += [".".join([*base, alias.name]) for alias in node.names if not node.module or is_module([*base, alias.name])]
    return found


def room(module: str) -> str | None:
    """The room of a module of cidm_ops: "cidm_ops.training.crops" is in "training", and the training of Doodle has a room of its own."""
    parts = module.split(".")
    if parts[:3] == ["cidm_ops", "doodle", "training"]:
        return "doodle.training"
    return parts[1] if parts[0] == "cidm_ops" and len(parts) > 1 else None


@pytest.mark.parametrize("file", OPS, ids=name_of)
def test_a_file_imports_from_lower_floors_only(file):
    own = room(".".join(file.relative_to(PACK).with_suffix("").parts))
    assert own == "__init__" or own in FLOORS or own in BESIDE, f"{own} has no floor: add it to FLOORS here and to AGENTS.md"
    for target in filter(None, map(room, imports(file))):
        if target == own:
            continue
        if own in BESIDE:
            assert target in BESIDE[own], f"{own} imports {target}"
        elif target in BESIDE:
            assert FLOORS[own] >= 5, f"{own} imports {target}: only the command line and the measurements choose an engine or a world"
        else:
            assert FLOORS[target] <= FLOORS[own], f"{own} (floor {FLOORS[own]}) imports {target} (floor {FLOORS[target]})"


def test_imports_make_no_circles():
    modules = {module_of(file): file for file in OPS}
    graph = {name: {target for target in imports(file) if target in modules} for name, file in modules.items()}
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


@pytest.mark.parametrize("file", OPS, ids=name_of)
def test_the_method_knows_no_host(file):
    own = room(".".join(file.relative_to(PACK).with_suffix("").parts))
    headless = own in BESIDE or FLOORS.get(own, 0) >= 5
    for module in imports(file):
        top = module.split(".")[0]
        assert top not in HOST, f"imports {module}"
        assert headless or top not in HEADLESS, f"imports {module}: diffusers and its kind belong to engines/"


@pytest.mark.parametrize("file", OPS + FACE, ids=name_of)
def test_only_the_cluster_knows_its_engines(file):
    """So that no node, and no command of one machine, loads them."""
    tops = {module.split(".")[0] for module in imports(file)} & {"fsspec", "ray"}
    assert not tops or room(module_of(file)) == "cluster", f"imports {', '.join(tops)}"


PUBLISHED = {PACK / name for name in files_to_publish(PACK, uncommitted=True)}
SHIPPED = [file for file in OPS + FACE if file in PUBLISHED]


def test_what_ships_is_what_the_nodes_need():
    """Whatever the nodes reach ships, and what ships is reached: the rest of the command line, of the benchmarks and of Doodle's training
    stays out, by whole folders wherever there is one.
    """
    files = {module_of(file): file for file in OPS + FACE}
    reached, todo = set(), [module_of(PACK / "__init__.py")]
    while todo:
        name = todo.pop()
        if name in files and name not in reached:
            reached.add(name)
            todo += imports(files[name])
            todo += [".".join(name.split(".")[:i]) for i in range(1, name.count(".") + 1)]  # a module's packages are imported with it
    shipped = {module_of(file) for file in SHIPPED}
    assert reached - shipped == set(), "the nodes import what .comfyignore leaves out"
    assert shipped - reached == set(), "no node needs these: leave them out by a folder in .comfyignore"


@pytest.mark.parametrize("file", SHIPPED, ids=name_of)
def test_shipped_code_runs_no_other_code_and_reaches_no_network(file):
    assert find_banned(name_of(file), file.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("file", OPS + FACE, ids=name_of)
def test_imports_inside_the_pack_are_relative(file):
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [node.module or ""]
        assert not [name for name in names if name.split(".")[0] == "cidm_ops"], f"line {node.lineno}: write the import relative"


@pytest.mark.parametrize("file", OPS + FACE, ids=name_of)
def test_what_is_imported_of_the_pack_is_there(file):
    for module in imports(file):
        parts = module.split(".")
        if parts[0] == "cidm_ops":
            assert is_module(parts) or is_module(parts[:-1]), f"imports {module}: there is no such file"
