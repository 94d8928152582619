"""From a prompt and a bank to what a model needs: its text, the weights of its concepts, and their residuals.

One way for the nodes, the command line, evaluation and previews: ``compose`` reads the prompt, ``encode`` makes its text, and a ``Scene``
says what lies beside the model's layers. Prompts of regions come together in composition.py.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..backbone import Backbone, Transformer
from ..bank.bank import Bank, check_base
from ..bank.concept import Concept
from ..bank.header import LOW_RANK, RESIDUALS
from ..bank.mentions import Prompt
from ..causal import linear_layers
from ..concept_text import ConceptText
from ..lowrank import LowRank
from ..method.aggregation import RULES, Rule, aggregate, tables_of
from ..method.infusion import residual_layers
from ..method.regions import RegionMask
from ..models.module import Slice
from ..row_plan import RowPlan, TokenResidual
from ..tokens import Text, stand_for
from .config import BY_KIND, PLACE, REGION_OVERLAPS, SHARED, ResidualConfig
from .scene import ConceptStack, Scene, stack_mixtures
from .scope import token_masks
from .texts import kept_concept, kept_text
from .weights import weights

EXACT = "take mode exact"  # what concepts can do on every family


@dataclass(frozen=True)
class AggregationConfig:
    """How concepts are weighed and how they act: ``mode`` and ``rule`` of the aggregation (CIDM 3.2), their ``strength``, whether they act
    on negative texts too, whether they lie beside the layers rather than in the weights, and at which tokens of a text they act; or, with
    ``scope`` ``PLACE``, in the place of the picture that looks at their words.

    Until ``start``, a part of the sampling, the base paints the prompt in plain words. ``inside`` multiplies the sampler's guidance in
    regions. ``overlap`` says who has a token that regions of one priority share. On transformers, regions do not look at each other until
    ``apart``, a part of the sampling, and with ``padding`` off their texts lose the tokens that fill them up. Raises ``ValueError`` naming
    the value that cannot be.
    """

    rule: Rule = RULES["soft"]
    negative: bool = True
    routed: bool = False
    scope: str = BY_KIND
    mode: str = "exact"
    strength: float = 1.0
    start: float = 0.0
    inside: float = 1.0
    overlap: str = SHARED
    apart: float = 0.0
    padding: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.start <= 1:
            raise ValueError(f"start {self.start:g}: expected a part of the sampling, from 0 to 1")
        if not 0 <= self.apart <= 1:
            raise ValueError(f"apart {self.apart:g}: expected a part of the sampling, from 0 (never) to 1 (always)")
        if self.inside < 0:
            raise ValueError(f"guidance inside regions {self.inside:g}: expected 0 or more times that of the sampler")
        if self.overlap not in REGION_OVERLAPS:
            raise ValueError(f"overlap {self.overlap!r}: expected one of {', '.join(REGION_OVERLAPS)}")

    @property
    def mode_rule(self) -> Rule | None:
        """The rule in place of the mode's own: mode ``soft`` alone has settings."""
        return self.rule if self.mode == "soft" else None


@dataclass(frozen=True)
class ParsedPrompt:
    """A prompt with its handles written out, the concepts that its words may name, and how strongly each that it mentions acts; and what it
    says in ``plain`` words.
    """

    text: str
    concepts: Sequence[Concept] = ()
    strengths: Mapping[str, float] = field(default_factory=dict)
    plain: str = field(default="", kw_only=True)

    @property
    def in_plain_words(self) -> "ParsedPrompt":
        """The prompt as the base alone reads it."""
        return ParsedPrompt(self.plain, plain=self.plain)


@dataclass(frozen=True)
class ConceptMix(ParsedPrompt):
    """A mix is what a prompt takes from a bank: the weights ``[L, G]`` of its concepts, its residuals, and warnings about their base."""

    weights: Tensor = field(default_factory=lambda: torch.zeros(0, 0))
    warnings: Sequence[str] = ()
    residuals: Mapping[str, TokenResidual] = field(default_factory=dict)  # by name

    def factors(self, backbone: Backbone | Transformer) -> dict[str, LowRank]:
        """Aggregated factors per layer."""
        return aggregate(self.concepts, self.weights, list(backbone.cross_attention))


def read(bank: Bank, prompt: str) -> ParsedPrompt:
    """The concepts that a prompt mentions, by name: what they add up to does not depend on the order in which they were learned.

    Raises ``ValueError`` for a word no concept has and for a concept of Infusion.
    """
    said = without_infusion(bank, prompt)
    concepts = [kept_concept(bank, name) for name in sorted(said.strengths)]
    return ParsedPrompt(said.text, concepts, said.strengths, plain=bank.vocabulary.plain(prompt))


def without_infusion(bank: Bank, prompt: str) -> Prompt:
    """A prompt for a model that paints in one stream. Raises ``ValueError`` for a word no concept has and for a concept of Infusion."""
    said = bank.read(prompt)
    for name in said.strengths:
        if bank.headers[name]["method"] == RESIDUALS:
            raise ValueError(f"<{name}> is an Infusion concept: Apply Infusion paints it, not this node; here write its class word instead")
    return said


