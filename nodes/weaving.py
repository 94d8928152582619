"""Concepts woven into a template: a picture inverted by the host's own guider, and the model that paints over its things."""

from collections.abc import Callable
from typing import Any

import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher
from comfy.utils import ProgressBar
from comfy_api.latest import io
from torch import Tensor

from ..cidm_ops.bank.bank import Bank
from ..cidm_ops.method.inversion import Trajectory, invert
from ..cidm_ops.painting.compose import AggregationConfig
from ..cidm_ops.painting.composition import compose_regions
from ..cidm_ops.painting.config import WeaveConfig
from ..cidm_ops.painting.scene import InvertedPicture
from ..cidm_ops.painting.weaving import CORRECTIONS, template_of, warnings_of
from . import host, patches, say
from .bank import BANK
from .composition import WEIGHTS, WHOLE, describe_scene
from .fisher import Conditional
from .paint import CLIP, HANDLES, MODE, MODEL, SETTINGS, STRENGTH, read_aggregation
from .regions import RegionList
from .scenes import start_of
from .schema import schema

InvertedTrajectory = io.Custom("CIDM_TRAJECTORY")
DEFAULT = WeaveConfig()


class Ascent(comfy.samplers.Sampler):
    """A sampler that goes up from clean latents to noise, and keeps the way."""

    def __init__(self, corrections: int, on_step: Callable[[int, int], None]):
        self.corrections, self.on_step = corrections, on_step
        self.way: Trajectory | None = None

    def sample(self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None, disable_pbar=False):
        def clean(x: Tensor, level: Tensor) -> Tensor:
            return model_wrap(x, level.expand(len(x)), **extra_args).float()

        self.way = invert(latent_image.float(), sigmas.float(), clean, self.corrections, self.on_step)
        return latent_image


