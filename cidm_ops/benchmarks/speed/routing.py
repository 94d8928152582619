"""Where the weights of a prompt go after ten Doodle concepts, in every mode, and what a full bank costs a concept's likeness."""

import shutil
import statistics
import tempfile
from pathlib import Path
from typing import Any

from ...bank.bank import Bank
from ...doodle.files import TEN
from ...evaluation.doodle import PLACES, DoodleBench, scene
from ...painting.compose import AggregationConfig, mix
from ...painting.config import MODES
from .timing import machine


def run(folder: Path | None = None) -> dict[str, Any]:
    """Route the benchmark's prompts, each of which names one concept: ``<mode>_share`` is the right concept's part of all weight,
    ``_weight`` its weight, ``_foreign`` the largest weight of another, all means over prompts and layers, and ``_share_min`` the
    worst prompt's; ``<mode>_share_<name>`` by concept. ``ia_<name>`` is from the whole bank with exact routing, and ``ia_difference``
    the largest distance to a bank with that concept alone. ``folder``: a bank of the ten; without, the one that ships.
    """
    bench, figures = DoodleBench(), dict[str, Any]()
    with tempfile.TemporaryDirectory() as scratch:
        bank = Bank(shutil.copytree(folder or TEN, Path(scratch) / "ten", ignore=shutil.ignore_patterns(".*")))
        for mode in MODES:
            shares, found = {}, []
            for name in bank.names:
                rows = [weights_of(bench, bank, scene(name, f"<{name}>", place), name, mode) for place in PLACES]
                shares[name] = statistics.mean(share for share, _, _ in rows)
                found += rows
            for i, key in enumerate(("share", "weight", "foreign")):
                figures[f"{mode}_{key}"] = round(statistics.mean(row[i] for row in found), 4)
            figures[f"{mode}_share_min"] = round(min(share for share, _, _ in found), 4)
            figures |= {f"{mode}_share_{name}": round(share, 4) for name, share in shares.items()}
        figures |= likeness(bench, bank, Path(scratch))
    return figures | {"concepts": len(bank.names), "prompts": len(bank.names) * len(PLACES)} | machine()


def weights_of(bench: DoodleBench, bank: Bank, prompt: str, name: str, mode: str) -> tuple[float, float, float]:
    """The right concept's part of all weight, its weight, and the largest other, means over the layers."""
    mixture = mix(bench.backbone, bank, prompt, AggregationConfig(mode=mode))
    right = [c.name for c in mixture.concepts].index(name)
    own = mixture.weights[:, right]
    others = mixture.weights.clone()
    others[:, right] = 0
    return float((own / mixture.weights.sum(1)).mean()), float(own.mean()), float(others.amax(1).mean())


def likeness(bench: DoodleBench, bank: Bank, scratch: Path) -> dict[str, float]:
    """Image alignment of every concept, from the whole bank and from a bank of its own."""
    figures, differences = {}, []
    for name in bank.names:
        own = scratch / name
        own.mkdir()
        shutil.copy(bank.file(name), own)
        among, alone = (bench.ia(name, bench.paint(b, name, f"<{name}>")) for b in (bank, Bank(own)))
        figures[f"ia_{name}"] = round(among, 4)
        differences.append(abs(among - alone))
    return figures | {"ia_difference": round(max(differences), 6)}
