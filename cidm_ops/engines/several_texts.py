"""Several texts in one call of a transformer of diffusers: each stands as it does alone, and attention is asked of a slot.

Whichever processor a block of diffusers has, PyTorch's ``scaled_dot_product_attention`` answers it, and every call of that can be taken
over while a context is open. Where texts stand, each class says in a way of its own.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from diffusers import (
    ChromaTransformer2DModel,
    CosmosTransformer3DModel,
    Flux2Transformer2DModel,
    FluxTransformer2DModel,
    Krea2Transformer2DModel,
    Lumina2Transformer2DModel,
    QwenImageTransformer2DModel,
    SD3Transformer2DModel,
    ZImageTransformer2DModel,
)
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from ..hub import remove_at_end

Attend = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]  # q, k, v [B, H, N, D] and a mask, to [B, N, C]
Ask = Callable[[Tensor, Tensor, Tensor, Tensor | None, Attend], Tensor]


@contextmanager
def read_several(model: nn.Module, joint: Sequence[nn.Module], lengths: Sequence[int], ask: Ask) -> Iterator[None]:
    """Let a model, in whose ``joint`` blocks image and text meet, read texts of these ``lengths`` behind each other, and ask
    ``ask(q, k, v, mask, attend)`` in place of its attention, while this is open. A single text is read as ever.

    Raises ``ValueError`` for a model of which nobody knows where its texts stand.
    """
    if len(lengths) == 1:
        yield
        return
    place = PLACES.get(type(model))
    if place is None:
        raise ValueError(f"regions are not painted on {type(model).__name__} here: leave them out, or paint them in ComfyUI")
    asked = AskedAttention(ask)
    behind = type(model) in IMAGE_FIRST
    with asked, place(model, joint, list(lengths)), stand_behind(asked, joint, sum(lengths)) if behind else nullcontext():
        yield


class AskedAttention(TorchFunctionMode):
    """While this is open, ``ask`` answers what PyTorch's attention is asked, where texts stand before the image: as many tokens of theirs
    are ``behind`` it in what is asked.
    """

    def __init__(self, ask: Ask):
        super().__init__()
        self.ask, self.behind = ask, 0

    def __torch_function__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None) -> Any:
        answer = self.answer if func is F.scaled_dot_product_attention else func
        return answer(*args, **(kwargs or {}))

    def answer(self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *more: Any, **how: Any) -> Tensor:
        """The answers ``[B, H, N, D]`` to queries of that shape. A mask that leaves all tokens in is none."""

        def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
            return F.scaled_dot_product_attention(q, k, v, mask, *more, **how).transpose(1, 2).flatten(2)

        if attn_mask is not None and attn_mask.dtype == torch.bool and bool(attn_mask.all()):
            attn_mask = None
        if self.behind:
            query, key, value = (x.roll(self.behind, 2) for x in (query, key, value))
        found = self.ask(query, key, value, attn_mask, attend).unflatten(2, (query.shape[1], -1)).transpose(1, 2)
        return found.roll(-self.behind, 2) if self.behind else found


@contextmanager
def place_nowhere(model: Any, joint: Sequence[nn.Module], lengths: list[int]) -> Iterator[None]:
    """Tokens of texts have no places of their own in the model."""
    yield


@contextmanager
def place_in_lumina(model: Any, joint: Sequence[nn.Module], lengths: list[int]) -> Iterator[None]:
    """The model's table of rotations begins at place 0, so the longest text has its own places, and the others end where that ends: there
    the image begins.
    """
    longest, total = max(lengths), sum(lengths)

    def before(module: nn.Module, args: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        x, mask = args
        return x, mask[:, :1].expand(-1, longest)

    def after(module: nn.Module, args: Any, found: tuple) -> tuple:
        x, text, image, *_ = found
        texts = torch.cat([text[:, longest - length :] for length in lengths], 1)
        return x, texts, image, torch.cat([texts, image], 1), [total] * len(x), [total + image.shape[1]] * len(x)

    rotations = model.rope_embedder
    with remove_at_end([rotations.register_forward_pre_hook(before), rotations.register_forward_hook(after)]):
        yield


@contextmanager
def place_in_z_image(model: Any, joint: Sequence[nn.Module], lengths: list[int]) -> Iterator[None]:
    """The model lays out each text alone, which fills it up, and they all end where the longest ends. In the blocks where they meet the
    image stands first, here the texts do.
    """
    alone = model.patchify_and_embed
    counts: list[int] = []  # of the tokens of texts, once they are known

    def together(images: list[Tensor], texts: list[Tensor], *sizes: int) -> tuple:
        each = [alone(images, [text.split(lengths)[number] for text in texts], *sizes) for number in range(len(lengths))]
        ends = [len(own[1][0]) for own in each]
        further = [max(ends) - end for end in ends]
        counts[:] = [sum(ends)]
        image, _, size, image_places, _, image_filled, _ = each[0]
        at = [move(own, further[0]) for own in image_places]
        tokens, places, filled = (list(zip(*(own[part] for own in each), strict=True)) for part in (1, 4, 6))  # of each image's texts
        # it gives more places than tokens
        placed = [[move(own[:end], by) for own, end, by in zip(row, ends, further, strict=True)] for row in places]
        behind = [list(map(torch.cat, part)) for part in (tokens, placed, filled)]
        return image, behind[0], size, at, behind[1], image_filled, behind[2]

    def before(block: nn.Module, args: tuple) -> tuple:
        x, mask, rotations, *more = args
        return x.roll(counts[0], 1) if block is joint[0] else x, mask, rotations.roll(counts[0], 1), *more

    def after(block: nn.Module, args: Any, x: Tensor) -> Tensor:
        return x.roll(-counts[0], 1)

    model.patchify_and_embed = together
    try:
        hooks = [block.register_forward_pre_hook(before) for block in joint]
        with remove_at_end([*hooks, joint[-1].register_forward_hook(after)]):
            yield
    finally:
        del model.patchify_and_embed


@contextmanager
def place_in_qwen(model: Any, joint: Sequence[nn.Module], lengths: list[int]) -> Iterator[None]:
    """All texts begin at one place, and the image has its own whatever is said."""

    def after(module: nn.Module, args: Any, found: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        image, text = found
        return image, torch.cat([text[:length] for length in lengths])

    with remove_at_end([model.pos_embed.register_forward_hook(after)]):
        yield


@contextmanager
def place_in_flux2(model: Any, joint: Sequence[nn.Module], lengths: list[int]) -> Iterator[None]:
    """All texts begin at place 0. The model asks for the places of the image and of texts, and those of texts alone are numbered on the
    last axis.
    """
    numbers = torch.cat([torch.arange(length) for length in lengths])

    def before(module: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
        places = args[0].clone()
        if places[-1, 3]:
            places[:, 3] = numbers.to(places)
        return (places,)

    with remove_at_end([model.pos_embed.register_forward_pre_hook(before)]):
        yield


@contextmanager
def stand_behind(asked: AskedAttention, joint: Sequence[Any], count: int) -> Iterator[None]:
    """The attention in which image and text meet has the ``count`` tokens of texts behind the image; that of the image alone has none."""

    def before(module: nn.Module, args: Any) -> None:
        asked.behind = count

    def after(module: nn.Module, args: Any, found: Any) -> None:
        asked.behind = 0

    meeting = [block.attn for block in joint]
    before_each = [attention.register_forward_pre_hook(before) for attention in meeting]
    with remove_at_end([*before_each, *(attention.register_forward_hook(after) for attention in meeting)]):
        yield


def move(places: Tensor, by: int) -> Tensor:
    """Places ``[N, axes]`` further on, on the axis that numbers the tokens of texts."""
    return torch.cat([places[:, :1] + by, places[:, 1:]], 1)


PLACES: Mapping[type, Callable[..., Any]] = {
    FluxTransformer2DModel: place_nowhere,
    ChromaTransformer2DModel: place_nowhere,
    CosmosTransformer3DModel: place_nowhere,
    Flux2Transformer2DModel: place_in_flux2,
    Krea2Transformer2DModel: place_nowhere,
    Lumina2Transformer2DModel: place_in_lumina,
    QwenImageTransformer2DModel: place_in_qwen,
    SD3Transformer2DModel: place_nowhere,
    ZImageTransformer2DModel: place_in_z_image,
}
IMAGE_FIRST = (SD3Transformer2DModel,)  # in whose attention texts stand behind the image
