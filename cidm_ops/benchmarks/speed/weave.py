"""Concepts woven into templates of the Doodle world, beside regions from noise and inpainting in regions: is each in its place, does the
rest stay, and is the thing's shape kept. Resumable.
"""

import logging
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...backbone import Backbone
from ...bank.bank import Bank
from ...bank.formats import write_picture
from ...doodle.files import TEN
from ...engines.diffusers import load
from ...engines.doodle import DoodleTower
from ...evaluation.doodle import GUIDANCE
from ...measure.report import contact_sheet
from ...measure.scores import embed
from ...method.inversion import descend
from ...method.regions import RegionMask
from ...method.weaving import covered, grow, lock
from ...painting.compose import ParsedPrompt, encode
from ...painting.composition import Composition, compose_regions
from ...painting.config import WeaveConfig
from ...painting.paint import predictor, unit_noise
from ...painting.sampling import sample
from ...painting.scene import InvertedPicture, Scene
from ...painting.weaving import denoiser_at, hold, invert_picture, noise_of, template_of, woven
from .scores import kept_scores, mean, presence_of_ten
from .templates import RenderedTemplate, cells_of, figure, overlap, psnr, templates
from .timing import machine

log = logging.getLogger("cidm.bench")

STEPS = 25
SHOWN = 6  # templates on the sheet
WEAVES = {
    "weave": WeaveConfig(),
    "weave_suppressed": WeaveConfig(suppression=0.2),
    "weave_free": WeaveConfig(attention=0, residual=0),
    "weave_unlocked": WeaveConfig(lock=False),
}
WAYS = ("fast", "inpaint", "inpaint_75", *WEAVES)
Hold = Callable[[Tensor, float], Tensor]


def run(folder: Path = Path("runs/weave"), scenes: int = 60) -> dict[str, Any]:
    """Paint each template each way and score it, by way: ``present`` is the share of concepts that are the nearest of the ten, and of empty
    places, to what is in their cell, ``bleed`` that of foreign cells in which a concept is the nearest, ``ia`` the likeness in its cell;
    ``outside`` is the PSNR in dB to the template where no region is, and ``outside_round`` that of the template as the autoencoder returns
    it; ``silhouette`` is the overlap of what stands in a cell with the template's thing. ``fast`` is regions from noise, ``inpaint`` the
    same with the template noised outside of regions in every step, from noise and from the template at 75 % of the sampling.
    ``_interval``: half the 95 % interval of the mean over templates. ``judge_silhouette`` is the overlap of what is found in the templates
    themselves with their masks, and ``inverted`` the PSNR of the way back without concepts to the autoencoder's.
    """
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.INFO)
    folder.mkdir(parents=True, exist_ok=True)
    studio, rendered = Studio(folder), list(templates(scenes))
    scores = kept_scores(folder / "scores.json", map(str, range(scenes)), lambda key: studio.score(int(key), rendered[int(key)]))
    figures: dict[str, Any] = {}
    for name in scores["0"]:
        figures |= mean(name, [score[name] for score in scores.values()])
    return figures | {"templates": scenes, "steps": STEPS, "guidance": GUIDANCE} | machine()


