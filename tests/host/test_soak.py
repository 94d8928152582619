"""A short soak: what a server still holds after painting, learning and cancelling. The long one is soak.py."""

import pytest
import soak


@pytest.mark.slow
def test_nothing_stays_behind_and_the_first_pictures_come_again(comfy_host, tmp_path):
    server = soak.start(comfy_host, tmp_path)
    try:
        found = soak.soak(server, 20)
    finally:
        server.close()
    assert found.errors == [] and found.ended == {"success": 18, "cancelled": 2}
    assert not any(found.left.values()), found.left
    assert found.again, "the first pictures are not what they were"
