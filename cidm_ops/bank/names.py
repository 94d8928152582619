"""Names in the files of others, read into ours: which layer a tensor is of, and which part of it; whose rows it has; or why neither.

Kohya's names have ``_`` for every dot, so dots say nothing: all names of layers are read with underscores, by the words that a family
names its layers with. What only wraps a name (peft, compiled and distributed modules, containers) says nothing either.
"""

import re
from dataclasses import dataclass
from functools import cache

from ..models.family import Family
from ..models.registry import families

SUMS = r"alpha|diff|scalar|hada_(?:w[12]_[ab]|t[12])|lokr_(?:w[12](?:_[ab])?|t2)"
# What is no sum ``W + delta`` of the base's weights and something that the file has, by the parts that a layer of it has.
PRODUCTS = {
    "DoRA": r"dora_scale|lora_magnitude_vector",
    "OFT": r"oft_(?:blocks|diag|r|R|s)|rescale",
    "BOFT": r"boft_\w+",
    "IA3": r"on_input|ia3_l",
    "GLoRA": r"[abcd][12](?:\.weight)?|bm(?:\.weight)?",
    "VeRA": r"vera_\w+",
    "VBLoRA": r"vblora_\w+",
    "FourierFT": r"fourierft_\w+",
    "HRA": r"hra_\w+",
    "AdaLoRA": r"lora_E|ranknum",
    "weights in place of the base's own": r"set_weight|reshape_weight",
}
BIASES = r"diff_b|b_norm|bias_(?:indices|values|size)"
NORMS = r"w_norm"
# What a key ends with, after the name of its layer; an adapter's name may follow, which says nothing.
PART = re.compile(
    r"(?P<module>.+?)(?:"
    r"[._]lora(?:_linear_layer|_layer)?[._](?P<side>up|down|mid|A|B)(?:(?:\.[^.]+)?\.(?:weight|(?P<side_bias>bias)))?|"
    rf"(?:[._]lora[\w.]*)?\.(?P<sum>{SUMS})(?:\.[^.]+)?|"
    rf"\.(?P<product>{'|'.join(PRODUCTS.values())})(?:\.[^.]+){{0,2}}|"
    rf"\.(?P<bias>{BIASES})(?:\.[^.]+)?|"
    rf"\.(?P<norm>{NORMS}))"
)
SIDES = {"A": "down", "B": "up"}
NUMBERED = re.compile(r"(?:.+\.)?\w+:\d+:\w+")  # the first layout there was: a part of the model, a number, up or down

CONTAINERS = re.compile(r"(?:(?:state_dict|model|module|network|net|lora|params|params_ema|ema|generator|adapter|_orig_mod)\.)+(?=.)")
WRAPPERS = re.compile(
    r"(?:^|_)(?:_?orig_mod|_?fsdp_wrapped_module|_?checkpoint_wrapped_module|module|base_model(?:_model)?|processor)(?=_)"
)

WORD = r"(?:bundle_emb\.(?P<word>.+?)\.)?"
OUTPUT = re.compile(WORD + r"\w+_out")  # rows that stand behind a text encoder
BOOKKEEPING = re.compile(r"(?:bundle_emb\..+?\.)?string_to_token\..+")  # which id A1111 gave to the placeholder


@dataclass(frozen=True)
class LayerPart:
    """A part of a layer's change: ``up``, ``down``, ``mid``, ``alpha``, ``diff``, ``scalar``, ``hada_…`` or ``lokr_…``; or the name of
    a kind that is no sum. ``module`` is the layer's name as it is written.
    """

    module: str
    part: str


@dataclass(frozen=True)
class Rows:
    """Rows of a word for a text encoder: "" for the first. The word is as the file has it, "" if it does not say."""

    word: str
    encoder: str


@dataclass(frozen=True)
class Unused:
    """Why a tensor cannot be used."""

    why: str


@dataclass(frozen=True)
class Description:
    """A number that describes the file and changes nothing."""


def read_key(key: str) -> LayerPart | Rows | Unused | Description:
    """Tell what a tensor is, by its name alone."""
    if NUMBERED.fullmatch(key):
        return Unused("a layer by its number alone, as lora_diffusion wrote them")
    bare = CONTAINERS.sub("", key, count=1) if CONTAINERS.match(key) else key
    if BOOKKEEPING.fullmatch(bare):
        return Description()
    if rows := read_rows(bare):
        return rows
    if OUTPUT.fullmatch(bare) and (bare.startswith("bundle_emb.") or "." not in bare):
        return Unused("rows that stand behind a text encoder")
    if match := PART.fullmatch(bare):
        return _part(match)
    return Unused("no name that is known")


def _part(match: re.Match[str]) -> LayerPart | Unused:
    if match["bias"] or match["side_bias"]:
        return Unused("a bias")
    if match["norm"]:
        return Unused("a norm")
    if product := match["product"]:
        kind = next(kind for kind, parts in PRODUCTS.items() if re.fullmatch(parts, product))
        return LayerPart(match["module"], kind)
    side = match["side"]
    return LayerPart(match["module"], SIDES.get(side, side) if side else match["sum"])


def read_rows(bare: str) -> Rows | None:
    """The word and the text encoder that rows are for: of AUTOMATIC1111, diffusers, kohya's tools, pivotal tuning and OneTrainer."""
    known, pattern = names_of_rows(tuple(families()))
    if match := pattern.fullmatch(bare):
        own = "" if match["own"] in (None, "*") else match["own"]
        return Rows(match["word"] or own, known.get(match["rows"] or "", ""))
    return Rows(bare, "") if re.fullmatch(r"<[^<>]+>", bare) else None


@cache
def names_of_rows(known: tuple[Family, ...]) -> tuple[dict[str, str], re.Pattern[str]]:
    """The text encoders by the names that files have for their rows, and what the key of any rows looks like. Asked for every tensor."""
    encoders = {name: e.name for f in known for e in f.encoders for name in (e.name, *e.rows)}
    names = "|".join(map(re.escape, [*encoders, "emb_params", "*"]))
    return encoders, re.compile(rf"{WORD}(?:string_to_param\.(?P<own>.+)|(?P<rows>{names}))")


def flat_name(module: str) -> str:
    """A layer's name with ``_`` for every dot and without what wraps it."""
    flat = module.replace(".", "_")
    while (bare := WRAPPERS.sub("", flat)) != flat:
        flat = bare
    return flat.strip("_")


def canonical(module: str, family: Family) -> str | None:
    """Our name of a layer of a family, with dots; that of a text encoder's layer begins with the name of the encoder. What a file has
    fused keeps the host's name: ``Family.slices`` says which of our layers it is.

    ``None`` for a layer that the family does not have, or that no low-rank delta can change, such as a norm.
    """
    flat = flat_name(module)
    roots = [(root, "") for root in family.files.roots] + [(root, e.name) for e in family.encoders for root in e.roots]
    begun = [(match.end(), encoder) for root, encoder in roots if (match := re.match(f"(?:{root})_", flat))]
    if begun:
        end, encoder = max(begun)
        return _encoder_layer(flat[end:], encoder, family) if encoder else family.files.read_layer(flat[end:])
    return family.files.read_layer(flat) or _encoder_layer(flat, "", family)


def _encoder_layer(flat: str, encoder: str, family: Family) -> str | None:
    """A layer of a text encoder, the first if none is named."""
    if not family.encoders:
        return None
    kind = family.encoder(encoder)
    layer = kind.read_layer(flat)
    return layer and f"{kind.name}.{layer}"
