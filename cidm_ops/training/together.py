"""Several concepts from the same pictures: in one joint run, or, where masks say which part of a picture is which, each from its cut-outs."""

from collections.abc import Callable, Mapping, Sequence
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


def learn_together(
    bank: Bank,
    backbone: Backbone,
    data: Dataset,
    task: Task,
    masks: Masks | None = None,
    *,
    on_step: Callable[[Trainer], None] = lambda trainer: None,
    on_picture: Callable[[int, int], None] = lambda done, count: None,
    tell: Callable[[str], None] = lambda said: None,
) -> list[Learned]:
    """Learns all concepts of a task, and returns what each run made.

    Without masks it is one run, in which they share their factors. With ``masks`` every concept is learned in a run of its own, in which
    it is all there is: from squares around it, in which the masks of the others are not learned. Raises what ``learn_into`` and
    ``cut_out`` do.
    """
    if masks is None:
        return [learn_into(bank, backbone, data, task, on_step=on_step, on_picture=on_picture, tell=tell)]
    cut = {name: cut_out(data, masks, name) for name in task.concepts}
    runs: list[Learned] = []
    for name, class_word in task.concepts.items():
        alone = replace(task, name=name, class_word=class_word, others={})
        runs.append(learn_into(bank, backbone, cut[name], alone, on_step=on_step, on_picture=on_picture, tell=tell))
        bank = runs[-1].bank
    return runs


def cut_out(data: Dataset, masks: Masks, name: str) -> Dataset:
    """Returns the dataset of one concept: a square around it from every picture that has it, with the concept's mask.

    Captions are left out, since they say what stands beside it. Raises ``ValueError`` if a concept has no masks, another number of them
    than there are pictures, one of another size, or none that covers anything.
    """
    shown = masks.get(name, ())
    if len(shown) != len(data):
        raise ValueError(f"<{name}> has {len(shown)} masks for {len(data)} pictures: give one for each picture, in the order of the names")
    pictures, areas, names, repeats = [], [], [], []
    for i, (picture, mask) in enumerate(zip(data.pictures, shown, strict=True)):
        if mask.shape[1:] != picture.shape[1:]:
            size, wanted = (" x ".join(map(str, reversed(t.shape[1:]))) for t in (mask, picture))
            raise ValueError(f"{data.names[i]}: the mask of <{name}> is {size} and the picture {wanted}: make it of the same size")
        if mask.max() < EMPTY:
            continue
        rows, columns = square_around(mask)
        pictures.append(picture[:, rows, columns])
        areas.append(mask[:, rows, columns])
        names.append(f"{data.names[i]}, cut around <{name}>")
        repeats.append(data.repeats[i])
    if not pictures:
        raise ValueError(f"the masks of <{name}> cover nothing, so nothing would be learned of it: a mask is white where the concept is")
    return Dataset(pictures, [""] * len(pictures), areas, names, repeats, data.size, "buckets", data.flip, data.warnings)


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
