"""Nodes of Doodle: the model that ships with the pack, and things to teach it."""

import numpy as np
import torch
from comfy_api.latest import io

from ..cidm_ops.bank.bank import Bank
from ..cidm_ops.bank.concept_file import load_concept
from ..cidm_ops.doodle.concepts import CONCEPTS, examples, instance
from ..cidm_ops.doodle.figures import FIGURES
from ..cidm_ops.doodle.files import TEN
from . import native, say
from .bank import CIDMOpenBank, ConceptBank, bank_folder, summarise
from .schema import schema, validate

ANOTHER = "another "


class CIDMDoodleModel(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="CIDMDoodleModel",
            display_name="Doodle Model",
            aliases="load model, load checkpoint, base model, demo model, test model, small model",
            category="CIDM/doodle",
            description="Loads Doodle, the small model that ships with CIDM: Stable Diffusion 1 in miniature for 128 px pictures of a "
            "toy world. Nothing is downloaded, and everything can be tried in minutes on any machine.",
            outputs=[
                io.Model.Output(display_name="model", tooltip="Doodle's U-Net."),
                io.Clip.Output(display_name="clip", tooltip="Doodle's text encoder."),
                io.Vae.Output(display_name="vae", tooltip="Doodle's autoencoder: 128 px pictures, 16 x 16 latents."),
                io.ClipVision.Output(display_name="clip_vision", tooltip="Doodle's image tower, which tells its creatures apart."),
            ],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        return io.NodeOutput(native.model(), native.clip(), native.vae(), native.vision())


class CIDMDoodleTowers(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="CIDMDoodleTowers",
            display_name="Doodle Scorers",
            aliases="doodle towers, clip vision, image encoder, scorer, evaluation model",
            category="CIDM/doodle",
            description="What scores pictures of the Doodle world: an image tower that tells its creatures apart, for likeness, and a "
            "reader, whose image side and text encoder share a space in which only what words say counts, for Text Alignment.",
            outputs=[
                io.ClipVision.Output(display_name="clip_vision", tooltip="The image tower, as from Doodle Model."),
                io.ClipVision.Output(display_name="reader", tooltip="The reader's image side: the clip_vision of Text Alignment."),
                io.Clip.Output(display_name="clip", tooltip="The reader's text side: the clip of Text Alignment. It paints nothing."),
            ],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        return io.NodeOutput(native.vision(), native.reader(), native.captions())


class CIDMDoodleConcept(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="CIDMDoodleConcept",
            display_name="Doodle Concept",
            aliases="example images, sample dataset, test images, demo concept, toy dataset",
            category="CIDM/doodle",
            description="Draws pictures of one personal thing of the Doodle world, with captions and exact masks: something to learn from.",
            inputs=[
                io.Combo.Input(
                    "concept",
                    options=[*CONCEPTS, *(ANOTHER + kind for kind in FIGURES)],
                    default="dog",
                    tooltip="Which thing or style. 'another ...' draws an individual that depends on the variation.",
                ),
                io.Int.Input("count", default=6, min=1, max=64, tooltip="How many pictures to draw. 4 to 7 are enough to learn from."),
                io.Int.Input(
                    "variation",
                    default=0,
                    min=0,
                    max=2**31 - 1,
                    tooltip="Other numbers give other poses and places; for 'another ...' another individual.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="images", tooltip="The pictures, 128 x 128."),
                io.String.Output(
                    display_name="captions", tooltip="One caption per line, in the order of the pictures. Each holds the class word."
                ),
                io.Mask.Output(display_name="masks", tooltip="Where the thing is in each picture."),
                io.String.Output(display_name="class_word", tooltip="What kind of thing it is, as the captions call it."),
            ],
        )

    @classmethod
    def execute(cls, concept: str, count: int, variation: int) -> io.NodeOutput:
        thing = instance(concept.removeprefix(ANOTHER), variation) if concept.startswith(ANOTHER) else CONCEPTS[concept]
        drawn = examples(thing, count, variation)
        pictures, masks = (torch.from_numpy(np.stack(a)).float() / 255 for a in ([e.picture for e in drawn], [e.mask for e in drawn]))
        return io.NodeOutput(pictures, "\n".join(e.caption for e in drawn), masks, thing.class_word)


class CIDMDoodleBank(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="CIDMDoodleBank",
            display_name="Doodle Concept Bank",
            aliases="example concepts, demo loras, sample bank, load concepts, characters",
            category="CIDM/doodle",
            description="Opens a bank with the ten concepts of the Doodle world, learned one after another: ready to paint with. The "
            "first time it copies them into models/cidm_banks; from then on the bank is yours.",
            inputs=[io.String.Input("name", default="doodle_ten", tooltip="Name of the bank. One that exists is opened as it is.")],
            outputs=[ConceptBank.Output(display_name="bank", tooltip="The bank, for painting with the Doodle model.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, name: str | None = None) -> bool | str:
        return validate(bank_folder, name)

    @classmethod
    def fingerprint_inputs(cls, name: str) -> list[tuple[str, int, int]]:
        return CIDMOpenBank.fingerprint_inputs(name)

    @classmethod
    def execute(cls, name: str) -> io.NodeOutput:
        bank = Bank(bank_folder(name))
        if not bank.names and not bank.damaged:
            for concept in sorted(map(load_concept, TEN.glob("*.safetensors")), key=lambda c: c.task):
                bank = bank.add(concept)
        return say.output(cls, bank, text=summarise(bank), warnings=list(bank.damaged.values()))


DOODLE_NODES = [CIDMDoodleModel, CIDMDoodleTowers, CIDMDoodleConcept, CIDMDoodleBank]
