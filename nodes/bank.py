"""The bank of concepts under the host's models folder."""

from difflib import get_close_matches
from pathlib import Path

import folder_paths
from comfy_api.latest import io

from ..cidm_ops.bank.bank import Bank, alike
from ..cidm_ops.bank.header import NAME
from ..cidm_ops.bank.index import stamp
from . import say
from .schema import schema, validate

FOLDER = "cidm_banks"
folder_paths.add_model_folder_path(FOLDER, str(Path(folder_paths.models_dir) / FOLDER))

CATEGORY = "CIDM/bank"  # of the nodes that need no model
MOST_NAMES = 20  # of concepts or of banks, in the text of a node
ConceptBank = io.Custom("CIDM_BANK")
BANK = ConceptBank.Input("bank", tooltip="The bank with the concepts.")


def bank_folder(name: str) -> Path:
    """Return where the bank of that name is, or will be: the first of the host's folders for banks that has it, else the first.

    Raises ``ValueError`` for what is no name, and for a new name that differs from a bank's in case only.
    """
    if not NAME.fullmatch(name):
        raise ValueError(f"bank name {name[:80]!r}: expected 1 to 64 letters, digits, '-' or '_', starting with a letter or digit")
    places = [Path(place) / name for place in folder_paths.get_folder_paths(FOLDER)]
    if found := next((place for place in places if place.is_dir()), None):
        return found
    there = (folder for place in places if place.parent.is_dir() for folder in place.parent.iterdir())
    if twin := next((folder.name for folder in there if alike(folder.name, name) and folder.is_dir()), ""):
        raise ValueError(f"there is a bank {twin!r}, and {name!r} differs from it in case only: write {twin!r}, or choose another name")
    return places[0]


def bank_names() -> list[str]:
    """List the banks in the host's folders for them, by name."""
    places = (Path(place) for place in folder_paths.get_folder_paths(FOLDER))
    found = (folder for place in places if place.is_dir() for folder in place.iterdir() if folder.is_dir())
    return sorted({folder.name for folder in found if NAME.fullmatch(folder.name)}, key=lambda name: (name.lower(), name))


def others_than(name: str) -> str:
    """Say which banks there are beside one, those with a name like it first."""
    have = [other for other in bank_names() if other != name]
    near = get_close_matches(name, have, 1)
    return (f"; did you mean {near[0]!r}?" if near else "") + (f"\nbanks: {', '.join(have[:MOST_NAMES])}" if have else "")


def summarise(bank: Bank) -> str:
    """Write how many concepts a bank has and their names, as many as a node has room for."""
    if not (count := len(bank.names)):
        return "no concepts yet"
    shown = ", ".join(f"<{name}>" for name in bank.names[:MOST_NAMES])
    more = f" and {count - MOST_NAMES} more" if count > MOST_NAMES else ""
    return f"{count} concept{'s' if count > 1 else ''}: {shown}{more}"


def listing(bank: Bank) -> str:
    """Write a line for each concept of a bank: its number, name, class word, and its method where that is not the usual one."""
    by = {"cidm": "", "infusion": ", by Infusion"}
    lines = [f"{header['task']}. {bank.title(name)}{by[header['method']]}" for name, header in bank.headers.items()]
    return "\n".join(lines) or "no concepts yet"


class CIDMOpenBank(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="CIDMOpenBank",
            display_name="Open Concept Bank",
            aliases="load concepts, load lora, my concepts, collection, library, new bank, lora folder",
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
    def validate_inputs(cls, name: str | None = None) -> bool | str:
        return validate(bank_folder, name)

    @classmethod
    def fingerprint_inputs(cls, name: str) -> list[tuple[str, int, int]]:
        """Changes when a concept comes, goes or is replaced."""
        files = [(file.name, stamp(file)) for file in sorted(bank_folder(name).glob("*.safetensors"))]
        return [(file, now[0], now[1]) for file, now in files if now]  # one may have gone since

    @classmethod
    def execute(cls, name: str) -> io.NodeOutput:
        bank = Bank(folder := bank_folder(name))
        text = summarise(bank) if folder.is_dir() else f"{name!r} is new and empty{others_than(name)}"
        return say.output(cls, bank, text=text, warnings=list(bank.damaged.values()))


BANK_NODES = [CIDMOpenBank]
