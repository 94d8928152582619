"""A picture of several prompts: a global one and those of regions, each with the concepts that it takes from a bank."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from ..backbone import Backbone, Transformer
from ..bank.bank import Bank
from ..bank.concept import Concept
from ..concept_text import ConceptText
from ..lowrank import LowRank
from ..method.regions import RegionMask, hidden_regions, tiny_regions
from ..models.registry import family_of
from .compose import AggregationConfig, ConceptMix, compose, scene_beside
from .config import BY_KIND, PLACE, NoiseEstimation
from .scene import Scene
from .scope import acts_everywhere

PLACE_UNTIL = 0.25  # of the sampling: by then a picture is laid out, and one step alone is too little to look by


@dataclass(frozen=True)
class RegionPrompt:
    """A region's prompt says what stands where: a place of the image and what its prompt takes from the bank."""

    mask: RegionMask
    mix: ConceptMix


@dataclass(frozen=True)
class Composition:
    """A global prompt and the prompts of regions, one or several for each image of a batch, and how they act."""

    whole: ConceptMix
    regions: Sequence[RegionPrompt]
    how: AggregationConfig = AggregationConfig()

    @property
    def mergeable(self) -> bool:
        """Whether the concepts can be merged into the model's weights."""
        how, concepts = self.how, self.whole.concepts
        return not self.regions and how.negative and not how.routed and not how.start and acts_everywhere(concepts, how.scope)

    @property
    def warnings(self) -> list[str]:
        """The warnings say what a person should know about it, each once."""
        masks = [region.mask for region in self.regions]
        every = [*self.whole.warnings, *(w for region in self.regions for w in region.mix.warnings)]
        empty = [u for u, mask in enumerate(masks) if not mask.mask.any() and not mask.sought]
        every += [f"region {u + 1} is empty: nothing of it will be painted" for u in empty]
        every += [f"region {u + 1} is hidden by regions of higher priority" for u in hidden_regions(masks, 64, 64)]
        tiny = "is smaller than a cell of the coarsest layers: there it has its nearest cell"
        every += [f"region {u + 1} {tiny}" for u in tiny_regions(masks)]
        return list(dict.fromkeys(every))

    def scene(self, texts: Sequence[ConceptText] = (), estimation: NoiseEstimation | None = None) -> Scene:
        """Make the scene that lies beside the layers of a model that paints it. ``texts`` of the regions are for global texts of other
        encoders.
        """
        mixes = [self.whole, *(region.mix for region in self.regions)]
        return replace(
            scene_beside([mixes], self.how),
            masks=tuple(region.mask for region in self.regions),
            texts=tuple(texts),
            negative=self.how.negative,
            estimation=estimation,
            guidance=self.how.inside,
            overlap=self.how.overlap,
            apart=self.how.apart,
        )


def compose_regions(
    backbone: Backbone | Transformer,
    bank: Bank,
    prompt: str,
    regions: Sequence[tuple[str, RegionMask]],
    how: AggregationConfig | None = None,
) -> Composition:
    """A global prompt and the prompts of regions, composed from a bank; with ``PLACE`` the prompt alone has a region, which is found.

    Raises ``ValueError`` as ``compose`` and ``compose_place`` do, for a region that is to be found by its concept and has none, or has a
    late start, and for what only transformers do.
    """
    how = how or AggregationConfig()
    if how.scope == PLACE:
        return compose_place(backbone, bank, prompt, regions, how)
    if regions and backbone.family.layerwise and (how.apart or not how.padding):
        what, setting = ("regions apart", "apart_percent 0") if how.apart else ("cut texts", "region_texts padded")
        raise ValueError(f"{what}: the layers of {backbone.family.title} read texts apart from the image anyway; set {setting}")
    parts = []
    for u, (text, mask) in enumerate(regions, 1):
        mixed = compose(backbone, bank, text, how)
        worded = isinstance(backbone, Transformer)  # there a concept is named by its trigger, in words of the base
        if mask.sought and not any(mixed.strengths.get(c.name) and (c.words or worded) for c in mixed.concepts):
            raise ValueError(f"region {u}, {text!r}, is to be found by its concept, and has none: write <name> into it, or draw it")
        if isinstance(backbone, Transformer):
            mixed = replace(mixed, warnings=[*mixed.warnings, *left_out(mixed.concepts)])
        if mask.sought:
            check_start(how)
        parts.append(RegionPrompt(mask, mixed))
    return Composition(compose(backbone, bank, prompt, how), parts, how)


def check_start(how: AggregationConfig) -> None:
    """Raises ``ValueError`` for a late start where a place is to be found."""
    if how.start:
        raise ValueError(
            f"a start at {how.start:g} of the sampling, and a place that is found by where the picture looks at a concept's words before "
            "that: start at 0, or draw the region"
        )


def compose_place(
    backbone: Backbone | Transformer, bank: Bank, prompt: str, regions: Sequence[tuple[str, RegionMask]], how: AggregationConfig
) -> Composition:
    """A prompt whose concepts act where they stand: a region that reads it, and around that the same in plain words, without concepts.

    The region is everywhere until ``PLACE_UNTIL`` of the sampling, and from there on where the picture has looked at the concepts' words.
    Raises ``ValueError`` for a place that is given already, and for what has none: no words to look for, or a style.
    """
    if regions:
        raise ValueError(
            f"reach {PLACE!r} finds the place of the concepts of a prompt, and there are regions, which say it: take {BY_KIND!r}"
        )
    if isinstance(backbone, Transformer):
        raise ValueError(f"reach {PLACE!r} does not work on {backbone.family.title} yet: set another reach, or find a region in its prompt")
    check_start(how)
    how = replace(how, scope=BY_KIND)
    own = compose(backbone, bank, prompt, how)
    acting = [c for c in own.concepts if own.strengths.get(c.name)]
    if own.residuals:
        raise ValueError(f"reach {PLACE!r}: <{next(iter(own.residuals))}> is an Infusion concept, which acts at its class word anyway")
    if not acting:
        return Composition(own, (), how)
    if styles := [c.name for c in acting if c.kind == "style"]:
        raise ValueError(f"reach {PLACE!r}: <{styles[0]}> is a style, which is everywhere in a picture: set another reach")
    if not any(c.words for c in acting):
        raise ValueError(f"reach {PLACE!r}: <{acting[0].name}> has no words of its own to be found by: set another reach, or draw a region")
    whole = ConceptMix(own.plain, weights=own.weights[:, :0], plain=own.plain)
    place = RegionMask(torch.ones(1, 1), sought=PLACE_UNTIL)
    return Composition(whole, [RegionPrompt(place, own)], how)


def left_out(concepts: Sequence[Concept]) -> list[str]:
    """Say how much of each concept acts in no region: what it changed of layers that see the picture as a whole, as modulation does."""
    found = []
    for concept in concepts:
        family = family_of(concept.architecture)
        whole = [layer for layer in concept.factors if not (family.block_of(layer) or family.adapts(layer))]
        sizes = {layer: squared_norm(f) for layer, f in concept.factors.items()} if whole else {}
        if share := math.sqrt(sum(sizes[layer] for layer in whole) / max(sum(sizes.values()), 1e-30)):
            found.append(
                f"<{concept.name}> acts in a region without {share:.0%} of its change (norm of the weights), which is in layers that see "
                "the picture as a whole"
            )
    return found


def squared_norm(f: LowRank) -> float:
    """``||up down||_F^2`` by the products of the factors with themselves, which is quick and precise enough to compare by."""
    up, down = f.up.float(), f.down.float()
    return float(((up.T @ up) * (down @ down.T)).sum())
