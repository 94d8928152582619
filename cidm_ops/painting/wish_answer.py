"""What a language model is asked about a wish, and what it answers, as JSON: fences, prose and a cut end are tolerated. Nothing raises."""

import json
import re
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from ..bank.mentions import Vocabulary
from ..grammar import article
from .config import MOST_IDENTITY
from .wish import BOXES, KINDS, POLICY, Part, Wish, kind_of
from .wish_rules import one_thing
from .wish_words import Words

MOST = 4000  # letters that are read of a wish, or of a field of an answer


def question(wish: str, vocabulary: Vocabulary | None = None) -> str:
    """What a language model is asked, so that ``read_wish`` can read its answer: the wish, the concepts that there are, and the shape."""
    known = [
        f"<{name}>, {'a style' if header['training'].get('kind') == 'style' else article(header['class_word'] or 'thing')}"
        for name, header in (vocabulary.headers.items() if vocabulary else ())
    ]
    have = f"Own things and styles that can be painted, each written as its handle: {'; '.join(known)}.\n" if known else ""
    shape = {
        "subject": "the noun or handle it is about", "edits": ["what is to be other about it, such as wearing a red hat"],
        "action": "what it does", "others": ["what else is there"], "scene": "where and when", "style": "how it is painted, or empty",
        "negative": "what is not wanted", "parts": [{"words": "a thing", "place": "left | middle | right | top | bottom"}],
        "kind": " | ".join(KINDS), "identity": f"0 to {MOST_IDENTITY:g}: how alike it is to stay",
        "prompt": "one caption with the subject once", "reply": "one or two sentences to the person",
    }  # fmt: skip
    return (
        f"Somebody wishes for a picture: {json.dumps(' '.join(wish.split()), ensure_ascii=False)}\n{have}"
        f"Answer with one JSON object and nothing else, in this shape, fields that it says nothing of left empty:\n{json.dumps(shape)}"
    )


def answer_in(text: str) -> dict[str, Any] | None:
    """The first JSON object of a text, with fences and prose around it tolerated, and an end that was cut off; ``None`` without one."""
    start, tries = text.find("{"), 0
    while start >= 0 and tries < 5:
        for end in (*_closing(text, start), None):
            part = text[start:] if end is None else text[start : end + 1]
            if (found := _loaded(part)) is not None and any(isinstance(key, str) and key.lower() in NAMES for key in found):
                return found
        start, tries = text.find("{", start + 1), tries + 1
    return None


def _closing(text: str, start: int) -> list[int]:
    """Where the object that begins at ``start`` ends, if it does."""
    depth, inside, escaped = 0, False, False
    for at in range(start, len(text)):
        letter = text[at]
        if inside:
            inside, escaped = escaped or letter != '"', letter == "\\" and not escaped
        elif letter == '"':
            inside = True
        elif letter in "{[":
            depth += 1
        elif letter in "}]":
            depth -= 1
            if depth == 0:
                return [at]
    return []


def _loaded(part: str) -> dict[str, Any] | None:
    """An object of JSON, also with commas too many, and with an end that was cut off: then without its last field if that is not whole."""
    for text in (part, re.sub(r",\s*([}\]])", r"\1", part), *_mended(part)):
        try:
            found = json.loads(text, strict=False)
        except (ValueError, RecursionError):
            continue
        if isinstance(found, dict):
            return found
    return None


def _mended(part: str) -> list[str]:
    """A text with its strings and brackets closed, and the same up to its last comma."""
    stack, inside, escaped, before = [], False, False, ""
    for at, letter in enumerate(part):
        if inside:
            inside, escaped = escaped or letter != '"', letter == "\\" and not escaped
        elif letter == '"':
            inside = True
        elif letter in "{[":
            stack.append("}" if letter == "{" else "]")
        elif letter in "}]" and stack:
            stack.pop()
        elif letter == ",":
            before = part[:at] + "".join(reversed(stack))
    return [part + '"' * inside + "".join(reversed(stack)), before or "{}"]


