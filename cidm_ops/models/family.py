"""What a model family is, as data: the one place where its names, sizes and ids stand.

A family is a file beside this one that builds a ``Family`` and registers it. The method, the bank and the engines ask the family of the
model or of the concept at hand, and never match names themselves. Nothing here needs torch, a host or the weights of a model.
"""

import re
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any, Literal

from .module import Module, Slice, flat, layers_at, module_of, slices_of

Kind = Literal["self", "cross", "joint", "feed_forward"]
Role = Literal["query", "key", "value", "out", "inner", "outer"]  # inner and outer: the first and the last layer of a feed-forward
Stream = Literal["image", "text", "both", "across"]  # across: an attention of the image's tokens to those of the text
Restart = Literal["ends", "begins"]

# The groups of layers that training can be aimed at, by the kinds of the sublayers they lie in.
TARGETS: dict[str, tuple[Kind, ...]] = {
    "cross_attention": ("cross", "joint"),
    "attention": ("self", "cross", "joint"),
    "attention_ff": ("self", "cross", "joint", "feed_forward"),
}


@dataclass(frozen=True)
class Encoder:
    """A text encoder, and what its tokenizer makes of a text.

    A text is cut into chunks of ``chunk`` tokens: ``start``, the tokens of the text, ``end``, and ``pad`` up to the full length. A
    tokenizer without a start token has ``start=None``.
    """

    name: str  # in concept files and in the names of its layers, such as "clip_l"
    width: int  # of a token's row
    chunk: int
    start: int | None
    end: int
    pad: int
    placeholders: Mapping[str, int]  # words of one token whose meaning is not needed, which stand for concept words
    skip: int = 0  # how many of its last layers the model does not read; without the last one there is no final norm
    pooled: bool = False  # whether the model reads its pooled state too
    diffusers: str = "text_encoder"  # its folder and its part of a pipeline
    host: str = ""  # the attribute of the host's text model
    host_tokens: str = ""  # the key of its tokens in what the host's tokenizer returns
    kohya: str = "lora_te_"  # begins the keys of its layers in a LoRA file
    roots: Sequence[str] = ()  # what begins its keys in the LoRA files of others, as regular expressions with ``_`` for every dot
    read_layer: Callable[[str], str | None] = lambda flat: None  # such a key without its root, to the name of a layer in the encoder
    rows: Sequence[str] = ()  # what files of embeddings call its rows, beside its name

    @property
    def room(self) -> int:
        """How many tokens of a text fit into one chunk."""
        return self.chunk - 1 - (self.start is not None)

    @property
    def special(self) -> tuple[int, ...]:
        """The ids that are no part of a text: start, end and padding."""
        return tuple(dict.fromkeys(i for i in (self.start, self.end, self.pad) if i is not None))

    @property
    def first(self) -> int:
        """The position of a text's first token in a chunk."""
        return int(self.start is not None)


@dataclass(frozen=True)
class Linear:
    """A linear layer inside a block: its name there, what it does and which tokens it reads."""

    name: str
    role: Role
    reads: Stream = "image"


@dataclass(frozen=True)
class Sublayer:
    """An attention or a feed-forward layer of a block (Vaswani et al. 2017): its name there, its kind and its linear layers."""

    name: str
    kind: Kind
    linears: Sequence[Linear]


@dataclass(frozen=True)
class Blocks:
    """Transformer blocks of one make: a regular expression for their canonical names, and their sublayers in order."""

    pattern: str
    sublayers: Sequence[Sublayer]


@dataclass(frozen=True)
class JointText:
    """The host's names say how a transformer takes the text that it joins with the image in one sequence, the text first.

    ``positions`` is the module that makes rotations of the places of tokens (RoPE, Su et al. 2021), if text tokens have places of their
    own, and ``embedder`` the one that turns a text into tokens, which are filled up to a ``multiple`` with the parameter ``pad``.
    ``restart`` says which place a text has wherever it stands: it "ends" right before the image, which comes after the last text, or it
    "begins" where every text does, and the image has its place by itself. An ``adapter`` is the module that texts go through before a model
    is sampled; it answers at the ``tokens`` of this encoder, filled up to a length.
    """

    positions: str = ""
    restart: Restart = "ends"
    embedder: str = ""
    pad: str = ""
    multiple: int = 1
    count: str = ""  # the argument that says how many tokens the text has
    mask: str = ""  # that which says which of them count
    pictures: Sequence[str] = ()  # those with pictures beside the one that is painted, whose texts and places are numbered along
    adapter: str = ""
    tokens: str = ""


