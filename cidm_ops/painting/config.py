"""What is set about painting, and the names that people choose by. Nothing here computes, so that a command says what it takes at once."""

import math
from dataclasses import dataclass

MODES = ("exact", "released", "paper", "soft")  # how the concepts' weights are found: method/aggregation.py
# At which tokens of a prompt concepts act: scope.py
BY_KIND, EVERYWHERE, WORDS_AND_END, WORDS = SCOPES = ("by kind", "everywhere", "words and end", "words")
SHARED, STRONGEST = REGION_OVERLAPS = ("shared", "strongest")  # who has a token that regions of one priority share
PADDED, CUT = REGION_TEXTS = ("padded", "cut")  # what transformers read of a region's text: with what fills it up, or little of that
PLACE = "where it stands"  # in the picture: composition.py
# Where Infusion's map comes from: the foundation's (the paper), the customised features' own, or those and a residual of the key too. The
# last is what the authors' code does: it returns one stream, and locks its keys no more after they are assigned a second time.
STREAMS = ("dual", "single", "released_code")
MOST_IDENTITY = 2.0  # of a reference: what lies beyond "as its own" is extrapolated


@dataclass(frozen=True)
class ResidualConfig:
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

    @property
    def never(self) -> bool:
        """Whether the part of the sampling is empty."""
        return self.start == 1 or self.end == 0


@dataclass(frozen=True)
class NoiseEstimation:
    """Region noise estimation (CIDM 3.3, Eq. 4 and 5): ``alpha`` of the global prediction inside regions; passes from ``start`` to ``end``
    of the sampling, as parts of it; overlap and feather of the blend; ``bootstrap``: so long, each pass sees plain background outside of
    its region. ``features``: the global pass has the regions' features too.
    """

    alpha: float = 0.1
    start: float = 0.0
    end: float = 1.0
    overlap: str = "mean"
    feather: float = 0.0
    bootstrap: float = 0.0
    features: bool = False


@dataclass(frozen=True)
class WeaveConfig:
    """How concepts are woven into a template (Concept Weaver): ``suppression`` lambda of what is not the concept, inside regions; the parts
    of the sampling in which the queries and keys of self-attention (``attention``) and the features of a residual branch (``residual``)
    are the template's, by default those of Plug-and-Play (Tumanyan et al. 2023); whether what no region covers is locked; and by how many
    latent cells regions ``grow``.

    Raises ``ValueError`` naming the value that cannot be.
    """

    suppression: float = 0.0
    attention: float = 0.5
    residual: float = 0.8
    lock: bool = True
    grow: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.suppression < math.inf:
            raise ValueError(f"suppression {self.suppression:g}: expected 0 (none) or more, such as 0.2")
        for name in ("attention", "residual"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"keep {name} {getattr(self, name):g}: expected a part of the sampling, from 0 (never) to 1 (always)")
        if self.grow < 0:
            raise ValueError(f"grow {self.grow}: expected 0 or more cells of the latent, such as 1")


@dataclass(frozen=True)
class ReferenceConfig:
    """How a picture refers to another one: with which ``strength`` its self-attention sees the tokens of that (0 never, 1 as its own), and
    in which part of the sampling.

    Raises ``ValueError`` naming the value that cannot be.
    """

    strength: float = 1.0
    start: float = 0.0
    end: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.strength <= MOST_IDENTITY:
            raise ValueError(f"identity {self.strength:g}: expected 0 (none), 1 (as its own), or up to {MOST_IDENTITY:g}")
        if not 0 <= self.start <= self.end <= 1:
            raise ValueError(f"start {self.start:g} and end {self.end:g}: expected 0 <= start <= end <= 1")


PRESETS = {"fast": None, "paper": NoiseEstimation(), "auto": NoiseEstimation(end=0.3, features=True)}
