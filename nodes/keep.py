"""Keeping a bank in order, without a model."""

from pathlib import Path

import folder_paths
from comfy_api.latest import io

from ..cidm_ops.bank import archive, manage
from ..cidm_ops.bank.bank import Bank
from ..cidm_ops.bank.compress import DTYPES
from ..cidm_ops.bank.index import stamp
from ..cidm_ops.measure.pictures import from_image
from . import say
from .bank import BANK, CATEGORY, FOLDER, CIDMOpenBank, ConceptBank, bank_folder, listing, summarise
from .schema import schema

ACTIONS = ("verify", "repair", "remove", "rename", "move", "merge", "describe")


def compressed_file(name: str) -> Path:
    """The compressed bank of that name, which lies beside the folders of banks, or at that path."""
    if name.endswith(archive.SUFFIX):
        return Path(name)
    places = [Path(place) / f"{name}{archive.SUFFIX}" for place in folder_paths.get_folder_paths(FOLDER)]
    return next((place for place in places if place.is_file()), bank_folder(name).with_name(f"{name}{archive.SUFFIX}"))


def _verify(bank: Bank) -> tuple[str, list[str]]:
    """A line for each concept, whole or what is wrong with it, and remarks."""
    found = manage.verify(bank)
    return "\n".join(f"{name}: {wrong or 'whole'}" for name, wrong in found.items()) or "no concepts yet", manage.remarks(bank)


def _repair(bank: Bank) -> tuple[Bank, str]:
    """The bank with its index made anew, and what was cleared and is there."""
    left = manage.leftovers(bank)
    bank = manage.repair(bank)
    cleared = "".join(f"cleared {part.relative_to(bank.folder)}\n" for part in left if not part.exists())
    return bank, f"{cleared}made anew:\n{listing(bank)}"


