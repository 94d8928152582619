"""Regions written as text: a JSON list of boxes, each with its prompt."""

import json
from typing import Any

from .regions import RegionMask, box_mask

MOST = 64  # boxes; more than anybody draws, and few enough to compute
RANGES = {"strength": (0.0, 1.0), "priority": (-100, 100), "feather": (0.0, 0.5)}
SHAPE = '{"text": "a <dog>", "box": [left, top, right, bottom]}, and if you like "strength", "priority" and "feather"'


def read_boxes(text: str) -> list[tuple[str, RegionMask]]:
    """The prompts and masks in a JSON list of ``{"text", "box", "strength", "priority", "feather"}``, the last three optional.

    ``box`` is ``[left, top, right, bottom]`` in parts of the picture, from the top left. Raises ``ValueError`` that names the box.
    """
    try:
        boxes = json.loads(text, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the boxes are no JSON: {error}; expected a list of {SHAPE}; an empty list is []") from error
    if not isinstance(boxes, list):
        raise ValueError(f"the boxes are {_short(boxes)}: expected a list of {SHAPE}; put one box in [ ] too")
    if len(boxes) > MOST:
        raise ValueError(f"{len(boxes)} boxes: expected at most {MOST}; join some, or give the others to a second node")
    return [_read(f"box {number}", box) for number, box in enumerate(boxes, 1)]


def read_region(text: str) -> tuple[str, RegionMask]:
    """The prompt and the mask in ``LEFT,TOP,RIGHT,BOTTOM: PROMPT``. Raises ``ValueError`` that says what is wrong with it."""
    edges, colon, prompt = text.partition(":")
    try:
        numbers = [float(edge) for edge in edges.split(",")]
    except ValueError:
        numbers = []
    if not colon or len(numbers) != 4 or not prompt.strip():
        raise ValueError(f"region {text[:80]!r}: expected LEFT,TOP,RIGHT,BOTTOM: PROMPT, such as '0,0,0.5,1: a <dog> in the snow'")
    left, top, right, bottom = numbers
    try:
        return prompt.strip(), RegionMask(box_mask(left, top, right, bottom))
    except ValueError as error:
        raise ValueError(f"region {text[:80]!r}: {error}; give a box inside the picture, larger than nothing") from error


def _read(name: str, box: Any) -> tuple[str, RegionMask]:
    if not isinstance(box, dict):
        raise ValueError(f"{name} is {_short(box)}: expected {SHAPE}")
    if missing := [key for key in ("text", "box") if key not in box]:
        raise ValueError(f"{name} has no {' and no '.join(missing)}: expected {SHAPE}; add it, or remove the box")
    if unknown := [key for key in box if key not in ("text", "box", *RANGES)]:
        raise ValueError(f"{name} has {', '.join(map(repr, unknown))}: expected only {SHAPE}; take it out")
    if not isinstance(box["text"], str):
        raise ValueError(f"{name}: its text is {_short(box['text'])}: expected a prompt in quotes")
    edges = box["box"]
    if not isinstance(edges, list) or len(edges) != 4 or not all(map(_is_number, edges)):
        raise ValueError(f"{name}: its box is {_short(edges)}: expected four numbers from 0 to 1, [left, top, right, bottom]")
    settings = {key: box[key] for key in RANGES if key in box}
    for key, value in settings.items():
        _check_range(name, key, value)
    try:
        mask = box_mask(*edges)
    except ValueError as error:
        raise ValueError(f"{name}: {error}; draw it inside the picture, larger than nothing") from error
    return box["text"], RegionMask(mask, **settings)


def _check_range(name: str, key: str, value: Any) -> None:
    """Raise ``ValueError`` for a setting of a box that is no number of its kind, or outside of its range."""
    (low, high), whole = RANGES[key], key == "priority"
    if not _is_number(value) or (whole and not isinstance(value, int)) or not low <= value <= high:
        what = f"a {'whole ' if whole else ''}number from {low:g} to {high:g}"
        raise ValueError(f"{name}: its {key} is {_short(value)}: expected {what}; correct it, or leave it out")


def _no_number(constant: str) -> None:
    raise ValueError(f"{constant} is no number")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e9


def _short(value: Any) -> str:
    """A value as it was written, its middle left out where it is long."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:60]}...{text[-15:]}"
