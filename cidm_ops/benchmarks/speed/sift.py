"""Pictures that an edit model would make of a thing, sifted: whether those of somebody else are told, and what is learned from the rest.

In the place of an edit model stand renderings of an individual in other poses and places, and of one that differs from it in one attribute.
Resumable.
"""

import logging
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...bank.bank import Bank
from ...doodle.concepts import CONCEPTS, DoodleConcept, examples, instance
from ...doodle.figures import ACCESSORIES, COLOURS, FIGURES, MARKINGS, UNNAMED, Look
from ...engines.doodle import DoodleTower
from ...engines.parts import UNTOLD, labels_of
from ...evaluation.doodle import PICTURES, RECIPE, DoodleBench, pictured
from ...measure.presence import area_under_curve
from ...measure.scores import alignments, embed
from ...measure.sifting import Sifting, grow_sifted, sift
from ...training.dataset import Dataset, grow
from ...training.method import Task
from ...training.task import learn_into
from .compositions import THINGS
from .scores import kept_scores, mean
from .timing import machine

log = logging.getLogger("cidm.bench")

INDIVIDUALS, VIEWS = 40, 8  # how many are sifted for, and pictures of each of them and of everybody who is taken for it
ATTRIBUTES = ("body", "accent", "marking", "marking_colour", "accessory", "accessory_colour")
MANY = 1000  # pictures for each original: no limit
POOL = 10  # pictures of the individual, and of somebody else, that the trained rows choose from
ADDED = 5  # of them, beside a single original
TRAINED = ("one", "sifted", "unsifted", "six")
ROWS = ("told", *TRAINED)


def run(folder: Path = Path("runs/sift"), seeds: int = 3, rows: Sequence[str] = ROWS) -> dict[str, Any]:
    """Sift and learn. ``told``: ``auc_<attribute>`` is the area under the curve of the likeness to six originals, of an individual's
    pictures against those of one who differs from it in that attribute, the mean over individuals; ``auc`` is their mean, ``auc_others`` is
    against other individuals of the class, and ``auc_of_one`` with one original. Of what the default bound keeps, ``right_kept`` is the
    share of the individual's pictures, ``perturbed_kept`` that of those with one attribute changed, and ``others_kept`` that of other
    individuals'.

    ``one``, ``sifted``, ``unsifted`` and ``six`` are likenesses (IA) of what is learned from one original, from it and the five most alike
    of ten pictures of the thing and ten of somebody else, from it and five of those as they come, and from six originals; over the things
    of the Doodle world and ``seeds``. ``sifted_over_<row>`` is the mean difference for the same thing and seed, and ``_interval`` half its
    95 % interval. Raises ``ValueError`` for a row that there is none of.
    """
    if unknown := [row for row in rows if row not in ROWS]:
        raise ValueError(f"row {unknown[0]!r}: expected some of {', '.join(ROWS)}")
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.INFO)
    figures: dict[str, Any] = told(DoodleTower()) if "told" in rows else {}
    if trained := [row for row in TRAINED if row in rows]:
        figures |= learned(folder, seeds, trained)
    return figures | {"individuals": INDIVIDUALS, "seeds": seeds} | machine()


def told(tower: DoodleTower) -> dict[str, float]:
    """How well the pictures of individuals are told from those of others."""
    found: dict[str, list[float]] = {}
    for number in range(INDIVIDUALS):
        kind = list(FIGURES)[number % len(FIGURES)]
        one, other = instance(kind, 1000 + number), instance(kind, 2000 + number)
        originals, own = (views(tower, one, seed, count) for seed, count in ((0, PICTURES), (2, VIEWS)))
        wrong = {name: views(tower, changed(one, name, number), 3, VIEWS) for name in ATTRIBUTES if changed(one, name, number)}
        right, aside = alignments(own, originals), {name: alignments(seen, originals) for name, seen in wrong.items()}
        for name, values in aside.items():
            found.setdefault(f"auc_{name}", []).append(area_under_curve(right, values))
        strangers = views(tower, other, 3, VIEWS)
        found.setdefault("auc_others", []).append(area_under_curve(right, alignments(strangers, originals)))
        every = torch.cat([*wrong.values()])
        found.setdefault("auc_of_one", []).append(area_under_curve(own @ originals[0], every @ originals[0]))
        for name, seen in (("right", own), ("perturbed", every), ("others", strangers)):
            found.setdefault(f"{name}_kept", []).append(len(sift(seen, originals, Sifting(per_original=MANY)).kept) / len(seen))
    figures = {name: round(statistics.mean(values), 4) for name, values in found.items()}
    return {"auc": round(statistics.mean(figures[f"auc_{name}"] for name in ATTRIBUTES), 4)} | figures


