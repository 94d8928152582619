"""Learning one concept into the bank."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from comfy_api.latest import io

from ..cidm_ops.bank.bank import Bank
from ..cidm_ops.models.family import Family
from ..cidm_ops.training.captions import TEMPLATES
from ..cidm_ops.training.config import EXISTING, TrainingConfig
from ..cidm_ops.training.dataset import Dataset, from_images
from ..cidm_ops.training.method import Method, Task
from ..cidm_ops.training.methods import configure, configure_for, method_named
from ..cidm_ops.training.task import Learned
from ..cidm_ops.training.together import learn_together
from ..cidm_ops.training.trainer import Trainer
from . import host, patches, say
from .bank import ConceptBank
from .data import ConceptDataset, lines_of
from .joint_learning import ComfyTransformerBackbone
from .schema import schema, validate
from .settings import TrainingSettings

DEFAULTS = configure("cidm").settings()
JOINT, UNSET = "lora", object()  # the method where all layers read one text, and no value at all
AUTOMATIC = "0: what suits the base."
PREVIEWS = 8  # pictures of what is learned so far, where nothing else is said


def advanced(field):
    """Fold an input away until it is asked for; the schemas of 0.3.64 have no word for that yet."""
    field.extra_dict["advanced"] = True
    return field


def count(name: str, most: int, tooltip: str) -> io.Int.Input:
    """A number of steps or pictures, 0 for what suits the base."""
    return io.Int.Input(name, default=0, min=0, max=most, tooltip=f"{tooltip} {AUTOMATIC}")


def rate(name: str, tooltip: str) -> io.Float.Input:
    """A learning rate, 0 for what suits the base."""
    return advanced(io.Float.Input(name, default=0.0, min=0.0, max=1.0, step=1e-6, round=1e-7, tooltip=f"{tooltip} {AUTOMATIC}"))


def base_inputs(transformers: bool = False) -> list[io.Input]:
    """The inputs of a training node that are the model it learns on."""
    kinds = (
        ": Stable Diffusion 1.x, SDXL or Doodle; or Flux.1, Flux.2 Klein, Chroma, Stable Diffusion 3.5, Anima, Krea 2, "
        "Lumina 2, Z-Image or Qwen-Image"
        if transformers
        else " (Stable Diffusion 1.x, SDXL or Doodle)"
    )
    return [
        io.Model.Input("model", tooltip=f"The base model{kinds}. It stays as it is."),
        io.Clip.Input("clip", tooltip="Its text encoder. It stays as it is."),
        io.Vae.Input("vae", tooltip="Its autoencoder."),
    ]


def run_outputs() -> list[io.Output]:
    """The outputs of a training node that tell of its run."""
    return [
        io.LossMap.Output(display_name="loss", tooltip="The loss of every step, for Plot Loss Graph."),
        io.Int.Output(display_name="steps", tooltip="How many steps were trained."),
    ]


class CIDMTrainConcept(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="CIDMTrainConcept",
            display_name="Train Concept",
            aliases="train lora, lora training, dreambooth, textual inversion, embedding, finetune, fine-tune, learn, teach, "
            "character, style, face, person, personalize, custom diffusion, ed-lora, pivotal tuning, continual learning",
            category="CIDM",
            description="Learns one concept from a few pictures and puts it into the bank. Concepts that are in the bank already stay as "
            "they are. Chain several through the bank: they are learned in that order. The same task again costs nothing; the same name "
            "with anything else changed replaces that concept. Cancel leaves the bank as it was and keeps the run, which goes on when "
            "queued again.",
            inputs=[
                *base_inputs(transformers=True),
                ConceptBank.Input(
                    "bank", tooltip="The bank that the concept goes into. What it holds already is kept apart while learning."
                ),
                io.MultiType.Input(
                    "images",
                    [io.Image, ConceptDataset],
                    tooltip="4 to 7 pictures of the concept, for Stable Diffusion 1.5 of 512 pixels; or a concept dataset, which fits "
                    "pictures of any size and brings its own captions and masks.",
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
                count("steps", 100000, "How many training steps. Several hundred for 4 to 7 pictures."),
                io.Int.Input(
                    "seed", default=0, min=0, max=2**32 - 1, control_after_generate=False, tooltip="The same seed learns the same concept."
                ),
                advanced(count("batch_size", 64, "Pictures per step.")),
                advanced(io.Int.Input("rank", default=DEFAULTS["rank"], min=1, max=128, tooltip="Rank of the low-rank factors.")),
                rate("learning_rate", "Learning rate of the factors; it decays to zero."),
                rate("token_learning_rate", "Learning rate of the concept's words; it decays to zero."),
                advanced(
                    io.Float.Input(
                        "consolidation",
                        default=DEFAULTS["consolidation"],
                        min=0.0,
                        max=100.0,
                        step=0.01,
                        tooltip="How hard the concept is kept out of the subspaces of earlier ones; 0 turns that off.",
                    )
                ),
                advanced(
                    io.Float.Input(
                        "token_norm_stop",
                        default=0.0,
                        min=0.0,
                        max=100.0,
                        step=0.01,
                        tooltip="When the mean length of the words' embeddings reaches this, they stop learning and only the factors go "
                        f"on. Stable Diffusion 1.5: 0.55; Doodle, whose words are longer: 2. {AUTOMATIC}",
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
                *run_outputs(),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, name: str | None = None, class_word: str | None = None) -> bool | str:
        return validate(check_words, name, class_word)

    @classmethod
    def execute(
        cls, model, clip, vae, bank: Bank, images, name: str, class_word: str, kind: str, steps: int, seed: int, batch_size: int, rank: int,
        learning_rate: float, token_learning_rate: float, consolidation: float, token_norm_stop: float, captions: str = "", masks=None,
        settings: dict[str, Any] | None = None,
    ) -> io.NodeOutput:  # fmt: skip
        given, backbone = settings or {}, backbone_of(model, clip, vae)
        contrasts = given.get("contrast") and given.get("contrast_weight")
        method = method_for(backbone.family, "clif" if contrasts else "cidm")
        open_inputs = {
            "steps": steps,
            "batch": batch_size,
            "lr": learning_rate,
            "lr_tokens": token_learning_rate,
            "norm_stop": token_norm_stop,
        }
        chosen = dict(rank=rank, consolidation=consolidation, kind=kind, templates=method.templates(kind), seed=seed)
        config, took = configure_node(backbone.family, method.name, open_inputs, chosen, given)
        task = task_of(name, class_word, config, given)
        ((bank, concept, losses, warnings),) = learn(cls, backbone, bank, dataset_of(images, captions, masks), task, given)
        text = f"<{concept.name}> learned as number {bank.headers[concept.name]['task']}, loss {mean_loss(losses)}{took}"
        lora = patches.lora_of(model, concept)
        return say.output(cls, bank, lora, {"loss": losses}, len(losses), text=text, warnings=warnings)


def backbone_of(model, clip, vae, transformers: bool = True) -> host.ComfyBackbone | ComfyTransformerBackbone:
    """Returns the backbone that a training node learns on. Raises ``ValueError`` if there is no VAE, and for a transformer where the node
    takes none.
    """
    if vae is None:
        raise ValueError("there is no VAE, as in files of the diffusion model alone: connect one")
    family = host.family_in(model)
    if family is None or family.layerwise or not transformers:
        return host.ComfyBackbone(model, clip, vae)
    return ComfyTransformerBackbone(model, clip, vae)


def method_for(family: Family, method: str) -> Method:
    """Returns a method, or the one that learns where all layers read one text."""
    return method_named(method if family.layerwise else JOINT)


def configure_node(
    family: Family, method: str, open_inputs: Mapping[str, Any], chosen: Mapping[str, Any], given: Mapping[str, Any]
) -> tuple[TrainingConfig, str]:
    """Returns the configuration that a training node's inputs ask for, and what it took for those of ``open_inputs`` that are 0, in words:
    what suits the family. ``given`` are the Training Settings, which go before. For another method than they were made for, what stands
    there as it was is not chosen, and what has no meaning is said.
    """
    known = configure_for(family, method).settings()
    if method == JOINT:
        given = {name: value for name, value in given.items() if value != DEFAULTS.get(name, UNSET)}
    config = configure_for(family, method, **chosen, **{n: value for n, value in open_inputs.items() if value and n in known})
    config = config.update(**{name: value for name, value in given.items() if name in known})
    took = [f"{name} {config.settings()[name]:g}" for name, value in open_inputs.items() if not value and name in known]
    asked = {**open_inputs, **given} if method == JOINT else {}
    idle = [name for name, value in asked.items() if value and name in (*DEFAULTS, "contrast") and name not in known]
    said = f"\nfor {family.title}: {', '.join(took)}" if took else ""
    return config, said + (f"\nof no meaning there: {', '.join(idle)}" if idle else "")


def mean_loss(losses: Sequence[float]) -> str:
    """Writes the loss of the last steps."""
    return f"{sum(losses[-50:]) / len(losses[-50:]):.4f}"


def dataset_of(images: Any, captions: str, masks: Any) -> Dataset:
    """Returns what a training node learns from: a dataset, or the host's images with captions and masks."""
    with torch.inference_mode(False):  # the executor runs nodes without gradients
        return images if isinstance(images, Dataset) else from_images(images, lines_of(captions, len(images)), masks)


