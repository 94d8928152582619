"""Painting steps with regions on a transformer inside a ComfyUI: ``python host_joint.py PACK OUT FAMILY ROUNDS PIXELS``.

The model has the widths of a real one and few blocks, of random weights: what a step costs beside another does not depend on the depth. The
other way is the host's own: a LoRA hook, a mask and a text for each region, and a default for the rest.
"""

import tempfile
from pathlib import Path
from typing import Any

from in_host import ARGUMENTS, hooked, painter, steps, tell

# isort: split

import folder_paths
import torch
from pack.cidm_ops.bank.concept import Concept
from pack.cidm_ops.bank.export import export_concept
from pack.cidm_ops.benchmarks.speed.host_joint_model import MODELS, build, text
from pack.cidm_ops.benchmarks.speed.timing import figures, ratio
from pack.cidm_ops.lowrank import LowRank
from pack.cidm_ops.method.regions import RegionMask, box_mask
from pack.cidm_ops.models.registry import family_of
from pack.cidm_ops.painting.scene import ConceptStack, Scene
from pack.nodes.host import known_family, layout
from pack.nodes.scenes import with_more

FAMILY, (ROUNDS, PIXELS) = ARGUMENTS[0], map(int, ARGUMENTS[1:])
COUNTS, GLOBAL, SHORT, LONG, RANK = (2, 4), 256, 64, 512, 16


def concepts_of(model: Any, folder: Path) -> list[Concept]:
    """A LoRA for each region on all linear layers of the blocks, with a file that the host's hooks read."""
    parts = layout(model)
    architecture = known_family(model).architecture_of(parts)
    family, generator = family_of(architecture), torch.Generator().manual_seed(0)
    made = []
    for task in range(1, max(COUNTS) + 1):
        factors = {
            layer: LowRank(0.01 * torch.randn(at.rows, RANK, generator=generator), torch.randn(RANK, at.columns, generator=generator))
            for layer, at in parts.items()
            if family.block_of(layer)
        }
        made.append(Concept(name=f"c{task}", class_word="", architecture=architecture, factors=factors, task=task))
        export_concept(made[-1], folder)
    return made


def columns(count: int) -> list[torch.Tensor]:
    """Disjoint boxes side by side over the upper seven eighths of the picture; below is the global prompt."""
    return [box_mask(u / count, 0, (u + 1) / count, 7 / 8, PIXELS) for u in range(count)]


def own_way(model: Any, concepts: list[Concept], count: int, length: int) -> tuple[Any, list]:
    """The model in regions and its text."""
    family = known_family(model)
    layers = len(family.sites(dict.fromkeys(map(family.block_of, layout(model))), "joint"))
    weights = torch.cat([torch.zeros(1, count), torch.eye(count)])[None, :, None].expand(1, -1, layers, -1)
    scene = Scene((ConceptStack(concepts[:count], weights),), tuple(map(RegionMask, columns(count))))
    return with_more(model, scene), text(FAMILY, GLOBAL, *(text(FAMILY, length)[0][0] for _ in range(count)))


def hooks(concepts: list[Concept], count: int, length: int) -> tuple[list, list]:
    """The positive and the negative text of the host's own way."""
    parts = [
        (mask, f"{c.name}.safetensors", text(FAMILY, length), text(FAMILY, SHORT))
        for mask, c in zip(columns(count), concepts, strict=False)
    ]
    return hooked(parts, (text(FAMILY, GLOBAL), text(FAMILY, SHORT)))


def main(folder: Path) -> None:
    with torch.inference_mode():  # as the executor does
        model = build(FAMILY)
        concepts = concepts_of(model, folder)
        folder_paths.add_model_folder_path("loras", str(folder))

        def paints(patched: Any, positive: list) -> Any:
            return painter(patched, positive, text(FAMILY, SHORT), PIXELS, guidance=1.0)

        passes = {"plain": paints(model, text(FAMILY, GLOBAL))}
        for count in COUNTS:
            passes[f"regions_{count}"] = paints(*own_way(model, concepts, count, SHORT))
            passes[f"long_regions_{count}"] = paints(*own_way(model, concepts, count, LONG))
        passes[f"hooks_{max(COUNTS)}"] = paints(model, hooks(concepts, max(COUNTS), SHORT)[0])
        times = steps(passes, ROUNDS)
    ratios = {f"{kind}step_ratio_{n}": ratio(times, f"{kind}regions_{n}", "plain") for kind in ("", "long_") for n in COUNTS}
    ratios["speedup_over_hooks_4"] = ratio(times, "hooks_4", "regions_4")
    about = {"model": MODELS[FAMILY][0], "pixels": PIXELS, "rounds": ROUNDS, "text": GLOBAL, "texts_of_regions": SHORT, "long": LONG}
    tell(ratios | figures(times) | about | {"compared": "the host's sampler on the bare model, Paint in Regions, its hook nodes; rank 16"})


with tempfile.TemporaryDirectory() as scratch:
    main(Path(scratch))
