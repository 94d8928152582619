"""A photo edited with concepts: the place that is edited cut out at a size that suits the model, and put back into the photo."""

from typing import Any

from comfy_api.latest import io
from torch import Tensor
from torch.nn import functional as F

from ..cidm_ops.method.editing import MARGIN, feathered, find_place
from ..cidm_ops.method.regions import RegionMask
from ..cidm_ops.painting.editing import FEATHER
from . import say
from .paint import HANDLES
from .regions import RegionList
from .schema import schema
from .scores import one_each

EditedPlace = io.Custom("CIDM_PLACE")
CATEGORY = "CIDM/editing"
SIZE = 512


class CIDMEditPlace(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="CIDMEditPlace",
            display_name="Edit Place",
            aliases="inpaint, inpainting, crop and stitch, crop, edit photo, insert object, replace object, masked area, detailer",
            category=CATEGORY,
            description="Cuts the place of a mask out of a photo, with some surroundings and at a size that suits the model, and makes a "
            "region of every mask. Put Back puts it into the photo again.",
            inputs=[
                io.Image.Input("image", tooltip="The photo. It stays as it is."),
                io.Mask.Input("mask", tooltip="White where something is to be painted; a batch of masks for several things at once."),
                io.String.Input(
                    "texts",
                    default="a <dog> in the snow",
                    multiline=True,
                    tooltip=f"What is to be painted: one prompt a line for each mask, or one for all. {HANDLES}.",
                ),
                io.Float.Input(
                    "margin",
                    default=MARGIN,
                    min=0.0,
                    max=4.0,
                    step=0.05,
                    tooltip="How much is seen around the masks, in longer sides of what they cover.",
                ),
                io.Int.Input(
                    "size",
                    default=SIZE,
                    min=0,
                    max=4096,
                    step=8,
                    tooltip="The place is shown to the model at about so many pixels squared: 512 for SD 1.5, 1024 for SDXL, 128 for "
                    "Doodle. 0: as it is.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="image", tooltip="The place, for VAE Encode."),
                io.Mask.Output(display_name="mask", tooltip="All masks in the place, for Set Latent Noise Mask."),
                RegionList.Output(display_name="regions", tooltip="A region for each mask, for Paint with Concepts or Paint in Regions."),
                EditedPlace.Output(display_name="place", tooltip="For Put Back."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, image: Tensor, mask: Tensor, texts: str, margin: float, size: int) -> io.NodeOutput:
        image = image[..., :3]
        masks = masks_like(mask, image)
        lines, whole = one_each(texts, len(masks), "texts"), masks.amax(0)
        place = find_place(whole, margin, size)
        parts = place.cut(masks[:, None])[:, 0]
        regions = tuple((line, RegionMask(part)) for line, part in zip(lines, parts, strict=True))
        shown, covered = place.cut(image.movedim(-1, 1)).movedim(1, -1), place.cut(whole[None, None])[0]
        height, width = place.shown
        text = f"{place.width} x {place.height} pixels at {place.left}, {place.top}, shown at {width} x {height}"
        return say.output(cls, shown, covered, regions, (place, image, whole), text=text)


class CIDMPutBack(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="CIDMPutBack",
            display_name="Put Back",
            aliases="stitch, composite, paste, inpaint crop and stitch, image composite masked, uncrop, blend",
            category=CATEGORY,
            description="Puts an edited place back into its photo. Outside of the masks and their soft edges every pixel stays as it is.",
            inputs=[
                EditedPlace.Input("place", tooltip="From Edit Place."),
                io.Image.Input("images", tooltip="The edited place, from VAE Decode; one or several."),
                io.Int.Input("feather", default=FEATHER, min=0, max=512, tooltip="Pixels of the photo over which a mask's edge fades."),
            ],
            outputs=[io.Image.Output(display_name="images", tooltip="The photo, edited: one for each that came in.")],
        )

    @classmethod
    def execute(cls, place: Any, images: Tensor, feather: int) -> io.NodeOutput:
        where, photo, mask = place
        if len(photo) not in (1, len(images)):
            raise ValueError(f"{len(images)} edited places for {len(photo)} photos: give one for each photo, or several for one")
        back = where.put_back(photo.movedim(-1, 1), images[..., :3].movedim(-1, 1), feathered(mask, feather))
        return io.NodeOutput(back.movedim(1, -1))


def masks_like(mask: Tensor, image: Tensor) -> Tensor:
    """Masks ``[N, H, W]`` on the CPU at the size of a picture ``[B, H, W, C]``."""
    masks = mask.reshape(-1, *mask.shape[-2:]).float().cpu()
    size = image.shape[1:3]
    return masks if masks.shape[1:] == size else F.interpolate(masks[:, None], tuple(size), mode="bilinear")[:, 0]


EDITING_NODES = [CIDMEditPlace, CIDMPutBack]
