"""Several concepts from the same pictures: in one joint run, or, where masks say what is which, each in a run of its own on cut-outs."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..backbone import Backbone
from ..bank.bank import Bank
from .dataset import EMPTY, Dataset
from .method import Task
from .task import Learned, learn_into
from .trainer import Trainer

MARGIN = 1.35  # a cut-out's side, in sides of the box around its concept
Masks = Mapping[str, Sequence[Tensor]]  # of every concept by name, [1, H, W] for each picture


def parse_names(entries: Iterable[str], sign: str, least: int = 2) -> dict[str, str]:
    """Returns class words by name of entries ``name<sign>class word``, empty ones left out. Raises ``ValueError`` for one that is not of
    that form, for a name that is there twice, and for fewer than ``least``.
    """
    found: dict[str, str] = {}
    for entry in filter(str.strip, entries):
        name, _, class_word = (part.strip() for part in entry.partition(sign))
        if not name or not class_word:
            raise ValueError(f"{entry.strip()[:80]!r}: expected a name and what kind of thing it is, such as rex{sign}dog")
        if name in found:
            raise ValueError(f"{name!r} is there twice: name every concept differently")
        found[name] = class_word
    if len(found) < least:
        if least == 1:
            raise ValueError(f"no concept given: expected a name and what kind of thing it is, such as rex{sign}dog")
        raise ValueError(f"{len(found)} concept given: expected at least 2 that the picture shows, such as rex{sign}dog and tom{sign}cat")
    return found


def learn_together(
    bank: Bank,
    backbone: Backbone,
    data: Dataset | Mapping[str, Dataset],
    task: Task,
    *,
    on_step: Callable[[Trainer], None] = lambda trainer: None,
    on_picture: Callable[[int, int], None] = lambda done, count: None,
    tell: Callable[[str], None] = lambda said: None,
) -> list[Learned]:
    """Learns all concepts of a task, and returns what each run made.

    With one dataset for all it is one run, in which they share their factors. With a dataset for each by name, such as ``cut_outs``, every
    concept is learned in a run of its own. Raises what ``learn_into`` does.
    """
    if isinstance(data, Dataset):
        return [learn_into(bank, backbone, data, task, on_step=on_step, on_picture=on_picture, tell=tell)]
    runs: list[Learned] = []
    for name, class_word in task.concepts.items():
        alone = replace(task, name=name, class_word=class_word, others={})
        runs.append(learn_into(bank, backbone, data[name], alone, on_step=on_step, on_picture=on_picture, tell=tell))
        bank = runs[-1].bank
    return runs


def cut_outs(data: Dataset, masks: Masks, inside: bool = False) -> dict[str, Dataset]:
    """Returns a dataset of each concept of ``masks`` by name. Raises what ``cut_out`` does."""
    return {name: cut_out(data, masks, name, inside) for name in masks}


def cut_out(data: Dataset, masks: Masks, name: str, inside: bool = False) -> Dataset:
    """Returns the dataset of one concept: a square around it from every picture that has it, in which the masks of the others are not
    learned, or with ``inside`` its own mask alone is.

    Captions are left out, since they say what stands beside it. Raises ``ValueError`` if a concept has another number of masks than there
    are pictures, one of another size, or none that covers anything.
    """
    for other, own in masks.items():
        check_masks(data, other, own)
    pictures, areas, names, repeats = [], [], [], []
    for i, (picture, mask) in enumerate(zip(data.pictures, masks[name], strict=True)):
        if mask.max() < EMPTY:
            continue
        rows, columns = square_around(mask)
        others = [own[i] for other, own in masks.items() if other != name]
        area = mask if inside or not others else 1 - torch.stack(others).amax(0)
        shown = data.masks[i]
        pictures.append(picture[:, rows, columns])
        areas.append((area if shown is None else area * shown)[:, rows, columns])
        names.append(f"{data.names[i]}, cut around <{name}>")
        repeats.append(data.repeats[i])
    if not pictures:
        raise ValueError(f"the masks of <{name}> cover nothing, so nothing would be learned of it: a mask is white where the concept is")
    return Dataset(pictures, [""] * len(pictures), areas, names, repeats, data.size, "buckets", data.flip, data.warnings)


def check_masks(data: Dataset, name: str, masks: Sequence[Tensor]) -> None:
    """Raises ``ValueError`` if the masks of a concept are not one for each picture, of its size."""
    if len(masks) != len(data):
        raise ValueError(f"<{name}> has {len(masks)} masks for {len(data)} pictures: give one for each picture, in the order of the names")
    for picture_name, picture, mask in zip(data.names, data.pictures, masks, strict=True):
        if mask.shape[1:] != picture.shape[1:]:
            size, wanted = (" x ".join(map(str, reversed(t.shape[1:]))) for t in (mask, picture))
            raise ValueError(f"{picture_name}: the mask of <{name}> is {size} and the picture {wanted}: make it of the same size")


def square_around(mask: Tensor) -> tuple[slice, slice]:
    """Returns rows and columns of the square that is ``MARGIN`` times as long as the box around ``mask [1, H, W]``, moved into the picture
    and no longer than that is.
    """
    covered = mask[0] >= EMPTY
    lines = [torch.nonzero(covered.any(axis)).flatten() for axis in (1, 0)]
    side = round(MARGIN * max(int(line[-1] - line[0]) + 1 for line in lines))
    found = []
    for line, most in zip(lines, covered.shape, strict=True):
        length = min(side, most)
        start = round((int(line[0]) + int(line[-1]) + 1 - length) / 2)
        start = min(max(start, 0), most - length)
        found.append(slice(start, start + length))
    return found[0], found[1]
