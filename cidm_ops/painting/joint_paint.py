"""A composition on a transformer of any engine: its text, which brings those of regions, and the model as it predicts in a run."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..backbone import TransformerBackbone
from ..concept_text import ConceptText
from ..joint_sites import AttentionSlot, JointSites
from ..row_plan import RowPlan
from ..schedule import Schedule
from ..tokens import Text, read_plain
from .compose import ConceptMix
from .composition import Composition
from .joint_run import JointRun
from .region_text import region_text
from .rows import Job
from .run import Unet
from .sampling import Predict
from .scene import Scene

OTHER_KERNELS = (
    "PyTorch's own attention has to answer in every block: take off what computes it otherwise, as the environment variable "
    "DIFFUSERS_ATTN_BACKEND and set_attention_backend do, and what skips blocks, as caches; or leave the regions out"
)


def read_regions(backbone: TransformerBackbone, composition: Composition) -> Text:
    """The global text of a composition, with the texts of its regions if it has any.

    Raises ``ValueError`` for a region that is to be found by words that do not stand in its text.
    """
    whole = read_plain(backbone, composition.whole.text)
    if not composition.regions:
        return whole
    texts = tuple(read_region(backbone, region.mix, bool(region.mask.sought), composition.how.padding) for region in composition.regions)
    return replace(whole, plans=(RowPlan(regions=texts),))


def read_region(backbone: TransformerBackbone, said: ConceptMix, sought: bool, padding: bool = True) -> ConceptText:
    """The text ``[1, N, C]`` of a region: see ``region_text``."""
    states = read_plain(backbone, said.text).states[:, 0]
    return region_text(said, states, lambda text: backbone.tokenize(text)[0].tolist(), sought, padding)


def begin_joint(backbone: TransformerBackbone, scene: Scene) -> JointRun:
    """A run of a sampler on a transformer with a scene beside its layers."""
    return JointRun(scene, list(backbone.cross_attention), unasked, lambda part: level_at(backbone.schedule, part), backbone.family)


def predict_joint(backbone: TransformerBackbone, run: JointRun) -> Predict:
    """The model as it predicts in a run."""
    slot, levels = AttentionSlot(), backbone.schedule.trained_levels()
    sites = JointSites.of(
        backbone.family,
        backbone.blocks,
        backbone.modules,
        backbone.layers,
        slot=slot,
        multiple=backbone.family.diffusers.multiple,
        lay_out=lambda lengths: backbone.read_several(lengths, slot),
        skipped=OTHER_KERNELS,
    )

    def predict(x: Tensor, t: Tensor, text: Tensor, pooled: Tensor | None, chunks: int) -> Tensor:
        level = float(levels[int(t[0])])

        def call(jobs: Sequence[Job], rows: Sequence[int], x: Tensor, text: Tensor) -> Tensor:
            return backbone.predict(x, t[:1].expand(len(x)), text, None if pooled is None else pooled[list(rows)])

        def background(x: Tensor) -> Tensor:  # of a clean latent of zero
            noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).to(x)
            return backbone.schedule.noised(torch.zeros_like(x), noise, level)

        return run.predict(sites, x, text, level, [None] * chunks, Unet(call, background, unasked, unasked))

    return predict


def level_at(schedule: Schedule, part: float) -> float:
    """The noise level of a flow at a part of the sampling, from 0 (noise) to 1, as the host has it."""
    levels = schedule.trained_levels()
    t = torch.tensor((1 - part) * len(levels) - 1).clamp(min=0.0)
    low, high, w = t.floor().long(), t.ceil().long(), t.frac()
    return 0.0 if part >= 1 else float((1 - w) * levels[low] + w * levels[high])


def unasked(*args: Tensor | int) -> Tensor:
    """Stands for what no transformer is asked: attention to a text alone, templates and references."""
    raise AssertionError("a transformer has no text attention of its own, and neither template nor reference beside a picture")
