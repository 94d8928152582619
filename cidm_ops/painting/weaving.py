"""Concepts woven into a template (Concept Weaver): a picture inverted on any backbone, and the scene and the lock that keep its layout."""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..backbone import Backbone
from ..concept_text import ConceptText, plans_of
from ..method.inversion import Trajectory, invert
from ..method.weaving import grow, lock
from ..schedule import Schedule
from ..tokens import Text
from .composition import Composition
from .config import WeaveConfig
from .scene import InvertedPicture, Scene, Template

CORRECTIONS = 1  # of each step up; on Doodle 25 steps with one come nearer than 50 without, docs/weaving.md


@torch.no_grad()
def invert_picture(
    backbone: Backbone,
    text: Text,
    latents: Tensor,
    steps: int = 50,
    corrections: int = CORRECTIONS,
    on_step: Callable[[int, int], None] = lambda step, steps: None,
) -> InvertedPicture:
    """Invert the ``latents [P, C, h, w]`` of a picture as the plain model reads the ``text`` of it, without guidance."""
    levels, _ = backbone.schedule.levels(steps)
    clean = denoiser_at(backbone, text.expand(len(latents)))
    return InvertedPicture(invert(latents.to(backbone.device), levels.flip(0), clean, corrections, on_step), text.rows)


def denoiser_at(backbone: Backbone, text: Text) -> Callable[[Tensor, Tensor], Tensor]:
    """Return a function that tells what the plain model takes for clean behind the sampler's variable at one noise level."""
    schedule, rows = backbone.schedule, text.rows

    @torch.no_grad()
    def clean(x: Tensor, level: Tensor) -> Tensor:
        t = schedule.timestep_at(level).to(x.device)
        return schedule.denoised(x, backbone.predict(schedule.scale_input(x, level), t.expand(len(x)), rows, text.pooled), level)

    return clean


def template_of(backbone: Backbone, picture: InvertedPicture, how: WeaveConfig | None = None) -> Template:
    """A template for concepts. Raises ``ValueError`` for a model of which nobody knows which layers hold the layout of a picture, and for a
    picture that was inverted by a model of another kind, or with regions or residuals.
    """
    family, reads = backbone.family, next(iter(backbone.cross_attention.values()))
    width = reads.get_submodule("to_k").in_features
    if (own := picture.text.shape[-1]) != width:
        raise ValueError(
            f"the template was inverted by a model that reads texts of width {own}, and {family.title} reads {width}: invert it with the "
            "model that it is woven with"
        )
    if any(plan and (plan.regions or plan.residuals) for plan in plans_of(picture.text)):
        raise ValueError("the template's text has regions or Infusion concepts: invert the picture with the text that it is for the base")
    attention = tuple(
        f"{block}.{part.name}"
        for block in backbone.blocks
        if re.search(family.layout_attention, block)
        for sub in family.sublayers(block)
        for part in sub.linears
        if sub.kind == "self" and part.role in ("query", "key")
    )
    residual = tuple(name for name in backbone.layers if re.search(family.layout_residual, name))
    if not attention or not residual:
        raise ValueError(f"nobody knows which layers of {family.title} hold the layout of a picture: take Stable Diffusion 1 or SDXL")
    return Template(picture, how or WeaveConfig(), attention, residual)


def woven(composition: Composition, template: Template, texts: Sequence[ConceptText] = ()) -> Scene:
    """The scene of a composition that is woven into a template. ``texts`` of the regions are for global texts of other encoders.

    Raises ``ValueError`` for a region that nobody has placed, and for a late start.
    """
    if composition.how.start:
        raise ValueError(f"a start at {composition.how.start:g} of the sampling, and a template counts from the beginning: start at 0")
    if sought := [u for u, region in enumerate(composition.regions, 1) if region.mask.sought]:
        raise ValueError(f"region {sought[0]} is to be found, and a template shows where things are: draw it, or take a mask")
    scene = composition.scene(texts)
    height, width = template.picture.trajectory.states.shape[-2:]
    return replace(scene, masks=tuple(grow(scene.masks, template.how.grow, height, width)), template=template)


def hold(scene: Scene, x: Tensor, level: float) -> Tensor:
    """The sampler's variable ``x [B, C, h, w]`` at a noise level, with the template where no region is if that is locked."""
    template = scene.template
    return lock(x, template.at(level, x), scene.masks) if template and template.how.lock else x


def hold_latents(scene: Scene, latents: Tensor) -> Tensor:
    """Finished latents ``[B, C, h, w]`` as a host keeps them, with the template where no region is if that is locked."""
    template = scene.template
    return lock(latents, template.latents(latents), scene.masks) if template and template.how.lock else latents


def warnings_of(composition: Composition, how: WeaveConfig) -> list[str]:
    """What a person should know about a composition that is woven."""
    locked = "there is no region and what no region covers is locked: the template comes out as it is; give regions, or unlock it"
    return [*composition.warnings, *([locked] if how.lock and not composition.regions else [])]


def noise_of(trajectory: Trajectory, schedule: Schedule) -> Tensor:
    """The noise ``[P, C, h, w]`` at the end of a trajectory, as a sampler takes it: about unit Gaussian."""
    return trajectory.states[-1] / schedule.scale_noise(torch.ones(()), trajectory.levels[-1])
