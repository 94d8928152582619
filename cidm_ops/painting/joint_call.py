"""One call of a transformer that joins texts and image: the texts of all places in one sequence, every token with its own concepts."""

from collections.abc import Hashable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from ..adapters import attach_parts
from ..concept_text import plain
from ..joint_sites import JointAttend, JointSites, intercept_joint, lay_out_texts
from ..method.attention import word_attention
from ..method.pieces import Piece, mask_with_texts, pieces_across, pieces_of, piecewise_attention
from ..models.blocks import Stream
from .deltas import Weighted
from .rows import Row
from .state import Beside, RunState

MOVED = (
    "another node on this model adds, drops or moves tokens (as ToMe, IP-Adapters and reference pictures beside regions do), and nobody "
    "knows which of them are in which region; take it off this model"
)


class RowTexts:
    """The texts that a row reads: text number 0 is its own, the others those of ``regions``, in their order. ``lengths`` are their tokens.
    Its own is that of its plan, if that has one: texts of a batch differ in length.

    Rows go through the model together if they read texts of the same regions and lengths.
    """

    def __init__(self, row: Row, own: Tensor, regions: Sequence[int]):
        if row.plan and row.plan.layers is not None:
            own = row.plan.layers
        texts = [plain(own)]
        for u in regions:
            of_region = row.plan.regions[u - 1] if row.regional and row.plan else own
            texts.append(plain(of_region).to(texts[0]))
        self.regions = tuple(regions)
        self.lengths = tuple(text.shape[1] for text in texts)
        self.tokens = torch.cat(texts, 1)  # [1, N, C]

    @property
    def layout(self) -> Hashable:
        return self.regions, self.lengths


@dataclass(frozen=True)
class JointMoment:
    """A moment of a run: whether sought regions are looked for, and whether regions are kept apart and do not look at each other."""

    looking: bool = False
    apart: bool = False


