"""Learning one concept into the bank."""

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

import torch
from comfy_api.latest import io

from ..cidm_ops.bank.bank import Bank
from ..cidm_ops.bank.concept import Concept
from ..cidm_ops.run.captions import TEMPLATES
from ..cidm_ops.run.dataset import Dataset, from_images
from ..cidm_ops.run.recipe import Recipe
from ..cidm_ops.run.task import EXISTING, learn_into
from . import host, patches, say
from .bank import ConceptBank
from .data import ConceptDataset, lines_of
from .settings import TrainingSettings

DEFAULTS = Recipe()


def advanced(field):
    """Fold an input away until it is asked for; the schemas of 0.3.64 have no word for that yet."""
    field.extra_dict["advanced"] = True
    return field


def rate(name, default, tooltip):
    return advanced(io.Float.Input(name, default=default, min=0.0, max=1.0, step=1e-6, round=1e-7, tooltip=tooltip))


class CIDMTrainConcept(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CIDMTrainConcept",
            display_name="Train Concept",
            category="CIDM",
            description="Learns one concept from a few pictures and puts it into the bank. Concepts that are in the bank already stay as "
            "they are. Chain several through the bank: they are learned in that order. The same task again costs nothing; the same name "
            "with anything else changed replaces that concept. Cancel leaves the bank as it was and keeps the run, which goes on when "
            "queued again.",
            inputs=[
                io.Model.Input("model", tooltip="The base model (Stable Diffusion 1.x, SDXL or Doodle). It stays as it is."),
                io.Clip.Input("clip", tooltip="Its text encoder. It stays as it is."),
                io.Vae.Input("vae", tooltip="Its autoencoder."),
                ConceptBank.Input(
                    "bank", tooltip="The bank that the concept goes into. What it holds already is kept apart while learning."
                ),
                io.MultiType.Input(
                    "images",
                    [io.Image, ConceptDataset],
                    tooltip="4 to 7 pictures of the concept, for Stable Diffusion 1.5 of 512 pixels; or a concept dataset, which brings "
                    "its own captions and masks.",
                ),
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
                io.Combo.Input(
                    "kind",
                    options=list(TEMPLATES),
                    default="thing",
                    tooltip="A thing to be seen, or a style of painting, which is learned with other phrases and leaves the other words "
                    "of a prompt alone.",
                ),
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
                TrainingSettings.Input(
                    "settings", optional=True, tooltip="More settings, from Training Settings; they go before the ones here."
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
        settings: dict[str, Any] | None = None,
    ) -> io.NodeOutput:  # fmt: skip
        recipe = Recipe(
            steps=steps,
            batch=batch_size,
            rank=rank,
            lr=learning_rate,
            lr_tokens=token_learning_rate,
            consolidation=consolidation,
            norm_stop=token_norm_stop,
            kind=kind,
            templates=TEMPLATES[kind],
            seed=seed,
        )
        given = settings or {}
        recipe = replace(recipe, **{f.name: given[f.name] for f in fields(Recipe) if f.name in given})
        bank, concept, losses, warnings = learn(cls, (model, clip, vae), bank, images, captions, masks, name, class_word, recipe, given)
        text = f"{concept.name} learned as task {bank.headers[concept.name]['task']}, loss {sum(losses[-50:]) / len(losses[-50:]):.4f}"
        lora = patches.lora_model(model, concept.factors)
        return say.output(cls, bank, lora, {"loss": losses}, len(losses), text=text, warnings=warnings)


def learn(
    cls: type[io.ComfyNode], parts: tuple[Any, Any, Any], bank: Bank, images: Any, captions: str, masks: Any, name: str, class_word: str,
    recipe: Recipe, given: Mapping[str, Any],
) -> tuple[Bank, Concept, list[float], list[str]]:  # fmt: skip
    """What every training node does: a concept learned into a bank with the host's model, text encoder and VAE, and what ``given`` by
    Training Settings is not of the recipe. Returns the bank, the concept, its losses, and warnings.
    """
    model, clip, vae = parts
    with torch.inference_mode(False):  # the executor runs nodes without gradients
        data = images if isinstance(images, Dataset) else from_images(images, lines_of(captions, len(images)), masks)
        data = replace(data, warnings=data.remarks(class_word))
        if recipe.method == "infusion" and all(mask is None for mask in data.masks):
            data.warnings.append("there are no masks: the surroundings of the concept are learned too; give masks")
        if vae is None:
            raise ValueError("there is no VAE, as in files of the diffusion model alone: connect one")
        node = cls.hidden.unique_id
        bank, concept, losses = learn_into(
            Bank(bank.folder),  # another branch of the graph may have added to it
            host.ComfyBackbone(model, clip, vae),
            data,
            name=name.strip(),
            class_word=class_word.strip(),
            recipe=recipe,
            existing=given.get("existing", EXISTING[0]),
            prior=given.get("prior_dataset"),
            on_step=say.training_progress(node, given.get("preview_every", 0), given.get("preview_prompt", "")),
            on_picture=say.progress(node, "painting {} of {} pictures of the plain class"),
        )
    return bank, concept, losses, data.warnings


TRAIN_NODES = [CIDMTrainConcept]
