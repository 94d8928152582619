"""Wishes granted from one picture of a thing: from its words alone, by reference attention, with the best of four picked, and with a
concept that was trained, which is the ceiling. Resumable.
"""

import logging
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ...bank.bank import Bank
from ...bank.formats import write_picture
from ...doodle.concepts import CONCEPTS, examples
from ...doodle.files import TEN
from ...doodle.world import IN_PLACE
from ...engines.diffusers import load
from ...engines.towers import load_tower
from ...evaluation.doodle import GUIDANCE, pictured
from ...evaluation.wishing import Order, candidates, picked
from ...grammar import article
from ...measure.interval import mean_interval, several
from ...measure.report import contact_sheet
from ...measure.scores import alignments, embed
from ...painting.wish import Wish
from ...painting.wish_reading import read_wish
from .scores import kept_scores
from .timing import machine

log = logging.getLogger("cidm.bench")

STEPS, COUNT = 12, 4
FIELDS = ("subject", "edits", "others", "scene", "style", "negative")  # that the rules read
SHOWN = 8  # wishes on the sheet
THINGS = [name for name, concept in CONCEPTS.items() if concept.look]


@dataclass(frozen=True)
class Form:
    """A form of wish, with ``{}`` for the thing, and what it means: the fields of a ``Wish`` beside its subject."""

    text: str
    means: Mapping[str, Any] = field(default_factory=dict)


def _form(text: str, scene: str = "", style: str = "", **more: Any) -> Form:
    return Form(text, {"scene": scene, "style": style} | more)


FORMS = (
    _form("I'd love to see my {} at the beach, painted", "at the beach", "painting"),
    _form("my {} in the snow", "in the snow"),
    _form("Could you please show me my {} at night?", "at night"),
    _form("a pencil drawing of my {} in the forest", "in the forest", "pencil drawing"),
    _form("my {} on the street next to a red cup", "on the street next to a red cup"),
    _form("please make an ink painting of my {} in a meadow, without people", "in a meadow", "ink painting", negative="people"),
    _form("my {} on a sunny beach", "on a sunny beach"),
    _form("how about my {} in the woods of a forest, drawn", "in the woods of a forest", "drawing"),
    _form("my {} and a yellow car in the snow", "in the snow", others=("a yellow car",)),
    _form("I would like a picture of my {} on the street at night, no trees", "on the street at night", negative="trees"),
    _form("my {}, as an oil painting", style="oil painting"),
    _form("show me my {} on the beach, please", "on the beach"),
    _form("my {} in a green meadow, in the style of an ink painting", "in a green meadow", "an ink painting"),
    _form("paint my {} with a blue house in the snow", "in the snow", edits=("with a blue house",)),
)