class Studio:
    """Doodle, its ten concepts, and the ways to paint them into a template."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.backbone, self.bank, self.tower = folder, load("doodle"), Bank(TEN), DoodleTower()
        self.presence = presence_of_ten(self.tower)

    @torch.no_grad()
    def score(self, number: int, template: RenderedTemplate) -> dict[str, float]:
        """Paint a template every way, and score what came out."""
        backbone, count = self.backbone, len(template.scene.names)
        clean = backbone.encode_image(template.picture[None])
        back = backbone.decode_latent(clean)[0]
        text = encode(backbone, ParsedPrompt(template.words))
        picture = invert_picture(backbone, text, clean, STEPS)
        way = picture.trajectory
        returned = backbone.decode_latent(descend(way.states[-1], way.levels, denoiser_at(backbone, text)))[0]
        things = [figure(cell) for cell in cells_of(template.picture, count)]
        masks = [mask.chunk(count, 1)[u] > 0.5 for u, mask in enumerate(template.masks)]
        found = {
            "inverted": psnr(returned, back),
            "judge_silhouette": statistics.mean(overlap(thing, mask) for thing, mask in zip(things, masks, strict=True)),
        }
        outside = self.outside(template, clean)
        found["outside_round"] = psnr(back[:, outside], template.picture[:, outside])
        rows = [("template", template.picture)]
        for name in WAYS:
            painted = backbone.decode_latent(self.paint(name, template, picture, clean))[0]
            rows.append((name, painted))
            found |= {f"{name}_{key}": value for key, value in self.judge(template, painted, masks).items()}
            found[f"{name}_outside"] = psnr(painted[:, outside], template.picture[:, outside])
        if number < SHOWN:
            sheet = contact_sheet([(name, torch.stack(cells_of(shown, count))) for name, shown in rows], label=150)
            write_picture(sheet, self.folder / f"sheet-{number}.png")
        return {name: round(value, 4) for name, value in found.items()}

    def outside(self, template: RenderedTemplate, clean: Tensor) -> Tensor:
        """Where no grown region is and none is beside, ``[H, W]`` of bool: there the autoencoder sees the template alone."""
        height, width = clean.shape[-2:]
        inside = covered(grow(regions_of(template), WeaveConfig().grow + 2, height, width), height, width)
        return ~inside.repeat_interleave(8, 0).repeat_interleave(8, 1)

    def judge(self, template: RenderedTemplate, painted: Tensor, masks: list[Tensor]) -> dict[str, float]:
        """Score what is in each concept's cell."""
        names, cells = template.scene.names, cells_of(painted, len(template.scene.names))
        seen = embed(self.tower, torch.stack(cells))
        nearest, like = self.presence.found(seen), self.presence.cosines(seen)
        foreign = [other == name for u, name in enumerate(names) for v, other in enumerate(nearest) if u != v]
        return {
            "present": statistics.mean(float(a == b) for a, b in zip(nearest, names, strict=True)),
            "bleed": statistics.mean(map(float, foreign)),
            "ia": statistics.mean(float(row[self.presence.names.index(name)]) for row, name in zip(like, names, strict=True)),
            "silhouette": statistics.mean(overlap(figure(cell), mask) for cell, mask in zip(cells, masks, strict=True)),
        }

    def paint(self, way: str, template: RenderedTemplate, picture: InvertedPicture, clean: Tensor) -> Tensor:
        """Latents of a template, painted one way."""
        backbone, scene = self.backbone, template.scene
        prompts = [(text, mask) for text, mask in zip(scene.parts, regions_of(template), strict=True)]
        composition = compose_regions(backbone, self.bank, scene.plain, prompts)
        if way in WEAVES:
            own = woven(composition, template_of(backbone, picture, WEAVES[way]))
            return sampled(backbone, composition, own, noise_of(picture.trajectory, backbone.schedule), partial(hold, own))
        noise = unit_noise(backbone.family, 0, 1, *template.picture.shape[-2:])
        plain = composition.scene()
        if way == "fast":
            return sampled(backbone, composition, plain, noise, lambda x, level: x)
        start = float(backbone.schedule.levels(STEPS)[0][STEPS // 4]) if way == "inpaint_75" else float("inf")
        return sampled(backbone, composition, plain, noise, inpainting(clean, noise, composition, start))


def inpainting(clean: Tensor, noise: Tensor, composition: Composition, start: float) -> Hold:
    """What every inpainting of a host does: outside of regions, and everywhere above the level ``start``, the noised template."""
    masks = grow([region.mask for region in composition.regions], WeaveConfig().grow, *clean.shape[-2:])

    def held(x: Tensor, level: float) -> Tensor:
        noised = clean + level * noise
        return noised if level >= start else lock(x, noised, masks)

    return held


def sampled(backbone: Backbone, composition: Composition, scene: Scene, noise: Tensor, held: Hold) -> Tensor:
    """Latents of a composition with a scene beside the layers, sampled from ``noise`` and held so."""
    texts = [encode(backbone, region.mix) for region in composition.regions]
    wanted, negative = encode(backbone, composition.whole, texts), encode(backbone, ParsedPrompt(""))
    predict = predictor(backbone, scene)
    return sample(backbone, wanted, negative, noise, steps=STEPS, guidance=GUIDANCE, predict=predict, hold=held)


def regions_of(template: RenderedTemplate) -> list[RegionMask]:
    """The places of a template's things."""
    return [RegionMask(mask) for mask in template.masks]
