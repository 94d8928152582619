"""A wish in parts: what it is about, what is to be other, where, how it is painted, what is not wanted, and the prompt that says all that.

It is assistant-lite, after CAFE (Zhou et al. 2024): of that the contract is kept, a picture or a concept and free words in, a picture and
an answer out, and not the learned coupling.
"""

import json
import re
from dataclasses import asdict, dataclass, replace

from ..bank.mentions import Vocabulary
from ..grammar import article
from .config import MOST_IDENTITY

KINDS = ("recontext", "restyle", "accessorise", "property", "material", "unclear")
# How a reference is followed for each kind: its strength, and the part of the sampling. Ours; docs/wish.md.
POLICY: dict[str, tuple[float, float, float]] = {
    "recontext": (1.0, 0.0, 1.0),
    "restyle": (0.75, 0.0, 0.8),
    "accessorise": (0.9, 0.0, 0.85),
    "property": (0.6, 0.0, 0.7),
    "material": (0.6, 0.0, 0.7),
    "unclear": (1.0, 0.0, 1.0),
}
# Places in a picture, and the boxes (left, top, right, bottom) that they are.
BOXES: dict[str, tuple[float, float, float, float]] = {
    "left": (0.0, 0.0, 0.5, 1.0),
    "right": (0.5, 0.0, 1.0, 1.0),
    "middle": (0.25, 0.0, 0.75, 1.0),
    "top": (0.0, 0.0, 1.0, 0.5),
    "bottom": (0.0, 0.5, 1.0, 1.0),
}
ON = {"left": "on", "right": "on", "middle": "in", "top": "at", "bottom": "at"}
THIRDS = {"left": (0.0, 0.0, 0.34, 1.0), "middle": (0.33, 0.0, 0.67, 1.0), "right": (0.66, 0.0, 1.0, 1.0)}  # where all three are named

MADE = r"(?:that is |which is )?(?:made (?:out )?(?:of|from)|built (?:of|from)|carved (?:out of|from|in)|out of|turned to)\b"


@dataclass(frozen=True)
class Part:
    """A thing of a wish that has a place of its own: its words, with concepts as handles, and where: a name of ``BOXES``."""

    words: str
    place: str


@dataclass(frozen=True)
class Wish:
    """A wish: its ``subject``, what is to be other about it (``edits``), what it does (``action``), what else is there (``others``), the
    ``scene``, the ``style``, what is not wanted (``negative``), and things with places of their own (``parts``). Concepts of the bank stand
    as ``<name>``. ``kind`` is one of ``KINDS``, ``identity`` says how strongly a reference is followed; ``prompt`` and ``reply`` are made
    of the rest, unless somebody wrote them.
    """

    subject: str = ""
    edits: tuple[str, ...] = ()
    action: str = ""
    others: tuple[str, ...] = ()
    scene: str = ""
    style: str = ""
    negative: str = ""
    parts: tuple[Part, ...] = ()
    kind: str = "unclear"
    identity: float = POLICY["unclear"][0]
    prompt: str = ""
    reply: str = ""

    @property
    def when(self) -> tuple[float, float]:
        """The part of the sampling in which a reference is followed."""
        return POLICY[self.kind][1:]

    def json(self) -> str:
        """The wish as text that ``read_wish`` takes, to keep it until the next one."""
        return json.dumps(asdict(self), ensure_ascii=False)


def kind_of(wish: Wish) -> str:
    """What a wish changes most."""
    edits = " ".join(wish.edits)
    if re.search(MADE, edits, re.I):
        return "material"
    if re.search(r"\b(?:wearing|dressed|carrying|holding|with)\b", edits, re.I):
        return "accessorise"
    if edits:
        return "property"
    if wish.style and wish.style != "none":
        return "restyle"
    return "recontext" if wish.scene or wish.action or wish.others or wish.parts else "unclear"


def finished(wish: Wish) -> Wish:
    """A wish with its prompt, its reply and how a reference is followed."""
    style = "" if wish.style == "none" else wish.style
    wish = replace(wish, style=style)
    identity = min(max(POLICY[wish.kind][0] + wish.identity, 0.0), MOST_IDENTITY)
    wish = replace(wish, identity=round(identity, 4), prompt=wish.prompt or written(wish))
    return replace(wish, reply=wish.reply or _reply(wish))


def written(wish: Wish) -> str:
    """The prompt of a wish: one caption."""
    body = " ".join(filter(None, [wish.subject, *wish.edits, wish.action]))
    if wish.parts:
        placed = [f"{part.words} {ON[part.place]} the {part.place}" for part in wish.parts]
        things = [part for part in (body, *placed) if part]
    else:
        things = [part for part in (body, *wish.others) if part]
    things += [other for other in wish.others if wish.parts]
    text = " and ".join(filter(None, [", ".join(things[:-1]), *things[-1:]]))
    text = " ".join(filter(None, [text, wish.scene]))
    if not wish.style:
        return text
    if wish.style.startswith("in the style of"):
        return ", ".join(filter(None, [text, wish.style]))
    style = f"a {wish.style}" if wish.style.startswith("<") else article(wish.style)
    return f"{style} of {text}" if text else style


def regions_of(wish: Wish, vocabulary: Vocabulary | None = None) -> list[tuple[str, tuple[float, float, float, float]]]:
    """The things of a wish that have places of their own, as prompts and boxes: the whole scene with the concept of one of them in it, the
    others in plain words, which is what regions paint best.
    """
    plain = (vocabulary or Vocabulary({})).plain
    boxes = BOXES | THIRDS if {"left", "middle", "right"} <= {part.place for part in wish.parts} else BOXES
    found = []
    for part in wish.parts:
        others = [other if other is part else replace(other, words=plain(other.words)) for other in wish.parts]
        found.append((written(replace(wish, parts=tuple(others))), boxes[part.place]))
    return found


def _reply(wish: Wish) -> str:
    """What a person is told: the picture, in the words that were understood."""
    said = wish.prompt.strip()
    return f"Here is {said}." if said else "There is nothing to paint yet: say what the picture is to show."