def run(folder: Path = Path("runs/wish"), wishes: int = 100) -> dict[str, Any]:
    """Grant each wish each way, and score it, by way: ``ia`` is the likeness to renderings that nobody showed, ``ta`` the alignment with
    the wish in plain words, ``place`` the share whose place is read right, where the wish names one. ``text`` has the words alone,
    ``reference`` one rendering, ``reference_masked`` that with its mask, ``picked`` the best of four of the latter, ``trained`` the concept
    of the bank. ``_interval``: half the 95 % interval of the mean over wishes. ``fields`` is the share of wishes of which the rules
    read every field right, ``reading_ms`` the longest time that one took.
    """
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.INFO)
    folder.mkdir(parents=True, exist_ok=True)
    asked = [(THINGS[i % len(THINGS)], FORMS[(i // len(THINGS) + i) % len(FORMS)]) for i in range(wishes)]
    figures, studio = reading(asked), Studio(folder)
    own = [*kept_scores(folder / "scores.json", map(str, range(wishes)), lambda key: studio.score(int(key), *asked[int(key)])).values()]
    for name in dict.fromkeys(name for score in own for name in score):
        values = torch.tensor([score[name] for score in own if name in score])
        figures |= {name: round(float(values.mean()), 4)}
        if len(values) > 1:
            found = mean_interval(values, several(len(values), "wish"))
            figures |= {f"{name}_interval": round((found.high - found.low) / 2, 4)}
    return figures | {"wishes": wishes, "steps": STEPS, "guidance": GUIDANCE} | machine()


def reading(asked: list[tuple[str, Form]]) -> dict[str, float]:
    """How many wishes are read right, and how long one takes at most."""
    vocabulary, right, slowest = Bank(TEN).vocabulary, [], 0.0
    for thing, form in asked:
        began = time.perf_counter()
        wish, _ = read_wish(form.text.format(CONCEPTS[thing].class_word), vocabulary)
        slowest = max(slowest, time.perf_counter() - began)
        word = CONCEPTS[thing].class_word
        owners = [name for name, header in vocabulary.headers.items() if header["class_word"] == word]
        meant = Wish(subject=f"a <{owners[0]}>", **form.means)
        right.append(
            all(getattr(wish, name) == getattr(meant, name) for name in ("subject", "edits", "others", "scene", "style", "negative"))
        )
    return {"fields": round(statistics.mean(map(float, right)), 4), "reading_ms": round(1000 * slowest, 2)}


class Studio:
    """Doodle, its ten concepts, and the ways to grant a wish."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.backbone, self.bank, self.tower = folder, load("doodle"), Bank(TEN), load_tower("doodle")
        self.nothing = Bank(folder / ".no-bank")
        self.references = {name: embed(self.tower, pictured(examples(CONCEPTS[name], 16, seed=1))) for name in THINGS}
        self.one = {name: examples(CONCEPTS[name], 1, seed=7)[0] for name in THINGS}

    def score(self, number: int, thing: str, form: Form) -> dict[str, float]:
        """Grant a wish every way, and score what came out."""
        word = CONCEPTS[thing].class_word
        wish = read_wish(form.text.format(word))[0]
        image = pictured([self.one[thing]])[0]
        mask = torch.from_numpy(self.one[thing].mask).float()[None] / 255
        seed, one = 1000 + COUNT * number, Order(wish, count=1, steps=STEPS, guidance=GUIDANCE)
        trained = replace(one, wish=replace(wish, prompt=wish.prompt.replace(f" {word}", f" <{thing}>", 1)))
        many = replace(one, images=[image], masks=[mask], count=COUNT)
        of_four = self.painted(many, [image], seed)
        best = picked(self.tower, of_four, [image], wish, self.nothing, many)
        assert best is not None
        shown = {
            "text": self.painted(one, [], seed)[0],
            "reference": self.painted(replace(one, images=[image]), [image], seed)[0],
            "reference_masked": of_four[0],
            "picked": of_four[best.best],
            "trained": candidates(self.backbone, self.bank, trained, [], 128, seed)[0][0],
        }
        if number < SHOWN:
            sheet = contact_sheet([("one picture", image[None]), *((name, picture[None]) for name, picture in shown.items())], label=150)
            write_picture(sheet, self.folder / f"sheet-{number}.png")
        found: dict[str, float] = {}
        for name, picture in shown.items():
            found |= {f"{name}_{key}": round(value, 4) for key, value in self.judge(thing, wish, picture).items()}
        return found

    def painted(self, order: Order, images: list[Tensor], seed: int) -> Tensor:
        return candidates(self.backbone, self.nothing, order, images, 128, seed)[0]

    def judge(self, thing: str, wish: Wish, picture: Tensor) -> dict[str, float]:
        """Score one picture of a wish."""
        seen, read = embed(self.tower, picture[None]), F.normalize(self.tower.shown(picture[None]), dim=-1)
        found = {
            "ia": float(alignments(seen, self.references[thing])),
            "ta": 2.5 * max(0.0, float(read @ self.caption(wish.prompt))),
        }
        place = place_in(wish.scene)
        if place:
            words = article(CONCEPTS[thing].class_word)
            cosines = {name: float(read @ self.caption(f"{words} {said[0]}")) for name, said in IN_PLACE.items()}
            found["place"] = float(max(cosines, key=lambda name: cosines[name]) == place)
        return found

    def caption(self, text: str) -> Tensor:
        found = self.tower.captions([text])
        assert found is not None
        return F.normalize(found[0], dim=-1)


def place_in(scene: str) -> str:
    """The place of the Doodle world that a scene names; none if it names none, or two."""
    named = [place for place, words in IN_PLACE.items() if any(word in scene for word in words)]
    return named[0] if len(named) == 1 else ""
