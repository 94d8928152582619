"""The best of some candidates, by an image tower and a reader of words, and more of them if none shows the words."""

from typing import Any

import torch
from comfy_api.latest import io
from torch import Tensor

from ..cidm_ops.measure.picking import BOUND, LIKENESS, Pick, pick
from . import say
from .encoders import encode_captions, encode_images, pictures_of
from .schema import schema
from .wish import CATEGORY


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


PICKING_NODES = [CIDMPickBest]
