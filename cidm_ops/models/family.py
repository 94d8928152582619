"""What a model family is, as data: the one place where its names, sizes and ids stand.

A family is a file beside this one that builds a ``Family`` and registers it. The method, the bank and the engines ask the family of the
model or of the concept at hand, and never match names themselves. Nothing here needs torch, a host or the weights of a model.
"""

import re
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from .architecture import Architecture
from .blocks import Blocks, Kind, Linear, Stream, Sublayer
from .diffusers import Diffusers
from .encoder import Encoder
from .host import Host
from .lora_files import LoraFiles
from .module import Module, Slice, flat, layers_at, module_of, slices_of


@dataclass(frozen=True)
class Objective:
    """How a model is learned and painted where nothing else is set; most of it is of rectified flows.

    Noise levels are drawn by a ``density``, "uniform" or "sigmoid" (logit-normal, Esser et al. 2024), and moved by a ``shift``, 0 for that
    of the picture's size. ``guidance`` is what a model that was distilled by guidance is told while it learns, ``painted`` while it paints;
    ``cfg`` weighs classifier-free guidance, in previews too.
    """

    density: str = "sigmoid"
    shift: float = 1.0
    guidance: float = 0.0
    painted: float = 0.0
    cfg: float = 4.0


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
    objective: Objective = Objective()
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