def mix(backbone: Backbone | Transformer, bank: Bank, prompt: str, how: AggregationConfig | None = None) -> ConceptMix:
    """``compose`` for a model that paints in one stream. Raises ``ValueError`` for a concept of Infusion too."""
    without_infusion(bank, prompt)
    return compose(backbone, bank, prompt, how)


def compose(
    backbone: Backbone | Transformer,
    bank: Bank,
    prompt: str,
    how: AggregationConfig | None = None,
    *,
    layers: str = "all",
    masks: Mapping[str, Tensor] | None = None,
) -> ConceptMix:
    """Take from a bank what a prompt needs. ``exact`` loads only the concepts in the prompt, the soft modes load all (CIDM 3.2). Handles of
    Infusion concepts stand for class words, which carry their residuals in those ``layers``; ``masks [H, W]`` by name limit where.

    Raises ``ValueError`` for a word no concept has, for a concept of another architecture and for a mask of a concept that is not in
    the prompt.
    """
    how, masks = how or AggregationConfig(), masks or {}
    if how.scope == PLACE:
        raise ValueError(
            f"reach {PLACE!r} needs the prompt as well as the model: take Paint with Concepts, Paint in Regions or cidm generate"
        )
    if isinstance(backbone, Transformer):
        return _compose_exact(backbone, bank, prompt, how)
    return replace(_composed(backbone, bank, prompt, how, layers, masks), plain=bank.vocabulary.plain(prompt))


def _composed(backbone: Backbone, bank: Bank, prompt: str, how: AggregationConfig, layers: str, masks: Mapping[str, Tensor]) -> ConceptMix:
    """Take from a bank what a prompt needs for a model whose layers each read a text."""
    said = bank.read(prompt)
    names = [n for n in said.strengths if bank.headers[n]["method"] == RESIDUALS]
    if idle := [n for n in masks if n not in names]:
        raise ValueError(f"<{idle[0]}> has a region and is not in the prompt: write it there too, it stands for a class word")
    if not names:
        return _mixed(backbone, bank, said, how)
    others = {n: s for n, s in said.strengths.items() if n not in names}
    known = sorted(others) if how.mode == "exact" else _low_rank(bank)
    words = list(tables_of([kept_concept(bank, n) for n in known]))
    plain = {f"<{n}>": bank.headers[n]["class_word"] for n in names}
    text, marks = stand_for(backbone, said.text, plain, words)
    mixed = _mixed(backbone, bank, Prompt(text, others), how)
    chosen = set(residual_layers(backbone.family, list(backbone.cross_attention), layers))
    found, warnings = {}, list(mixed.warnings)
    for name in names:
        warnings.append(check_base(bank.headers[name], backbone.architecture, backbone.fingerprint) or "")
        own = _residuals(backbone, kept_concept(bank, name), chosen, how.strength * said.strengths[name])
        if any(r.any() for r in own.values()):
            found[name] = TokenResidual(own, marks[f"<{name}>"], masks.get(name))
    return replace(mixed, residuals=found, warnings=[w for w in warnings if w])


def _compose_exact(base: Transformer, bank: Bank, prompt: str, how: AggregationConfig) -> ConceptMix:
    """Take from a bank what a prompt needs for a model in which all layers read one text: exactly the concepts that it mentions.

    Raises ``ValueError`` for what such a model cannot do yet, too.
    """
    if how.mode != "exact":
        raise ValueError(f"mode {how.mode!r} compares what each layer reads, and all layers of {base.family.title} read one text: {EXACT}")
    if how.start:
        raise ValueError(f"a late start does not work on {base.family.title} yet: start at 0")
    if how.overlap != SHARED:
        raise ValueError(f"overlap {how.overlap!r} does not work on {base.family.title} yet: take {SHARED!r}, or priorities")
    said = without_infusion(bank, prompt)
    names = sorted(said.strengths)
    warnings = [check_base(bank.headers[name], base.architecture, base.fingerprint) for name in names]
    concepts = [kept_concept(bank, name) for name in names]
    check_layers(concepts, {**base.layers, **linear_layers(base.texts)})
    strengths = {n: how.strength * s for n, s in said.strengths.items()}
    found = torch.tensor([strengths[name] for name in names]).expand(len(base.cross_attention), -1)
    return ConceptMix(said.text, concepts, strengths, found, [w for w in warnings if w])


def _residuals(backbone: Backbone, concept: Concept, layers: set[str], strength: float) -> dict[str, Tensor]:
    """The residuals ``[C]`` of a concept in some of the model's ``layers``, times its strength, by linear layer.

    Raises ``ValueError`` for a layer that the model does not have.
    """
    sites = {name: name.rpartition(".")[0] for name in concept.residuals}
    if unknown := [name for name, site in sites.items() if site not in backbone.cross_attention]:
        raise ValueError(f"the model has no layer {unknown[0]!r}: <{concept.name}> is for another architecture")
    return {name: strength * r for name, r in concept.residuals.items() if sites[name] in layers}