def check_words(name: str, class_word: str) -> None:
    """Raises ``ValueError`` for a name that is none and for no class word."""
    Task(name=name.strip(), class_word=class_word, config=configure("cidm"))


def task_of(name: str, class_word: str, config: TrainingConfig, given: Mapping[str, Any]) -> Task:
    """Returns the task of a training node; ``given`` are the Training Settings."""
    existing, prior = given.get("existing", EXISTING[0]), given.get("prior_dataset")
    by = given.get("contrast")
    return Task(name=name.strip(), class_word=class_word.strip(), config=config, existing=existing, prior=prior, contrast=by)


def learn(
    cls: type[io.ComfyNode],
    backbone: host.ComfyBackbone | ComfyTransformerBackbone,
    bank: Bank,
    data: Dataset | Mapping[str, Dataset],
    task: Task,
    given: Mapping[str, Any],
) -> list[Learned]:
    """Does what every training node does: the concepts of a task are learned into a bank on the host's model, in one run, or in one for
    each where each has data of its own, with previews as ``given``, the Training Settings, say; without them about eight.
    """
    node, config = cls.hidden.unique_id, task.config
    every = given.get("preview_every", max(1, config.steps // PREVIEWS))
    shows: dict[str, Callable[[Trainer], None]] = {}

    def on_step(trainer: Trainer) -> None:
        name = trainer.task.name
        if name not in shows:
            seen = " and a ".join(f"<{own}>" for own in trainer.task.concepts)
            prompt = given.get("preview_prompt", TEMPLATES[config.kind][0].replace("{}", seen))
            shows[name] = say.training_progress(node, every, prompt)
        shows[name](trainer)

    tell = say.teller(node)
    pictures = len(data) if isinstance(data, Dataset) else sum(map(len, data.values()))
    tell(f"encoding {pictures} pictures, then the first step")
    with torch.inference_mode(False):  # the executor runs nodes without gradients
        return learn_together(
            Bank(bank.folder),  # another branch of the graph may have added to it
            backbone,
            data,
            task,
            on_step=on_step,
            on_picture=say.progress(node, "painting {} of {} pictures of the plain class"),
            tell=tell,
        )


TRAIN_NODES = [CIDMTrainConcept]
