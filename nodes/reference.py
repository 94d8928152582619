"""A picture that is followed by self-attention, and guidance by a prompt that follows it and by the words alone."""

from typing import Any

import comfy.samplers
import torch
from comfy_api.latest import io
from torch import Tensor

from ..cidm_ops.method.guidance import with_text
from ..cidm_ops.method.reference import fitted
from ..cidm_ops.painting.config import MOST_IDENTITY, ReferenceConfig
from ..cidm_ops.painting.reference import refer, reference_of, with_reference
from . import host, say
from .scenes import scene_of, with_scene
from .schema import schema, validate
from .wish import CATEGORY


class CIDMReferenceAttention(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        def part(name: str, default: float, tooltip: str) -> io.Float.Input:
            return io.Float.Input(name, default=default, min=0.0, max=1.0, step=0.01, tooltip=tooltip)

        return schema(
            node_id="CIDMReferenceAttention",
            display_name="Reference Attention",
            aliases="reference only, reference image, ip adapter, ipadapter, image prompt, identity, consistent character, style "
            "reference, self attention injection",
            category=CATEGORY,
            description="Paints with a picture beside, whose tokens self-attention sees too: the subject looks like it, without weights "
            "and without training. Weaker than a concept that was learned.",
            inputs=[
                io.Model.Input("model", tooltip="The model, also one with concepts or regions."),
                io.Clip.Input("clip", tooltip="Its text encoder, for the empty text that the picture is read with."),
                io.Vae.Input("vae", tooltip="Its autoencoder, for the picture."),
                io.Conditioning.Input("conditioning", tooltip="The prompt. It gets a mark, so that the negative prompt does not follow."),
                io.Image.Input(
                    "image", tooltip="The picture, or a batch of pictures of the same thing. Cut to the middle in the latent's shape."
                ),
                io.Latent.Input("latent", tooltip="The latent that is sampled, for its size."),
                io.Float.Input(
                    "identity",
                    default=1.0,
                    min=0.0,
                    max=MOST_IDENTITY,
                    step=0.05,
                    tooltip="How strongly it is followed: 0 not at all, 1 as self-attention does by itself, more goes beyond.",
                ),
                part("start_percent", 0.0, "From which part of the sampling on."),
                part("end_percent", 1.0, "Until which part of the sampling."),
                io.Mask.Input(
                    "mask", optional=True, tooltip="Where the subject is in the picture, so that its background does not come along."
                ),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The model, for a sampler."),
                io.Conditioning.Output(display_name="conditioning", tooltip="The prompt that follows the picture, for the same sampler."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(
        cls, identity: float | None = None, start_percent: float | None = None, end_percent: float | None = None
    ) -> bool | str:
        return validate(ReferenceConfig, identity, start_percent, end_percent)

    @classmethod
    def execute(
        cls, model, clip, vae, conditioning: list, image: Tensor, latent: dict[str, Any], identity: float, start_percent: float,
        end_percent: float, mask: Tensor | None = None,
    ) -> io.NodeOutput:  # fmt: skip
        how = ReferenceConfig(identity, start_percent, end_percent)
        patched, marked = follow(model, clip, vae, conditioning, image, latent["samples"], how, mask)
        said = f"{len(image)} {'picture' if len(image) == 1 else 'pictures'}, followed with identity {identity:g}"
        return say.output(cls, patched, marked, text=said)


class CIDMTwoTermGuider(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="CIDMTwoTermGuider",
            display_name="Two-Term Guider",
            aliases="guider, dual cfg, dual guidance, profusion, cfg rescale, perp neg, custom sampler, guidance",
            category=CATEGORY,
            description="Guides to a prompt that follows a picture, and to the words alone beside it (ProFusion's last step): "
            "negative + cfg (identity - negative) + text_cfg (text - negative). For SamplerCustomAdvanced.",
            inputs=[
                io.Model.Input("model", tooltip="The model, from Reference Attention or an image prompt."),
                io.Conditioning.Input("identity", tooltip="The prompt that follows the picture."),
                io.Conditioning.Input("text", tooltip="The same prompt without the picture."),
                io.Conditioning.Input("negative", tooltip="What the picture should not have."),
                io.Float.Input("cfg", default=5.0, min=0.0, max=100.0, step=0.1, round=0.01, tooltip="Guidance to the first."),
                io.Float.Input(
                    "text_cfg",
                    default=0.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    round=0.01,
                    tooltip="Guidance to the words alone, where a picture takes too much. 0 is a CFGGuider; no use with learned concepts.",
                ),
                io.Float.Input(
                    "rescale",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="How far the spread of values goes back to that of the prompt without guidance: two terms saturate.",
                ),
            ],
            outputs=[io.Guider.Output(display_name="guider", tooltip="For SamplerCustomAdvanced.")],
        )

    @classmethod
    def execute(cls, model, identity, text, negative, cfg: float, text_cfg: float, rescale: float) -> io.NodeOutput:
        guider = TwoTerms(model)
        guider.set_texts(identity, text, negative, text_cfg, rescale)
        guider.set_cfg(cfg)
        return io.NodeOutput(guider)


class TwoTerms(comfy.samplers.CFGGuider):
    """``two_terms`` on the host's own guidance, with whatever other nodes have put in its place."""

    second, rescale = 0.0, 0.0

    def set_texts(self, identity: list, text: list, negative: list, second: float, rescale: float) -> None:
        self.second, self.rescale = second, rescale
        self.inner_set_conds({"positive": identity, "negative": negative} | ({"text": text} if second else {}))

    def predict_noise(self, x: Tensor, timestep: Tensor, model_options: dict[str, Any] | None = None, seed: int | None = None) -> Tensor:
        options = model_options or {}
        if not self.second and not self.rescale:
            return super().predict_noise(x, timestep, options, seed)
        conds = [self.conds.get(name) for name in ("negative", "positive", "text")]
        nothing, identity, *text = comfy.samplers.calc_cond_batch(self.inner_model, conds[: 3 if self.second else 2], x, timestep, options)
        found = comfy.samplers.cfg_function(
            self.inner_model, identity, nothing, self.cfg, x, timestep, model_options=options, cond=conds[1], uncond=conds[0]
        )
        return with_text(found, nothing, identity, text[0] if text else nothing, self.second, self.rescale)


def follow(
    model, clip, vae, conditioning: list, image: Tensor, latent: Tensor, how: ReferenceConfig, mask: Tensor | None = None
) -> tuple[Any, list]:
    """A clone of the model that has pictures ``[R, H, W, C]`` to follow, in the shape of ``latent [B, C, h, w]``, and a CONDITIONING that
    does so.
    """
    backbone = host.ComfyBackbone(model, clip)
    height, width = (side * backbone.family.factor for side in latent.shape[-2:])
    pictures = torch.stack([fitted(picture.movedim(-1, 0), height, width) for picture in image[..., :3].float().cpu()])
    masks = None if mask is None else fitted_masks(mask, image, height, width)
    latents = model.model.process_latent_in(vae.encode(pictures.movedim(1, -1)))
    nothing = clip.encode_from_tokens_scheduled(clip.tokenize(""))[0][0]
    reference = reference_of(backbone, latents, nothing[:1], how, masks)
    return with_scene(model, with_reference(scene_of(model), reference)), [[refer(text), more] for text, more in conditioning]


def fitted_masks(mask: Tensor, image: Tensor, height: int, width: int) -> Tensor:
    """Masks ``[R, height, width]`` for a batch of pictures ``[R, H, W, C]``, one for each, or one for all.

    Raises ``ValueError`` for a mask of another shape than its picture.
    """
    masks = mask.reshape(-1, *mask.shape[-2:]).float().cpu()
    if masks.shape[-2:] != image.shape[1:3]:
        (own, across), (high, wide) = masks.shape[-2:], image.shape[1:3]
        raise ValueError(f"the mask is {across} x {own} and the picture {wide} x {high} pixels: make the mask of the picture's size")
    masks = masks.expand(len(image), -1, -1) if len(masks) == 1 else masks
    return torch.stack([fitted(one[None], height, width)[0] for one in masks])


REFERENCE_NODES = [CIDMReferenceAttention, CIDMTwoTermGuider]
