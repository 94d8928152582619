"""Regions in the cross-attention of one call: image tokens of a region read its own text, with its own concepts in it."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..concept_text import ConceptText, plain, states_in_layer
from ..hub import Attention
from ..lowrank import LowRank
from ..method.attention import word_attention
from ..method.regions import AttentionPartition, pad_to_common_length, partition, region_attention
from ..method.weaving import suppress
from ..row_plan import RowPlan
from .call import Call
from .config import STRONGEST
from .deltas import Deltas
from .residuals import keyed_text
from .rows import NONE, Row
from .scope import repeat_mask


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


class RegionReading:
    """What the rows of one call read in regions. ``size`` is that of the latent; where ``residuals`` act, those of the released code change
    the keys of the texts of regions too.
    """

    def __init__(self, call: Call, deltas: Deltas, size: tuple[int, int], residuals: bool):
        self.call, self.deltas, self.size, self.residuals = call, deltas, size, residuals
        self.run, self.sites, self.rows = call.run, call.sites, call.rows

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

    def answer(self, at: Attention, out: Tensor) -> Tensor:
        """Image tokens of a region attend to its own text. What another pack in the attention's place has added stays added."""
        by = self.partition(at.q)
        if not by.owners:
            return out
        k, v = self.keys_and_values(at, [(row, u) for row, u in by.owners])
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
        k, v = (part.expand(len(wanted), -1, -1) for part in self.template_keys_and_values(at, template.picture.text))
        fused = fused.clone()
        fused[wanted] = suppress(fused[wanted], self.run.attend(chunks[wanted], k, v, at.heads), template.how.suppression)
        return fused

    def template_keys_and_values(self, at: Attention, text: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values ``[1, N, C]`` of the template's text, without concepts and without hooks, which are for the batch."""
        key = (at.name, at.q.device, at.q.dtype, "template")
        if key not in self.run.texts:
            layer = self.sites.cross_attention[at.name]
            read = (states_in_layer(text, at.index) if isinstance(text, ConceptText) else text).to(at.text)
            self.run.texts[key] = layer.to_k.forward(read), layer.to_v.forward(read)
        return self.run.texts[key]

    def partition(self, q: Tensor) -> AttentionPartition:
        """Which texts the queries ``[B, T, C]`` of a layer attend to."""
        height, width = self.call.grid
        if height * width != q.shape[1]:
            raise ValueError(
                f"a cross-attention layer has {q.shape[1]} tokens for {height} x {width} cells: another node has moved or merged them, and "
                "nobody knows which are in which region; take it off this model"
            )
        key = (height, width, q.device, q.dtype, *self.call.marks)
        if key not in self.run.partitions:
            every = torch.stack([self.run.shares_of(row, height, width, q) for row in self.rows])
            self.run.partitions[key] = partition(every.float().cpu()).to(q)
        return self.run.partitions[key]

    def keys_and_values(self, at: Attention, owners: Sequence[tuple[int, int]]) -> tuple[Tensor, Tensor]:
        """Keys and values ``[P, N, C]`` of what rows read in regions, with the concepts of the region in them."""
        sources = [self.source(at, row, u) for row, u in owners]
        known = all(source.key is not None for source in sources)
        every = tuple(source.key if known else (source.number, source.region) for source in sources)
        key = (at.name, at.q.device, at.q.dtype, self.residuals, self.call.asleep, every)
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
            if own.number in self.call.asleep:
                continue
            scales = []
            for source in sources:
                mixture = own.weights[source.row.image % len(own.weights)]
                weights = self.deltas.acts(own, source.row) * mixture[source.region if len(mixture) > 1 else 0]
                scoped = self.run.by_token[own.number]
                scales.append(weights * self.deltas.acting(own, source.plan, texts.shape[1]) if scoped else weights[None])
            out = out + LowRank(own.stack.up, own.stack.down, (), torch.stack(scales))(texts)
        return out

    def look(self, at: Attention) -> None:
        """Add how much the tokens of a layer of middle size look at the words of the regions that are sought."""
        height, width = self.call.grid
        numbers = [b for b, row in enumerate(self.rows) if row.regional and row.job.region <= 0 and not row.job.foundation]
        chunk = self.rows[numbers[0]].job.chunk if numbers else NONE
        numbers = [b for b in numbers if self.rows[b].job.chunk == chunk]
        if not numbers or not 2 <= round(self.size[0] / height) <= 4:
            return
        for u in self.run.sought:
            k, _ = self.keys_and_values(at, [(b, u) for b in numbers])
            marks = torch.stack([repeat_mask(self.run.words_of(self.rows[b], u), k.shape[1]) for b in numbers])
            seen = word_attention(at.q[numbers], k, marks, at.heads).mean(1)
            half = [-(-side // 2) for side in self.size]
            seen = F.interpolate(seen.view(-1, 1, height, width), half, mode="bilinear")[:, 0].cpu()
            self.run.seen[u] = self.run.seen[u] + seen if u in self.run.seen else seen
