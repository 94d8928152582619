"""What each consolidation mode does to ten Doodle concepts learned one after the other: identity, obedience, forgetting, overlap.

Hours on two cores. Banks and scores stay in a folder, and a run that was stopped goes on from there.
"""

import json
import logging
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ...bank.bank import Bank
from ...bank.files import write_atomically
from ...doodle.concepts import CONCEPTS
from ...method.consolidation import MODES
from ...method.overlap import overlaps
from ...run.task import learn_into
from ..doodle import RECIPE, Easel, lesson, templates
from .timing import machine

log = logging.getLogger("cidm.bench")


def run(folder: Path, seeds: int = 3, modes: Sequence[str] = MODES) -> dict[str, Any]:
    """Means and spreads (standard deviations) over the seeds, per mode.

    ``ia``, ``ta``: alignment of each concept after the last task, with exact routing; ``forgetting``: best minus last;
    ``*_released``: the same with the released code's soft routing, where concepts do mix; ``overlap``: mean cosine
    of the angles between the up-spaces of two concepts, over pairs and layers.
    """
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.INFO)
    easel = Easel()
    results = {(mode, seed): sequence(easel, folder / f"{mode}-{seed}", mode, seed) for seed in range(seeds) for mode in modes}
    figures: dict[str, Any] = {}
    for mode in modes:
        for key in results[mode, 0]:
            values = [results[mode, seed][key] for seed in range(seeds)]
            figures[f"{mode}_{key}"] = round(statistics.mean(values), 4)
            figures[f"{mode}_{key}_spread"] = round(statistics.pstdev(values), 4)
    return figures | {"seeds": seeds, "concepts": len(CONCEPTS), "steps": RECIPE.steps} | machine()


def sequence(easel: Easel, folder: Path, mode: str, seed: int) -> dict[str, float]:
    """Ten concepts in order; each is scored right after its task, and all again after the last."""
    file = folder / "scores.json"
    scores: dict[str, dict[str, float]] = json.loads(file.read_text()) if file.exists() else {}

    def scored(name: str, moment: str) -> dict[str, float]:
        key = f"{name} {moment}"
        if key not in scores:
            scores[key] = score(easel, bank, name)
            write_atomically(json.dumps(scores, indent=1).encode(), file)
            log.info("%s, seed %d: %s %s", mode, seed, key, scores[key])
        return scores[key]

    bank, first = Bank(folder / "bank"), {}
    for name, concept in CONCEPTS.items():
        recipe = replace(RECIPE, mode=mode, seed=seed, templates=templates(concept))
        bank, _, _ = learn_into(bank, easel.backbone, lesson(concept), name=name, class_word=concept.class_word, recipe=recipe)
        first[name] = scored(name, "first")
    last = {name: scored(name, "last") for name in CONCEPTS}
    means = {key: statistics.mean(s[key] for s in last.values()) for key in next(iter(last.values()))}
    for key, lost in (("ia", "forgetting"), ("ia_released", "forgetting_released")):
        means[lost] = statistics.mean(max(first[name][key], last[name][key]) - last[name][key] for name in CONCEPTS)
    found = overlaps([concept.factors for concept in bank.concepts()])
    i, j = torch.triu_indices(len(found), len(found), 1)
    return means | {"overlap": float(found[i, j].mean())}


def score(easel: Easel, bank: Bank, name: str) -> dict[str, float]:
    """Alignment of one concept's pictures, routed exactly and by the released code's soft rule."""
    exact, soft = (easel.paint(bank, name, f"<{name}>", mode=mode) for mode in ("exact", "released"))
    return {
        "ia": easel.ia(name, exact),
        "ta": easel.ta(name, exact),
        "ia_released": easel.ia(name, soft),
        "ta_released": easel.ta(name, soft),
    }
