"""The ComfyUI checkouts that the tests run on, and the closing lines that say which ran and what was skipped."""

import importlib.util
import os
import re
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

# Said before anything imports torch.
if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):  # the workers, and what they start, share the cores
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // int(workers))))

PACK = Path(__file__).resolve().parents[1]
NO_HOST = "no ComfyUI: put checkouts into COMFYUI_PATH (':' between several), the pack into custom_nodes, or a checkout at ~/comfy/ComfyUI"
NEEDED = ("aiohttp", "av", "comfyui_frontend_package", "einops", "sqlalchemy", "torchsde", "transformers")


@dataclass(frozen=True)
class Host:
    """A ComfyUI checkout and the interpreter that runs it; None where nothing on this machine can."""

    path: Path
    version: str
    python: Path | None

    def __str__(self) -> str:
        return f"ComfyUI {self.version} ({self.path})"


def find_hosts() -> list[Host]:
    """COMFYUI_PATH, else the ComfyUI that the pack lies in, else ~/comfy/ComfyUI*; oldest first."""
    if named := os.environ.get("COMFYUI_PATH"):
        folders = [Path(folder).expanduser() for folder in named.split(os.pathsep) if folder]
        if missing := [str(folder) for folder in folders if not is_host(folder)]:
            raise pytest.UsageError(f"COMFYUI_PATH names {', '.join(missing)}: there is no ComfyUI (comfyui_version.py and main.py)")
    elif PACK.parent.name == "custom_nodes" and is_host(PACK.parents[1]):
        folders = [PACK.parents[1]]
    else:
        folders = [folder for folder in (Path.home() / "comfy").glob("ComfyUI*") if is_host(folder)]
    return sorted((host(folder.resolve()) for folder in folders), key=lambda h: [int(part) for part in re.findall(r"\d+", h.version)])


def is_host(folder: Path) -> bool:
    return (folder / "main.py").is_file() and (folder / "comfyui_version.py").is_file()


def host(folder: Path) -> Host:
    version = re.search(r'"([^"]+)"', (folder / "comfyui_version.py").read_text()).group(1)
    own = [folder / place for place in (".venv/bin/python", "venv/bin/python", ".venv/Scripts/python.exe", "venv/Scripts/python.exe")]
    here = Path(sys.executable) if all(importlib.util.find_spec(module) for module in NEEDED) else None
    return Host(folder, version, next((python for python in own if python.is_file()), here))


HOSTS = find_hosts()


@pytest.fixture(scope="session")
def comfy_hosts() -> list[Host]:
    """All ComfyUI checkouts that can run here, oldest first; skips where there is none."""
    hosts = [host for host in HOSTS if host.python]
    return hosts or pytest.skip(NO_HOST)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test with the argument `comfy_host` runs once on every checkout, or is skipped with the reason."""
    if "comfy_host" not in metafunc.fixturenames:
        return
    cases = [
        pytest.param(
            host,
            id=host.version,
            marks=() if host.python else pytest.mark.skip(f"{host} has no .venv and this Python lacks its requirements"),
        )
        for host in HOSTS
    ]
    nothing = pytest.param(None, id="no-host", marks=pytest.mark.skip(NO_HOST))
    metafunc.parametrize("comfy_host", cases or [nothing], scope="session")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With `pytest -n 2` one worker takes all tests of a checkout, so each has one server, and other files go whole."""
    from xdist.scheduler import LoadScopeScheduling

    class ByHost(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file, _, case = nodeid.partition("::")
            return next((str(found) for found in HOSTS if found.version in case.partition("[")[2].rstrip("]").split("-")), file)

    config.option.loadscopereorder = False  # tests/browser and tests/host, which take longest, begin
    return ByHost(config, log)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Which hosts ran, and every reason why something did not."""
    say = terminalreporter
    say.section("hosts")
    for found in HOSTS:
        on_it = [r for key in ("passed", "failed", "error") for r in say.stats.get(key, []) if found.version in r.nodeid.partition("[")[2]]
        ran = Counter(report.outcome for report in on_it)
        say.write_line(f"{found}: {', '.join(f'{n} {outcome}' for outcome, n in ran.items()) or 'no test ran on it'}")
    if not HOSTS:
        say.write_line(f"NO HOST TEST RAN: {NO_HOST}", yellow=True, bold=True)
    reasons = Counter(report.longrepr[2].removeprefix("Skipped: ") for report in say.stats.get("skipped", []))
    for reason, count in reasons.items():
        say.write_line(f"SKIPPED {count}: {reason}", yellow=True, bold=True)
    if deselected := len(say.stats.get("deselected", [])):
        say.write_line(f"not run by default: {deselected} (pytest -m slow)")