class CIDMInvertPicture(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="CIDMInvertPicture",
            display_name="Invert Picture",
            aliases="ddim inversion, invert image, unsampler, noise from image, null text, plug and play, image to noise, edit photo",
            category="CIDM/weaving",
            description="Finds the noise that the model would have painted a picture from, and the way there, for Weave. Once for each "
            "picture; without guidance, and with the plain model.",
            inputs=[
                io.Model.Input("model", tooltip="The plain model, without the concepts that are to be woven in."),
                io.Conditioning.Input("conditioning", tooltip="What the picture shows, in plain words: a dog and a cat in the snow."),
                io.Latent.Input("latent", tooltip="The picture, from VAE Encode."),
                io.Sigmas.Input(
                    "sigmas",
                    tooltip="The noise levels of a whole sampling, down to 0: 25 to 50 steps of BasicScheduler. Weave goes back on them.",
                ),
                io.Int.Input(
                    "corrections",
                    default=CORRECTIONS,
                    min=0,
                    max=8,
                    tooltip="How often each step up is corrected, so that the way back meets the picture. Each costs one more pass a step; "
                    "1 brings more than twice the steps.",
                ),
            ],
            outputs=[InvertedTrajectory.Output(display_name="trajectory", tooltip="The picture on its way to noise, for Weave.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, model, conditioning, latent: dict[str, Any], sigmas: Tensor, corrections: int) -> io.NodeOutput:
        bar, tell = ProgressBar(len(sigmas) - 1), say.progress(cls.hidden.unique_id, "step {} of {}")

        def on_step(step: int, steps: int) -> None:
            tell(step, steps)
            bar.update_absolute(step, steps)

        picture = invert_latents(model, conditioning, latent["samples"], sigmas, corrections, on_step)
        noise = picture.trajectory.states[-1].std() / picture.trajectory.levels[-1]
        said = f"inverted in {len(sigmas) - 1} steps; its noise has {float(noise):.2f} of the size that noise has there"
        return say.output(cls, picture, text=said)


class CIDMWeave(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        def part(name: str, default: float, tooltip: str) -> io.Float.Input:
            return io.Float.Input(name, default=default, min=0.0, max=1.0, step=0.01, tooltip=tooltip)

        return schema(
            node_id="CIDMWeave",
            display_name="Weave",
            aliases="concept weaver, fuse concepts, replace subject, swap character, face swap, keep composition, keep background, plug "
            "and play, edit photo, personalize photo",
            category="CIDM/weaving",
            description="Paints concepts over the things of a template picture, each in its region; the template's layout is kept, and "
            "what no region covers stays as it is. For SamplerCustom with add_noise off.",
            inputs=[
                MODEL,
                CLIP,
                BANK,
                InvertedTrajectory.Input("trajectory", tooltip="The template, from Invert Picture."),
                io.String.Input(
                    "text", default=WHOLE, multiline=True, tooltip=f"The global prompt: the scene as a whole, with plain words. {HANDLES}."
                ),
                MODE,
                STRENGTH,
                io.Float.Input(
                    "suppression",
                    default=DEFAULT.suppression,
                    min=0.0,
                    max=2.0,
                    step=0.05,
                    tooltip="Moves regions away from what the plain model would paint there (lambda). 0 is off, 0.2 a start, much "
                    "oversaturates.",
                ),
                part(
                    "keep_attention",
                    DEFAULT.attention,
                    "In which part of the sampling self-attention looks where the template's does: more keeps shapes, less frees them.",
                ),
                part(
                    "keep_residual",
                    DEFAULT.residual,
                    "In which part of the sampling a layer's features are the template's: more keeps the layout.",
                ),
                io.Boolean.Input(
                    "lock_background",
                    default=DEFAULT.lock,
                    tooltip="What no region covers stays the template, to the last bit.",
                ),
                io.Int.Input("grow", default=DEFAULT.grow, min=0, max=16, tooltip="By how many cells of the latent regions are grown."),
                RegionList.Input(
                    "regions",
                    optional=True,
                    tooltip="Where the template's things are, each with its prompt: from Concept Region with a mask, or Draw Regions.",
                ),
                SETTINGS,
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The model, for a sampler."),
                io.Conditioning.Output(display_name="conditioning", tooltip="The global prompt, for the same sampler."),
                io.Latent.Output(display_name="latent", tooltip="The template's noise, to which the sampler adds none."),
                io.Sigmas.Output(display_name="sigmas", tooltip="The noise levels that the template was inverted on."),
                WEIGHTS,
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls, model, clip, bank: Bank, trajectory: InvertedPicture, text: str, mode: str, strength: float, suppression: float,
        keep_attention: float, keep_residual: float, lock_background: bool, grow: int, regions=(),
        settings: AggregationConfig | None = None,
    ) -> io.NodeOutput:  # fmt: skip
        backbone, how = host.ComfyBackbone(model, clip), WeaveConfig(suppression, keep_attention, keep_residual, lock_background, grow)
        composition = compose_regions(backbone, bank, text, regions, read_aggregation(settings, mode, strength))
        patched, conditioning = patches.woven_into(backbone, composition, template_of(backbone, trajectory, how))
        latent = {"samples": start_of(model, trajectory)}
        words = describe_scene(composition)
        levels = trajectory.trajectory.levels.flip(0)
        return say.output(cls, patched, conditioning, latent, levels, words, text=words, warnings=warnings_of(composition, how))


def invert_latents(
    model: ModelPatcher,
    conditioning: list,
    latents: Tensor,
    sigmas: Tensor,
    corrections: int = CORRECTIONS,
    on_step: Callable[[int, int], None] = lambda step, steps: None,
) -> InvertedPicture:
    """Invert a LATENT ``[P, C, h, w]`` on the way of ``sigmas``, as the model reads a CONDITIONING without guidance.

    Raises ``ValueError`` for a model that nothing can be woven with, sigmas that do not fall to 0, and several texts.
    """
    host.layerwise_family(model)
    levels, text, ascent = rising(sigmas), only_text(conditioning), Ascent(corrections, on_step)
    Conditional(model).set_text(conditioning).sample(torch.zeros_like(latents), latents, ascent, levels, disable_pbar=True, seed=0)
    assert ascent.way is not None
    return InvertedPicture(ascent.way, text, latents)


def rising(sigmas: Tensor) -> Tensor:
    """The sigmas of a sampling from clean to noise. Raises ``ValueError`` for those of a part of it."""
    if len(sigmas) < 2 or float(sigmas[-1]) != 0 or not bool((sigmas.diff() < 0).all()):
        raise ValueError(
            f"sigmas {[round(v, 3) for v in sigmas.tolist()][:6]}: expected falling ones that end in 0, such as those of BasicScheduler, "
            "neither flipped nor split"
        )
    return sigmas.flip(0).float().cpu()


def only_text(conditioning: list) -> Tensor:
    """The text ``[1, N, C]`` of a conditioning. Raises ``ValueError`` where there are several, such as those for areas."""
    if len(conditioning) != 1:
        raise ValueError(
            f"{len(conditioning)} texts in one conditioning: expected one that says what the picture shows, from CLIP Text Encode"
        )
    return conditioning[0][0][:1]


WEAVING_NODES = [CIDMInvertPicture, CIDMWeave]