@dataclass(frozen=True)
class Host:
    """The host's names say what ComfyUI calls a family: the classes of its model configuration and of its text model, told by name and not
    by import, and how its attention patches tell where they are: part of the model, block and index in it.
    """

    models: Sequence[str] = ()
    others: Sequence[str] = ()  # classes made of those that are another model
    text_model: str = ""
    text: JointText = JointText()  # where a transformer joins it with the image
    wrapped: bool = True  # whether it asks wrappers around the model's forward pass
    patch_place: Callable[[str], tuple[str, int, int]] = lambda module: (module, 0, 0)  # of an attention, by its module's name


@dataclass(frozen=True)
class Objective:
    """How a rectified flow is learned and painted where nothing else is set.

    Noise levels are drawn by a ``density``, "uniform" or "sigmoid" (logit-normal, Esser et al. 2024), and moved by a ``shift``, 0 for that
    of the picture's size. ``guidance`` is what a model that was distilled by guidance is told while it learns, ``painted`` while it paints;
    ``cfg`` weighs classifier-free guidance in previews.
    """

    density: str = "sigmoid"
    shift: float = 1.0
    guidance: float = 0.0
    painted: float = 0.0
    cfg: float = 4.0


@dataclass(frozen=True)
class TextReader:
    """How diffusers makes the one text that a transformer reads.

    ``states`` is the folder of the encoder, ``tokenizer`` that of its tokenizer, and ``layer`` which of its hidden states are read, or
    ``layers`` which are, side by side, without looking at what fills a text up. A text is filled up to ``least`` tokens, as the host does,
    is said in a ``chat`` or stands for ``{}`` in a ``template``, of which the model does not read the first ``cut`` tokens, and its pooled
    state comes from another encoder and its tokenizer, ``pooled``. Encoders and their tokenizers ``beside`` it, which are CLIPs, stand in
    front of it, side by side, and have pooled states too. If it goes ``through`` an adapter, the tokens are those of the tokenizer named
    beside that.
    """

    states: str = "text_encoder"
    tokenizer: str = "tokenizer"
    layer: int = -1
    layers: Sequence[int] = ()
    least: int = 0
    chat: bool = False
    thinking: bool = True  # what the chat is told to do about it
    template: str = ""
    cut: int = 0
    pooled: tuple[str, str] = ("", "")
    beside: Sequence[tuple[str, str]] = ()
    through: tuple[str, str] | None = None


@dataclass(frozen=True)
class Diffusers:
    """The names of diffusers say what it calls a family's model, and how it configures its parts. What is not named is the default of the
    class.

    ``facts`` are entries of the model's configuration that tell the family from others, and ``names`` the model's layers by ours, with
    ``{}`` for the number of the block, where they are not ours.
    """

    folder: str = "unet"  # of the model
    names: Mapping[str, str] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    model: Mapping[str, Any] = field(default_factory=dict)
    texts: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # by the name of the text encoder
    vae: Mapping[str, Any] = field(default_factory=dict)
    schedule: Mapping[str, Any] = field(default_factory=dict)  # of noise, where a file does not say it
    reader: TextReader = TextReader()  # of a transformer's text
    mu: float = 1.15  # of the shift where its schedule says that it depends on the size: the host's, at 1024 pixels
    multiple: int = 1  # that the tokens of such a text are filled up to


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


