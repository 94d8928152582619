"""Learning: pictures from a folder, and one concept into the bank."""

from pathlib import Path

import folder_paths
import torch
from comfy_api.latest import io

from ..cidm_ops.bank.bank import Bank
from ..cidm_ops.run.data import OBJECT_TEMPLATES, PICTURES, STYLE_TEMPLATES, ConceptImages, from_folder
from ..cidm_ops.run.task import learn_into
from ..cidm_ops.run.training import Recipe
from . import host, say
from .bank import ConceptBank

TEMPLATES = {"thing": OBJECT_TEMPLATES, "style": STYLE_TEMPLATES}
DEFAULTS = Recipe()


def advanced(field):
    """Fold an input away until it is asked for; the schemas of 0.3.64 have no word for that yet."""
    field.extra_dict["advanced"] = True
    return field


def rate(name, default, tooltip):
    return advanced(io.Float.Input(name, default=default, min=0.0, max=1.0, step=1e-6, round=1e-7, tooltip=tooltip))


def picture_folder(folder: str) -> Path:
    """A folder by its name inside the host's input folder, or by its full path."""
    return Path(folder_paths.get_input_directory()) / folder


class CIDMLoadConceptImages(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CIDMLoadConceptImages",
            display_name="Load Concept Images",
            category="CIDM",
            description="Loads 4 to 7 pictures of one thing or style from a folder. A caption may lie beside each picture "
            "(photo1.txt for photo1.jpg) and a mask (photo1_mask.png).",
            inputs=[
                io.String.Input(
                    "folder", default="my_concept", tooltip="Name of a folder in ComfyUI's input folder, or the full path of any folder."
                ),
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
    def fingerprint_inputs(cls, folder: str, size: int) -> list[tuple[str, int, int]]:
        """Changes when a picture, caption or mask does."""
        place = picture_folder(folder)
        files = sorted(f for f in place.iterdir() if f.suffix.lower() in (*PICTURES, ".txt")) if place.is_dir() else []
        return [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]

    @classmethod
    def execute(cls, folder: str, size: int) -> io.NodeOutput:
        data = from_folder(picture_folder(folder), size)
        images = (data.pictures.movedim(1, -1) + 1) / 2
        masks = images.new_ones(images.shape[:3]) if data.masks is None else data.masks[:, 0]
        captions = "\n".join(" ".join(caption.split()) for caption in data.captions)
        return say.output(cls, images, captions, masks, text=f"{len(images)} pictures", warnings=data.warnings)


def concept_images(images, captions: str, mask) -> ConceptImages:
    """The host's pictures ``[N, H, W, 3]`` in [0, 1], captions by line and masks ``[N, H, W]`` as training data.

    No caption at all stands for the class word alone. Raises ``ValueError`` if the numbers do not agree.
    """
    lines = captions.split("\n") if captions.strip() else [""] * len(images)
    height, width = (size // 8 * 8 for size in images.shape[1:3])
    pictures = images[:, :height, :width, :3].movedim(-1, 1).clone() * 2 - 1
    if mask is not None and mask.shape[:3] != images.shape[:3]:
        raise ValueError(
            f"masks of shape {tuple(mask.shape)} for pictures of shape {tuple(images.shape)}: give one mask of the same size per picture"
        )
    return ConceptImages(pictures, lines, None if mask is None else mask[:, None, :height, :width].clone())


class CIDMTrainConcept(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CIDMTrainConcept",
            display_name="Train Concept",
            category="CIDM",
            description="Learns one concept from a few pictures and puts it into the bank. Concepts that are in the bank already stay as "
            "they are. Chain several through the bank: they are learned in that order. The same task again costs nothing; the same name "
            "with anything else changed replaces that concept. Cancel leaves the bank as it was.",
            inputs=[
                io.Model.Input("model", tooltip="The base model (Stable Diffusion 1.x or Doodle). It stays as it is."),
                io.Clip.Input("clip", tooltip="Its text encoder. It stays as it is."),
                io.Vae.Input("vae", tooltip="Its autoencoder."),
                ConceptBank.Input(
                    "bank", tooltip="The bank that the concept goes into. What it holds already is kept apart while learning."
                ),
                io.Image.Input("images", tooltip="4 to 7 pictures of the concept, for Stable Diffusion 1.5 of 512 pixels."),
                io.String.Input(
                    "captions",
                    default="",
                    multiline=True,
                    force_input=True,
                    optional=True,
                    tooltip="One caption per line, in the order of the pictures, each with the class word in it. "
                    "Without captions the class word stands alone.",
                ),
                io.Mask.Input(
                    "masks",
                    optional=True,
                    tooltip="Where the concept is in each picture: only that part is learned. Leave it off for a style.",
                ),
                io.String.Input("name", default="dog", tooltip="The concept's own name. In prompts it is written <name>."),
                io.String.Input(
                    "class_word", default="dog", tooltip="What kind of thing it is, as the captions say it: dog, teddy bear, painting."
                ),
                io.Combo.Input("kind", options=list(TEMPLATES), default="thing", tooltip="A thing to be seen, or a style of painting."),
                io.Int.Input(
                    "steps",
                    default=DEFAULTS.steps,
                    min=1,
                    max=100000,
                    tooltip="How many training steps. Several hundred for 4 to 7 pictures.",
                ),
                io.Int.Input(
                    "seed", default=0, min=0, max=2**32 - 1, control_after_generate=False, tooltip="The same seed learns the same concept."
                ),
                advanced(io.Int.Input("batch_size", default=DEFAULTS.batch, min=1, max=64, tooltip="Pictures per step.")),
                advanced(io.Int.Input("rank", default=DEFAULTS.rank, min=1, max=128, tooltip="Rank of the low-rank factors.")),
                rate("learning_rate", DEFAULTS.lr, "Learning rate of the factors; it decays to zero."),
                rate("token_learning_rate", DEFAULTS.lr_tokens, "Learning rate of the concept's words; it decays to zero."),
                advanced(
                    io.Float.Input(
                        "consolidation",
                        default=DEFAULTS.consolidation,
                        min=0.0,
                        max=100.0,
                        step=0.01,
                        tooltip="How hard the concept is kept out of the subspaces of earlier ones; 0 turns that off.",
                    )
                ),
                advanced(
                    io.Float.Input(
                        "token_norm_stop",
                        default=DEFAULTS.norm_stop,
                        min=0.0,
                        max=100.0,
                        step=0.01,
                        tooltip="When the mean length of the words' embeddings reaches this, they stop learning and only the factors go "
                        "on. Stable Diffusion 1.5: 0.55; Doodle, whose words are longer: 2.",
                    )
                ),
            ],
            outputs=[
                ConceptBank.Output(display_name="bank", tooltip="The bank with the concept in it, for the next task or for painting."),
                io.LoraModel.Output(
                    display_name="lora", tooltip="The concept's factors as a LoRA, for ComfyUI's own nodes. Its words are only in the bank."
                ),
                io.LossMap.Output(display_name="loss", tooltip="The loss of every step, for Plot Loss Graph."),
                io.Int.Output(display_name="steps", tooltip="How many steps were trained."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls, model, clip, vae, bank: Bank, images, name: str, class_word: str, kind: str, steps: int, seed: int, batch_size: int, rank: int,
        learning_rate: float, token_learning_rate: float, consolidation: float, token_norm_stop: float, captions: str = "", masks=None,
    ) -> io.NodeOutput:  # fmt: skip
        recipe = Recipe(
            steps=steps,
            batch=batch_size,
            rank=rank,
            lr=learning_rate,
            lr_tokens=token_learning_rate,
            consolidation=consolidation,
            norm_stop=token_norm_stop,
            templates=TEMPLATES[kind],
            seed=seed,
        )
        with torch.inference_mode(False):  # the executor runs nodes without gradients
            data = concept_images(images, captions, masks)
            backbone = host.ComfyBackbone(model, clip, vae)
            on_step = say.training_progress(cls.hidden.unique_id)
            current = Bank(bank.folder)  # another branch of the graph may have added to it
            bank, concept, losses = learn_into(
                current, backbone, data, name=name.strip(), class_word=class_word.strip(), recipe=recipe, on_step=on_step
            )
        text = f"{concept.name} learned as task {bank.headers[concept.name]['task']}, loss {sum(losses[-50:]) / len(losses[-50:]):.4f}"
        lora = host.lora_model(model, concept.factors)
        return say.output(cls, bank, lora, {"loss": losses}, len(losses), text=text, warnings=data.warnings)


TRAIN_NODES = [CIDMLoadConceptImages, CIDMTrainConcept]
