"""The base by name: a checkpoint of the host, or Doodle, and the size that it paints at."""

import comfy.sd
import folder_paths
from comfy_api.latest import io

from ..cidm_ops.models.sd import DOODLE
from . import native, say
from .host import family_in
from .schema import schema

DOODLE_BASE = "Doodle (comes with CIDM)"
UNKNOWN_SIZE = 1024  # pixels


class CIDMLoadBase(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="CIDMLoadBase",
            display_name="Load Base",
            aliases="load checkpoint, base model, checkpoint loader, sd1.5, sdxl, doodle, model size, resolution",
            category="CIDM",
            description="Loads the base that concepts are learned on and painted with: a checkpoint of models/checkpoints, or Doodle, the "
            "small model that comes with CIDM. It also says the size of picture that the base was trained for.",
            inputs=[
                io.Combo.Input(
                    "base",
                    options=[DOODLE_BASE, *folder_paths.get_filename_list("checkpoints")],
                    default=DOODLE_BASE,
                    tooltip="Doodle runs at once on any machine, in a toy world. Your own pictures want a checkpoint.",
                ),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="What paints."),
                io.Clip.Output(display_name="clip", tooltip="Its text encoder."),
                io.Vae.Output(display_name="vae", tooltip="Its autoencoder."),
                io.Int.Output(display_name="size", tooltip="Pixels of a side that suit it, for Empty Latent Image."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, base: str) -> io.NodeOutput:
        if base == DOODLE_BASE:
            return say.output(cls, native.model(), native.clip(), native.vae(), DOODLE.size, text=f"{DOODLE.title}, {DOODLE.size} px")
        file = folder_paths.get_full_path_or_raise("checkpoints", base)
        embeddings = folder_paths.get_folder_paths("embeddings")
        model, clip, vae, *_ = comfy.sd.load_checkpoint_guess_config(file, embedding_directory=embeddings)
        if family := family_in(model):
            return say.output(cls, model, clip, vae, family.size, text=f"{family.title}, {family.size} px")
        kind = type(model.model.model_config).__name__
        unknown = f"{base} is {kind}, on which no concept can be learned; {UNKNOWN_SIZE} px, its size, is a guess"
        return say.output(cls, model, clip, vae, UNKNOWN_SIZE, text=kind, warnings=[unknown])


BASE_NODES = [CIDMLoadBase]
