"""Contrast of words: what new concepts are called is told apart by an image tower, before and while the model learns them."""

from typing import Any

import comfy.clip_vision
import comfy.sd
import torch
from comfy.utils import ProgressBar
from comfy_api.latest import io
from torch import Tensor

from ..cidm_ops.bank.bank import Bank
from ..cidm_ops.doodle import files
from ..cidm_ops.doodle.concepts import common_things
from ..cidm_ops.fingerprint import fingerprint
from ..cidm_ops.models.sd import DOODLE
from ..cidm_ops.tokens import concept_words
from ..cidm_ops.training.canvases import CutOut, Lesson, canvases_of, cut_drawn
from ..cidm_ops.training.config import EXISTING
from ..cidm_ops.training.contrasting import ContrastConfig, check_lessons, contrast_into
from ..cidm_ops.training.dataset import Dataset
from ..cidm_ops.training.prior import COMMON, paint_common
from ..cidm_ops.training.spaces import CLIP_SCALE, Contrast, Space, own_projections, space_for
from ..cidm_ops.training.together import parse_names
from . import host, say
from .bank import ConceptBank
from .data import ConceptDataset
from .encoders import image_encoder, projection_to
from .schema import schema, validate
from .settings import ContrastBy
from .train import advanced, backbone_of, base_inputs, count, dataset_of, rate

MORE = range(2, 5)  # numbers of the inputs for further concepts
SHOWN = 16  # canvases that the node gives
RENDERED = 24  # common things of Doodle
DEFAULTS = ContrastConfig()


