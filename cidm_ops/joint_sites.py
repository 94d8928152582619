"""Where texts, positions, factors and attention meet the layers of a transformer whose blocks join text and image, for every engine.

As in ``hub.py``, hooks are there while a context is open, around one call of the model, and gone after it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .hub import remove_at_end
from .models.blocks import Stream
from .models.family import Family
from .models.host import Restart
from .models.module import Slice

Move = Callable[[nn.Module, tuple], tuple]  # a hook before a module's call
JointAttend = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]  # q, k, v [B, H, N, D] and a mask, to [B, N, C]
HOST_SKIPS = (
    "Another node on this model skips or replaces them, as caches (TeaCache, First Block Cache) and SkipLayerGuidance do; take it off, or "
    "the regions"
)


@dataclass
class AttentionSlot:
    """The slot where an engine asks for attention: ``change(q, k, v, mask, attend)`` answers in place of ``attend(q, k, v, mask)``."""

    change: Callable[[Tensor, Tensor, Tensor, Tensor | None, JointAttend], Tensor] | None = None

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, attend: JointAttend) -> Tensor:
        return attend(q, k, v, mask) if self.change is None else self.change(q, k, v, mask, attend)


@dataclass(frozen=True)
class JointSites:
    """The places of a transformer where the method acts: the ``blocks`` that attend, by canonical names and in the order in which they
    run, and which tokens each attention of theirs sees (``streams``); linear ``modules`` by the engine's names, where our ``layers`` lie in
    them, and which tokens each of those that are in a block ``reads``; the ``slot`` of their attention.

    ``positions`` makes rotations of the places ``[B, N, axes]`` of tokens, if text tokens have places of their own. Either a text "ends"
    where the image begins (``restart``): the first axis numbers tokens, and the image comes after the last. Or it "begins" where all do.
    ``embedder`` turns texts into tokens, and the engine fills up their number to a ``multiple`` with ``pad() [1, C]``, which is asked for
    anew since hosts replace parameters. An engine that does otherwise lays out several texts by ``lay_out(lengths)`` itself. ``skipped``
    says what may have kept a block from asking the slot.
    """

    blocks: Mapping[str, nn.Module]
    streams: Mapping[str, Sequence[Stream]]
    modules: Mapping[str, nn.Module]
    layers: Mapping[str, Slice]
    reads: Mapping[str, Stream]
    slot: AttentionSlot = field(default_factory=AttentionSlot)
    positions: nn.Module | None = None
    restart: Restart = "ends"
    embedder: nn.Module | None = None
    pad: Callable[[], Tensor] | None = None
    multiple: int = 1
    lay_out: Callable[[Sequence[int]], AbstractContextManager[None]] | None = None
    skipped: str = HOST_SKIPS

    @classmethod
    def of(
        cls, family: Family, blocks: Mapping[str, nn.Module], modules: Mapping[str, nn.Module], layers: Mapping[str, Slice], **more: Any
    ) -> "JointSites":
        """The places in a model of a family, whose ``blocks`` may be some that do not attend, in any order."""
        streams = {block: own for block in sorted(blocks, key=family.place) if (own := family.streams(block, layers))}
        attend = {block: blocks[block] for block in streams}
        reads = {layer: linear.reads for layer in layers if (linear := family.locate(layer)[2])}
        return cls(attend, streams, modules, layers, reads, **more)

    def padded(self, lengths: Sequence[int]) -> list[int]:
        """How many tokens texts of these lengths have, each filled up on its own."""
        return [-(-length // self.multiple) * self.multiple for length in lengths]


@contextmanager
def intercept_joint(
    sites: JointSites, change: Callable[[Stream, Tensor, Tensor, Tensor, Tensor | None, JointAttend], Tensor]
) -> Iterator[dict[str, int]]:
    """Put ``change(stream, q, k, v, mask, attend)`` in place of what each attention of a block answers, by the tokens that it sees, while
    this is open; gives how often each block that ran was seen to attend.
    """
    seen: dict[str, int] = {}
    running: list[str] = []

    def begins(name: str) -> Callable[[nn.Module, Any], None]:
        def before(module: nn.Module, args: Any) -> None:
            running[:] = [name]
            seen[name] = 0

        return before

    def changed(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, attend: JointAttend) -> Tensor:
        if not running:
            return attend(q, k, v, mask)
        streams = sites.streams[running[0]]
        stream = streams[min(seen[running[0]], len(streams) - 1)]
        if q.shape[2] != k.shape[2] and stream != "across":  # not that of a block over its own tokens: another pack's
            return attend(q, k, v, mask)
        seen[running[0]] += 1
        return change(stream, q, k, v, mask, attend)

    sites.slot.change = changed
    try:
        with remove_at_end(block.register_forward_pre_hook(begins(name)) for name, block in sites.blocks.items()):
            yield seen
    finally:
        sites.slot.change = None


@contextmanager
def restart_positions(sites: JointSites, lengths: Sequence[int]) -> Iterator[None]:
    """Give each of several texts that stand behind each other the places that it has alone, relative to the image, while this is open.

    The first text and the image keep theirs, the others end where the first ends, or begin where it begins. ``lengths`` are those of the
    texts as the engine numbers them, which calls ``positions`` for the texts first, and for the image in the same call or in a later one.
    """
    if sites.positions is None or len(lengths) == 1:
        yield
        return
    before = moved_to_the_end(lengths) if sites.restart == "ends" else moved_to_the_beginning(lengths)
    with remove_at_end([sites.positions.register_forward_pre_hook(before)]):
        yield


def moved_to_the_beginning(lengths: Sequence[int]) -> Move:
    """A hook that gives each text the places of as many tokens from the first on. An engine makes all places of a pass in one call."""
    numbers = torch.cat([torch.arange(length) for length in lengths])

    def before(module: nn.Module, args: tuple) -> tuple:
        places = args[0].clone()
        places[:, : len(numbers)] = places[:, numbers.to(places.device)]
        return (places, *args[1:])

    return before


def moved_to_the_end(lengths: Sequence[int]) -> Move:
    """A hook that gives each text the places of as many tokens up to the end of the first, and what comes behind the texts those that
    follow it.
    """
    ends = torch.tensor(lengths).cumsum(0)
    total, surplus = int(ends[-1]), int(ends[-1]) - lengths[0]
    moves = (lengths[0] - ends).repeat_interleave(torch.tensor(lengths))  # [total]; 0 for the first text
    behind: list[Tensor] = []  # the number of the image's tokens, once it is known

    def before(module: nn.Module, args: tuple) -> tuple:
        places = args[0].clone()
        if not behind:
            behind.append(places[0, 0, 0] + total)
            places[:, :total, 0] += moves.to(places)
            image = places[:, total:]
        else:
            image = places
        image[..., 0] -= surplus * (image[..., 0] >= behind[0]).to(places)  # not of tokens that fill up an image, whose place is 0
        return (places, *args[1:])

    return before


@contextmanager
def pad_texts(sites: JointSites, lengths: Sequence[int]) -> Iterator[None]:
    """Fill up each of several texts of these ``lengths`` behind each other on its own, as the engine does with one, while this is open."""
    if sites.embedder is None or sites.pad is None or len(lengths) == 1:
        yield
        return
    pad, wanted = sites.pad(), sites.padded(lengths)

    def after(module: nn.Module, args: Any, tokens: Tensor) -> Tensor:
        parts = []
        for own, length in zip(tokens.split(list(lengths), 1), wanted, strict=True):
            parts += [own, pad.to(tokens)[None].repeat(len(own), length - own.shape[1], 1)]
        return torch.cat(parts, 1)

    with remove_at_end([sites.embedder.register_forward_hook(after)]):
        yield


@contextmanager
def lay_out_texts(sites: JointSites, lengths: Sequence[int]) -> Iterator[None]:
    """Let several texts of these ``lengths`` stand behind each other, each filled up and placed as it is alone, while this is open."""
    if sites.lay_out is not None:
        with sites.lay_out(lengths):
            yield
        return
    with restart_positions(sites, sites.padded(lengths)), pad_texts(sites, lengths):
        yield