class JointCall:
    """The hooks of one call. All ``rows`` read texts of the same ``regions`` and ``lengths``; ``grid`` are the rows and columns of the
    image's tokens, ``kept`` what is the same in every step of a run.
    """

    def __init__(
        self,
        run: RunState,
        sites: JointSites,
        rows: Sequence[Row],
        text: RowTexts,
        grid: tuple[int, int],
        kept: dict[Hashable, list[Piece]],
        now: JointMoment = JointMoment(),
    ):
        self.run, self.sites, self.rows, self.grid, self.kept, self.now = run, sites, rows, grid, kept, now
        self.places = (0, *text.regions)  # of the texts, in their order
        self.given, self.lengths = text.lengths, tuple(sites.padded(text.lengths))
        self.marks = [run.mark_of(row) for row in rows]

    @property
    def several(self) -> bool:
        """Whether there are texts of regions."""
        return len(self.places) > 1

    @contextmanager
    def open(self, x: Tensor) -> Iterator[None]:
        """Let the model's layers do what the rows say, while this is open. Raises ``ValueError`` at the end if the model did not attend
        where it does: then another pack computes in its place, and regions were left out.
        """
        with ExitStack() as hooks:
            hooks.enter_context(lay_out_texts(self.sites, self.given))
            for layers in self.deltas(x):
                hooks.enter_context(attach_parts(self.sites.modules, self.sites.layers, layers))
            seen = hooks.enter_context(intercept_joint(self.sites, self.attention)) if self.several else None
            yield
        if seen is not None:
            self.check_seen(seen)

    def check_seen(self, seen: dict[str, int]) -> None:
        """Raises ``ValueError`` unless every block attended as often as it does."""
        wrong = [block for block in self.sites.blocks if seen.get(block) != len(self.sites.streams[block])]
        if wrong:
            raise ValueError(
                f"regions were not painted: {len(wrong)} of {len(self.sites.blocks)} blocks of the model, such as {wrong[0]}, did not "
                f"attend where CIDM sees it. {self.sites.skipped}"
            )

    # concepts beside the layers

    def deltas(self, x: Tensor) -> list[dict[str, Weighted]]:
        """Return what each of the scene's stacks adds to the layers."""
        found: list[dict[str, Weighted]] = [{} for _ in self.run.scene.stacks]
        for name, stacks in self.run.besides(x).items():
            for own in stacks:
                found[own.number][name] = self.beside(own, self.sites.reads.get(name))
        return found

    def beside(self, own: Beside, stream: Stream | None) -> Weighted:
        return Weighted(own.stack.up, own.stack.down, weigh=lambda h: h * self.weights(own, stream, h))

    def weights(self, own: Beside, stream: Stream | None, h: Tensor) -> Tensor:
        """The weights of ranks for what comes between the factors of a layer, ``h [B, ..., r]``: at every token of a stream those of its
        place, ``[B or 1, N, r]``. What lies outside of the streams, as modulation, acts on the picture as a whole and has those of the
        global prompt, as has the whole picture where all places have the same.
        """
        whole = stream is None or own.uniform or not self.several
        among = stream == "text" and len(h) > len(self.rows)  # its tokens are rows of their own
        tokens = len(h) // len(self.rows) if among else h.shape[1:-1].numel()
        signs = [(mark, row.image % len(own.weights), self.acts(own, row)) for mark, row in zip(self.marks, self.rows, strict=True)]
        key = ("joint", own.key, None if whole else (stream, tokens, self.places, self.lengths), h.device, h.dtype, *signs)
        if key not in self.run.scales:
            alike = len(set(signs)) == 1
            rows = range(1 if alike else len(self.rows))
            self.run.scales[key] = torch.stack([self.of_row(own, b, None if whole else stream, tokens, h) for b in rows])
        found = self.run.scales[key]
        if among:
            return found.expand(len(self.rows), tokens, -1).flatten(0, 1)[:, None]
        if len(found) > 1 and len(found) != len(h):
            raise ValueError(f"a layer reads {len(h)} rows where the sampler sent {len(self.rows)}: {MOVED}")
        return found.view(len(found), *(h.shape[1:-1] if found.shape[1] > 1 else (1,) * (h.ndim - 2)), -1)  # some have rows and columns

    def acts(self, own: Beside, row: Row) -> float:
        """Whether a stack acts on a row at all."""
        return float(row.composed or self.run.scene.stacks[own.number].negative)

    def of_row(self, own: Beside, number: int, stream: Stream | None, tokens: int, like: Tensor) -> Tensor:
        """The weights of ranks at ``tokens`` of one row, ``[N, r]``, or ``[1, r]`` if they are all the same."""
        row = self.rows[number]
        every = self.acts(own, row) * own.weights[row.image % len(own.weights)]  # [U + 1, R], or one for all places
        if stream is None:
            return every[:1].to(like)
        parts = []
        if stream != "image":
            each = torch.tensor(self.lengths, device=every.device)
            parts.append(every[list(self.places)].repeat_interleave(each, 0))
        if stream != "text":
            parts.append(self.shares(row, tokens - sum(map(len, parts)), every).mT @ every[list(self.places)])
        found = torch.cat(parts)
        if len(found) != tokens:
            raise ValueError(f"a layer reads {tokens} tokens where {len(found)} were expected: {MOVED}")
        return found.to(like)

    def shares(self, row: Row, tokens: int, like: Tensor) -> Tensor:
        """The shares ``[1 + regions, N]`` of a row's ``tokens`` of images in the texts: what comes behind the picture, as what fills it up
        and reference pictures, is the global text's. Raises ``ValueError`` where the picture has fewer.
        """
        own = self.run.shares_of(row, *self.grid, like)[list(self.places)]
        more = tokens - own.shape[1]
        if more < 0:
            raise ValueError(f"the model has {tokens} tokens for an image of {self.grid[0]} x {self.grid[1]}: {MOVED}")
        behind = torch.zeros(len(self.places), more).to(own)
        behind[0] = 1
        return torch.cat([own, behind], 1)

    # attention

    def attention(self, stream: Stream, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, attend: JointAttend) -> Tensor:
        """What an attention that sees the tokens of a stream answers, ``[B, S, C]``, to ``q [B, H, S, D]``, with ``k`` and ``v`` of the
        same tokens, or across of those of the texts.
        """
        if stream == "image" and not self.now.apart:
            return attend(q, k, v, mask)
        if len(q) != len(self.rows):
            raise ValueError(f"attention has {len(q)} rows where the sampler sent {len(self.rows)}: {MOVED}")
        lengths = self.lengths if stream != "image" else (0,) * len(self.lengths)
        if mask is not None:
            mask = mask_with_texts(mask, lengths, q.shape[2])
        images = q.shape[2] if stream == "across" else q.shape[2] - sum(lengths) if stream != "text" else 0
        if stream in ("text", "across") and k.shape[2] != sum(self.lengths):
            raise ValueError(f"the model has {k.shape[2]} tokens of text where {sum(self.lengths)} were expected: {MOVED}")
        if self.now.looking and stream in ("both", "across"):
            self.look(q, k, q.shape[2] - images)
        of_mark: dict[Hashable, list[int]] = {}
        for number, mark in enumerate(self.marks):
            of_mark.setdefault(mark, []).append(number)
        if len(of_mark) == 1:
            return piecewise_attention(q, k, v, self.pieces(self.rows[0], stream, lengths, images, q), attend, mask)
        out: Tensor | None = None
        for numbers in of_mark.values():
            own = None if mask is None else mask if mask.ndim < 3 or len(mask) == 1 else mask[numbers]
            pieces = self.pieces(self.rows[numbers[0]], stream, lengths, images, q)
            answer = piecewise_attention(q[numbers], k[numbers], v[numbers], pieces, attend, own)
            out = answer.new_zeros(len(q), *answer.shape[1:]) if out is None else out
            out[numbers] = answer
        assert out is not None
        return out

    def pieces(self, row: Row, stream: Stream, lengths: Sequence[int], images: int, like: Tensor) -> list[Piece]:
        """The pieces of the attention of rows with one mark in a ``stream``, to texts of these ``lengths``, none in what refines the image
        alone, and so many tokens of ``images``, none in what refines texts alone.
        """
        key = (self.run.mark_of(row), stream == "across", images, self.places, lengths, self.now, like.device, like.dtype)
        if key not in self.kept:
            shares = self.shares(row, images, torch.zeros(())) if images else torch.zeros(len(self.places), 0)
            opened = [number for number, u in enumerate(self.places) if self.now.looking and u in self.run.sought]
            across = stream == "across"
            found = pieces_across(lengths, shares) if across else pieces_of(lengths, shares, opened, self.now.apart)
            self.kept[key] = [piece.to(like) for piece in found]
        return self.kept[key]

    def look(self, q: Tensor, k: Tensor, behind: int) -> None:
        """Add how much the image's tokens, in ``q [B, H, S, D]`` from the one numbered ``behind`` on, look at the words of the regions that
        are sought, in the text of each among ``k``: these texts look at the whole picture meanwhile, and nobody reads them.
        """
        numbers = [b for b, row in enumerate(self.rows) if row.regional and row.job.region <= 0]
        height, width = self.grid
        for u in self.run.sought if numbers else ():
            at = self.places.index(u)
            start = sum(self.lengths[:at])
            image, text = q[numbers, :, behind : behind + height * width], k[numbers, :, start : start + self.given[at]]
            marks = torch.stack([self.run.words_of(self.rows[b], u) for b in numbers])
            seen = word_attention(side_by_side(image), side_by_side(text), marks, q.shape[1]).mean(1).view(-1, height, width).cpu()
            self.run.seen[u] = self.run.seen[u] + seen if u in self.run.seen else seen


def side_by_side(x: Tensor) -> Tensor:
    """Heads ``[B, H, N, D]`` in one, ``[B, N, H * D]``."""
    return x.transpose(1, 2).flatten(2)