@dataclass(frozen=True, eq=False, repr=False)
class Family:
    """A model family at one size. Several sizes may share a ``name``, as Stable Diffusion 1 and Doodle do."""

    name: str  # begins the architecture of its models, such as "sd1"
    title: str
    architecture: str  # of the whole model at this size: name, layers that read the text and width of the text
    encoders: Sequence[Encoder]
    blocks: Sequence[Blocks]  # in the order in which the model runs them
    latent_channels: int
    factor: int  # pixels of a latent cell's side
    size: int  # pixels of a side that it was trained for
    recipes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # by method: what suits training on it, where that differs
    order: Sequence[str] = ()  # what begins the names of the model's blocks, in layer order
    unread: str = r"(?!)"  # finds in the last block what makes text tokens that nothing reads any more
    turned: str = r"(?!)"  # finds in the last block what hosts have with its rows in an order of their own, which nothing here changes
    decoder: str = r"(?!)"  # finds the names of layers in the second half of the model
    stage: str = r".*"  # finds in the name of such a layer the part of the model in which all can share a word's row
    layout_attention: str = r"(?!)"  # finds the self-attentions whose queries and keys hold the layout of a picture
    layout_residual: str = r"(?!)"  # finds the layers that end residual branches whose features hold it
    patch: int = 1  # latent cells of an image token's side, where tokens are finest
    halvings: int = 0  # how many times the model halves that grid inside
    layerwise: bool = True  # whether every layer can read a text of its own
    frames: bool = False  # whether its engines give latents an axis of frames, of which a picture is one
    kernels: Sequence[tuple[str, tuple[int, int]]] = ()  # what finds the names of convolutions, and their kernels
    abbreviations: Sequence[str] = ()  # what is left out of a layer's name for reading
    host: Host = Host()
    diffusers: Diffusers = Diffusers()
    objective: Objective = Objective()  # of a transformer
    files: LoraFiles = LoraFiles()
    modules: Sequence[Module] = ()  # its linear layers as the host has them, where that has no table of its own for diffusers' names
    weigh: Callable[["Family"], Mapping[str, tuple[int, int]]] = lambda family: {}  # the shapes of its weights, where they are known

    def __repr__(self) -> str:
        return f"Family({self.architecture})"

    @property
    def width(self) -> int:
        """The width of the text that the model reads, at this size."""
        return Architecture.parse(self.architecture).width

    @property
    def cell(self) -> int:
        """Pixels of which an image's sides are multiples."""
        return self.factor * self.patch

    @property
    def placeholders(self) -> Mapping[str, int]:
        """The words that stand for concept words, with their ids; alike in all its encoders."""
        return self.encoders[0].placeholders

    def encoder(self, name: str = "") -> Encoder:
        """The text encoder of a name, or the first. Raises ``ValueError`` for a name that it does not have."""
        found = next((e for e in self.encoders if name in ("", e.name)), None)
        if found is None:
            raise ValueError(f"text encoder {name!r}: {self.title} has {', '.join(e.name for e in self.encoders)}")
        return found

    def encoder_of(self, layer: str) -> Encoder | None:
        """The text encoder that a layer is in, by its canonical name; ``None`` for a layer of the model."""
        return next((e for e in self.encoders if layer.startswith(f"{e.name}.")), None)

    def whole_cells(self, height: int, width: int) -> tuple[int, int]:
        """The sides of an image, cut to what the model can paint."""
        return height // self.cell * self.cell, width // self.cell * self.cell

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """Channels, rows and columns of the latent of an image of ``height`` times ``width`` pixels."""
        return self.latent_channels, height // self.factor, width // self.factor

    def grids(self, height: int, width: int) -> list[tuple[int, int]]:
        """Rows and columns of the image tokens of a latent of ``height`` times ``width`` cells, from the finest layer to the coarsest."""
        sides = [self.patch * 2**i for i in range(self.halvings + 1)]
        return [(-(-height // side), -(-width // side)) for side in sides]

    def place(self, block: str) -> tuple[int, ...]:
        """A key that sorts canonical names of blocks into layer order."""
        first = next((i for i, start in enumerate(self.order) if block.startswith(start)), len(self.order))
        return (first, *(int(piece) for piece in block.split(".") if piece.isdigit()))

    def stage_of(self, site: str) -> str:
        """The part of the model that a layer is in, larger than a block; the layer itself where the family knows none."""
        match = re.match(self.stage, site)
        return match[0] if match else site

    def sublayers(self, block: str) -> Sequence[Sublayer]:
        """The sublayers of the block of a canonical name, in order."""
        return next((b.sublayers for b in self.blocks if re.fullmatch(b.pattern, block)), ())

    def sites(self, blocks: Iterable[str], *kinds: Kind) -> list[str]:
        """The canonical names of the sublayers of some kinds in blocks, in order."""
        return [f"{block}.{sub.name}" for block in blocks for sub in self.sublayers(block) if sub.kind in kinds]

    def meeting(self, blocks: Iterable[str]) -> list[str]:
        """The blocks in which the image reads the text, in order: without those that refine text and image apart."""
        return [block for block in blocks if self.sites([block], "cross", "joint")]

    def is_unread(self, layer: str, last: str) -> bool:
        """Whether nothing reads any more what a layer answers, in a model with a ``last`` block."""
        return self.block_of(layer) == last and re.fullmatch(self.unread, layer.removeprefix(f"{last}.")) is not None

    def is_turned(self, layer: str, architecture: str) -> bool:
        """Whether the rows of a layer have another order in some hosts, in a model of an ``architecture``."""
        match = re.fullmatch(rf"{re.escape(self.order[-1])}\.(\d+)\.({self.turned})", layer) if self.order else None
        return match is not None and int(match[1]) == Architecture.parse(architecture).layers[-1] - 1

    def text_sites(self, blocks: Iterable[str]) -> list[str]:
        """The canonical names of the layers of blocks that each read a text of their own: its cross-attention."""
        return self.sites(blocks, "cross")

    def streams(self, block: str, layers: Container[str]) -> tuple[Stream, ...]:
        """Which tokens each attention of a block sees whose ``layers`` a model has, in the order in which it runs: those of the text, of
        the image, of both together, or of the text those of the image.
        """
        there = (sub for sub in self.sublayers(block) if sub.linears and f"{block}.{sub.linears[0].name}" in layers)
        seen: dict[Kind, Stream] = {"joint": "both", "cross": "across"}
        return tuple(seen.get(sub.kind, sub.linears[0].reads) for sub in there if sub.kind != "feed_forward")

    def parts(self, block: str, *kinds: Kind) -> list[str]:
        """The names inside a block of its linear layers, in order; only those in sublayers of some kinds, if any are named."""
        return [part.name for sub in self.sublayers(block) if not kinds or sub.kind in kinds for part in sub.linears]

    def queries(self, block: str) -> list[str]:
        """The layers of a block that make the queries with which the image looks at the text."""
        return [layer for part in self.parts(block) if self.looks_at_text(layer := f"{block}.{part}")]

    def locate(self, layer: str) -> tuple[str, Sublayer | None, Linear | None]:
        """Return the block that a linear layer is in, its sublayer and itself; ``("", None, None)`` if it is in no block."""
        for pattern, known in self._linears:
            if match := pattern.fullmatch(layer):
                return (match["block"], *known[match["part"]])
        return "", None, None

    @cached_property
    def _linears(self) -> list[tuple[re.Pattern[str], dict[str, tuple[Sublayer, Linear]]]]:
        found = []
        for blocks in self.blocks:
            known = {part.name: (sub, part) for sub in blocks.sublayers for part in sub.linears}
            names = "|".join(map(re.escape, known))
            found.append((re.compile(rf"(?P<block>{blocks.pattern})\.(?P<part>{names})"), known))
        return found

    def block_of(self, layer: str) -> str:
        """The transformer block that a linear layer is in, by its canonical name; "" if it is in none."""
        return self.locate(layer)[0]

    def reads_text(self, layer: str) -> bool:
        """Whether what goes through a linear layer is the tokens of the text, and of nothing else."""
        linear = self.locate(layer)[2]
        return linear is not None and linear.reads == "text"

    def adapts(self, layer: str) -> bool:
        """Whether a layer is in the adapter that texts go through before the model is sampled."""
        adapter = self.host.text.adapter
        return bool(adapter) and layer.startswith(f"{adapter}.")

    def looks_at_text(self, layer: str) -> bool:
        """Whether a linear layer makes the queries with which the image looks at the text."""
        _, sublayer, linear = self.locate(layer)
        looks = sublayer is not None and sublayer.kind in ("cross", "joint")
        return looks and linear is not None and linear.role == "query" and linear.reads != "text"

    def kernel_of(self, layer: str) -> tuple[int, ...]:
        """The kernel of a convolution by its canonical name, () of a linear layer."""
        return next((kernel for pattern, kernel in self.kernels if re.search(pattern, layer)), ())

    @cached_property
    def shapes(self) -> Mapping[str, tuple[int, int]]:
        """The weights ``(out, in)`` of all layers by canonical name, at this size; of a convolution, ``in`` runs over channels, rows and
        columns. Empty where they are not known.
        """
        return self.weigh(self)

    def file_key(self, layer: str) -> str:
        """The name of a layer in the LoRA files that we write, by its canonical name."""
        encoder = self.encoder_of(layer)
        root, name = (encoder.kohya, layer.removeprefix(f"{encoder.name}.")) if encoder else (self.files.kohya, layer)
        return root + (name if self.files.dotted else flat(name))

    def layers_in(self, name: str) -> Sequence[str]:
        """Our layers in what a file calls by a name: several if it is fused."""
        return layers_at(self.modules, name) or (name,)

    def slices(self, name: str, shape: tuple[int, int], width: int) -> dict[str, Slice]:
        """Our layers in what a file has fused, which changes a weight of a ``shape`` (out, in) of a model of a ``width``, and where they
        lie in it; a layer lies in itself.

        Raises ``ValueError`` if they cannot have as many rows.
        """
        return slices_of(self.modules, name, shape, width) or {name: Slice(name, 0, *shape)}

    def layout(self, shapes: Mapping[str, tuple[int, int]]) -> dict[str, Slice]:
        """Where our layers lie in the host's model, from the shapes of its linear layers by their names there; empty if the queries of
        none of its blocks are there.

        Raises ``ValueError`` if the rows of a module cannot be those of its layers.
        """
        known = {name: layers for name in shapes if (layers := layers_at(self.modules, name))}
        width = next((shapes[name][1] for name, layers in known.items() if self.looks_at_text(layers[0])), 0)
        return {layer: at for name in known if width for layer, at in slices_of(self.modules, name, shapes[name], width).items()}

    def architecture_of(self, layout: Mapping[str, Slice]) -> str:
        """The architecture of a model by its layout: its blocks in which the image reads the text, by kind, and its width."""
        blocks = dict.fromkeys(map(self.block_of, layout))
        kinds = [kind for kind in self.blocks if any(sub.kind in ("cross", "joint") for sub in kind.sublayers)]
        counts = tuple(sum(bool(re.fullmatch(kind.pattern, block)) for block in blocks) for kind in kinds)
        width = next(at.columns for layer, at in layout.items() if self.looks_at_text(layer))
        return str(Architecture(self.name, counts, width))

    def module_of(self, layer: str) -> tuple[str, Sequence[str]]:
        """The host's module that a layer lies in, and all layers in it, in the order of their rows."""
        return module_of(self.modules, layer)

    def short(self, layer: str) -> str:
        """A layer's name for reading."""
        for piece in self.abbreviations:
            layer = layer.replace(piece, "")
        return layer


@dataclass(frozen=True)
class Architecture:
    """An architecture decides whether a concept fits a model: the family's name, its layers that read the text, by kind of block, and the
    width of that text. As text "sd1-16x768", or "flux1-19+38x3072" with several kinds of blocks.
    """

    family: str
    layers: tuple[int, ...]
    width: int

    def __str__(self) -> str:
        return f"{self.family}-{'+'.join(map(str, self.layers))}x{self.width}"

    @classmethod
    def parse(cls, text: str) -> "Architecture":
        """Raises ``ValueError`` for a text that is no architecture."""
        match = re.fullmatch(r"(?P<family>[a-z][a-z0-9_]*)-(?P<layers>\d+(?:\+\d+)*)x(?P<width>\d+)", text)
        if match is None:
            raise ValueError(f"architecture {text[:40]!r}: expected a family, its layers and the width of its text, such as sd1-16x768")
        return cls(match["family"], tuple(map(int, match["layers"].split("+"))), int(match["width"]))

    @property
    def count(self) -> int:
        """All layers that read the text."""
        return sum(self.layers)


_FAMILIES: dict[str, Family] = {}


def register(family: Family) -> Family:
    """Make a family known. Raises ``ValueError`` if another one has its architecture."""
    known = _FAMILIES.setdefault(family.architecture, family)
    if known is not family:
        raise ValueError(f"{family.title} and {known.title} have the same architecture {family.architecture}: give each its own")
    _family_of.cache_clear()
    return family


def forget(family: Family) -> None:
    """Take a family back, as a test does that made it up."""
    _FAMILIES.pop(family.architecture, None)
    _family_of.cache_clear()


def families() -> tuple[Family, ...]:
    """All known families, those of a name together in the order of their registration."""
    return tuple(_FAMILIES.values())


def family_of(architecture: str) -> Family:
    """The family of a model or a concept: the one of exactly this size, else the first of its name.

    Raises ``ValueError`` for a family that this version does not know.
    """
    return _family_of(architecture)


@cache
def _family_of(architecture: str) -> Family:
    if architecture in _FAMILIES:
        return _FAMILIES[architecture]
    name = Architecture.parse(architecture).family
    found = next((f for f in _FAMILIES.values() if f.name == name), None)
    if found is None:
        names = dict.fromkeys(f.name for f in _FAMILIES.values())
        raise ValueError(f"{architecture} is a model family that this version does not know, it knows {', '.join(names)}: update the pack")
    return found
