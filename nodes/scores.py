"""Scores of pictures: how like their references, how true to their captions, who is in them, how varied, how far from the base model's."""

import math
from contextlib import suppress
from pathlib import Path

import torch
from comfy_api.latest import io

from ..cidm_ops.measure.crops import crops
from ..cidm_ops.measure.diversity import score_diversity
from ..cidm_ops.measure.presence import score_presence
from ..cidm_ops.measure.scores import align_images, align_texts
from ..cidm_ops.measure.sections import diversity_section, image_section, presence_section, text_section, wasserstein_section
from ..cidm_ops.measure.wasserstein import wasserstein, wasserstein_interval
from ..cidm_ops.training.folder import references as read_references
from ..cidm_ops.training.listing import list_references
from . import say
from .data import READING, folder_input, picture_folder
from .encoders import FEATURE, VISION, encode_captions, encode_images, pictures_of
from .regions import RegionList
from .results import BEFORE, CATEGORY, finish, outputs
from .schema import schema

References = io.Custom("CIDM_REFERENCES")
EVERY, MEAN = "every reference", "their mean (IMS)"
REGIONS = RegionList.Input("regions", optional=True, tooltip="Score the part of every picture inside each region, instead of the whole.")


class CIDMReferences(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="CIDMReferences",
            display_name="Reference Pictures",
            aliases="reference images, ground truth, score images, evaluation",
            category=CATEGORY,
            description="Pictures of one concept under a name, for Presence. Chain one for each concept; one may be called nothing.",
            inputs=[
                io.String.Input("name", default="dog", tooltip="What the pictures show."),
                io.Image.Input("images", tooltip="Its reference pictures."),
                References.Input("references", optional=True, tooltip="Concepts before this one."),
            ],
            outputs=[References.Output(display_name="references", tooltip="For Presence, or the next Reference Pictures.")],
        )

    @classmethod
    def execute(cls, name: str, images, references=()) -> io.NodeOutput:
        if not name.strip() or name.strip() in [known for known, _ in references]:
            raise ValueError(f"name {name!r}: expected one that no other references have")
        return io.NodeOutput((*references, (name.strip(), pictures_of(images))))