def views(tower: DoodleTower, concept: DoodleConcept | None, seed: int, count: int) -> Tensor:
    """Unit embeddings ``[count, E]`` of renderings of an individual."""
    assert concept is not None
    return embed(tower, pictured(examples(concept, count, seed)))


def changed(concept: DoodleConcept, attribute: str, seed: int) -> DoodleConcept | None:
    """Somebody who differs from an individual in one attribute that can be seen; ``None`` where it has nothing that shows it."""
    look = concept.look
    assert look is not None
    rng = np.random.default_rng((seed, 211))
    options: Sequence[Any] = {"marking": MARKINGS, "accessory": ACCESSORIES}.get(attribute, (*COLOURS.values(), *UNNAMED))
    free: list[Any] = [
        one for one in options if one != getattr(look, attribute) and (attribute in ("marking", "accessory") or one not in worn(look))
    ]
    other = replace(look, **{attribute: free[rng.integers(len(free))]})
    own, seen = labels_of(look), labels_of(other)
    if attribute != "body" and not bool(((own != seen) & (own != UNTOLD) & (seen != UNTOLD)).any()):
        return None
    return replace(concept, name=f"{concept.name}-{attribute}", look=other)


def worn(look: Look) -> set[tuple[int, ...]]:
    """The colours of an individual."""
    return {look.body, look.accent, look.marking_colour, look.accessory_colour}


def learned(folder: Path, seeds: int, rows: Sequence[str]) -> dict[str, Any]:
    """The likeness of what is learned by each row, and the differences; what the folder has is not learned again."""
    folder.mkdir(parents=True, exist_ok=True)
    bench = DoodleBench()
    tasks = {f"{row} {name} {seed}": (name, row, seed) for seed in range(seeds) for name in THINGS for row in rows}

    def score(key: str) -> float:
        name, row, seed = tasks[key]
        return learn(bench, folder / "banks" / f"{row}-{seed}", name, row, seed)

    scores = kept_scores(folder / "scores.json", tasks, score)
    own = {row: [scores[f"{row} {name} {seed}"] for seed in range(seeds) for name in THINGS] for row in rows}
    figures: dict[str, Any] = {row: round(statistics.mean(values), 4) for row, values in own.items()}
    for row in rows:
        if row != "sifted" and "sifted" in own:
            figures |= mean(f"sifted_over_{row}", [a - b for a, b in zip(own["sifted"], own[row], strict=True)])
    return figures


def learn(bench: DoodleBench, place: Path, name: str, row: str, seed: int) -> float:
    """Learn a thing by a row, each alone in its bank, and score its pictures."""
    data = material(bench, name, row, seed)
    task = Task(name=name, class_word=CONCEPTS[name].class_word, config=RECIPE.update(seed=seed, mode="off"))
    bank, *_ = learn_into(Bank(place), bench.backbone, data, task)
    return round(bench.ia(name, bench.paint(bank, name, f"<{name}>")), 4)


def material(bench: DoodleBench, name: str, row: str, seed: int) -> Dataset:
    """What a row learns a thing from."""
    concept = CONCEPTS[name]
    originals = dataset(concept, PICTURES if row == "six" else 1, seed=0)
    if row in ("one", "six"):
        return originals
    rng = np.random.default_rng((seed, 223))
    others = [one for attribute in rng.permutation(ATTRIBUTES) if (one := changed(concept, str(attribute), seed))]
    made = [dataset(concept, POOL, 2), *(dataset(others[i % len(others)], 1, 10 + i) for i in range(POOL))]
    pool = Dataset([p for part in made for p in part.pictures], [c for part in made for c in part.captions])
    if row == "unsifted":
        return grow(originals, pool, [int(i) for i in rng.permutation(len(pool))[:ADDED]])
    return grow_sifted(bench.tower, originals, pool, Sifting(per_original=ADDED))[0]


def dataset(concept: DoodleConcept, count: int, seed: int) -> Dataset:
    """Renderings with their captions."""
    shown = examples(concept, count, seed)
    return Dataset(list(pictured(shown) / 2 + 0.5), [example.caption for example in shown])
