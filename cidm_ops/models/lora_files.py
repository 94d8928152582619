"""What LoRA files call the layers of a model family."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class LoraFiles:
    """How LoRA files name a family's model, and the standard name of such files."""

    kohya: str = "lora_unet_"  # begins the keys of the model's layers in what we write
    dotted: bool = False  # whether we write names with their dots, and factors as peft does, which diffusers reads too
    exported: str = ""  # begins the keys of an export in the host's own modules, where it reads our layers only as they lie in those
    roots: Sequence[str] = ()  # what begins them in the files of others, as regular expressions with ``_`` for every dot
    read_layer: Callable[[str], str | None] = lambda flat: None  # such a key without its root, to our name of the layer
    telltale: str = r"(?!)"  # finds the names of layers that only this family has
    said: str = r"(?!)"  # finds in the metadata of a file that it is for this family
    kin: str = ""  # the family that a file is taken for where it does not say for which of the two it is
    least: float = 0.0  # the share of a file's entries below which it is refused, as one of another model
    modelspec: str = ""  # its architecture in the ModelSpec standard
