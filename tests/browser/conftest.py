"""The front end in a browser, open once for every checkout."""

import pytest
from comfy_server import server  # noqa: F401


@pytest.fixture(scope="session")
def page(server):  # noqa: F811
    """One page of the front end for all tests of a checkout."""
    import frontend

    with frontend.open_page(server.url) as page:
        yield page
