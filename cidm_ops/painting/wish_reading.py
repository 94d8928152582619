"""A wish is read: a sentence by rules, JSON as a language model answers it; and what a later one changes. No text raises."""

import re
from dataclasses import replace

from ..bank.mentions import Vocabulary
from .wish import POLICY, Wish, finished, kind_of
from .wish_answer import MOST, answer_in, from_answer
from .wish_rules import ADDING, ONE_THING, SIDE, by_rules, trimmed
from .wish_words import Words


def read_wish(text: str, vocabulary: Vocabulary | None = None, before: Wish | None = None) -> tuple[Wish, list[str]]:
    """Read a wish, or JSON that a language model answered; what it says replaces that of a wish ``before`` it, and the rest of that stays.

    Returns it with notes about what was guessed, left out or not understood. No text raises.
    """
    notes: list[str] = []
    words = Words(vocabulary or Vocabulary({}), notes)
    text = text.replace("\0", " ")
    if len(text) > MOST:
        notes.append(f"only the first {MOST} of {len(text)} letters were read")
    text = text[:MOST].strip()
    fields_of = answer_in(text)
    if fields_of is not None:
        found = from_answer(fields_of, words)
    else:
        if "{" in text and '"' in text:
            notes.append("no JSON could be read in this, so it was read as a sentence")
        found = by_rules(" ".join(text.split()), words)
    if before:
        found = _changed(before, _added(found) if fields_of is None and ADDING.match(text) else found)
    found = finished(found)
    if not found.subject and not found.prompt.strip():
        notes.append("it names nothing to paint")
    return found, list(dict.fromkeys(notes))


def _added(new: Wish) -> Wish:
    """A wish that only adds to another one: its things are more of those that are there, each with its place."""
    if not new.subject:
        return new
    side = SIDE.search(new.scene)
    words = " ".join(filter(None, [new.subject, side and side[0].strip(" ,")]))
    scene = trimmed(new.scene.replace(side[0], " ", 1)) if side else new.scene
    return replace(new, subject="", others=(words, *new.others), scene=scene)


def _changed(before: Wish, new: Wish) -> Wish:
    """A wish with what a later one says of it; what is not wanted any more goes."""
    gone = [part.strip().lower() for part in new.negative.split(",") if part.strip()]

    def kept(said: str) -> bool:
        return not any(re.search(rf"\b{re.escape(word)}\b", said, re.I) for part in gone for word in [part, *part.split()[-1:]])

    own = new.edits and {_first(edit) for edit in new.edits}
    edits = [edit for edit in before.edits if kept(edit) and not (own and _first(edit) in own)]
    named = _bare(new.subject) in ("", "it", "him", "her", "them", "this", "that", "one", _bare(before.subject))
    adds = named or not new.subject
    scene = new.scene or ("" if not kept(before.scene) else before.scene)
    style = "" if new.style == "none" else new.style or before.style
    negative = ", ".join(dict.fromkeys(part for part in (*before.negative.split(", "), *new.negative.split(", ")) if part))
    merged = Wish(
        subject=before.subject if adds and not new.parts else new.subject,
        edits=(*edits, *new.edits),
        action=new.action or (before.action if kept(before.action) else ""),
        others=tuple(dict.fromkeys((*(other for other in before.others if kept(other)), *new.others))),
        scene=scene,
        style=style,
        negative=negative,
        parts=new.parts or (before.parts if adds else ()),
        prompt=new.prompt,
        reply=new.reply,
    )
    kind, steps = kind_of(merged), new.identity
    told = before.identity - POLICY[before.kind][0]  # what was asked for before stays
    return replace(merged, kind=kind, identity=steps + told)


def _first(edit: str) -> str:
    return edit.split(" ", 1)[0].lower()


def _bare(words: str) -> str:
    return ONE_THING.sub("", words.strip()).lower()


def wish_in(text: str, vocabulary: Vocabulary | None = None) -> Wish | None:
    """The wish that ``Wish.json`` wrote; ``None`` for an empty text, or one that holds none."""
    return read_wish(text, vocabulary)[0] if text.strip() and answer_in(text[:MOST]) is not None else None
