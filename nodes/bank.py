"""The bank of concepts under the host's models folder."""

from pathlib import Path

import folder_paths
from comfy_api.latest import io

from ..cidm_ops.bank.bank import Bank
from ..cidm_ops.bank.concept import NAME
from . import say

FOLDER = "cidm_banks"
folder_paths.add_model_folder_path(FOLDER, str(Path(folder_paths.models_dir) / FOLDER))

CATEGORY = "CIDM/bank"  # of the nodes that need no model
ConceptBank = io.Custom("CIDM_BANK")
BANK = ConceptBank.Input("bank", tooltip="The bank with the concepts.")


def bank_folder(name: str) -> Path:
    """Where the bank of that name is, or will be: the first of the host's folders for banks that has it, else the first."""
    if not NAME.fullmatch(name):
        raise ValueError(f"bank name {name[:80]!r}: expected 1 to 64 letters, digits, '-' or '_', starting with a letter or digit")
    places = [Path(place) / name for place in folder_paths.get_folder_paths(FOLDER)]
    return next((place for place in places if place.is_dir()), places[0])


def listing(bank: Bank) -> str:
    by = {"cidm": "", "infusion": ", by Infusion"}
    lines = [f"{header['task']}. {bank.title(name)}{by[header['method']]}" for name, header in bank.headers.items()]
    return "\n".join(lines) or "no concepts yet"


class CIDMOpenBank(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CIDMOpenBank",
            display_name="Open Concept Bank",
            category="CIDM",
            description="Opens a bank of learned concepts, or starts an empty one: a folder in models/cidm_banks with one file per "
            "concept. Each file is also an ordinary LoRA.",
            inputs=[
                io.String.Input(
                    "name", default="my_concepts", tooltip="Name of the bank. A name that does not exist yet starts an empty bank."
                ),
            ],
            outputs=[ConceptBank.Output(display_name="bank", tooltip="The bank, for learning and painting.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, name: str) -> list[tuple[str, int, int]]:
        """Changes when a concept comes, goes or is replaced."""
        files = sorted(bank_folder(name).glob("*.safetensors"))
        return [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]

    @classmethod
    def execute(cls, name: str) -> io.NodeOutput:
        bank = Bank(bank_folder(name))
        return say.output(cls, bank, text=listing(bank), warnings=list(bank.damaged.values()))


BANK_NODES = [CIDMOpenBank]
