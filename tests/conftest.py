"""The ComfyUI checkouts that the tests run on, and the closing lines that say which ran and what was skipped."""

import os
from collections import Counter
from typing import Any

import pytest
from hosts import NO_HOST, Host, find_hosts

# Said before anything imports torch.
if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):  # the workers, and what they start, share the cores
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // int(workers))))

try:
    HOSTS = find_hosts()
except ValueError as wrong:
    raise pytest.UsageError(str(wrong)) from None


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
