"""A data set grown by pictures that an edit model made of the thing, as far as they show the same individual."""

from dataclasses import replace

from comfy_api.latest import io
from torch import Tensor

from ..cidm_ops.measure.pictures import to_image
from ..cidm_ops.measure.sifting import SLACK, Sifting, grow_sifted, sift_sheet
from ..cidm_ops.training.config import PER_ORIGINAL
from ..cidm_ops.training.dataset import Dataset, from_images
from . import say
from .data import ConceptDataset, lines_of
from .encoders import FEATURE, VISION, image_encoder
from .schema import schema


class CIDMSiftPictures(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="CIDMSiftPictures",
            display_name="Sift Pictures",
            aliases="grow dataset, augment, synthetic data, kontext, qwen edit, flux edit, filter images, same person, identity check, "
            "outliers, deduplicate",
            category="CIDM/training",
            description="Grows a dataset of a few photos by pictures that an edit model made of them: those that show the same individual "
            "are kept, the rest is named with its likeness. The photos stay at least half of what is learned from.",
            inputs=[
                ConceptDataset.Input("dataset", tooltip="The photos themselves."),
                io.Image.Input("images", tooltip="Pictures that an edit model made of the thing."),
                VISION,
                FEATURE,
                io.Int.Input(
                    "per_original", default=PER_ORIGINAL, min=1, max=64, tooltip="At most so many are kept for each photo, the most alike."
                ),
                io.Float.Input(
                    "slack",
                    default=SLACK,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="A picture shows somebody else if its mean cosine with the photos is so much below that of the photo which is "
                    "least like the others.",
                ),
                io.Float.Input(
                    "least",
                    default=0.0,
                    min=0.0,
                    max=0.99,
                    step=0.01,
                    tooltip="A fixed bound in the place of that one. 0: found from the photos; of a single photo there is none then.",
                ),
                io.String.Input(
                    "captions",
                    default="",
                    multiline=True,
                    optional=True,
                    tooltip="What each picture shows, one line a picture, each with the class word. Empty: the class word alone.",
                ),
            ],
            outputs=[
                ConceptDataset.Output(display_name="dataset", tooltip="The photos and what was kept, for Train Concept."),
                io.Image.Output(display_name="sheet", tooltip="All pictures, the most alike first, with likeness and verdict."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls, dataset: Dataset, images: Tensor, clip_vision, features: str, per_original: int, slack: float, least: float, captions: str = ""
    ) -> io.NodeOutput:
        made = from_images(images[..., :3], lines_of(captions, len(images)))
        made = replace(made, names=[f"generated {i + 1}" for i in range(len(made))])
        grown, sifted = grow_sifted(image_encoder(clip_vision, features), dataset, made, Sifting(per_original, slack, least))
        sheet = to_image(sift_sheet(sifted, made.pictures))
        return say.output(cls, grown, sheet, text=sifted.text(), warnings=sifted.remarks(), picture=sheet)


SIFTING_NODES = [CIDMSiftPictures]
