"""What the registry refuses in published code: running other code, installing, reaching the network, hiding what it does."""

import ast
import re
from collections.abc import Iterator
from pathlib import PurePosixPath

CALLS = {"eval", "exec", "compile", "__import__"}
ATTRIBUTES = {"sys.path", "os.system", "os.popen"}
MODULES = {
    **dict.fromkeys(("subprocess", "multiprocessing", "pty", "ctypes", "runpy"), "it starts other programs or code"),
    **dict.fromkeys(("pip", "ensurepip", "setuptools"), "it installs packages, which is for ComfyUI's manager to do"),
    **dict.fromkeys(("pickle", "marshal", "shelve", "dill", "joblib"), "it reads files that can run code"),
    **dict.fromkeys(("socket", "ssl", "urllib", "http", "ftplib", "smtplib", "requests", "httpx"), "it reaches the network"),
    **dict.fromkeys(("aiohttp", "websockets", "websocket"), "it reaches the network"),
}
ANSWERING = "from aiohttp import web"  # what the host's own server answers with; it opens nothing
IN_SCRIPTS = {
    r"\beval\s*\(|\bnew\s+Function\b": "it runs a text as code",
    r"\bimport\s*\(?\s*[\"'`]https?:|\bfrom\s+[\"']https?:|\.src\s*=\s*[\"'`]https?:": "it loads code from the network",
    r"\bfetch\s*\(\s*[\"'`]https?:|\bXMLHttpRequest\b|\bWebSocket\b|\bsendBeacon\b": "it reaches the network",
}
LONGEST = 300  # characters of a line: what is longer was written by a machine and cannot be reviewed


def find_banned(name: str, text: str) -> list[str]:
    """A sentence for each place of a published file that the registry would refuse; files of other languages have none."""
    kind = PurePosixPath(name).suffix
    if kind not in (".py", ".js"):
        return []
    found = list(find_in_python(text) if kind == ".py" else find_in_script(text))
    found += [(n, f"it has {len(line)} characters") for n, line in enumerate(text.splitlines(), 1) if len(line) > LONGEST]
    return [f"{name}, line {number}: {why}. Do without, or leave the file out in .comfyignore." for number, why in sorted(found)]


def find_in_python(text: str) -> Iterator[tuple[int, str]]:
    """Lines of a Python source and what is wrong with them."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.Import, ast.ImportFrom)) and ast.unparse(node) != ANSWERING:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [] if node.level else [node.module or ""]
            for top in {name.split(".")[0] for name in names} & MODULES.keys():
                yield node.lineno, f"imports {top}: {MODULES[top]}"
        elif isinstance(node, ast.Attribute) and ast.unparse(node) in ATTRIBUTES:
            yield node.lineno, f"touches {ast.unparse(node)}"
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in CALLS:
            yield node.lineno, f"calls {node.func.id}"
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load" and not is_safe(node):
            yield node.lineno, "torch.load without weights_only=True"


def is_safe(load: ast.Call) -> bool:
    return any(word.arg == "weights_only" and getattr(word.value, "value", None) is True for word in load.keywords)


def find_in_script(text: str) -> Iterator[tuple[int, str]]:
    """Lines of a script of the front end and what is wrong with them."""
    for number, line in enumerate(text.splitlines(), 1):
        for pattern, why in IN_SCRIPTS.items():
            if re.search(pattern, line):
                yield number, why
