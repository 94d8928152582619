"""What a file, a folder, a bank or a checkpoint is, before it is used."""

from pathlib import Path

import folder_paths
from comfy_api.latest import io

from ..cidm_ops.bank.header import NAME
from ..cidm_ops.bank.index import stamp
from ..cidm_ops.inspection import inspect, lines_of
from ..cidm_ops.models.earlier import EARLIER
from ..cidm_ops.models.registry import families
from . import say
from .bank import bank_folder
from .data import picture_folder
from .exchange import AUTO, full_path
from .schema import schema

FOLDERS = ("loras", "embeddings", "checkpoints")
NONE = "none, the path below"


def place_of(file: str, path: str) -> Path:
    """Find what is to be looked at: a file of the list, else a bank by its name, a folder in the input folder, or any path."""
    if not path:
        if file == NONE:
            raise ValueError("there is nothing to inspect: choose a file, or write a path, the name of a bank or of a folder of pictures")
        return full_path(file)
    if NAME.fullmatch(path) and bank_folder(path).is_dir():
        return bank_folder(path)
    return picture_folder(path)


class CIDMInspectFile(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="CIDMInspectFile",
            display_name="Inspect File",
            aliases="doctor, what is this file, lora info, check file, metadata, debug, file type",
            category="CIDM",
            description="Says what a file, a folder, a concept bank or a checkpoint is, what of it would be used and what not, and why: "
            "before it is imported, by the same reader. Nothing is written and no code of a file is run.",
            inputs=[
                io.Combo.Input(
                    "file",
                    options=[NONE, *(f"{folder}/{name}" for folder in FOLDERS for name in folder_paths.get_filename_list(folder))],
                    default=NONE,
                    tooltip="A file in ComfyUI's models/loras, models/embeddings or models/checkpoints.",
                ),
                io.String.Input(
                    "path",
                    default="",
                    tooltip="Instead of a file of the list: the name of a bank, of a folder in ComfyUI's input folder, or a full path.",
                ),
                io.Combo.Input(
                    "architecture",
                    options=[AUTO, *(f.architecture for f in families()), *EARLIER],
                    default=AUTO,
                    tooltip="The base that a LoRA is for, where its layers do not say.",
                ),
            ],
            outputs=[io.String.Output(display_name="text", tooltip="What it is, what is used, what not and why.")],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def fingerprint_inputs(cls, file: str, path: str, **how) -> list[tuple[str, list[int]]]:
        """Changes when the file does, or a file of the folder."""
        place = place_of(file, path.strip())
        inside = sorted(place.iterdir()) if place.is_dir() else []
        return [(entry.name, stamp(entry)) for entry in (place, *inside)]

    @classmethod
    def execute(cls, file: str, path: str, architecture: str) -> io.NodeOutput:
        found = inspect(place_of(file, path.strip()), "" if architecture == AUTO else architecture)
        text = "\n".join(lines_of(found))
        return say.output(cls, text, text=text)


INSPECTION_NODES = [CIDMInspectFile]
