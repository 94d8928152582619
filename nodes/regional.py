"""Regions on the host's MODEL: one replacement of each cross-attention, and concepts beside the layers, in one pass.

The texts of regions do not change over the steps, nor do their keys and values: they are computed once per run.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from comfy.ldm.modules.attention import optimized_attention
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrapperExecutor, WrappersMP
from torch import Tensor
from torch.nn import functional as F

from ..cidm_ops.adapters import attached
from ..cidm_ops.lowrank import LowRank
from ..cidm_ops.method.aggregation import Route, route, weights_in
from ..cidm_ops.method.attention import word_attention
from ..cidm_ops.method.blending import blend_weights
from ..cidm_ops.method.finding import found
from ..cidm_ops.method.regions import NOWHERE, Cut, Field, Place, alike, cells, cut, grid_of, region_attention
from ..cidm_ops.run.prompt import Mixture
from . import patches
from .aggregation import Way
from .estimation import ALL, NONE, REGION, Estimation, estimating
from .host import ComfyBackbone, layer_names, text_sites

NEGATIVE = 1  # in the host's cond_or_uncond; 0 is the positive text, what comes after are passes of single regions


@dataclass(frozen=True)
class Region:
    """What stands where: the text of a place for every layer ``[L, N, C]``, or for all of them ``[1, N, C]``, and its concepts; where the
    words of those are in the text, for a place that is to be found.
    """

    place: Place
    text: Tensor
    mixture: Mixture
    words: Sequence[int] = ()


@dataclass(frozen=True)
class Spread(LowRank):
    """Factors whose ranks are weighed by ``scale_of(h)``, ``[..., T, r]``, for what comes between them, ``h [B, T, r]``."""

    scale_of: Callable[[Tensor], Tensor] = torch.ones_like

    def weighed(self, h: Tensor) -> Tensor:
        tokens = h.flatten(1, -2) if h.ndim > 3 else h
        return (tokens * self.scale_of(tokens)).view_as(h)


def in_regions(
    backbone: ComfyBackbone, whole: Mixture, regions: Sequence[Region], negative: bool = True, how: Estimation | None = None
) -> ModelPatcher:
    """A clone of the model that paints the text it is given, mixed as ``whole``, with regions in it, and with passes for each."""
    if not regions:
        return Way(negative=negative).apply(backbone.model, [whole], backbone)
    state = Regions(backbone.model, whole, regions, negative)
    return estimating(state.patched(), len(regions), partial(state.blending, how), how) if how else state.patched()


@dataclass(frozen=True)
class Rows:
    """Rows of a batch that are one pass: where, whether they read the negative text, and which regions are in it."""

    at: slice
    negative: bool
    region: int


class Regions:
    """The state of one patched MODEL.

    Image tokens of a region attend to its text, and every layer has their own mixture of concepts. Texts that are not the positive one
    are read by all tokens, and concepts act on them as a LoRA does, unless ``negative`` is off.
    """

    def __init__(self, model: ModelPatcher, whole: Mixture, regions: Sequence[Region], negative: bool = True):
        self.model, self.regions, self.negative = model, regions, negative
        self.modules, self.sites = layer_names(model), text_sites(model)
        concepts = {c.name: c for m in (whole, *(r.mixture for r in regions)) for c in m.concepts}
        self.weights = torch.zeros(1 + len(regions), len(self.sites), len(concepts))
        for u, mixture in enumerate([whole, *(r.mixture for r in regions)]):
            for g, concept in enumerate(mixture.concepts):
                self.weights[u, :, list(concepts).index(concept.name)] = mixture.weights[:, g]
        self.routes = route(list(concepts.values()), list(self.sites))
        self.placed: dict[tuple[torch.device, torch.dtype], tuple[dict[str, Any], dict[str, Callable]]] = {}  # layers, what is beside them
        self.mixes: dict[tuple, Tensor] = {}  # weights of ranks, one tensor for all layers that have the same
        self.fields: dict[tuple[int, int, int], list[Field]] = {}
        self.cuts: dict[tuple, Cut] = {}
        self.kept: dict[tuple, Any] = {}  # for one run: keys and values, and scales
        self.reading: Sequence[int] = ()  # regions whose texts are going through a layer
        sampling = model.get_model_object("model_sampling")
        self.sought = {u: float(sampling.percent_to_sigma(r.place.sought)) for u, r in enumerate(regions, 1) if r.place.sought}
        self.forget()

    def forget(self) -> None:
        """What belongs to one run: texts, and what was found."""
        self.kept.clear()
        self.place([[r.place for r in self.regions]])
        self.seen: dict[int, Tensor] = {}  # how much the pictures look at the words of regions that are sought [B, H, W]

    def place(self, here: list[list[Place]]) -> None:
        """Where the regions are: alike in all pictures, or one list of places for each."""
        self.here = here
        for known in (self.fields, self.cuts, self.kept):
            known.clear()

    def patched(self) -> ModelPatcher:
        """A clone of the model. A replacement that is there already does the part of the global text."""
        patched = patches.reading(self.model)
        there = patched.model_options["transformer_options"].get("patches_replace", {}).get("attn2", {})
        for layer, module in enumerate(self.sites.values()):
            place = patches.block_place(module)
            patched.set_model_attn2_replace(self.attention(layer, there.get(place, there.get(place[:2]))), *place)
        # functions, not methods: cloning a model copies the object of a method with it
        patched.set_model_attn2_patch(lambda *args: self.see(*args))
        patched.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "cidm", lambda *args, **kwargs: self.forward(*args, **kwargs))
        patched.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, "cidm", lambda *args, **kwargs: self.run(*args, **kwargs))
        return patched

    def run(self, executor: Callable, *args: Any, **kwargs: Any) -> Any:
        """A run of the sampler: nothing is kept for the next."""
        self.forget()
        try:
            return executor(*args, **kwargs)
        finally:
            self.forget()

    def forward(self, executor: WrapperExecutor, x: Tensor, t: Tensor, context: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """A pass through the U-Net."""
        options = next(a for a in (*args, *kwargs.values()) if isinstance(a, dict) and "cond_or_uncond" in a)
        halves, self.size = options["cond_or_uncond"], x.shape[-2:]
        each = len(x) // len(halves)
        active = kwargs.pop(REGION)[::each].tolist() if REGION in kwargs else [(ALL, False)] * len(halves)
        self.rows = [
            Rows(slice(i * each, (i + 1) * each), half == NEGATIVE, region)
            for i, (half, (region, _)) in enumerate(zip(halves, active, strict=True))
        ]
        self.looking = bool(self.sought) and float(options["sigmas"].max()) > min(self.sought.values())
        if self.seen and not self.looking:
            self.find()
        for rows, (region, hidden) in zip(self.rows, active, strict=True):
            if hidden:
                x = x.clone()
                x[rows.at] = self.alone(x[rows.at], region, options["sigmas"])
        self.layout = (*self.size, each, *((rows.negative, rows.region) for rows in self.rows))
        self.said = tuple(options["uuids"])
        self.unet: Any = executor.class_obj
        if (x.device, x.dtype) not in self.placed:
            layers = {name: self.unet.get_submodule(self.modules[name]) for name in self.routes}
            self.placed[x.device, x.dtype] = layers, {name: self.beside(r.to(x)) for name, r in self.routes.items()}
        with attached(*self.placed[x.device, x.dtype]):
            return executor(x, t, context, *args, **kwargs)

    def alone(self, x: Tensor, region: int, sigmas: Tensor) -> Tensor:
        """What the U-Net reads, with plain background noised alike outside of a region; the mask is binary, so that noise keeps its
        variance.
        """
        inside = torch.stack([cells(places[region - 1].mask, *x.shape[-2:]) for places in self.here])[:, None].to(x)
        channels = self.model.model.latent_format.latent_channels  # an inpainting model reads more
        sigma = sigmas[: len(x)].view(-1, 1, 1, 1).to(x)
        noise = torch.randn(x[:, :channels].shape, generator=torch.Generator().manual_seed(0)).to(x) * sigma
        plain = self.model.get_model_object("model_sampling").calculate_input(sigma, noise)
        return torch.cat([x[:, :channels] * inside + plain * (1 - inside), x[:, channels:]], 1)

    def beside(self, r: Route) -> Callable[[Tensor], Any]:
        """What concepts add to a layer: to image tokens by their shares in the texts, to a text by its owner's mixture."""
        weights = r.stack.spread(weights_in(self.weights, list(self.sites), r.name)[:, list(r.owners)]).to(r.stack.up)
        weights = self.mixes.setdefault((*weights.flatten().tolist(), weights.device, weights.dtype), weights)

        def scale_of(h: Tensor) -> Tensor:
            if self.reading:
                return weights[list(self.reading), None]
            tokens = 0 if r.reads_text or h.ndim == 2 else h.shape[1]
            key = (self.layout, tokens, id(weights))
            if key not in self.kept:
                self.kept[key] = self.acts(h, tokens) @ weights
            scale = self.kept[key]
            return scale[:, 0] if h.ndim == 2 else scale

        spread = Spread(r.stack.up, r.stack.down, r.stack.kernel, scale_of=scale_of)
        if r.reads_text and not weights[0].any():  # the global prompt has no concept
            return lambda text: spread(text) if self.reading else 0
        return spread

    def see(self, n: Tensor, context: Tensor, value: Tensor, extra: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
        """The texts of a layer before they are keys and values."""
        self.context = context
        return n, context, value

    def attention(self, layer: int, inner: Callable | None) -> Callable:
        """The replacement of a layer's cross-attention."""

        def replacement(q: Tensor, k: Tensor, v: Tensor, extra: dict[str, Any]) -> Tensor:
            attend = partial(optimized_attention, heads=extra["n_heads"])
            if self.looking:
                self.look(layer, q, extra["n_heads"])
            by, whole = self.cut(q), lambda at: attend(q[:, at], k, v)
            if inner:
                done = inner(q, k, v, extra)
                whole = lambda at: done[:, at]  # noqa: E731
            return region_attention(q, by, whole, lambda pieces: attend(pieces, *self.texts(layer, by)))

        return replacement

    def look(self, layer: int, q: Tensor, heads: int) -> None:
        """Add how much the tokens of a layer of middle size look at the words of the regions that are sought."""
        height, width = grid_of(q.shape[1], *self.size)
        rows = next((r for r in self.rows if not r.negative and r.region <= 0), None)
        if rows is None or not 2 <= round(self.size[0] / height) <= 4:
            return
        attention = self.unet.get_submodule(list(self.sites.values())[layer])
        for u in self.sought:
            if (key := (layer, u)) not in self.kept:
                self.kept[key] = self.read((u,), attention.to_k, self.text(layer, u))
            k, marks = self.kept[key], torch.zeros(self.kept[key].shape[1], device=q.device)
            marks[list(self.regions[u - 1].words)] = 1
            seen = word_attention(q[rows.at], k, marks, heads).mean(1)
            seen = F.interpolate(seen.view(-1, 1, height, width), [-(-side // 2) for side in self.size], mode="bilinear")[:, 0].cpu()
            self.seen[u] = self.seen[u] + seen if u in self.seen else seen

    def find(self) -> None:
        """Put the regions that were sought where the pictures looked at their words."""
        masks = [found(maps) for maps in torch.stack(list(self.seen.values()), 1)]
        at = {u: i for i, u in enumerate(self.seen)}
        placed = [[replace(r.place, mask=mask[at[u]]) if u in at else r.place for u, r in enumerate(self.regions, 1)] for mask in masks]
        self.place(placed)
        self.seen = {}

    def blending(self, how: Estimation, height: int, width: int) -> Tensor:
        """How predictions of passes are blended, ``[1 or B, U + 1, H, W]``."""
        if (key := (height, width)) not in self.kept:
            each = [blend_weights(p, height, width, alpha=how.alpha, overlap=how.overlap, feather=how.feather) for p in self.here]
            self.kept[key] = torch.stack(each)
        return self.kept[key]

    def read(self, regions: Sequence[int], layer: Callable[[Tensor], Tensor], text: Tensor) -> Tensor:
        """Texts of regions through a layer, with the concepts of each."""
        self.reading = regions
        try:
            return layer(text)
        finally:
            self.reading = ()

    def owners(self, region: int, tokens: Tensor) -> Tensor:
        """The shares ``[1 or B, U + 1, T]`` of the tokens of pictures in a pass; ``tokens [..., T, C]`` of any batch."""
        key = (*self.size, region)
        if key not in self.fields:
            shown = [[p if region in (ALL, u) else replace(p, mask=NOWHERE) for u, p in enumerate(places, 1)] for places in self.here]
            self.fields[key] = [Field(places, *self.size) for places in shown]
        return torch.stack([field(tokens) for field in self.fields[key]])

    def acts(self, h: Tensor, tokens: int) -> Tensor:
        """How far each mixture acts on the image tokens of every row, ``[B, T, U + 1]``, or ``[1, T, U + 1]`` if that is alike in all rows.

        With ``tokens`` 0 it is a text, or what stands for a whole row: the global prompt's.
        """
        whole = torch.eye(len(self.regions) + 1, 1).to(h)[None]
        owners = [self.owners(rows.region, h) if tokens else whole for rows in self.rows]
        acting = [o.mT * float(self.negative or not rows.negative) for o, rows in zip(owners, self.rows, strict=True)]
        if all(len(a) == 1 and bool((a == acting[0]).all()) for a in acting):
            return acting[0]
        return torch.cat([a.expand(len(h) // len(acting), -1, -1) for a in acting])

    def cut(self, q: Tensor) -> Cut:
        """Which texts the queries ``[B, T, C]`` of a layer attend to."""
        key = (self.layout, q.shape[1], q.device, q.dtype)
        if key not in self.cuts:
            owners = [self.owners(NONE if rows.negative and not self.negative else rows.region, q) for rows in self.rows]
            each = len(q) // len(owners)
            self.cuts[key] = cut(torch.cat([o.expand(each, -1, -1) for o in owners]).float().cpu()).to(q)
        return self.cuts[key]

    def texts(self, layer: int, by: Cut) -> tuple[Tensor, Tensor]:
        """Keys and values ``[P, N, C]`` of what each piece reads, with the concepts of its region in them."""
        key = (layer, self.layout, self.said)
        if key not in self.kept:
            sources = [self.source(row, u) for row, u in by.readers]
            said = list(dict.fromkeys(sources))
            text = alike([self.text(layer, u) if row is None else self.context[row : row + 1] for row, u in said])
            attention = self.unet.get_submodule(list(self.sites.values())[layer])
            k, v = (self.read([u for _, u in said], layer, text) for layer in (attention.to_k, attention.to_v))
            at = [said.index(source) for source in sources]
            self.kept[key] = k, v, slice(None) if at == list(range(len(said))) else torch.tensor(at, device=k.device)
        k, v, at = self.kept[key]
        return k[at], v[at]

    def source(self, row: int, region: int) -> tuple[int | None, int]:
        """Whose text a row reads in a region: that of a row of the batch, or, None, the region's own."""
        rows = next(rows for rows in self.rows if row < rows.at.stop)
        if not rows.negative:
            return None, region
        texts = self.context[rows.at]
        return (rows.at.start if (texts == texts[:1]).all() else row), region  # often one text for all rows

    def text(self, layer: int, region: int) -> Tensor:
        """What a layer reads in a region."""
        text = self.regions[region - 1].text
        return text[layer if len(text) > 1 else 0][None].to(self.context)
