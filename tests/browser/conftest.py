"""The front end in a browser."""

import pytest
from comfy_server import server  # noqa: F401


@pytest.fixture(scope="module")
def page(server):  # noqa: F811
    """One page of the front end for the tests of a file. An open one paints all the time, and costs a sixth of a core."""
    import frontend

    with frontend.open_page(server.url) as page:
        yield page
