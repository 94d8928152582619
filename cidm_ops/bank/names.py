"""Names of layers in the LoRA files of others, read into ours: diffusers' own, with dots.

Kohya's names have ``_`` for every dot, so dots say nothing: all names are read with underscores, by the words that a family
names its layers with.
"""

import re

from ..models.family import Family

# what a key ends with, after the name of its layer
PART = re.compile(
    r"(?P<module>.+?)(?:"
    r"[._]lora(?:_linear_layer)?[._](?P<side>up|down|mid|A|B)(?:(?:\.\w+)?\.weight)?|"
    r"(?:[._]lora[\w.]*)?\.(?P<other>alpha|diff|dora_scale|hada_\w+|lokr_\w+)|"
    r"\.(?P<dora>lora_magnitude_vector)(?:\.\w+)*)"
)
SIDES = {"A": "down", "B": "up"}

NOISE = re.compile(r"base_model\.model\.|\.?processor(?=\.)")  # of peft, and of diffusers' attention processors


def split_key(key: str) -> tuple[str, str] | None:
    """The layer's name as it is written and the part of it: ``up``, ``down``, ``mid``, ``alpha``, ``diff``, ``dora_scale``,
    ``hada_…``, ``lokr_…``. None for a key of no known kind.
    """
    match = PART.fullmatch(key)
    if not match:
        return None
    side = match["side"]
    return match["module"], SIDES.get(side, side) if side else match["other"] or "dora_scale"


def canonical(module: str, family: Family) -> str | None:
    """Our name of a layer of a family, with dots; that of a text encoder's layer begins with the name of the encoder.

    ``None`` for a layer that the family does not have, or that no low-rank delta can change, such as a norm.
    """
    flat = NOISE.sub("", module).replace(".", "_")
    roots = [(root, "") for root in family.files.roots] + [(root, e.name) for e in family.encoders for root in e.roots]
    begun = [(match.end(), encoder) for root, encoder in roots if (match := re.match(f"(?:{root})_", flat))]
    if begun:
        end, encoder = max(begun)
        return _encoder_layer(flat[end:], encoder, family) if encoder else family.files.read_layer(flat[end:])
    return family.files.read_layer(flat) or _encoder_layer(flat, "", family)


def _encoder_layer(flat: str, encoder: str, family: Family) -> str | None:
    """A layer of a text encoder, the first if none is named."""
    kind = family.encoder(encoder)
    layer = kind.read_layer(flat)
    return layer and f"{kind.name}.{layer}"
