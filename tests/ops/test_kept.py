"""What was computed is kept by what it depends on, within a room."""

from cidm_ops.kept import Kept


def test_what_is_kept_is_made_once():
    kept, made = Kept(10, len), []
    for _ in range(3):
        assert kept.take("key", lambda: made.append(1) or "abc") == "abc"
    assert len(made) == 1
    kept.clear()
    kept.take("key", lambda: made.append(1) or "abc")
    assert len(made) == 2


def test_what_was_not_asked_for_the_longest_goes_first():
    kept = Kept(6, len)
    for key in ("a", "b", "a", "c"):  # of three bytes each: there is room for two
        kept.take(key, lambda key=key: 3 * key)
    assert list(kept.results) == ["a", "c"] and kept.taken == 6


def test_what_is_larger_than_the_room_is_not_kept_and_displaces_nothing():
    kept = Kept(4, len)
    kept.take("small", lambda: "abc")
    assert kept.take("large", lambda: "abcdefgh") == "abcdefgh"
    assert list(kept.results) == ["small"]
