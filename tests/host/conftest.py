"""One running ComfyUI for all tests of a checkout."""

from collections.abc import Iterator

import pytest
from comfy_server import Server


@pytest.fixture(scope="session")
def server(comfy_host, tmp_path_factory) -> Iterator[Server]:
    running = Server(comfy_host, tmp_path_factory.mktemp("comfy"))
    yield running
    running.close()
