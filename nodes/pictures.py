"""Pictures of a concept that lie beside it in the bank: kept there, and given to models that read pictures."""

import math
from collections.abc import Sequence
from typing import Any

import node_helpers
import torch
from comfy_api.latest import io
from PIL import Image
from torch import Tensor

from ..cidm_ops.bank.bank import Bank
from ..cidm_ops.bank.pictures import MOST, SOURCES, KeptPicture, keep_pictures, kept_pictures, say_pictures
from ..cidm_ops.measure.pictures import to_image
from ..cidm_ops.measure.report import to_pixels
from . import say
from .bank import BANK, CATEGORY, ConceptBank
from .paint import HANDLES
from .schema import schema

AS_IS, WHITE = "as it is", "white"
CELL = 16  # pixels, of which a reference's sides are multiples: what models that read pictures ask for


class CIDMKeepPictures(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="CIDMKeepPictures",
            display_name="Keep Pictures",
            aliases="reference images, store photos, character sheet, remember, save references",
            category=CATEGORY,
            description="Keeps pictures of a concept beside it in the bank, for models that read pictures. They stay in this bank: no "
            "export takes them along.",
            inputs=[
                BANK,
                io.String.Input("name", default="dog", tooltip="The concept's name."),
                io.Image.Input("images", tooltip=f"At most {MOST} pictures that show it best, in the place of those that were kept."),
                io.Combo.Input(
                    "source", options=list(SOURCES), default=SOURCES[0], tooltip="Whether they are photos, or a model made them."
                ),
                io.String.Input(
                    "captions", default="", multiline=True, optional=True, tooltip="What each shows: one line a picture, or nothing."
                ),
                io.Mask.Input("masks", optional=True, tooltip="Where the concept is in each."),
            ],
            outputs=[ConceptBank.Output(display_name="bank", tooltip="The bank, for Concept References.")],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, bank: Bank, name: str, images: Tensor, source: str, captions: str = "", masks: Tensor | None = None) -> io.NodeOutput:
        pictures = [Image.fromarray(pixels) for pixels in to_pixels(images[..., :3].movedim(-1, 1) * 2 - 1)]
        areas = [] if masks is None else [grey(mask) for mask in masks.reshape(-1, *masks.shape[-2:])]
        lines = [line.strip() for line in captions.strip().split("\n")] if captions.strip() else []
        kept = keep_pictures(Bank(bank.folder), name.strip(), pictures, lines, areas, source)
        return say.output(cls, Bank(bank.folder), text=f"<{name.strip()}>: {len(kept)} pictures are kept in the bank {bank.folder.name!r}")


class CIDMConceptReferences(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="CIDMConceptReferences",
            display_name="Concept References",
            aliases="reference latent, reference image, kontext, flux 2, qwen image edit, omnigen, edit model, multi reference",
            category=CATEGORY,
            description="The kept pictures of the concepts in a prompt, for models that read pictures: as images, and in the conditioning "
            "of any model that takes reference latents.",
            inputs=[
                BANK,
                io.String.Input("prompt", default="a <dog> on the beach", multiline=True, tooltip=f"What is to be painted. {HANDLES}."),
                io.Int.Input("per_concept", default=2, min=1, max=MOST, tooltip="How many pictures of each concept, the first ones."),
                io.Float.Input(
                    "megapixels", default=1.0, min=0.05, max=4.0, step=0.05, tooltip="The size of each; more takes longer in every step."
                ),
                io.Combo.Input(
                    "background",
                    options=[AS_IS, WHITE],
                    default=AS_IS,
                    tooltip="white: what a picture's mask leaves out is white, so that less of the scene comes along.",
                ),
                io.Conditioning.Input("conditioning", optional=True, tooltip="The encoded text of the edit model; it gets the pictures."),
                io.Vae.Input("vae", optional=True, tooltip="The VAE of the edit model, for the conditioning."),
            ],
            outputs=[
                io.Image.Output(display_name="images", is_output_list=True, tooltip="The pictures, one after another."),
                io.Mask.Output(display_name="masks", is_output_list=True, tooltip="Where the concept is in each, or everywhere."),
                io.String.Output(display_name="text", tooltip="The prompt in plain words, each concept as what some of the pictures show."),
                io.Conditioning.Output(
                    display_name="conditioning", tooltip="The conditioning with the pictures as reference latents; empty without one."
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls, bank: Bank, prompt: str, per_concept: int, megapixels: float, background: str, conditioning=None, vae=None
    ) -> io.NodeOutput:
        if conditioning is not None and vae is None:
            raise ValueError("there is a conditioning and no VAE to encode the pictures for it: connect the VAE of the same model")
        known = Bank(bank.folder)
        found = {name: kept_pictures(known, name)[:per_concept] for name in known.read(prompt).strengths}
        counts = {name: len(kept) for name, kept in found.items() if kept}
        if not counts:
            raise ValueError(f"no concept in {prompt[:80]!r} has pictures in the bank {known.folder.name!r}: Keep Pictures keeps some")
        shown = [as_reference(kept, megapixels, background) for pictures in found.values() for kept in pictures]
        text, said = say_pictures(known, prompt, counts), []
        if conditioning is not None:
            said = with_references(conditioning, [picture for picture, _ in shown], vae)
        missing = [f"<{name}> has no pictures in the bank: it stands there as its class word" for name in found if name not in counts]
        pictures, masks = ([part[i] for part in shown] for i in (0, 1))
        return say.output(cls, pictures, masks, text, said, text=text, warnings=missing)


def with_references(conditioning: list, pictures: Sequence[Tensor], vae: Any) -> list:
    """A CONDITIONING with IMAGEs ``[1, H, W, 3]`` behind the reference latents that it has, as a chain of the host's ReferenceLatent makes
    it.
    """
    for picture in pictures:
        conditioning = node_helpers.conditioning_set_values(conditioning, {"reference_latents": [vae.encode(picture)]}, append=True)
    return conditioning


def grey(mask: Tensor) -> Image.Image:
    """A mask ``[H, W]`` as a picture."""
    return Image.fromarray((mask.float().cpu().clamp(0, 1) * 255).round().byte().numpy())


def as_reference(kept: KeptPicture, megapixels: float, background: str) -> tuple[Tensor, Tensor]:
    """A kept picture as IMAGE ``[1, H, W, 3]`` and MASK ``[1, H, W]`` of about so many megapixels, its sides multiples of ``CELL``."""
    picture, area = kept.open(), kept.open_mask()
    scale = math.sqrt(megapixels * 1e6 / (picture.width * picture.height))
    width, height = (max(CELL, round(side * scale / CELL) * CELL) for side in picture.size)
    image = to_image(picture.resize((width, height), Image.Resampling.LANCZOS))
    mask = torch.ones(1, height, width)
    if area is not None:
        mask = to_image(area.resize((width, height), Image.Resampling.BILINEAR))[..., 0]
    if background == WHITE:
        image = image * mask[..., None] + 1 - mask[..., None]
    return image, mask


PICTURE_NODES = [CIDMKeepPictures, CIDMConceptReferences]
