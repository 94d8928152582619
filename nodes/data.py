"""The pictures to learn from: loaded from a folder or taken from the graph, fitted, and shown as the trainer sees them."""

import random
from pathlib import Path

import folder_paths
import torch
from comfy_api.latest import io

from ..cidm_ops.measure.report import dataset_sheet
from ..cidm_ops.training.config import FITS
from ..cidm_ops.training.dataset import Dataset, from_images
from ..cidm_ops.training.folder import from_folder
from ..cidm_ops.training.listing import list_folder, read_from
from . import say
from .schema import schema, validate

ConceptDataset = io.Custom("CIDM_DATASET")
READING = "reading picture {} of {}"
MORE = range(2, 8)  # numbers of the inputs for single pictures


def picture_folder(folder: str) -> Path:
    """A folder by its name inside the host's input folder, or by its full path."""
    return Path(folder_paths.get_input_directory()) / folder


def folder_state(folder: str) -> list[tuple[str, int, int]]:
    """Changes when a picture, caption or mask of a folder does. Only what is read from it is looked at."""
    return list(read_from(picture_folder(folder)))


def find_pictures(folder: str) -> None:
    """Raises ``FileNotFoundError`` for a folder that is missing or has no pictures."""
    list_folder(picture_folder(folder))


def lines_of(captions: str, count: int) -> list[str]:
    """One caption per line; none at all stands for the class word alone."""
    return captions.split("\n") if captions.strip() else [""] * count


def folder_input() -> io.String.Input:
    return io.String.Input(
        "folder", default="my_concept", tooltip="Name of a folder in ComfyUI's input folder, or the full path of any folder."
    )


def fit_inputs() -> list[io.Input]:
    return [
        io.Int.Input(
            "size",
            default=0,
            min=0,
            max=2048,
            step=64,
            tooltip="Training size in pixels. 0: that of the base that learns from them, 512 for SD 1.5, 1024 for SDXL, 128 for Doodle.",
        ),
        io.Combo.Input(
            "fit",
            options=list(FITS),
            default="buckets",
            tooltip="buckets: the shape nearest to each picture's own. centre: the middle square. random: another crop or padding at "
            "every step, as in the paper's code. as_given: the pictures as they are.",
        ),
        io.Boolean.Input(
            "flip", default=False, tooltip="Mirror every second picture. Leave it off for anything with writing, a face or a parting."
        ),
    ]


