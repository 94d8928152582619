"""Learning several concepts from one picture that shows them all."""

from typing import Any

import torch
from comfy_api.latest import io

from ..cidm_ops.bank.bank import Bank
from ..cidm_ops.training.config import EXISTING
from ..cidm_ops.training.dataset import Dataset
from ..cidm_ops.training.method import Task
from ..cidm_ops.training.methods import configure
from ..cidm_ops.training.together import Masks, cut_outs, parse_names
from . import say
from .bank import ConceptBank
from .data import ConceptDataset
from .schema import schema, validate
from .settings import TrainingSettings
from .train import (
    JOINT,
    advanced,
    backbone_of,
    base_inputs,
    configure_node,
    count,
    dataset_of,
    learn,
    mean_loss,
    method_for,
    rate,
    run_outputs,
)

DEFAULTS = configure("disendiff").settings()
MORE = range(2, 5)  # numbers of the inputs for single masks


class CIDMTrainTogether(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="CIDMTrainTogether",
            display_name="Train Concepts from One Picture",
            aliases="disendiff, attention calibration, several concepts, multiple concepts, two subjects, one image, single image, "
            "disentangle, break a scene, train together, joint training, couple, pets",
            category="CIDM/training",
            description="Learns several concepts from one picture that shows them all, each under its own name. Without masks they are "
            "told apart by where their words look (DisenDiff). With a mask for each, every one is cut out and learned alone, which brings "
            "more likeness. Cancel keeps the run, which goes on when queued again.",
            inputs=[
                *base_inputs(transformers=True),
                ConceptBank.Input("bank", tooltip="The bank that the concepts go into."),
                io.MultiType.Input(
                    "images",
                    [io.Image, ConceptDataset],
                    tooltip="The picture that shows all concepts, or a few such pictures; or a concept dataset, which brings its own "
                    "captions.",
                ),
                io.String.Input(
                    "captions",
                    default="",
                    multiline=True,
                    force_input=True,
                    optional=True,
                    tooltip="One caption per picture with every class word in it, such as: dog on the left and cat on the right in the "
                    "snow. Without captions the class words stand alone.",
                ),
                io.Mask.Input(
                    "masks",
                    optional=True,
                    tooltip="Where each concept is: one mask for each name, in the order of the names, for each picture in turn. With "
                    "masks each is cut out and learned alone.",
                ),
                io.String.Input(
                    "names",
                    default="rex: dog\ntom: cat",
                    multiline=True,
                    tooltip="One concept per line: its own name, and what kind of thing it is. Kinds that differ are told apart better.",
                ),
                count("steps", 100000, "How many training steps; with masks, of each concept."),
                io.Int.Input(
                    "seed", default=0, min=0, max=2**32 - 1, control_after_generate=False, tooltip="The same seed learns the same concepts."
                ),
                io.Boolean.Input(
                    "flip",
                    default=True,
                    tooltip="Mirror the picture in every second step; left and right change places in captions. Turn it off for writing. A "
                    "concept dataset says it itself.",
                ),
                io.Float.Input(
                    "calibration",
                    default=DEFAULTS["calibration"],
                    min=0.0,
                    max=10.0,
                    step=0.001,
                    round=0.0001,
                    tooltip="How strongly the words are made to look at different places. 0.01 is the authors' setting; 1, as printed, "
                    "destroys what is learned. 0 turns it off.",
                ),
                advanced(count("batch_size", 64, "Pictures per step.")),
                advanced(io.Int.Input("rank", default=DEFAULTS["rank"], min=1, max=128, tooltip="Rank of the low-rank factors.")),
                rate("learning_rate", "Learning rate of the factors; it decays to zero."),
                rate("token_learning_rate", "Learning rate of the concepts' words; it decays to zero."),
                TrainingSettings.Input(
                    "settings", optional=True, tooltip="More settings, from Training Settings; they go before the ones here."
                ),
                *(io.Mask.Input(f"mask_{n}", optional=True, tooltip="Another mask, as from a Load Image.") for n in MORE),
            ],
            outputs=[
                ConceptBank.Output(display_name="bank", tooltip="The bank with all of the concepts in it."),
                *run_outputs(),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, names: str | None = None) -> bool | str:
        return validate(check_names, names)

    @classmethod
    def execute(
        cls, model, clip, vae, bank: Bank, images, names: str, steps: int, seed: int, flip: bool, calibration: float, batch_size: int,
        rank: int, learning_rate: float, token_learning_rate: float, captions: str = "", masks=None,
        settings: dict[str, Any] | None = None, **more,
    ) -> io.NodeOutput:  # fmt: skip
        given, backbone = settings or {}, backbone_of(model, clip, vae)
        open_inputs = {"steps": steps, "batch": batch_size, "lr": learning_rate, "lr_tokens": token_learning_rate}
        method = method_for(backbone.family, "disendiff")
        several = [batch for batch in (masks, *(more.get(f"mask_{n}") for n in MORE)) if batch is not None]
        if method.name == JOINT and not several:
            raise ValueError(
                f"without masks concepts are told apart by where words look in each layer, and all layers of {backbone.family.title} read "
                "one text: connect a mask for each"
            )
        chosen = dict(rank=rank, seed=seed) | (
            {"templates": method.templates("thing")} if method.name == JOINT else {"calibration": calibration}
        )
        config, took = configure_node(backbone.family, method.name, open_inputs, chosen, given)
        task = joint_task(names, config, existing=given.get("existing", EXISTING[0]), prior=given.get("prior_dataset"))
        data = dataset_of(images, captions, None)
        if not isinstance(images, Dataset):
            data.flip = flip
        found = [mask for batch in several for mask in (batch if batch.ndim == 3 else batch[None])]
        parts: Dataset | dict[str, Dataset] = data
        if found:
            with torch.inference_mode(False):  # the executor runs nodes without gradients
                parts = cut_outs(data, masks_of(found, list(task.concepts), len(data)), inside=bool(config.settings().get("anchor")))
        runs = learn(cls, backbone, bank, parts, task, given)
        losses = [loss for run in runs for loss in run.losses]
        how = "each from its own part of the picture" if found else "together"
        text = f"{', '.join(f'<{name}>' for name in task.concepts)} learned {how}, loss {mean_loss(runs[-1].losses)}{took}"
        warnings = list(dict.fromkeys(warning for run in runs for warning in run.warnings))
        return say.output(cls, runs[-1].bank, {"loss": losses}, len(losses), text=text, warnings=warnings)


def joint_task(names: str, config: Any, **how: Any) -> Task:
    """Returns the task of learning what the lines of ``names`` say together."""
    (name, class_word), *others = parse_names(names.splitlines(), ":").items()
    return Task(name=name, class_word=class_word, others=dict(others), config=config, **how)


def check_names(names: str) -> None:
    """Raises ``ValueError`` for lines that do not name several concepts."""
    joint_task(names, configure("disendiff"))


def masks_of(masks: list[torch.Tensor], names: list[str], pictures: int) -> Masks:
    """Returns masks ``[H, W]`` by the names that they are of, ``[1, H, W]``. Raises ``ValueError`` for another number of them."""
    if len(masks) != len(names) * pictures:
        raise ValueError(
            f"{len(masks)} masks for {len(names)} names in {pictures} pictures: give one for each name, in the order of the names, for "
            "each picture in turn; or none at all"
        )
    return {name: [mask[None].float().clone() for mask in masks[k :: len(names)]] for k, name in enumerate(names)}


TOGETHER_NODES = [CIDMTrainTogether]
