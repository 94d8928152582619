"""The settings of a training run, with the paper's as defaults."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from ..method.consolidation import MODES
from ..method.infusion import STREAMS
from .captions import INFUSION_TEMPLATES, OBJECT_TEMPLATES, TEMPLATES, Wording

GROUPS = ("block", "layer", "one")
PRECISIONS = ("auto", "as_model", "bf16")
MEMORY = ("auto", "as_set")
LEARNED = ("cidm", "infusion")
KINDS = tuple(TEMPLATES)


@dataclass(frozen=True)
class Recipe:
    """The paper's recipe. ``batch`` is the effective batch of its two GPUs; rates decay linearly to zero.

    ``targets`` names the layers that get factors (``models.family.TARGETS``, or a regular expression on their canonical names).
    A step takes ``accumulate`` times ``batch`` pictures and averages their gradients. ``alpha`` scales the factors by
    ``alpha / rank`` while they learn, 0 stands for the rank; the file holds them at full scale. ``norm_stop``: when the
    mean norm of the concept's token rows reaches it, the rows stop for good and only the factors go on.
    ``consolidation`` is gamma_1 of Eq. 2 and weighs the term ``mode``, ``shared`` weighs the low-rank form of the paper's
    R2. ``lr_text`` above 0 gives the attention of the text encoders factors too. ``attention`` weighs the regularisation of
    where the words look, for pictures with masks; ``prior`` the loss of pictures of the plain class, ``prior_pictures`` of
    them if the base has to paint them. ``init_sigma`` is the standard deviation of the free adjective's row. ``min_snr`` is
    gamma of min-SNR weighting, 0 for none. ``precision`` is what a model in fp32 computes in (the factors are always fp32):
    ``auto`` is bf16 where the hardware is made for it and the model large. ``memory``: ``auto`` turns to ways that need less
    when memory runs out. ``checkpointing`` trades a third more time for much less memory. ``method`` "infusion" learns residuals
    at the class word instead, see ``INFUSION``: in the layers that ``targets`` names (``method.infusion.LAYERS``), at the constant
    rate ``lr``, with the map of ``stream``; ``anchor`` weighs the foundation anchor. ``kind`` is written into the file: it says how the
    concept acts when it paints (``method.reach``) and changes nothing of what is learned. Raises ``ValueError`` naming the setting that
    cannot work.
    """

    steps: int = 800
    batch: int = 2
    accumulate: int = 1
    targets: str = "cross_attention"
    rank: int = 4
    alpha: float = 0.0
    lr: float = 1e-4
    lr_tokens: float = 1e-3
    lr_text: float = 0.0
    weight_decay: float = 0.01
    mode: str = "corrected"
    consolidation: float = 0.1
    shared: float = 0.0
    norm_stop: float = 0.55
    init_sigma: float = 0.013
    groups: str = "block"
    attention: float = 0.0
    prior: float = 0.0
    prior_pictures: int = 20
    noise_offset: float = 0.01
    min_snr: float = 0.0
    templates: tuple[str, ...] = OBJECT_TEMPLATES
    shuffle: bool = False
    dropout: float = 0.0
    precision: str = "auto"
    memory: str = "auto"
    checkpointing: bool = False
    seed: int = 0
    method: str = "cidm"
    stream: str = "dual"
    anchor: float = 0.0
    kind: str = KINDS[0]

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "accumulate", "rank", "prior_pictures"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)}: expected at least 1")
        for name in (
            "alpha",
            "lr",
            "lr_tokens",
            "lr_text",
            "weight_decay",
            "consolidation",
            "shared",
            "attention",
            "prior",
            "noise_offset",
            "min_snr",
            "anchor",
        ):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} {getattr(self, name)}: expected 0 or more")
        for name, known in (
            ("groups", GROUPS),
            ("precision", PRECISIONS),
            ("memory", MEMORY),
            ("mode", MODES),
            ("method", LEARNED),
            ("stream", STREAMS),
            ("kind", KINDS),
        ):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} {getattr(self, name)!r}: expected one of {', '.join(known)}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout {self.dropout}: expected a share of captions from 0 to below 1")
        for name in ("lr_text", "attention", "prior", "shared") if self.method == "infusion" else ("anchor",):
            if getattr(self, name):
                raise ValueError(f"{name} {getattr(self, name)}: it has no meaning for the method {self.method}, expected 0")
        if self.anchor and self.stream != "dual":
            raise ValueError(f"anchor {self.anchor} with stream {self.stream!r}: only a dual stream has a foundation to anchor to")
        _ = self.wording

    def having(self, settings: Sequence[str]) -> "Recipe":
        """The recipe with settings given as ``name=value``. Raises ``ValueError`` for a name or value that cannot be."""
        values: dict[str, Any] = {}
        for setting in settings:
            name, _, text = setting.partition("=")
            kind = type(getattr(self, name, None))
            if kind not in (bool, int, float, str):
                known = [f.name for f in fields(self) if f.name != "templates"]
                raise ValueError(f"setting {setting!r}: expected name=value with one of {', '.join(known)}")
            try:
                values[name] = {"true": True, "false": False}[text.lower()] if kind is bool else kind(text)
            except (KeyError, ValueError) as error:
                raise ValueError(f"setting {setting!r}: expected a value such as {getattr(self, name)!r}") from error
        return replace(self, **values)

    @property
    def wording(self) -> Wording:
        return Wording(self.templates, self.shuffle, self.dropout)

    @property
    def scale(self) -> float:
        """What the factors' change is multiplied by while they learn."""
        return (self.alpha or self.rank) / self.rank


# The published code's settings for a cat on SD1.5; its rate is constant.
INFUSION = Recipe(
    method="infusion",
    steps=500,
    batch=4,
    accumulate=4,
    targets="all",
    lr=1e-2,
    mode="off",
    consolidation=0.0,
    noise_offset=0.0,
    templates=INFUSION_TEMPLATES,
)
