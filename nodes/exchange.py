"""Files of others into a bank, and concepts of a bank as files for others."""

from pathlib import Path

import folder_paths
from comfy_api.latest import io

from ..cidm_ops.bank.bank import Bank
from ..cidm_ops.bank.exchange import EXISTING, import_into
from ..cidm_ops.bank.export import export_concept, export_merged, remarks_on_export
from ..cidm_ops.bank.header import check_name
from ..cidm_ops.models.earlier import EARLIER
from ..cidm_ops.models.registry import families
from . import say
from .bank import ConceptBank
from .schema import schema

FOLDERS = ("loras", "embeddings")
FORMS = ("lora and embedding", "one merged LoRA")
AUTO = "from the file"


def files() -> list[str]:
    """List what the host has in its folders for LoRAs and embeddings, with the folder: ``loras/dog.safetensors``."""
    return [f"{folder}/{name}" for folder in FOLDERS for name in folder_paths.get_filename_list(folder)]


def full_path(file: str) -> Path:
    folder, _, name = file.partition("/")
    return Path(folder_paths.get_full_path_or_raise(folder, name))


def entries(text: str) -> list[str]:
    """List what stands between commas and line breaks."""
    return [entry.strip() for entry in text.replace("\n", ",").split(",") if entry.strip()]


class CIDMImportConcept(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="CIDMImportConcept",
            display_name="Import Concept",
            aliases="load lora, import lora, lora, locon, loha, lokr, lycoris, embedding, textual inversion, civitai, convert lora",
            category="CIDM",
            description="Takes a LoRA that was learned elsewhere (kohya, diffusers, peft, LyCORIS), an embedding, or a .pth of the CIDM "
            "reference code into the bank. A prompt uses it through its trigger words or as <name>.",
            inputs=[
                ConceptBank.Input("bank", tooltip="The bank that the concept goes into."),
                io.Combo.Input("file", options=files(), tooltip="A file in ComfyUI's models/loras or models/embeddings."),
                io.String.Input("name", default="", tooltip="The concept's name. Empty: that of the file."),
                io.String.Input(
                    "triggers",
                    default="",
                    multiline=True,
                    tooltip="Words that call the LoRA in a prompt, one per line. Empty: those the file names itself.",
                ),
                io.String.Input("class_word", default="", tooltip="What kind of thing it is, such as dog. May be empty."),
                io.Int.Input(
                    "rank",
                    default=16,
                    min=1,
                    max=1024,
                    tooltip="Rank for LoHa, LoKr and full deltas, which are no pairs of factors; the error is told. A LoRA keeps its own.",
                ),
                io.Combo.Input(
                    "existing",
                    options=list(EXISTING),
                    default=EXISTING[0],
                    tooltip="If the bank has another concept of that name: refuse, or replace it in its place.",
                ),
                io.Combo.Input(
                    "architecture",
                    options=[AUTO, *(f.architecture for f in families()), *EARLIER],
                    default=AUTO,
                    optional=True,
                    tooltip="The base that the file is for, where its layers do not say: SD 1.x (sd1-16x768), SDXL, or Doodle (sd1-7x160).",
                ),
            ],
            outputs=[
                ConceptBank.Output(display_name="bank", tooltip="The bank with the concept in it."),
                io.String.Output(display_name="text", tooltip="What was imported, and how it is called in a prompt."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, file: str, **how) -> tuple[int, int]:
        """Changes when the file does."""
        stat = full_path(file).stat()
        return stat.st_size, stat.st_mtime_ns

    @classmethod
    def execute(
        cls, bank: Bank, file: str, name: str, triggers: str, class_word: str, rank: int, existing: str, architecture: str = AUTO
    ) -> io.NodeOutput:
        bank, concepts, warnings = import_into(
            bank,
            full_path(file),
            name=name.strip(),
            existing=existing,
            triggers=tuple(line.strip() for line in triggers.split("\n") if line.strip()),
            class_word=class_word.strip(),
            rank=rank,
            architecture="" if architecture == AUTO else architecture,
        )
        lines = []
        for concept in concepts:
            calls = ", ".join([f"<{concept.name}>", *concept.triggers])
            what = f"{len(concept.all_factors)} layers and {len(concept.words)} words"
            what = f"{len(concept.residuals)} residuals of Infusion" if concept.residuals else what
            lines.append(f"{concept.name}: {what} for {concept.architecture}")
            lines.append(f"in a prompt: {calls}")
        text = "\n".join(lines)
        return say.output(cls, bank, text, text=text, warnings=warnings)


class CIDMExportConcept(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="CIDMExportConcept",
            display_name="Export Concept",
            aliases="save lora, export lora, save embedding, kohya, diffusers, a1111, share concept",
            category="CIDM",
            description="Writes concepts for programs without CIDM into output/loras: each as a plain LoRA and an embedding, or several "
            "as one merged LoRA.",
            inputs=[
                ConceptBank.Input("bank", tooltip="The bank with the concepts."),
                io.String.Input("names", default="", multiline=True, tooltip="Names of concepts, one per line. Empty: all of the bank."),
                io.Combo.Input(
                    "form",
                    options=list(FORMS),
                    default=FORMS[0],
                    tooltip="lora and embedding: name.safetensors and name_words.safetensors for each, the words with one row for all "
                    "layers. one merged LoRA: the weighted sum at a rank, without words.",
                ),
                io.Int.Input("rank", default=32, min=1, max=1024, tooltip="Rank of the merged LoRA; its error is told."),
                io.String.Input("strengths", default="1", tooltip="How strongly each concept is merged, with commas; one number for all."),
                io.String.Input("merged_name", default="merged", tooltip="File name of the merged LoRA."),
            ],
            outputs=[io.String.Output(display_name="text", tooltip="The files, and the error of a merged LoRA.")],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, bank: Bank, names: str, form: str, rank: int, strengths: str, merged_name: str) -> io.NodeOutput:
        concepts = [bank.get(name) for name in entries(names) or bank.names]
        if not concepts:
            raise ValueError(f"bank {bank.folder.name!r} has no concepts yet: there is nothing to export")
        folder = Path(folder_paths.get_output_directory()) / "loras"
        if form == FORMS[0]:
            text = "\n".join(str(file) for concept in concepts for file in export_concept(concept, folder))
        else:
            weights = numbers(strengths, len(concepts))
            file = folder / f"{check_name(merged_name.strip())}.safetensors"
            error = export_merged(concepts, weights, rank, file)
            text = f"{file}\nrelative error {error:.4f} at rank {rank}"
        return say.output(cls, text, text=text, warnings=remarks_on_export(concepts))


def numbers(text: str, count: int) -> list[float]:
    """One number for all, or one for each."""
    try:
        found = [float(entry) for entry in entries(text)]
    except ValueError as error:
        raise ValueError(f"strengths {text[:80]!r}: expected numbers with commas between them") from error
    return found * count if len(found) == 1 else found


EXCHANGE_NODES = [CIDMImportConcept, CIDMExportConcept]