ALIASES = {
    "edit_type": "kind", "type": "kind", "attributes": "edits", "changes": "edits", "keep": "", "background": "scene", "place": "scene",
    "location": "scene", "negative_prompt": "negative", "identity_weight": "identity", "explanation": "reply", "regions": "parts",
    "caption": "prompt", "keep_style": "",
}  # fmt: skip
NAMES = {field.name for field in fields(Wish)} | set(ALIASES)


def from_answer(answer: Mapping[str, Any], words: Words) -> Wish:
    """What a language model answered: known fields, their values clamped to what they can be; others are named."""
    given: dict[str, Any] = {}
    for key, value in answer.items():
        name = ALIASES.get(str(key).lower(), str(key).lower())
        if str(key).lower() not in NAMES:
            words.notes.append(f"the answer has a field {str(key)[:40]!r}, which means nothing here")
        elif name:
            given.setdefault(name, value)

    def text(name: str) -> str:
        value = given.get(name)
        said = (
            "" if value is None or isinstance(value, bool) else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        )
        said = " ".join(said.split())[:MOST]
        return said if name == "reply" else words.cleaned(said).strip()

    def several(name: str) -> tuple[str, ...]:
        value = given.get(name) or []
        every = value if isinstance(value, list) else [value]
        said = [" ".join(str(one).split())[:MOST] for one in every[:16] if isinstance(one, str | int | float) and not isinstance(one, bool)]
        return tuple(words.with_handles(words.cleaned(one)) for one in said if one)

    style = words.with_handles(text("style"), style=True)
    found = Wish(
        subject=one_thing(words.with_handles(text("subject"))),
        edits=several("edits"),
        action=text("action"),
        others=several("others"),
        scene=text("scene"),
        style="none" if style.lower() in ("none", "no style") else style,
        negative=text("negative"),
        parts=_parts_of(given.get("parts"), words),
        prompt=words.with_handles(text("prompt")),
        reply=text("reply"),
    )
    kind = str(given.get("kind") or "").lower()
    if kind and kind not in KINDS:
        words.notes.append(f"kind {kind[:40]!r}: expected one of {', '.join(KINDS)}, so it was told by the rest")
    kind = kind if kind in KINDS else kind_of(found)
    return replace(found, kind=kind, identity=_identity_of(given.get("identity"), kind, words))


def _identity_of(value: Any, kind: str, words: Words) -> float:
    """How far an identity that was answered is from that of a kind; 0 for none."""
    if value is None or value == "":
        return 0.0
    try:
        wanted = float(value)
    except (TypeError, ValueError, OverflowError):
        wanted = float("nan")
    if isinstance(value, bool) or wanted != wanted:
        words.notes.append(f"identity {str(value)[:40]!r}: expected a number from 0 to {MOST_IDENTITY:g}, so that of {kind} was taken")
        return 0.0
    if not 0 <= wanted <= MOST_IDENTITY:
        words.notes.append(f"identity {wanted:g}: expected 0 to {MOST_IDENTITY:g}, the nearest was taken")
    return min(max(wanted, 0.0), MOST_IDENTITY) - POLICY[kind][0]


def _parts_of(value: Any, words: Words) -> tuple[Part, ...]:
    """Things with places that were answered."""
    found = []
    for one in value[:16] if isinstance(value, list) else []:
        said = str(one.get("words") or one.get("text") or "") if isinstance(one, dict) else ""
        place = str(one.get("place") or one.get("position") or "").lower() if isinstance(one, dict) else ""
        place = {"center": "middle", "centre": "middle"}.get(place, place)
        if said.strip() and place in BOXES:
            found.append(Part(one_thing(words.with_handles(words.cleaned(" ".join(said.split())[:MOST]))), place))
        else:
            words.notes.append(f"a part of the answer was left out: expected its words and a place, one of {', '.join(BOXES)}")
    return tuple(found)
