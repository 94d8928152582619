"""Scenes whose captions name marks: "a white dog with black spots and a red hat".

The world's own captions never say what an individual looks like, so the base that ships does not know what a scarf or a star is. Here most
things are individuals, and some wordings of each scene describe them: all of it, a part of it, or nothing.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ...engines.parts import hidden_parts
from ...models.sd import DOODLE
from ..draw import RGB
from ..figures import COLOURS, FIGURES, UNNAMED, Look, individual, plain
from ..style import PLACES, STYLES, common_style
from ..world import SIZE, Scene, Thing, arrange, caption, random_scene, render

WORDINGS = 4
CELL = DOODLE.factor
SNOW, COAL = UNNAMED[3], UNNAMED[4]
NAMED: dict[RGB, str] = {rgb: name for name, rgb in COLOURS.items()} | {SNOW: "white", COAL: "black"}
# The other colours stay without a name: captions say "a scarf", and whose it is only pictures can tell.
SECOND = {
    "dog": "ears", "cat": "ears", "duck": "a {} bill", "backpack": "a {} pocket", "teddy bear": "a {} belly",
    "house": "a {} roof", "tree": "a {} trunk", "boat": "{} sails", "car": "{} wheels", "cup": "a {} drink",
}  # fmt: skip


def marks_of(look: Look) -> list[str]:
    """What words can say of a look beside its class and its body's colour: "black spots", "a red hat", "white ears"; nothing hidden."""
    found = []
    hidden = hidden_parts(look.kind, look.marking, look.accessory)
    if look.marking != "none" and "marking" not in hidden:
        pattern = {"spots": "{} spots", "stripes": "{} stripes", "patch": "a {} patch"}[look.marking]
        found.append(_in_colour(pattern, look.marking_colour))
    if look.accessory != "none":
        found.append(_in_colour(f"a {{}} {look.accessory}", look.accessory_colour))
    if look.accent in NAMED and "accent" not in hidden:
        second = SECOND[look.kind]
        found.append(_in_colour(second if "{}" in second else f"{{}} {second}", look.accent))
    return found


def _in_colour(pattern: str, colour: RGB) -> str:
    """The words with the colour's name, or without where it has none; "a orange" is "an orange"."""
    text = " ".join(pattern.format(NAMED.get(colour, "")).split())
    return text.replace("a orange", "an orange")


def describe(look: Look, rng: np.random.Generator) -> str:
    """Words for an individual, without article: all that can be said of it, a part of that, or its class alone."""
    said = rng.choice(["all", "some", "none"], p=[0.45, 0.4, 0.15])
    if said == "none":
        return look.kind
    marks = marks_of(look)
    count = len(marks) if said == "all" else min(len(marks), int(rng.integers(0, 3)))
    chosen = [marks[i] for i in rng.permutation(len(marks))[:count]]
    colour = NAMED.get(look.body, "") if said == "all" or rng.random() < 0.7 else ""
    return f"{colour} {look.kind}".strip() + (f" with {_listed(chosen)}" if chosen else "")


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def described_scene(seed: int) -> Scene:
    """A scene that the base learns: in a third of them the world's own, else individuals among plain things, most of them flat."""
    rng = np.random.default_rng((seed, 163))
    if rng.random() < 0.33:
        return random_scene(seed)
    n = int(rng.choice([1, 2, 3], p=[0.55, 0.37, 0.08]))
    looks, words = [], []
    for kind in rng.choice(list(FIGURES), n, replace=False):
        if rng.random() < 0.8:
            look = _often_named(individual(str(kind), rng), rng)
            words.append(look.kind)
        else:
            colour = str(rng.choice([*NAMED.values()]))
            rgb = next(rgb for rgb, name in NAMED.items() if name == colour)
            look = plain(str(kind), rgb).with_proportions(*rng.uniform(-0.8, 0.8, 3))
            words.append(f"{colour} {kind}")
        looks.append(look)
    place = str(rng.choice(PLACES)) if rng.random() < 0.82 else None
    style = str(rng.choice(STYLES, p=[0.88, 0.04, 0.04, 0.04]))
    things = arrange(looks, words, rng)
    if style == "ink":
        things = tuple(replace(thing, words=thing.look.kind) for thing in things)
    return Scene(things, place, common_style(style), int(rng.integers(2**31)))


def _often_named(look: Look, rng: np.random.Generator) -> Look:
    """In half of all individuals every colour has a name, so that captions can say it."""
    if rng.random() < 0.5:
        return look
    body, accent, mark, wear = ([*NAMED][i] for i in rng.choice(len(NAMED), 4, replace=False))
    return replace(look, body=body, accent=accent, marking_colour=mark, accessory_colour=wear)


def wordings(scene: Scene, seed: int) -> list[str]:
    """Four captions of a scene; each describes its individuals anew. Ink has no colours, and a wash changes them: there nothing is said."""
    out = []
    for number in range(WORDINGS):
        rng = np.random.default_rng((seed, number, 167))
        things = tuple(_with_words(thing, scene.style.name, rng) for thing in scene.things)
        out.append(caption(replace(scene, things=things), rng))
    return out


def _with_words(thing: Thing, style: str, rng: np.random.Generator) -> Thing:
    """The thing with words of its own, where it is an individual in a flat picture that is called by its class alone."""
    undescribed = thing.words == thing.look.kind or thing.words.startswith(f"{thing.look.kind} with")
    return replace(thing, words=describe(thing.look, rng)) if style == "flat" and undescribed else thing


def draw_described(seed: int) -> np.ndarray:
    """The rendering ``[128, 128, 3]`` uint8 of ``described_scene``."""
    return render(described_scene(seed))[0]


def draw_things(seed: int) -> np.ndarray:
    """Which cells of the same rendering things stand in, ``[16, 16]`` uint8, 0 or 1; what they wear stands out a little."""
    cells = np.zeros((SIZE // CELL, SIZE // CELL), np.uint8)
    for thing in described_scene(seed).things:
        reach = 1.1 * thing.half
        (top, bottom), (left, right) = (
            (max(0, math.floor((middle - reach) / CELL)), math.ceil((middle + reach) / CELL)) for middle in (thing.y, thing.x)
        )
        cells[top:bottom, left:right] = 1
    return cells


def described_wordings(seed: int) -> list[str]:
    """The captions of the same scene."""
    return wordings(described_scene(seed), seed)


def one_described(seed: int) -> tuple[Scene, str]:
    """A flat scene of one individual, every part of which has a name, and a caption that says all of it: what a base is asked for."""
    rng = np.random.default_rng((seed, 173))
    body, accent, mark, wear = ([*NAMED][i] for i in rng.choice(len(NAMED), 4, replace=False))
    look = replace(individual(str(rng.choice(list(FIGURES))), rng), body=body, accent=accent, marking_colour=mark, accessory_colour=wear)
    look = look.with_proportions(0, 0, 0)
    marks = marks_of(look)
    words = f"{NAMED[body]} {look.kind}" + (f" with {_listed(marks)}" if marks else "")
    scene = Scene(arrange([look], [words], rng), str(rng.choice(PLACES)), seed=int(rng.integers(2**31)))
    return scene, caption(scene, rng)
