"""Wishes: read from plain words, guided by two texts, followed by a picture, and the best of some candidates kept."""

from typing import Any

import comfy.samplers
import torch
from comfy_api.latest import io
from torch import Tensor

from ..cidm_ops.bank.bank import Bank
from ..cidm_ops.measure.picking import BOUND, LIKENESS, Pick, pick
from ..cidm_ops.method.guidance import with_text
from ..cidm_ops.method.reference import fitted
from ..cidm_ops.method.regions import RegionMask, box_mask
from ..cidm_ops.painting.config import MOST_IDENTITY, ReferenceConfig
from ..cidm_ops.painting.reference import refer, reference_of, with_reference
from ..cidm_ops.painting.wish import regions_of
from ..cidm_ops.painting.wish_answer import question
from ..cidm_ops.painting.wish_reading import read_wish, wish_in
from . import host, say
from .bank import ConceptBank
from .encoders import encode_captions, encode_images, pictures_of
from .regions import RegionList
from .scenes import scene_of, with_scene
from .schema import schema, validate

CATEGORY = "CIDM/wish"
WISH = "my dog at the beach, as an ink drawing"


class CIDMReadWish(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="CIDMReadWish",
            display_name="Read Wish",
            aliases="assistant, chat, natural language, instruction, prompt from text, llm, prompt writer, cafe, customization assistant",
            category=CATEGORY,
            description="Reads what somebody would like to see, in plain words or as a language model answered it, and makes a prompt with "
            "the bank's concepts, a negative prompt and regions of it. By plain rules of English; asks no model.",
            inputs=[
                io.String.Input(
                    "wish",
                    default=WISH,
                    multiline=True,
                    tooltip="In your own words. 'my dog' means the bank's concept of a dog, so do a concept's name and <name>. After "
                    "another Read Wish it says what changes: 'now at night', 'without the hat', 'more like my dog'.",
                ),
                ConceptBank.Input("bank", optional=True, tooltip="The bank whose concepts may be meant."),
                io.String.Input(
                    "answer",
                    optional=True,
                    force_input=True,
                    tooltip="What any language-model node answered to question, instead of the rules. Where no JSON is in it, the rules "
                    "read the wish.",
                ),
                io.String.Input(
                    "before", optional=True, force_input=True, tooltip="The wish output of another Read Wish, which this one changes."
                ),
            ],
            outputs=[
                io.String.Output(display_name="prompt", tooltip="What to paint, concepts as <name>: for Paint with Concepts."),
                io.String.Output(display_name="negative", tooltip="What was not wanted."),
                RegionList.Output(
                    display_name="regions", tooltip="Things that were given places, such as on the left; none if fewer than two."
                ),
                io.Float.Output(
                    display_name="identity", tooltip="How strongly a picture is followed for such a wish: for Reference Attention."
                ),
                io.Float.Output(display_name="end_percent", tooltip="Until when in the sampling: for Reference Attention."),
                io.String.Output(display_name="edits", tooltip="What is to be other about the subject, one a line."),
                io.String.Output(display_name="reply", tooltip="What a person is told."),
                io.String.Output(display_name="wish", tooltip="The wish as it is now, for before of the next Read Wish."),
                io.String.Output(display_name="question", tooltip="What to ask a language model, for a node of your own."),
                io.String.Output(display_name="plain", tooltip="The prompt with class words in the place of concepts, for Pick Best."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, wish: str, bank: Bank | None = None, answer: str = "", before: str = "") -> io.NodeOutput:
        values, told, warnings = understood(wish, bank, answer, before)
        return say.output(cls, *values, text=told, warnings=warnings)


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


class CIDMPickBest(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="CIDMPickBest",
            display_name="Pick Best",
            aliases="best of n, select best, rank images, choose image, clip score, image selector, self check, rejection sampling, retry",
            category=CATEGORY,
            description="Keeps the candidate that is most like its references and truest to its words. If even that one does not show the "
            "words, the candidates of again are painted, and only then.",
            inputs=[
                io.Image.Input("images", tooltip="The candidates, a batch."),
                io.String.Input("text", default="a dog on the beach", multiline=True, tooltip="What they are to show, in plain words."),
                io.Float.Input(
                    "likeness",
                    default=LIKENESS,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="The part of likeness in the score; the rest is the words.",
                ),
                io.Float.Input(
                    "bound",
                    default=BOUND,
                    min=-1.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Below this cosine with the words the best candidate does not show them, and again is painted. -1: never.",
                ),
                io.ClipVision.Input("clip_vision", optional=True, tooltip="An image tower for likeness: CLIP, DINOv2, or Doodle's."),
                io.Image.Input("references", optional=True, tooltip="Pictures of what they are to be like."),
                io.ClipVision.Input(
                    "reader", optional=True, tooltip="The image side of the tower that reads words; that of likeness if none."
                ),
                io.Clip.Input("clip", optional=True, tooltip="Its text side with the projection, as of Text Alignment."),
                io.Image.Input(
                    "again",
                    optional=True,
                    lazy=True,
                    tooltip="More candidates, such as with identity 0.15 less: painted only if none of the first shows the words.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="best", tooltip="The best candidate."),
                io.Image.Output(display_name="all", tooltip="All candidates, the best one first."),
                io.String.Output(display_name="report", tooltip="The figures of each."),
                io.Boolean.Output(display_name="obeys", tooltip="Whether the best one shows its words."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def check_lazy_status(cls, **inputs: Any) -> list[str]:
        """Again is asked for only where it is connected and the first candidates do not show the words."""
        if "again" not in inputs or inputs["again"] is not None:
            return []
        found = picked(**{name: value for name, value in inputs.items() if name not in ("again", "bound")})
        return [] if found.obeys(inputs["bound"]) else ["again"]

    @classmethod
    def execute(cls, images: Tensor, bound: float, again: Tensor | None = None, **inputs: Any) -> io.NodeOutput:
        best, every, report, obeys = best_of(images, bound, again, **inputs)
        warnings = [] if obeys else [f"even the best one shows the words by less than {bound:g}"]
        return say.output(cls, best, every, report, obeys, text=report, warnings=warnings)


def understood(wish: str, bank: Bank | None = None, answer: str = "", before: str = "") -> tuple[tuple, str, list[str]]:
    """The outputs of Read Wish, what it shows, and warnings."""
    vocabulary = bank.vocabulary if bank else None
    earlier, warnings = wish_in(before, vocabulary), []
    if before.strip() and earlier is None:
        warnings.append("before holds no wish, so this one stands alone: connect the wish of another Read Wish")
    answered = bool(answer.strip()) and wish_in(answer) is not None
    if answer.strip() and not answered:
        warnings.append("there is no JSON in the answer, so the wish was read by rules")
    found, notes = read_wish(answer if answered else wish, vocabulary, earlier)
    regions = tuple((text, RegionMask(box_mask(*box))) for text, box in regions_of(found, vocabulary))
    plain = vocabulary.plain(found.prompt) if vocabulary else found.prompt
    prompt, end = plain if regions else found.prompt, found.when[1]
    values = (prompt, found.negative, regions, found.identity, end, "\n".join(found.edits), found.reply, found.json())
    told = [f"{found.kind}: {found.prompt}", *([f"not: {found.negative}"] if found.negative else []), found.reply]
    return (*values, question(wish, vocabulary), plain), "\n".join(told), [*warnings, *notes]


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


def best_of(images: Tensor, bound: float, again: Tensor | None = None, **inputs: Any) -> tuple[Tensor, Tensor, str, bool]:
    """The outputs of Pick Best."""
    every = images if again is None else torch.cat([images, check_size(again, images)])
    found = picked(every, **inputs)
    order = [found.best, *(number for number in range(len(every)) if number != found.best)]
    told = [found.table]
    if again is not None:
        told.append(f"none of the first {len(images)} showed the words by {bound:g}, so {len(again)} more were painted")
    return every[[found.best]], every[order], "\n".join(told), found.obeys(bound)


def picked(
    images: Tensor,
    text: str,
    likeness: float,
    clip_vision=None,
    references: Tensor | None = None,
    reader=None,
    clip=None,
) -> Pick:
    """The pick among the host's images ``[B, H, W, 3]``. Raises ``ValueError`` where there is nothing to pick by."""
    pictures, alike = pictures_of(images), clip_vision is not None and references is not None
    seen = encode_images(clip_vision, pictures) if alike else None
    wanted = encode_images(clip_vision, pictures_of(references)) if alike and references is not None else None
    side = reader if reader is not None else clip_vision
    if clip is None or side is None or not text.strip():
        if not alike:
            raise ValueError("there is nothing to pick by: connect clip_vision and references, or clip and reader with a text, or both")
        return pick(seen, wanted, likeness=likeness)
    read = encode_images(side, pictures)
    return pick(seen, wanted, read, encode_captions(clip, [" ".join(text.split())], read.shape[1]), likeness)


def check_size(again: Tensor, images: Tensor) -> Tensor:
    """The images ``again [B, H, W, C]``. Raises ``ValueError`` where they are of another size than the first."""
    if again.shape[1:] != images.shape[1:]:
        (height, width), (own, across) = images.shape[1:3], again.shape[1:3]
        raise ValueError(f"again is {across} x {own} pixels and images {width} x {height}: paint both at one size")
    return again


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


WISH_NODES = [CIDMReadWish, CIDMReferenceAttention, CIDMTwoTermGuider, CIDMPickBest]