class CIDMReferencesFromFolder(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="CIDMReferencesFromFolder",
            display_name="Reference Pictures from Folder",
            aliases="load reference images, image folder, ground truth, score images, evaluation",
            category=CATEGORY,
            description="References of many concepts: a folder with a subfolder of pictures for each, whose name is the concept's.",
            inputs=[folder_input()],
            outputs=[References.Output(display_name="references", tooltip="For Presence.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, folder: str) -> list[tuple[str, int, int]]:
        """Changes when a picture in one of the subfolders does. Nothing below them is looked at."""
        with suppress(OSError, ValueError):  # what is wrong is said where the pictures are read
            return [(str(f), f.stat().st_size, f.stat().st_mtime_ns) for sub in subfolders(folder) for f in list_references(sub)[0]]
        return []

    @classmethod
    def execute(cls, folder: str) -> io.NodeOutput:
        tell, subs, have, warnings = say.progress(cls.hidden.unique_id, READING.replace("picture", "folder")), subfolders(folder), [], []
        for number, sub in enumerate(subs, 1):
            tell(number, len(subs))
            pictures, remarks = read_references(sub)
            warnings += [f"{sub.name}: {remark}" for remark in remarks if pictures]
            if pictures:
                have.append((sub.name, pictures))
            else:
                warnings.append(f"{sub.name}: there are no pictures in it, so it is left out")
        if not have:
            raise ValueError(f"{picture_folder(folder)}: no subfolder with pictures in it: expected one for each concept, of its name")
        text = "\n".join(f"{name}: {len(pictures)} pictures" for name, pictures in have)
        return say.output(cls, tuple(have), text=text, warnings=warnings)


def subfolders(folder: str) -> list[Path]:
    """The folders of references in a folder. Raises ``FileNotFoundError`` for none."""
    place = picture_folder(folder)
    if not place.is_dir():
        raise FileNotFoundError(f"{place}: no such folder: give one with a subfolder of pictures for each concept")
    return sorted(sub for sub in place.iterdir() if sub.is_dir() and not sub.name.startswith("."))


class CIDMImageAlignment(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="CIDMImageAlignment",
            display_name="Image Alignment",
            aliases="clip score, image similarity, likeness, identity score, clip-i, dino, face similarity, evaluate",
            category=CATEGORY,
            description="How like a concept pictures are (IA): the mean cosine of every picture with every reference in the space of an "
            "image tower, with a 95 % interval. With regions, of the part inside each.",
            inputs=[
                io.Image.Input("images", tooltip="The pictures to score."),
                io.Image.Input("references", tooltip="Pictures of the concept that it was not taught with, if there are any."),
                VISION,
                FEATURE,
                REGIONS,
                BEFORE,
                io.Combo.Input(
                    "compare_with",
                    options=[EVERY, MEAN],
                    default=EVERY,
                    optional=True,
                    tooltip="every reference: the mean cosine with each, IA. their mean: the cosine with the mean of the references, "
                    "identity matching (IMS, our reading). The table has both.",
                ),
            ],
            outputs=outputs("Mean cosine, in [-1, 1]; with regions the mean over them."),
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, images, references, clip_vision, features, regions=None, results=None, compare_with=EVERY) -> io.NodeOutput:
        shown, known = pictures_of(images), pictures_of(references)
        named = parts(shown, regions)
        reference = encode_images(clip_vision, known, features)
        groups = {name: align_images(encode_images(clip_vision, cut, features), reference) for name, cut in named.items()}
        matched = compare_with == MEAN
        score, short = ("Identity matching", "IMS, our reading") if matched else ("Image alignment", "IA")
        title = f"{score} ({short})" if features == "image_embeds" else f"{score}, {features}"
        what = "region" if regions else "concept"
        return finish(cls, image_section(groups, [p for cut in named.values() for p in cut], known, title, what, matched), results)


class CIDMTextAlignment(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="CIDMTextAlignment",
            display_name="Text Alignment",
            aliases="clip score, prompt adherence, text similarity, clip-t, evaluate",
            category=CATEGORY,
            description="How well pictures show what their captions say (TA): 2.5 max(0, cosine) of each picture with its caption, "
            "CLIPScore's scaling, and the plain cosine. Needs the text side of the same CLIP.",
            inputs=[
                io.Image.Input("images", tooltip="The pictures to score."),
                io.String.Input(
                    "captions",
                    default="a dog on the beach",
                    multiline=True,
                    tooltip="One line for each picture, or one for all; plain words, with the class word in the place of a concept.",
                ),
                VISION,
                io.Clip.Input(
                    "clip", tooltip="The text model of the same CLIP with its projection, from Load CLIP; for Doodle Doodle Scorers."
                ),
                BEFORE,
            ],
            outputs=outputs(
                "Mean of 2.5 max(0, cosine), in [0, 2.5].",
                io.Float.Output(display_name="cosine", tooltip="The mean of the plain cosine, in [-1, 1]."),
            ),
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, images, captions: str, clip_vision, clip, results=None) -> io.NodeOutput:
        shown = pictures_of(images)
        lines = one_each(captions, len(shown), "captions")
        embeddings = encode_images(clip_vision, shown)
        score = align_texts(embeddings, encode_captions(clip, lines, embeddings.shape[1]))
        return finish(cls, text_section({"pictures": score}, shown, lines), results, float(score.cosines.mean()))


class CIDMPresence(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="CIDMPresence",
            display_name="Presence",
            aliases="object detection, count subjects, is it there, missing character, evaluate",
            category=CATEGORY,
            description="Which concept pictures or regions show: the one whose references lie nearest. Counts how often it is the "
            "expected one.",
            inputs=[
                io.Image.Input("images", tooltip="The pictures."),
                References.Input("references", tooltip="Reference pictures of at least two concepts; one of them may be called nothing."),
                io.String.Input(
                    "expected",
                    default="dog",
                    multiline=True,
                    tooltip="The concept that should be there: one line for each region, or without regions one for each picture or for "
                    "all.",
                ),
                VISION,
                FEATURE,
                REGIONS,
                BEFORE,
            ],
            outputs=outputs(
                "How often the expected concept was found, in [0, 1].",
                io.String.Output(display_name="found", tooltip="The concept found in each picture or crop, one a line."),
                behind=[
                    io.Float.Output(
                        display_name="collapsed",
                        tooltip="How often a picture is near to no reference of the expected concept, in [0, 1].",
                    )
                ],
            ),
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, images, references, expected: str, clip_vision, features, regions=None, results=None) -> io.NodeOutput:
        shown = pictures_of(images)
        known = {name: encode_images(clip_vision, pictures, features) for name, pictures in references}
        named = parts(shown, regions)
        wanted = one_each(expected, len(named) if regions else len(shown), "expected")
        cut = [p for pictures in named.values() for p in pictures]
        if regions:
            wanted = [want for want in wanted for _ in shown]
        score = score_presence(known, encode_images(clip_vision, cut, features), wanted)
        collapsed = score.collapsed.value if score.collapsed else math.nan
        return finish(cls, presence_section(score, cut), results, "\n".join(score.found), behind=[collapsed])


class CIDMDiversity(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="CIDMDiversity",
            display_name="Diversity",
            aliases="variety, mode collapse, overfitting, lpips, vendi, evaluate",
            category=CATEGORY,
            description="How varied pictures are: the mean of 1 - cosine over all pairs, beside pictures of the base model if there are "
            "any.",
            inputs=[
                io.Image.Input("images", tooltip="At least two pictures, of one prompt with different seeds or of many."),
                VISION,
                FEATURE,
                io.Image.Input("base", optional=True, tooltip="Pictures of the base model for the same prompts, to compare with."),
                BEFORE,
            ],
            outputs=outputs("Mean 1 - cosine over all pairs: 0 where all pictures are the same."),
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, images, clip_vision, features, base=None, results=None) -> io.NodeOutput:
        shown = pictures_of(images)
        other = None if base is None else encode_images(clip_vision, pictures_of(base), features)
        return finish(cls, diversity_section(score_diversity(encode_images(clip_vision, shown, features), other), shown), results)


class CIDMWasserstein(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="CIDMWasserstein",
            display_name="Wasserstein Metric (our estimator)",
            aliases="drift, distribution distance, overfitting, compare models, evaluate",
            category=CATEGORY,
            description="How far the customised model's pictures are from the original's, as squared 2-Wasserstein distance of "
            "Gaussians, mean and covariance apart, with its noise floor. Pictures that get alike show in the covariance and the ratio of "
            "spreads.",
            inputs=[
                io.Image.Input("base", tooltip="Pictures of the original model: the class word, many seeds."),
                io.Image.Input("images", tooltip="Pictures of the customised model: the concept, the same prompts."),
                VISION,
                FEATURE,
                BEFORE,
            ],
            outputs=outputs(
                "W2 squared: mean and covariance term together.",
                io.Float.Output(display_name="covariance", tooltip="The covariance term alone."),
                io.Float.Output(display_name="ratio", tooltip="Spread of the customised over the original's: below 1 they are more alike."),
            ),
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, base, images, clip_vision, features, results=None) -> io.NodeOutput:
        original, shown = pictures_of(base), pictures_of(images)
        x, y = encode_images(clip_vision, original, features), encode_images(clip_vision, shown, features)
        found = wasserstein(x, y)
        section = wasserstein_section(found, wasserstein_interval(x, y), (x, y), (original, shown))
        return finish(cls, section, results, found.covariance, found.ratio)


def parts(pictures: list[torch.Tensor], regions) -> dict[str, list[torch.Tensor]]:
    """The whole pictures, or what of them is in each region."""
    if not regions:
        return {"pictures": pictures}
    return {f"{i + 1}: {text}": crops(torch.stack(pictures), place.mask) for i, (text, place) in enumerate(regions)}


def one_each(text: str, count: int, what: str) -> list[str]:
    """One line for each, or the same for all. Raises ``ValueError`` for any other number of lines."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if len(lines) not in (1, count):
        raise ValueError(f"{what} has {len(lines)} lines: expected one for all, or {count}")
    return lines * count if len(lines) == 1 else lines


SCORE_NODES = [
    CIDMReferences,
    CIDMReferencesFromFolder,
    CIDMImageAlignment,
    CIDMTextAlignment,
    CIDMPresence,
    CIDMDiversity,
    CIDMWasserstein,
]
