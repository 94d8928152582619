"""Painting with concepts of Infusion: which residuals act at which words of a prompt, and the model with the second stream."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ..backbone import Backbone
from ..bank.bank import Bank, check_base
from ..bank.mentions import Prompt
from ..method.aggregation import Rule, tables_of
from ..method.infusion import STREAMS, Charge, Rows, infused, residual_layers
from ..method.regions import Place
from ..tokens import stand_for
from .prompt import Mixture, mixed
from .sampling import Predict


@dataclass(frozen=True)
class Way:
    """How residuals act: ``stream`` of ``STREAMS``, in which layers, and in which part of the sampling, from 0 (noise) to 1.

    Raises ``ValueError`` naming the value that cannot be.
    """

    stream: str = "dual"
    layers: str = "all"
    start: float = 0.0
    end: float = 1.0

    def __post_init__(self) -> None:
        if self.stream not in STREAMS:
            raise ValueError(f"stream {self.stream!r}: expected one of {', '.join(STREAMS)}")
        if not 0 <= self.start <= self.end <= 1:
            raise ValueError(f"start {self.start:g} and end {self.end:g}: expected 0 <= start <= end <= 1")


def infuse(
    backbone: Backbone,
    bank: Bank,
    prompt: str,
    mode: str = "exact",
    strength: float = 1.0,
    rule: Rule | None = None,
    *,
    layers: str = "all",
    masks: Mapping[str, Tensor] | None = None,
) -> tuple[Mixture, list[Charge]]:
    """What a prompt takes from a bank: its low-rank concepts as ``mix`` has them, with class words for the handles of Infusion
    concepts, and the charges of those. ``masks [H, W]`` by name limit where they act.

    Raises ``ValueError`` for a word no concept has, for a concept of another architecture and for a mask of a concept that is not in
    the prompt.
    """
    said = bank.read(prompt)
    names = [n for n in said.strengths if bank.headers[n]["method"] == "infusion"]
    if idle := [n for n in masks or {} if n not in names]:
        raise ValueError(f"<{idle[0]}> has a region and is not in the prompt: write it there too, it stands for a class word")
    others = {n: s for n, s in said.strengths.items() if n not in names}
    if not names:
        return mixed(backbone, bank, said, mode, strength, rule), []
    known = sorted(others) if mode == "exact" else [n for n, h in bank.headers.items() if h["method"] == "cidm"]
    words = list(tables_of([bank.get(n) for n in known]))
    plain = {f"<{n}>": bank.headers[n]["class_word"] for n in names}
    text, marks = stand_for(backbone, said.text, plain, words)
    mixture = mixed(backbone, bank, Prompt(text, others), mode, strength, rule)
    chosen, charges, warnings = set(residual_layers(backbone.family, list(backbone.cross_attention), layers)), [], list(mixture.warnings)
    for name in names:
        warnings.append(check_base(bank.headers[name], backbone.architecture, backbone.fingerprint) or "")
        residuals = bank.get(name).residuals
        if unknown := [n for n in residuals if n.rpartition(".")[0] not in backbone.cross_attention]:
            raise ValueError(f"the model has no layer {unknown[0]!r}: <{name}> is for another architecture")
        own = {n: strength * said.strengths[name] * r for n, r in residuals.items() if n.rpartition(".")[0] in chosen}
        if any(r.any() for r in own.values()):
            charges.append(Charge(own, marks[f"<{name}>"], (masks or {}).get(name)))
    return Mixture(text, mixture.concepts, mixture.strengths, mixture.weights, [w for w in warnings if w]), charges


def limits(bank: Bank, regions: Sequence[tuple[str, Place]]) -> dict[str, Tensor]:
    """Masks ``[H, W]`` by name of the Infusion concepts that the texts of regions mention: the union of their places.

    Raises ``ValueError`` for a word no concept has.
    """
    masks: dict[str, Tensor] = {}
    for text, place in regions:
        for name, strength in bank.read(text).strengths.items():
            if bank.headers[name]["method"] != "infusion":
                raise ValueError(f"<{name}> is in a region and no Infusion concept: Paint in Regions paints it, here it acts everywhere")
            mask, before = strength * place.strength * place.mask, masks.get(name)
            if before is not None and before.shape != mask.shape:
                size = (max(before.shape[0], mask.shape[0]), max(before.shape[1], mask.shape[1]))
                before, mask = (F.interpolate(m[None, None], size, mode="nearest")[0, 0] for m in (before, mask))
            masks[name] = mask if before is None else torch.maximum(before, mask)
    return masks


def predictor(backbone: Backbone, charges: Sequence[Charge], way: Way) -> Predict:
    """The model whose rows of the positive text carry the charges. In a dual stream those rows go through it twice, and the
    foundation's are left out of what it answers.
    """
    here = [charge.to(backbone.device) for charge in charges]

    def predict(x: Tensor, t: Tensor, context: Tensor, pooled: Tensor | None, positive: int) -> Tensor:
        done = 1 - float(t[0]) / (len(backbone.schedule.sigma) - 1)
        if not here or not positive or not way.start <= done <= way.end or way.start == 1 or way.end == 0:
            return backbone.predict(x, t, context, pooled)
        count, at = len(x), slice(0, positive)
        source = at
        if way.stream == "dual":
            source = slice(count, count + positive)
            x, t, context = (torch.cat([whole, whole[at]]) for whole in (x, t, context))
            pooled = None if pooled is None else torch.cat([pooled, pooled[at]])
        rows = [Rows(at, source, here)]
        with infused(backbone.cross_attention, rows, x.shape[-2], x.shape[-1], keys=way.stream == "released_code"):
            return backbone.predict(x, t, context, pooled)[:count]

    return predict