class CIDMLoadConceptImages(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="CIDMLoadConceptImages",
            display_name="Load Concept Images",
            aliases="load images, load image folder, load dataset, training images, photos, captions, batch images",
            category="CIDM",
            description="Loads 4 to 7 pictures of one thing or style from a folder. A caption may lie beside each picture "
            "(photo1.txt for photo1.jpg) and a mask (photo1_mask.png).",
            inputs=[
                folder_input(),
                io.Int.Input(
                    "size",
                    default=512,
                    min=64,
                    max=2048,
                    step=64,
                    tooltip="Pictures are centre-cropped to a square of this many pixels. Doodle: 128.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="images", tooltip="The pictures, square."),
                io.String.Output(display_name="captions", tooltip="One caption per line, in the order of the pictures."),
                io.Mask.Output(display_name="masks", tooltip="Where the thing is; all of the picture where there is no mask file."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, folder: str | None = None) -> bool | str:
        return validate(find_pictures, folder)

    @classmethod
    def fingerprint_inputs(cls, folder: str, size: int) -> list[tuple[str, int, int]]:
        return folder_state(folder)

    @classmethod
    def execute(cls, folder: str, size: int) -> io.NodeOutput:
        data = from_folder(picture_folder(folder), size, on_picture=say.progress(cls.hidden.unique_id, READING))
        drawn = [data.draw(i, False, random.Random(0)) for i in range(len(data))]
        images = torch.stack([picture for picture, _ in drawn]).movedim(1, -1) / 2 + 0.5
        masks = torch.stack([torch.ones(size, size) if mask is None else mask[0] for _, mask in drawn])
        return say.output(cls, images, "\n".join(data.captions), masks, text=f"{len(data)} pictures", warnings=data.warnings)


class CIDMDatasetFromFolder(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="CIDMDatasetFromFolder",
            display_name="Concept Dataset from Folder",
            aliases="load image folder, load dataset, training images, photos, captions, kohya folder, buckets, mask",
            category="CIDM/training",
            description="The pictures of one concept from a folder, in their own shapes. Captions: photo1.txt. Masks: photo1_mask.png, "
            "masks/photo1.png, or what is transparent. Folders named 10_dog count ten times.",
            inputs=[folder_input(), *fit_inputs()],
            outputs=[ConceptDataset.Output(display_name="dataset", tooltip="For Train Concept, in the place of images.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, folder: str | None = None) -> bool | str:
        return validate(find_pictures, folder)

    @classmethod
    def fingerprint_inputs(cls, folder: str, **how) -> list[tuple[str, int, int]]:
        return folder_state(folder)

    @classmethod
    def execute(cls, folder: str, size: int, fit: str, flip: bool) -> io.NodeOutput:
        data = from_folder(picture_folder(folder), size, fit, flip, say.progress(cls.hidden.unique_id, READING))
        return say.output(cls, data, text=f"{len(data)} pictures", warnings=data.warnings)


class CIDMDatasetFromImages(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="CIDMDatasetFromImages",
            display_name="Concept Dataset from Images",
            aliases="image list, load dataset, training images, photos, captions, my photos, mask, batch images",
            category="CIDM/training",
            description="The pictures of one concept from the graph: a batch, a list, or a Load Image for each, with captions and masks.",
            is_input_list=True,
            inputs=[
                io.Image.Input(
                    "images", tooltip="A batch, a list of pictures of different shapes, or one picture. Transparent parts are masked out."
                ),
                io.String.Input(
                    "captions", default="", multiline=True, optional=True, tooltip="One caption per line, each with the class word."
                ),
                io.Mask.Input("masks", optional=True, tooltip="Where the concept is, one mask per picture and of its size."),
                *fit_inputs(),
                *(io.Image.Input(f"image_{n}", optional=True, tooltip="Another picture, as from a Load Image.") for n in MORE),
            ],
            outputs=[ConceptDataset.Output(display_name="dataset", tooltip="For Train Concept, in the place of images.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, images, size, fit, flip, captions=("",), masks=None, **more) -> io.NodeOutput:
        images = [*images, *(image for n in MORE for image in more.get(f"image_{n}") or ())]
        count = sum(len(i) if i.ndim == 4 else 1 for i in images)
        data = from_images(images, lines_of("\n".join(captions), count), masks, size=size[0], fit=fit[0], flip=flip[0])
        return say.output(cls, data, text=f"{len(data)} pictures", warnings=data.warnings)


class CIDMPreviewDataset(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="CIDMPreviewDataset",
            display_name="Preview Concept Dataset",
            aliases="contact sheet, check dataset, look at captions, preview captions, crops, masks",
            category="CIDM/training",
            description="A contact sheet of the dataset exactly as the trainer sees it: crops, masks (what is not learned is dimmed) and "
            "captions with the concept's words in them. Says what may go wrong.",
            inputs=[
                ConceptDataset.Input("dataset", tooltip="The dataset to look at."),
                io.String.Input("name", default="dog", tooltip="The concept's name, as in Train Concept."),
                io.String.Input("class_word", default="dog", tooltip="What kind of thing it is, as in Train Concept."),
                io.Int.Input("seed", default=0, min=0, max=2**32 - 1, tooltip="Another seed shows other crops where the fit is random."),
            ],
            outputs=[io.Image.Output(display_name="sheet", tooltip="The contact sheet.")],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, dataset: Dataset, name: str, class_word: str, seed: int) -> io.NodeOutput:
        sheet, remarks = dataset_sheet(dataset, name.strip(), class_word.strip(), seed)
        return say.output(cls, sheet, text=f"{len(dataset)} pictures", warnings=remarks, picture=sheet)


DATA_NODES = [CIDMLoadConceptImages, CIDMDatasetFromFolder, CIDMDatasetFromImages, CIDMPreviewDataset]
