"""From a prompt and a bank to images, on any backbone."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from ..adapters import attach, attach_parts
from ..backbone import Backbone, TransformerBackbone
from ..bank.bank import Bank, check_base
from ..hub import Sites
from ..method.regions import RegionMask
from ..models.family import Family
from ..tokens import Text, read_plain
from .compose import AggregationConfig, ParsedPrompt, compose, encode, read
from .composition import Composition, compose_regions
from .config import PLACE, NoiseEstimation, ResidualConfig
from .joint_paint import begin_joint, predict_joint, read_regions
from .reference import refer_by, with_reference
from .rows import Job
from .run import SceneRun, Unet
from .sampling import Predict, sample, whole_steps
from .scene import Reference, Scene, Template
from .weaving import hold, noise_of, warnings_of, woven


@dataclass(frozen=True)
class SamplingConfig:
    """How images are sampled: steps, guidance and the negative prompt, how concepts are weighed, how residuals act, the passes of region
    noise estimation, none by default, or the template that all is woven into, if there is one; and the reference that the prompt refers to,
    beside which ``text_guidance`` guides towards the prompt without it (``two_terms``).

    Raises ``ValueError`` for two of these, and for guidance to nothing.
    """

    steps: int = 25
    guidance: float = 5.0
    negative: str = ""
    aggregation: AggregationConfig = field(default_factory=AggregationConfig)
    infusion: ResidualConfig = field(default_factory=ResidualConfig)
    estimation: NoiseEstimation | None = None
    template: Template | None = None
    reference: Reference | None = None
    text_guidance: float = 0.0

    def __post_init__(self) -> None:
        if self.estimation and self.template:
            raise ValueError("region noise estimation and a template: expected one of the two, for regions are woven in one pass")
        if self.text_guidance and not self.reference:
            raise ValueError("guidance by the text alone is for a prompt that refers to a reference: give one, or set it to 0")


@dataclass(frozen=True)
class Photo:
    """A photo that is painted over: its clean ``latents [B or 1, C, h, w]``, where, ``mask [h, w]`` of 0 and 1, and ``denoise``, for how
    much of the sampling. Raises ``ValueError`` for a part that is none.
    """

    latents: Tensor
    mask: Tensor
    denoise: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.denoise <= 1:
            raise ValueError(f"denoise {self.denoise:g}: expected a part of the sampling, above 0 and up to 1")

    def holder(self, backbone: Backbone, noise: Tensor) -> Callable[[Tensor, float], Tensor]:
        """Return what keeps the photo outside of its mask at every noise level, with the ``noise`` that it is painted from: at level 0 its
        own latents, to the last bit.
        """
        latents, noise, inside = (part.to(backbone.device) for part in (self.latents, noise, self.mask.bool()))
        return lambda x, level: torch.where(inside, x, backbone.schedule.noised(latents, noise, level))


@torch.no_grad()
def paint(
    backbone: Backbone | TransformerBackbone,
    bank: Bank,
    prompt: str,
    noise: Tensor,
    config: SamplingConfig | None = None,
    regions: Sequence[tuple[str, RegionMask]] = (),
    on_step: Callable[[int, int], None] = lambda step, steps: None,
) -> tuple[Tensor, list[str]]:
    """Images ``[B, 3, 8h, 8w]`` in [-1, 1] from unit Gaussian ``noise [B, 4, h, w]``, and warnings about what was asked for.

    ``regions`` are prompts and their places. The negative prompt is read like the others: handles are written out. Raises ``ValueError``
    for a word that no concept of the bank has and for a concept of another architecture.
    """
    config = config or SamplingConfig(guidance=backbone.family.objective.cfg)
    unwanted = read(bank, config.negative)
    other = [check_base(bank.headers[name], backbone.architecture, backbone.fingerprint) for name in unwanted.strengths]
    if regions or config.aggregation.scope == PLACE:
        composition = compose_regions(backbone, bank, prompt, regions, config.aggregation)
    else:
        whole = compose(backbone, bank, prompt, config.aggregation, layers=config.infusion.layers)
        composition = Composition(whole, (), config.aggregation)
    latents = paint_latents(backbone, composition, noise, config, on_step, unwanted)
    told = warnings_of(composition, config.template.how) if config.template else composition.warnings
    return backbone.decode_latent(latents), list(dict.fromkeys([*told, *filter(None, other)]))


def weave(
    backbone: Backbone,
    bank: Bank,
    prompt: str,
    template: Template,
    config: SamplingConfig | None = None,
    regions: Sequence[tuple[str, RegionMask]] = (),
    on_step: Callable[[int, int], None] = lambda step, steps: None,
) -> tuple[Tensor, list[str]]:
    """``paint`` into a template, from the noise that it was inverted to, in as many steps."""
    trajectory = template.picture.trajectory
    config = config or SamplingConfig(guidance=backbone.family.objective.cfg)
    config = replace(config, steps=len(trajectory.levels) - 1, template=template)
    return paint(backbone, bank, prompt, noise_of(trajectory, backbone.schedule), config, regions, on_step)


@torch.no_grad()
def paint_latents(
    backbone: Backbone | TransformerBackbone,
    composition: Composition,
    noise: Tensor,
    config: SamplingConfig,
    on_step: Callable[[int, int], None] = lambda step, steps: None,
    unwanted: ParsedPrompt | None = None,
    photo: Photo | None = None,
) -> Tensor:
    """The latents ``[B, 4, h, w]`` of a composed prompt. ``unwanted`` is the negative prompt as a bank reads it, else it is plain text. Of
    a ``photo`` only what its mask covers is painted over.
    """
    if isinstance(backbone, TransformerBackbone):
        return paint_joint(backbone, composition, noise, config, on_step, unwanted, photo)
    texts = [encode(backbone, region.mix) for region in composition.regions]
    wanted = encode(backbone, composition.whole, texts).expand(len(noise))
    negative = encode(backbone, unwanted or ParsedPrompt(config.negative)).expand(len(noise))
    scene, factors = Scene(), {}
    if config.template:
        scene = woven(composition, config.template)
    elif composition.mergeable:
        factors = {name: f.to(backbone.device) for name, f in composition.whole.factors(backbone).items()}
    else:
        scene = composition.scene(estimation=config.estimation if composition.regions else None)
    scene = replace(scene, infusion=config.infusion)
    beside: tuple[Text, float] | None = None
    if config.reference:
        scene, beside = with_reference(scene, config.reference), (wanted, config.text_guidance)
        wanted = refer_by(wanted)
    run, start = begin_run(backbone, scene), composition.how.start
    levels, timesteps = backbone.schedule.levels(whole_steps(config.steps, photo.denoise if photo else 1.0))
    before: Text | None = None
    if start:
        plain = [encode(backbone, region.mix.in_plain_words) for region in composition.regions]
        before = encode(backbone, composition.whole.in_plain_words, plain).expand(len(noise))
    with attach(backbone.layers, factors):
        return sample(
            backbone,
            wanted,
            negative,
            noise.to(backbone.device),
            steps=config.steps,
            guidance=config.guidance,
            predict=predict_in(backbone, run, dict(zip(map(int, timesteps), levels, strict=False))),
            weigh=run.guidance if scene.guidance != 1 else None,
            before=refer_by(before) if before and config.reference else before,
            beside=beside,
            start=level_at(backbone.schedule.ratios(), start),
            hold=photo.holder(backbone, noise) if photo else lambda x, level: hold(scene, x, level),
            over=photo.latents.to(backbone.device) if photo else None,
            denoise=photo.denoise if photo else 1.0,
            on_step=on_step,
        )


@torch.no_grad()
def paint_joint(
    backbone: TransformerBackbone,
    composition: Composition,
    noise: Tensor,
    config: SamplingConfig,
    on_step: Callable[[int, int], None],
    unwanted: ParsedPrompt | None = None,
    photo: Photo | None = None,
) -> Tensor:
    """The latents ``[B, C, h, w]`` of a composed prompt on a transformer, its concepts beside the layers, in one pass with its regions.

    Raises ``ValueError`` for what is not painted on transformers, or in ComfyUI alone.
    """
    title, mixes = backbone.family.title, [composition.whole, *(region.mix for region in composition.regions)]
    asked = {"weaving into a picture": config.template, "a reference beside a prompt": config.reference, "painting over a photo": photo}
    if what := next((what for what, given in asked.items() if given), ""):
        raise ValueError(f"{what} does not work on {title}: leave it out")
    if not composition.regions and not composition.how.negative:
        raise ValueError(f"sparing the negative text does not work on {title} without regions: leave it out")
    family = backbone.family
    acting = [concept for mix in mixes for concept in mix.concepts if mix.strengths.get(concept.name)]
    if changed := [concept.name for concept in acting if concept.text_factors or any(map(family.adapts, concept.factors))]:
        raise ValueError(f"<{changed[0]}> changes how {title} reads a text, which this command does not do: paint it in ComfyUI")
    wanted = read_regions(backbone, composition).expand(len(noise))
    negative = read_plain(backbone, unwanted.text if unwanted else config.negative).expand(len(noise))
    how: dict[str, Any] = {"steps": config.steps, "guidance": config.guidance, "on_step": on_step}
    noise = noise.to(backbone.device)
    if not composition.regions:
        factors = {name: f.to(backbone.device) for name, f in composition.whole.factors(backbone).items()}
        with attach_parts(backbone.modules, backbone.layers, factors):
            return sample(backbone, wanted, negative, noise, **how)
    scene = composition.scene(estimation=config.estimation)
    run = begin_joint(backbone, scene)
    weigh = run.guidance if scene.guidance != 1 else None
    return sample(backbone, wanted, negative, noise, predict=predict_joint(backbone, run), weigh=weigh, **how)


def predictor(backbone: Backbone, scene: Scene) -> Predict:
    """The model with a scene beside its layers. What is kept belongs to one run: take another predictor for another one."""
    return predict_in(backbone, begin_run(backbone, scene))


def begin_run(backbone: Backbone, scene: Scene) -> SceneRun:
    """A run of a sampler on the model with a scene beside its layers."""
    levels = backbone.schedule.ratios()
    return SceneRun(scene, list(backbone.cross_attention), attention, lambda part: level_at(levels, part))


def predict_in(backbone: Backbone, run: SceneRun, exact: Mapping[int, Tensor] | None = None) -> Predict:
    """The model as it predicts in a run, whose levels at its timesteps are ``exact``; those that the model was trained at if ``None``."""
    sites = Sites.of(backbone.unet, backbone.blocks, backbone.cross_attention, backbone.layers)
    scene, schedule = run.scene, backbone.schedule
    levels, sigmas, own_levels = schedule.ratios(), schedule.sigma, schedule.trained_levels()

    def predict(x: Tensor, t: Tensor, text: Tensor, pooled: Tensor | None, chunks: int) -> Tensor:
        step = int(t[0])
        level = levels[step]

        def call(jobs: Sequence[Job], rows: Sequence[int], x: Tensor, text: Tensor) -> Tensor:
            own = pooled if pooled is None or len(rows) == len(pooled) else pooled[rows]
            return backbone.predict(x, t[:1].expand(len(x)), text, own)

        def background(x: Tensor) -> Tensor:
            return torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).to(x) * sigmas[step].to(x)  # of a clean latent of zero

        def template(x: Tensor) -> Tensor:
            assert scene.template is not None
            return schedule.scale_input(scene.template.at(float(own_levels[step]), x), own_levels[step].to(x))

        def reference(x: Tensor, number: int) -> Tensor:
            assert scene.reference is not None
            clean, noise = scene.reference.picture(number, x)
            own = (exact or {}).get(step, own_levels[step]).to(x)
            return schedule.scale_input(schedule.noised(clean, noise, own), own)

        return run.predict(sites, x, text, float(level), [None] * chunks, Unet(call, background, template, reference))

    return predict


def level_at(levels: Tensor, part: float) -> float:
    """The noise level at a part of the sampling, from 0 (noise) to 1, interpolated in its logarithm as the host does."""
    if part <= 0 or part >= 1:
        return float("inf") if part <= 0 else 0.0
    t = torch.tensor((1 - part) * (len(levels) - 1))
    low, high, w = t.floor().long(), t.ceil().long(), t.frac()
    return float(((1 - w) * levels[low].log() + w * levels[high].log()).exp())


def attention(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Attention of queries ``[B, T, C]`` to keys and values ``[B, N, C]`` in so many heads."""
    q, k, v = (rearrange(x, "b t (h d) -> b h t d", h=heads) for x in (q, k, v))
    return rearrange(F.scaled_dot_product_attention(q, k, v), "b h t d -> b t (h d)")


def unit_noise(family: Family, seed: int, count: int, height: int, width: int) -> Tensor:
    """Noise ``[count, C, h, w]`` for the latents of images of ``height`` times ``width`` pixels, on the CPU; image i has that of
    ``seed + i``, as ComfyUI draws it for one image.
    """
    shape = family.latent_shape(height, width)
    return torch.cat([torch.randn(1, *shape, generator=torch.Generator().manual_seed(seed + i)) for i in range(count)])
