"""One call of the U-Net: every row with its own text, its own mixture of concepts at each token, its regions and its residuals."""

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..adapters import attach
from ..concept_text import ConceptText, plain, plans_of, states_in_layer
from ..hub import Attention, Sites, change_outputs, intercept, observe_grid, read_layerwise
from ..lowrank import LowRank
from ..method.attention import word_attention
from ..method.infusion import KEY, VALUE, infused_value, infusion
from ..method.reference import attend_to, shown_tokens, with_reference
from ..method.regions import AttentionPartition, pad_to_common_length, partition, region_attention
from ..method.weaving import suppress
from ..row_plan import RowPlan, TokenResidual
from .config import STRONGEST
from .rows import NONE, Row, has_residuals
from .scope import acting_at, repeat_mask
from .state import Beside, RunState


@dataclass(frozen=True)
class Weighted(LowRank):
    """Factors whose ranks are weighed by ``weigh(h)``, of the shape of what comes between them, ``h [B, ..., r]``."""

    weigh: Callable[[Tensor], Tensor] = lambda h: h

    def scale_ranks(self, h: Tensor) -> Tensor:
        return self.weigh(h)


@dataclass(frozen=True)
class Source:
    """A source is what row ``number`` reads in a region: the ``text`` that its own one carries for it, or, if it carries none, itself.
    ``key`` tells it apart from others, ``None`` if nobody knows.
    """

    number: int
    row: Row
    region: int
    text: ConceptText | None
    plan: RowPlan | None
    key: Hashable

    def in_layer(self, at: Attention) -> Tensor:
        """The text as a layer reads it, ``[1, N, D]``."""
        if self.text is None:
            return plain(at.text)[self.number : self.number + 1]
        return states_in_layer(self.text, at.index).to(at.text)


@dataclass(frozen=True)
class Moment:
    """What a scene does at one noise level: ``looking`` whether sought regions are looked for, ``residuals`` whether they act, ``layout``
    the layers whose outputs are the template's, ``asleep`` which of the scene's stacks do not act yet, and ``referring`` whether the
    reference is seen.
    """

    looking: bool = False
    residuals: bool = False
    layout: Sequence[str] = ()
    asleep: frozenset[int] = frozenset()
    referring: bool = False