def _low_rank(bank: Bank) -> list[str]:
    return [name for name, header in bank.headers.items() if header["method"] == LOW_RANK]


def _mixed(backbone: Backbone, bank: Bank, said: Prompt, how: AggregationConfig) -> ConceptMix:
    """Take from a bank what a prompt without handles of Infusion needs."""
    names = sorted(said.strengths) if how.mode == "exact" else _low_rank(bank)
    warnings = [check_base(bank.headers[name], backbone.architecture, backbone.fingerprint) for name in names]
    concepts = [kept_concept(bank, name) for name in names]
    layers = {**backbone.layers, **linear_layers(backbone.texts)} if concepts else {}
    check_layers(concepts, layers)
    found = how.strength * weights(how.mode, backbone, said.text, concepts, said.strengths, how.mode_rule).cpu()
    strengths = {n: how.strength * s for n, s in said.strengths.items()}
    return ConceptMix(said.text, concepts, strengths, found, [w for w in warnings if w])


def check_layers(concepts: Sequence[Concept], layers: Mapping[str, nn.Module | Slice]) -> None:
    """Raises ``ValueError`` naming a layer of a model that is of another size than a concept's factors for it."""
    sizes = {name: size for name, module in layers.items() if (size := size_of(module))}
    for concept in concepts:
        for layer, given in concept.shapes.items():
            if sizes.get(layer, given) != given:
                raise ValueError(
                    f"concept {concept.name!r}: its change of {layer} is of a weight {list(given)}, and this model's is "
                    f"{list(sizes[layer])}: it was learned on another base, import it for that one"
                )


def size_of(module: nn.Module | Slice) -> tuple[int, int] | None:
    """The rows and columns of a layer's weight, a convolution's folded; none for what is neither linear nor a convolution."""
    if isinstance(module, Slice):
        return module.rows, module.columns
    if isinstance(module, nn.Linear):
        return module.out_features, module.in_features
    if isinstance(module, nn.Conv2d):
        return module.out_channels, module.in_channels // module.groups * math.prod(module.kernel_size)
    return None


def residual_masks(bank: Bank, regions: Sequence[tuple[str, RegionMask]]) -> dict[str, Tensor]:
    """Masks ``[H, W]`` by name of the Infusion concepts that the texts of regions mention: the union of their places.

    Raises ``ValueError`` for a word no concept has.
    """
    masks: dict[str, Tensor] = {}
    for text, place in regions:
        for name, strength in bank.read(text).strengths.items():
            if bank.headers[name]["method"] != RESIDUALS:
                raise ValueError(f"<{name}> is in a region and no Infusion concept: Paint in Regions paints it, here it acts everywhere")
            mask, before = strength * place.strength * place.mask, masks.get(name)
            if before is not None and before.shape != mask.shape:
                size = (max(before.shape[0], mask.shape[0]), max(before.shape[1], mask.shape[1]))
                before, mask = (F.interpolate(m[None, None], size, mode="nearest")[0, 0] for m in (before, mask))
            masks[name] = mask if before is None else torch.maximum(before, mask)
    return masks


@torch.no_grad()
def encode(backbone: Backbone, said: ParsedPrompt, regions: Sequence[Text] = ()) -> Text:
    """A prompt encoded for every layer, with what its concepts changed in the text encoders, and with the texts of ``regions``."""
    text = kept_text(backbone, said.text, said.concepts, said.strengths)
    return replace(text, plans=(row_plan(backbone, said, [region.rows for region in regions]),))


def row_plan(backbone: Backbone, said: ParsedPrompt, regions: Sequence[ConceptText] = ()) -> RowPlan:
    """Plan what a prompt means to the model beside what its layers read."""
    residuals = tuple(said.residuals.values()) if isinstance(said, ConceptMix) else ()
    masks = token_masks(backbone, said.text, said.concepts) if said.concepts else {}
    return RowPlan(token_masks=masks, residuals=residuals, regions=tuple(regions))


def scene_beside(images: Sequence[Sequence[ConceptMix]], how: AggregationConfig | None = None) -> Scene:
    """Return the scene of concepts beside the layers: for each image of a batch, or one for all, the mixes elsewhere and in each region."""
    how = how or AggregationConfig()
    mixes = [mixed for image in images for mixed in image]
    concepts, found = stack_mixtures([m.concepts for m in mixes], [m.weights for m in mixes])
    stack = ConceptStack(concepts, found.unflatten(0, (len(images), len(images[0]))), how.negative, how.scope, how.start)
    return Scene((stack,) if concepts else (), negative=how.negative)


def infusing(scene: Scene, infusion: ResidualConfig) -> Scene:
    """The scene, in which residuals act so."""
    return replace(scene, infusion=infusion)