class CIDMContrastWords(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        def of(number: int) -> str:
            return f"Pictures of the concept in line {number} of the names"

        return schema(
            node_id="CIDMContrastWords",
            display_name="Contrast Words",
            aliases="clif, contrastive, contrast concepts, clip training, textual inversion, embedding, confused concepts, mixed up, "
            "similar characters, two dogs, tell apart, disambiguate, multi concept, hard negatives",
            category="CIDM/training",
            description="Tells the words of new concepts apart before anything else learns them (CLIF): on canvases of cut-outs they "
            "follow what an image tower sees, and keep away from each other and from the words of the bank's concepts, which stay as they "
            "are. The bank then has their words alone: train them with existing set to continue in Training Settings.",
            inputs=[
                *base_inputs(),
                ConceptBank.Input("bank", tooltip="The bank that the words go into. Those of its concepts are kept away from."),
                io.ClipVision.Input(
                    "clip_vision",
                    tooltip="The image tower that sees the canvases: CLIP-L for Stable Diffusion 1.5, CLIP bigG for SDXL, that of Doodle "
                    "Model for Doodle.",
                ),
                io.MultiType.Input("images", [io.Image, ConceptDataset], tooltip=f"{of(1)}, or a concept dataset, which brings masks."),
                io.Mask.Input("masks", optional=True, tooltip="Where it is in each of them; without masks its surroundings come along."),
                io.String.Input(
                    "names",
                    default="rex: dog",
                    multiline=True,
                    tooltip="One concept per line: its own name, and what kind of thing it is. Each line has its input for pictures; up to "
                    "four.",
                ),
                count("steps", 100000, "How many steps at most."),
                io.Int.Input(
                    "seed", default=0, min=0, max=2**32 - 1, control_after_generate=False, tooltip="The same seed makes the same words."
                ),
                io.Combo.Input(
                    "existing",
                    options=list(EXISTING[:2]),
                    default=EXISTING[0],
                    tooltip="What to do when the bank has a concept of a name that was made in any other way: replace it, or refuse to.",
                ),
                io.String.Input(
                    "common",
                    default="",
                    tooltip=f"Things that the base paints, to stand beside the concepts, with commas between. Empty: {', '.join(COMMON)}; "
                    "for Doodle things of its own.",
                ),
                advanced(io.Int.Input("canvases", default=DEFAULTS.canvases, min=8, max=65536, tooltip="How many canvases are drawn.")),
                advanced(io.Int.Input("batch_size", default=DEFAULTS.batch, min=2, max=1024, tooltip="Canvases of a step.")),
                rate("learning_rate", "Learning rate of the words; it decays to zero."),
                advanced(
                    io.Float.Input(
                        "token_norm_stop",
                        default=0.0,
                        min=0.0,
                        max=100.0,
                        step=0.01,
                        tooltip="When the mean length of the words' embeddings reaches this, they stop. 0: what suits the base.",
                    )
                ),
                io.Clip.Input(
                    "text_side",
                    optional=True,
                    tooltip="The whole CLIP of the image tower, from Load CLIP, for its text projection: needed for CLIP-L. SDXL has that "
                    "of bigG itself, and Doodle has a bridge.",
                ),
                io.ClipVision.Input(
                    "clip_vision_2", optional=True, tooltip="Another image tower, as CLIP-L beside bigG for SDXL: both sets of words learn."
                ),
                *(
                    slot
                    for n in MORE
                    for slot in (
                        io.MultiType.Input(f"images_{n}", [io.Image, ConceptDataset], optional=True, tooltip=f"{of(n)}."),
                        io.Mask.Input(f"masks_{n}", optional=True, tooltip="Where it is in each of them."),
                    )
                ),
            ],
            outputs=[
                ConceptBank.Output(display_name="bank", tooltip="The bank with the words, for Train Concept with existing on continue."),
                ContrastBy.Output(display_name="contrast", tooltip="The tower and the common things, for Training Settings."),
                io.Image.Output(display_name="canvases", tooltip="The first canvases, to look at."),
                io.LossMap.Output(display_name="loss", tooltip="The loss of every step, for Plot Loss Graph."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, names: str | None = None) -> bool | str:
        return validate(parse_lines, names)

    @classmethod
    def execute(
        cls, model, clip, vae, bank: Bank, clip_vision, images, names: str, steps: int, seed: int, existing: str, common: str,
        canvases: int, batch_size: int, learning_rate: float, token_norm_stop: float, masks=None, text_side=None, clip_vision_2=None,
        **more,
    ) -> io.NodeOutput:  # fmt: skip
        backbone, node = backbone_of(model, clip, vae, transformers=False), cls.hidden.unique_id
        given = {1: (images, masks)} | {n: (more.get(f"images_{n}"), more.get(f"masks_{n}")) for n in MORE}
        lessons = lessons_of(names, given)
        chosen = {"steps": steps, "lr": learning_rate, "norm_stop": token_norm_stop}
        config = ContrastConfig.suiting(
            backbone.family, batch=batch_size, canvases=canvases, seed=seed, **{name: value for name, value in chosen.items() if value}
        )
        towers = [tower for tower in (clip_vision, clip_vision_2) if tower is not None]
        bar, tell = ProgressBar(config.steps), say.progress(node, "step {} of {}")

        def on_step(step: int, count: int, loss: float) -> None:
            tell(step, count)
            bar.update_absolute(step, count)

        with torch.inference_mode(False):  # the executor runs nodes without gradients
            spaces = tuple(space_of(backbone, tower, text_side) for tower in towers)
            by = Contrast(spaces, common_of(backbone, common, max(space.side for space in spaces), seed, node))
            check_lessons(lessons, by)
            told = contrast_into(Bank(bank.folder), backbone, by, lessons, config, existing, on_step)
            shown = sheet_of(lessons, by, seed)
        before, after = told.found
        how = f"{len(told.losses)} steps" if told.losses else "they were there already"
        said = ", ".join(f"<{lesson.name}>" for lesson in lessons)
        text = f"{said}: a canvas is found by its text among those of all, {before:.2f} before, {after:.2f} after ({how})"
        return say.output(cls, told.bank, by, shown, {"loss": told.losses}, text=text, warnings=told.warnings)


def parse_lines(names: str) -> dict[str, str]:
    """Returns class words by name of lines ``name: class word``. Raises ``ValueError`` for other lines, and for more than inputs."""
    concepts, most = parse_names(names.splitlines(), ":", least=1), max(MORE)
    if len(concepts) > most:
        raise ValueError(f"{len(concepts)} names: expected at most {most}, each with its input for pictures")
    return concepts


def lessons_of(names: str, given: dict[int, tuple[Any, Tensor | None]]) -> list[Lesson]:
    """Returns a lesson for each line of the names, with the pictures of the input of its number. Raises ``ValueError`` if one has none, or
    if pictures have no line.
    """
    concepts, lessons = parse_lines(names), []
    for number, (name, class_word) in enumerate(concepts.items(), 1):
        images, masks = given[number]
        slot = "images" if number == 1 else f"images_{number}"
        if images is None:
            raise ValueError(f"<{name}> is in line {number} of the names, and nothing is connected to {slot}: connect its pictures")
        data = dataset_of(images, "", masks)
        if isinstance(images, Dataset) and masks is not None:
            raise ValueError(f"<{name}>: a concept dataset brings its own masks: leave the other ones off")
        lessons.append(Lesson(name, class_word, data))
    if idle := [n for n, (images, _) in given.items() if images is not None and n > len(concepts)]:
        raise ValueError(f"there are pictures at images_{idle[0]}, and {len(concepts)} names: give each a line, such as spot: dog")
    return lessons


def space_of(backbone: host.ComfyBackbone, tower: comfy.clip_vision.ClipVisionModel, text_side: comfy.sd.CLIP | None) -> Space:
    """Returns the space of an image tower, with the projection of ``text_side`` where that leads to it, or with Doodle's bridge.

    Raises ``ValueError`` if no text encoder of the base leads into it.
    """
    encode, side = image_encoder(tower, "image_embeds"), tower.image_size
    with torch.no_grad():
        width = encode(torch.zeros(1, 3, side, side)).shape[1]
    bridged, projection = backbone.architecture == DOODLE.architecture, None
    if bridged:
        projection = files.bridge_weight()
    elif text_side is not None and not (width in own_projections(backbone).values() and width not in widths_of(text_side)):
        projection = projection_to(text_side, width)[2].detach().clone()
    weights = list(tower.model.parameters())
    known = fingerprint([weights[0], weights[-1]])

    def see(pictures: Tensor) -> Tensor:
        return encode(pictures).to(backbone.device)

    return space_for(backbone, see, width, projection, scale=files.SCALE if bridged else CLIP_SCALE, side=side, about=known)


def widths_of(clip: comfy.sd.CLIP) -> set[int]:
    """The widths of the spaces that the text encoders of a CLIP have projections to."""
    parts = [part.transformer for part in clip.cond_stage_model.children() if hasattr(part, "transformer")]
    return {part.text_projection.weight.shape[0] for part in parts if hasattr(part, "text_projection")}


def common_of(backbone: host.ComfyBackbone, common: str, side: int, seed: int, node: str) -> tuple[CutOut, ...]:
    """Returns what stands beside the concepts: the things that are named, painted by the base; else those that suit it."""
    words = [word.strip() for word in common.split(",") if word.strip()]
    if not words and backbone.architecture == DOODLE.architecture:
        return tuple(cut_drawn(common_things(RENDERED, seed)))
    return paint_common(backbone, words or COMMON, side, seed, say.progress(node, "painting {} of {} common things"))


def sheet_of(lessons: list[Lesson], by: Contrast, seed: int) -> Tensor:
    """Returns the first canvases ``[B, S, S, 3]`` in [0, 1]; nothing is chosen."""
    words = {lesson.name: concept_words(lesson.name, lesson.class_word) for lesson in lessons}
    canvases = canvases_of(lessons, words, by.common, SHOWN, by.side, seed)
    return torch.stack([canvas.picture for canvas in canvases]).movedim(1, -1) / 2 + 0.5


CONTRAST_NODES = [CIDMContrastWords]