class UnetCall:
    """The hooks of one call at a ``moment``. ``size`` is that of the latent."""

    def __init__(self, run: RunState, sites: Sites, rows: Sequence[Row], size: tuple[int, int], moment: Moment):
        self.run, self.sites, self.rows, self.size = run, sites, rows, size
        self.looking, self.layout, self.asleep = moment.looking, moment.layout, moment.asleep
        self.grid: list[int] = []
        self.regional = bool(run.scene.masks)
        self.marks = [run.mark_of(row) for row in rows]
        self.residuals = moment.residuals and any(has_residuals(row.plan) for row in rows)
        self.infused = self.carrying() if self.residuals else []
        self.referring = self.rows_that_refer() if moment.referring else {}

    @contextmanager
    def open(self, x: Tensor) -> Iterator[None]:
        """Let the model's layers do what the rows say, while this is open."""
        with ExitStack() as hooks:
            self.grid = hooks.enter_context(observe_grid(self.sites.tokenizers))
            hooks.enter_context(read_layerwise(self.sites.blocks.values()))
            for layers in self.deltas(x):
                hooks.enter_context(attach(self.sites.layers, layers))
            hooks.enter_context(change_outputs([self.sites.layers[name] for name in self.layout], self.of_template))
            if self.referring:
                hooks.enter_context(intercept(self.self_attentions(), self.with_reference))
            if self.regional or self.infused:
                keyed = self.change_keys if self.run.scene.infusion.stream == "released_code" and self.infused else None
                hooks.enter_context(
                    intercept(self.sites.cross_attention, self.attention, keyed, self.select_queries if self.regional else None)
                )
            yield

    # concepts beside the layers

    def deltas(self, x: Tensor) -> list[dict[str, Weighted]]:
        """Return what each of the scene's stacks adds to the layers."""
        found: list[dict[str, Weighted]] = [{} for _ in self.run.scene.stacks]
        for name, stacks in self.run.besides(x).items():
            for own in stacks:
                if own.number in self.asleep:
                    continue
                if own.reads_text:
                    if own.said:
                        found[own.number][name] = self.beside(own, self.at_text)
                else:
                    found[own.number][name] = self.beside(own, self.at_tokens)
        return found

    def beside(self, own: Beside, weigh: Callable[[Beside, Tensor], Tensor]) -> Weighted:
        return Weighted(own.stack.up, own.stack.down, own.stack.kernel, weigh=lambda h: weigh(own, h))

    def acts(self, own: Beside, row: Row) -> float:
        """Whether a stack acts on a row at all: never on the template, nor on the reference."""
        return 0.0 if row.job.guest else float(row.composed or self.run.scene.stacks[own.number].negative)

    def of_rows(self, own: Beside) -> Tensor:
        """The weights of ranks that each row has where no region is, ``[B, R]``, or ``[1, R]`` if all have the same."""
        images = [row.image % len(own.weights) for row in self.rows]
        acting = [self.acts(own, row) for row in self.rows]
        key = ("rows", own.key, own.weights.device, own.weights.dtype, *zip(images, acting, strict=True))
        if key not in self.run.scales:
            found = [acts * own.weights[i, 0] for i, acts in zip(images, acting, strict=True)]
            self.run.scales[key] = torch.stack(found[:1] if len({*zip(images, acting, strict=True)}) == 1 else found)
        return self.run.scales[key]

    def at_tokens(self, own: Beside, h: Tensor) -> Tensor:
        """Weigh what comes between the factors of a layer that reads image tokens or feature maps, ``h [B, ..., r]``, by the shares of
        each token in the regions; what stands for a whole image, ``[B, r]``, has the mixture of the global prompt.
        """
        if h.ndim == 2:
            return h * self.of_rows(own)
        if not self.regional or own.uniform:
            weights = self.of_rows(own)
            if len(weights) > 1:
                self.check_rows(len(h), "concepts that differ from row to row")
            return h * weights.view(len(weights), *[1] * (h.ndim - 2), -1)
        height, width = (h.shape[1], h.shape[2]) if h.ndim == 4 else self.grid
        tokens = h.flatten(1, -2)
        weights = self.by_token(own, height, width, h)
        if weights.shape[1] != tokens.shape[1]:
            raise ValueError(
                f"a layer reads {len(h)} x {tokens.shape[1]} tokens of an image of {height} x {width} cells: another node, such as "
                "HyperTile or Tome, has moved them, and nobody knows which of them are in which region; take it off this model, or take "
                "concepts without factors on self-attention"
            )
        self.check_rows(len(h), "regions")
        return (tokens * weights).view_as(h)

    def by_token(self, own: Beside, height: int, width: int, like: Tensor) -> Tensor:
        """The weights of ranks at every token, ``[B, T, R]``, or ``[1, T, R]`` if that is alike in all rows."""
        signs = [(self.marks[b], row.image % len(own.weights), self.acts(own, row)) for b, row in enumerate(self.rows)]
        key = ("tokens", own.key, like.device, like.dtype, height, width, *signs)
        if key not in self.run.scales:
            first = {sign: row for sign, row in zip(reversed(signs), reversed(self.rows), strict=True)}
            found = {}
            for sign, row in first.items():
                weights = self.acts(own, row) * own.weights[row.image % len(own.weights)]  # [U + 1, R]
                found[sign] = self.run.shares_of(row, height, width, like).mT.to(weights) @ weights
            self.run.scales[key] = torch.stack([found[sign] for sign in (signs if len(found) > 1 else signs[:1])])
        return self.run.scales[key]

    def at_text(self, own: Beside, h: Tensor) -> Tensor:
        """Weigh what comes between the factors of a layer that reads texts, ``h [B, N, r]``, where concepts act on these texts."""
        weights = self.of_rows(own)[:, None]
        if self.run.by_token[own.number]:
            tokens = h.shape[1]
            texts = [(row.plan and row.plan.key, row.image % len(own.weights), self.acts(own, row)) for row in self.rows]
            key = ("text", own.key, h.device, h.dtype, tokens, *texts)
            if key not in self.run.scales:
                self.run.scales[key] = weights * torch.stack([self.acting(own, row.plan, tokens) for row in self.rows])
            weights = self.run.scales[key]
        if len(weights) > 1 or self.run.by_token[own.number]:
            self.check_rows(len(h), "concepts that act on some texts or words only")
        return h * weights

    def acting(self, own: Beside, plan: RowPlan | None, tokens: int) -> Tensor:
        """Return where on a text the ranks act, ``[N, R]``."""
        stack = self.run.scene.stacks[own.number]
        at = acting_at(plan.token_masks if plan else {}, stack.concepts, stack.scope, tokens)
        return own.stack.spread(at[:, list(own.owners)].to(own.weights.device))

    def check_rows(self, found: int, what: str) -> None:
        """Raises ``ValueError`` when another node has changed how many rows there are, which matters to ``what``."""
        if found != len(self.rows):
            raise ValueError(
                f"a layer reads {found} rows where the sampler sent {len(self.rows)}: another node on this model, such as HyperTile or an "
                f"attention couple, divides or multiplies them, which does not go together with {what}; take one of the two off the model"
            )

    # the layout of a template

    def of_template(self, output: Tensor) -> Tensor:
        """The output ``[B, ...]`` of a layer, in which every row has that of the template for its image (Plug-and-Play)."""
        self.check_rows(len(output), "a template")
        template = {row.image: number for number, row in enumerate(self.rows) if row.job.template}
        return output[[template[row.image] for row in self.rows]]

    # the reference

    def rows_that_refer(self) -> dict[int, float]:
        """The rows that refer to the reference, and how strongly; none where none of its pictures is in the call."""
        reference = self.run.scene.reference
        if not reference or not any(row.job.reference for row in self.rows):
            return {}
        found = {b: row.plan.refers for b, row in enumerate(self.rows) if row.plan and not row.job.guest}
        return {b: reference.how.strength * part for b, part in found.items() if part}

    def self_attentions(self) -> dict[str, Any]:
        """The self-attentions in which the reference is seen."""
        reference = self.run.scene.reference
        found = {}
        for name in reference.layers if reference else ():
            block = next(block for block in self.sites.blocks if name.startswith(f"{block}."))
            found[name] = self.sites.blocks[block].get_submodule(name.removeprefix(f"{block}."))
        return found

    def with_reference(self, at: Attention, out: Tensor) -> Tensor:
        """The output ``[B, T, C]`` of a self-attention, in which rows that refer to the reference have seen its tokens."""
        self.check_rows(len(out), "a reference")
        taking = [*self.referring]
        guests = tuple(self.tokens_of_reference(part, taking) for part in (at.k, at.v))
        seen = attend_to(self.run.attend, at.q[taking], at.k[taking], at.v[taking], (guests[0], guests[1]), at.heads)
        out = out.clone()
        out[taking] = with_reference(out[taking], seen, torch.tensor([*self.referring.values()]))
        return out

    def tokens_of_reference(self, every: Tensor, taking: Sequence[int]) -> Tensor:
        """The keys or values ``[P, N, C]`` of all its pictures, of ``every [B, T, C]``, for each of the rows that take them.

        Raises ``ValueError`` for tokens that nobody knows the places of.
        """
        reference = self.run.scene.reference
        assert reference is not None
        found = []
        for number in range(len(reference.latents)):
            at = {row.image: b for b, row in enumerate(self.rows) if row.job.reference == number + 1}
            own = every[[at[self.rows[b].image] for b in taking]]
            if reference.masks is not None:
                height, width = self.grid
                if height * width != own.shape[1]:
                    raise ValueError(
                        f"a self-attention layer has {own.shape[1]} tokens for {height} x {width} cells: another node has merged them, and "
                        "nobody knows which show the subject of the reference; take it off this model, or the mask"
                    )
                own = own[:, shown_tokens(reference.masks[number], height, width).to(own.device)]
            found.append(own)
        return torch.cat(found, 1)

    # regions and residuals, between the attention and what follows it

    def select_queries(self, name: str, q: Tensor) -> Tensor:
        """Select the queries ``[B, S, C]`` of a cross-attention, of ``[B, T, C]``, whose tokens read the global text in any row: the model
        need not answer the others. All are taken if another pack computes the attention or has changed the rows.
        """
        if name in self.sites.replaced or len(q) != len(self.rows):
            return q
        background = self.partition(q).background
        if len(background) == q.shape[1]:
            return q
        return q[:, background] if len(background) else q[:, :1]  # attention kernels take no empty batch

    def attention(self, at: Attention, out: Tensor) -> Tensor:
        """The output ``[B, T, C]`` of a cross-attention that has answered ``out [B, S, C]``."""
        self.check_rows(len(out), "regions" if self.regional else "concepts of Infusion")
        if self.looking:
            self.look(at)
        if self.regional:
            out = self.in_regions(at, out)
        return self.with_residuals(at, out) if self.infused else out

    def in_regions(self, at: Attention, out: Tensor) -> Tensor:
        """Image tokens of a region attend to its own text. What another pack in the attention's place has added stays added."""
        by = self.partition(at.q)
        if not by.owners:
            return out
        k, v = self.region_keys(at, [(row, u) for row, u in by.owners])
        attend = self.run.attend

        def own(chunks: Tensor) -> Tensor:
            return self.suppressed(at, by.owners, chunks, attend(chunks, k, v, at.heads))

        contested = self.run.scene.overlap == STRONGEST
        if at.name not in self.sites.replaced:
            return region_attention(at.q, by, lambda tokens: out, own, (lambda: attend(at.q, at.k, at.v, at.heads)) if contested else None)
        plainly = attend(at.q, at.k, at.v, at.heads)
        inside = region_attention(at.q, by, lambda tokens: plainly[:, tokens], own, (lambda: plainly) if contested else None)
        return out + inside - plainly

    def suppressed(self, at: Attention, owners: Sequence[tuple[int, int]], chunks: Tensor, fused: Tensor) -> Tensor:
        """What chunks of queries ``[P, M, C]`` get from the texts of their regions, ``fused [P, M, C]``, away from what the plain model
        would answer that reads the template's text. Rows whose text says nothing of regions, such as negative ones, stay.
        """
        template = self.run.scene.template
        wanted = [p for p, (row, _) in enumerate(owners) if self.rows[row].regional]
        if template is None or not template.how.suppression or not wanted:
            return fused
        k, v = (part.expand(len(wanted), -1, -1) for part in self.template_keys(at, template.picture.text))
        fused = fused.clone()
        fused[wanted] = suppress(fused[wanted], self.run.attend(chunks[wanted], k, v, at.heads), template.how.suppression)
        return fused

    def template_keys(self, at: Attention, text: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values ``[1, N, C]`` of the template's text, without concepts and without hooks, which are for the batch."""
        key = (at.name, at.q.device, at.q.dtype, "template")
        if key not in self.run.texts:
            layer = self.sites.cross_attention[at.name]
            read = (states_in_layer(text, at.index) if isinstance(text, ConceptText) else text).to(at.text)
            self.run.texts[key] = layer.to_k.forward(read), layer.to_v.forward(read)
        return self.run.texts[key]

    def partition(self, q: Tensor) -> AttentionPartition:
        """Which texts the queries ``[B, T, C]`` of a layer attend to."""
        height, width = self.grid
        if height * width != q.shape[1]:
            raise ValueError(
                f"a cross-attention layer has {q.shape[1]} tokens for {height} x {width} cells: another node has moved or merged them, and "
                "nobody knows which are in which region; take it off this model"
            )
        key = (height, width, q.device, q.dtype, *self.marks)
        if key not in self.run.partitions:
            every = torch.stack([self.run.shares_of(row, height, width, q) for row in self.rows])
            self.run.partitions[key] = partition(every.float().cpu()).to(q)
        return self.run.partitions[key]

    def region_keys(self, at: Attention, owners: Sequence[tuple[int, int]]) -> tuple[Tensor, Tensor]:
        """Keys and values ``[P, N, C]`` of what rows read in regions, with the concepts of the region in them."""
        sources = [self.source(at, row, u) for row, u in owners]
        known = all(source.key is not None for source in sources)
        every = tuple(source.key if known else (source.number, source.region) for source in sources)
        key = (at.name, at.q.device, at.q.dtype, self.residuals, self.asleep, every)
        if known and key in self.run.texts:
            return self.run.texts[key]
        distinct = dict(zip(every, sources, strict=True))
        layer = self.sites.cross_attention[at.name]
        texts = pad_to_common_length([source.in_layer(at) for source in distinct.values()])
        k, v = (self.read(f"{at.name}.{part}", getattr(layer, part), texts, [*distinct.values()]) for part in ("to_k", "to_v"))
        if self.residuals and self.run.scene.infusion.stream == "released_code":
            for j, source in enumerate(distinct.values()):
                k[j : j + 1] = keyed_text(at.name, k[j : j + 1], source.plan)
        if len(distinct) < len(sources):
            order = torch.tensor([[*distinct].index(one) for one in every], device=k.device)
            k, v = k[order], v[order]
        if known:
            self.run.texts[key] = k, v
        return k, v

    def source(self, at: Attention, number: int, region: int) -> Source:
        """Return what a row reads in a region."""
        row = self.rows[number]
        mixture = row.image % max(len(stack.weights) for stack in self.run.scene.stacks) if self.run.scene.stacks else 0
        if row.regional and row.plan:
            text = row.plan.regions[region - 1]
            assert isinstance(text, ConceptText)
            (plan,) = text.plans
            return Source(number, row, region, text, plan, (plan.key, region, mixture) if plan else None)
        key = None if row.key is None else (row.key, region, mixture, at.text.shape[1], row.composed)
        return Source(number, row, region, None, row.plan, key)

    def read(self, name: str, layer: Any, texts: Tensor, sources: Sequence[Source]) -> Tensor:
        """Texts ``[J, N, D]`` through a layer, each with the concepts of its region. Without hooks, which are for the batch."""
        out = layer.forward(texts)
        for own in self.run.besides(texts).get(name, ()):
            if own.number in self.asleep:
                continue
            scales = []
            for source in sources:
                mixture = own.weights[source.row.image % len(own.weights)]
                weights = self.acts(own, source.row) * mixture[source.region if len(mixture) > 1 else 0]
                scoped = self.run.by_token[own.number]
                scales.append(weights * self.acting(own, source.plan, texts.shape[1]) if scoped else weights[None])
            out = out + LowRank(own.stack.up, own.stack.down, (), torch.stack(scales))(texts)
        return out

    def look(self, at: Attention) -> None:
        """Add how much the tokens of a layer of middle size look at the words of the regions that are sought."""
        height, width = self.grid
        numbers = [b for b, row in enumerate(self.rows) if row.regional and row.job.region <= 0 and not row.job.foundation]
        chunk = self.rows[numbers[0]].job.chunk if numbers else NONE
        numbers = [b for b in numbers if self.rows[b].job.chunk == chunk]
        if not numbers or not 2 <= round(self.size[0] / height) <= 4:
            return
        for u in self.run.sought:
            k, _ = self.region_keys(at, [(b, u) for b in numbers])
            marks = torch.stack([repeat_mask(self.run.words_of(self.rows[b], u), k.shape[1]) for b in numbers])
            seen = word_attention(at.q[numbers], k, marks, at.heads).mean(1)
            half = [-(-side // 2) for side in self.size]
            seen = F.interpolate(seen.view(-1, 1, height, width), half, mode="bilinear")[:, 0].cpu()
            self.run.seen[u] = self.run.seen[u] + seen if u in self.run.seen else seen

    # Infusion

    def carrying(self) -> list[tuple[list[int], list[int], RowPlan]]:
        """Rows that carry the same residuals, the rows whose attention they take, and their plan."""
        found: dict[Hashable, tuple[list[int], list[int], RowPlan]] = {}
        for number, row in enumerate(self.rows):
            if has_residuals(row.plan) and row.plan and not row.job.foundation:
                rows, sources, _ = found.setdefault((row.plan.key, row.job), ([], [], row.plan))
                rows.append(number)
                sources.append(row.source)
        return [*found.values()]

    def with_residuals(self, at: Attention, out: Tensor) -> Tensor:
        """``out [B, T, C]`` in which rows have what they take from their foundation and their residuals."""
        value, new = f"{at.name}.{VALUE}", None
        for rows, sources, plan in self.infused:
            carried = [(0, r) for r in plan.residuals]
            for u, region in enumerate(plan.regions, 1):
                carried += [(u, r) for own in plans_of(region) if own for r in own.residuals]
            acting = [(u, r) for u, r in carried if value in r.residuals]
            if rows == sources and not acting:
                continue
            total = out[sources]
            for u, r in acting:
                k = at.k[sources] if not u else self.region_keys(at, [(b, u) for b in sources])[0]
                attention = word_attention(at.q[sources], k, r.marks, at.heads)
                total = total + infusion(attention * self.reach(r, u, rows, attention), r.residuals[value]).to(out)
            new = out.clone() if new is None else new
            new[rows] = total
        return out if new is None else new

    def reach(self, residual: TokenResidual, region: int, rows: Sequence[int], like: Tensor) -> Tensor | float:
        """How far a residual acts on the tokens, ``[B, 1, T]``: by the share of its text there, and by its mask."""
        acting: Tensor | float = 1.0
        if self.regional:
            acting = torch.stack([self.run.shares_of(self.rows[b], self.grid[0], self.grid[1], like)[region] for b in rows])[:, None]
        if residual.mask is not None:
            cells = F.interpolate(residual.mask[None, None].float(), tuple(self.grid), mode="area").flatten()
            acting = acting * cells.to(like)
        return acting

    def change_keys(self, name: str, k: Tensor) -> Tensor:
        """Return the keys ``[B, N, C]`` of a layer with the residuals of the released code in them."""
        if not any(f"{name}.{KEY}" in r.residuals for *_, plan in self.infused for r in plan.residuals):
            return k
        k = k.clone()
        for rows, _, plan in self.infused:
            k[rows] = keyed_text(name, k[rows], plan)
        return k


def keyed_text(name: str, k: Tensor, plan: RowPlan | None) -> Tensor:
    """Keys ``[B, N, C]`` of one text with the residuals of the released code."""
    for residual in plan.residuals if plan else ():
        if (own := residual.residuals.get(f"{name}.{KEY}")) is not None:
            k = infused_value(k, repeat_mask(residual.marks, k.shape[1]), own)
    return k