class CIDMManageBank(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="CIDMManageBank",
            display_name="Manage Concept Bank",
            aliases="rename concept, delete concept, remove lora, verify, repair, merge banks, reorder",
            category=CATEGORY,
            description="Checks a bank, repairs its index, removes, renames, moves or describes a concept, or takes in those of another "
            "bank. What is done already is not done again.",
            inputs=[
                BANK,
                io.Combo.Input(
                    "action",
                    options=list(ACTIONS),
                    default="verify",
                    tooltip="verify: read every file as a whole. repair: make the index anew. remove, rename, move, describe: one concept. "
                    "merge: the concepts of another bank behind these.",
                ),
                io.String.Input("concept", default="", tooltip="The concept's name, for remove, rename, move and describe."),
                io.String.Input("new_name", default="", tooltip="For rename. The concept's words change with it."),
                io.Int.Input("place", default=1, min=1, max=100000, tooltip="For move: the place in the order, from 1."),
                io.String.Input("other_bank", default="", tooltip="For merge: the name of the other bank. It stays as it is."),
                io.Combo.Input(
                    "existing",
                    options=["skip", "refuse", "replace"],
                    default="skip",
                    tooltip="For merge: what becomes of names that both banks have.",
                ),
                io.String.Input("author", default="", tooltip="For describe. Empty leaves what is there."),
                io.String.Input("license", default="", tooltip="For describe. Empty leaves what is there."),
                io.String.Input("description", default="", multiline=True, tooltip="For describe. Empty leaves what is there."),
                io.Image.Input("preview", optional=True, tooltip="For describe: a picture for the thumbnail."),
            ],
            outputs=[
                ConceptBank.Output(display_name="bank", tooltip="The bank as it is now."),
                io.String.Output(display_name="report", tooltip="What was done or found."),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def fingerprint_inputs(cls, action: str = "", other_bank: str = "", **rest) -> list[tuple[str, int, int]]:
        """Changes when the other bank does; the bank itself is watched where it is opened."""
        return CIDMOpenBank.fingerprint_inputs(other_bank) if action == "merge" and other_bank else []

    @classmethod
    def execute(
        cls, bank: Bank, action, concept, new_name, place, other_bank, existing, author, license, description, preview=None
    ) -> io.NodeOutput:
        concept, new_name = concept.strip(), new_name.strip()
        warnings: list[str] = []
        if action == "verify":
            report, warnings = _verify(bank)
        elif action == "repair":
            bank, report = _repair(bank)
            warnings = list(bank.damaged.values())
        elif action == "remove":
            gone = concept not in bank.headers and concept not in bank.damaged
            bank = bank if gone else manage.remove(bank, concept)
            report = f"<{concept}> is not in the bank:\n{listing(bank)}"
        elif action == "rename":
            done = concept not in bank.headers and new_name in bank.headers
            bank = bank if done else manage.rename(bank, concept, new_name)
            report = f"<{concept}> is <{new_name}>:\n{listing(bank)}"
        elif action == "move":
            bank = manage.move(bank, concept, place)
            report = listing(bank)
        elif action == "merge":
            bank = manage.merge(bank, Bank(bank_folder(other_bank)), existing)
            report = listing(bank)
        else:
            given = {"author": author, "license": license, "description": description}
            about = {key: text for key, text in given.items() if text.strip()}
            bank = manage.describe(bank, concept, about, None if preview is None else from_image(preview))
            report = f"<{concept}> is described"
        return say.output(cls, bank, report, text=report, warnings=warnings)


class CIDMCompressBank(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="CIDMCompressBank",
            display_name="Compress Concept Bank",
            aliases="shrink, smaller loras, pack, svd, archive, save space",
            category=CATEGORY,
            description="Writes the whole bank into one small file beside its folder, models/cidm_banks/<bank>.compressed.safetensors. "
            "No concept loses more than the tolerance; words and texts are kept exactly. The bank stays as it is.",
            inputs=[
                BANK,
                io.Float.Input(
                    "tolerance",
                    default=0.05,
                    min=0.001,
                    max=0.9,
                    step=0.001,
                    tooltip="The largest error of a concept, as a part of what was learned.",
                ),
                io.Combo.Input("dtype", options=list(DTYPES), default="float16", tooltip="float16 halves the file again."),
            ],
            outputs=[
                io.String.Output(display_name="report", tooltip="Size and error."),
                io.String.Output(display_name="file", tooltip="The full path of the file."),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, bank: Bank, tolerance: float, dtype: str) -> io.NodeOutput:
        file, report = archive.compress_bank(bank, None, tolerance, 0, dtype)
        return say.output(cls, report, str(file), text=f"{report}\n{file.name}")


class CIDMExpandBank(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="CIDMExpandBank",
            display_name="Expand Concept Bank",
            aliases="unpack, decompress, restore bank, archive",
            category=CATEGORY,
            description="Makes a bank from a compressed one: a file per concept again, the same every time.",
            inputs=[
                io.String.Input(
                    "compressed",
                    default="my_concepts",
                    tooltip="Name of the bank that was compressed (its file is models/cidm_banks/<name>.compressed.safetensors), or the "
                    "full path of such a file, as Compress Concept Bank gives it.",
                ),
                io.String.Input("name", default="my_concepts_expanded", tooltip="Name of the bank to make, without other concepts."),
            ],
            outputs=[ConceptBank.Output(display_name="bank", tooltip="The bank, for learning and painting.")],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def fingerprint_inputs(cls, compressed: str = "", name: str = "") -> list[tuple[str, int, int]]:
        """Changes when the file or the bank does; what is linked is not known here."""
        file = compressed_file(compressed) if compressed else None
        packed = [(file.name, now[0], now[1])] if file and file.is_file() and (now := stamp(file)) else []
        return packed + (CIDMOpenBank.fingerprint_inputs(name) if name else [])

    @classmethod
    def execute(cls, compressed: str, name: str) -> io.NodeOutput:
        bank = archive.expand_into(compressed_file(compressed), bank_folder(name))
        return say.output(cls, bank, text=summarise(bank), warnings=list(bank.damaged.values()))


KEEP_NODES = [CIDMManageBank, CIDMCompressBank, CIDMExpandBank]
