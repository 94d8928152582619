"""What is set about training: what the loop and the data need, and in ``method`` what one method needs beside it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from .captions import OBJECT_TEMPLATES, TEMPLATES, Wording

PRECISIONS = ("auto", "as_model", "bf16")
MEMORY = ("auto", "as_set")
KINDS = tuple(TEMPLATES)
OWN = "of the family"
DENSITIES = (OWN, "uniform", "sigmoid")  # of noise levels: objective.py
FITS = ("centre", "buckets", "random", "as_given")  # how pictures of other shapes are fitted: crops.py
PER_ORIGINAL = 2  # pictures of an edit model that are learned beside each original, at most: measure/sifting.py
EXISTING = ("replace", "refuse", "continue")  # what to do if the bank has a concept of that name


@dataclass(frozen=True, kw_only=True)
class MethodConfig:
    """The settings of a method: its own are those of a subclass, which checks them. ``lr`` is the learning rate of what it trains."""

    lr: float = 1e-4

    def check_training(self, training: "TrainingConfig") -> None:
        """Raises ``ValueError`` naming a setting of the loop that has no meaning for this method."""


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """A configuration has what the loop and the data need; ``method`` has the settings of what is trained.

    A step takes ``accumulate`` times ``batch`` pictures and averages their gradients; ``batch`` is the effective one of the paper's two
    GPUs. ``prior`` weighs the loss of pictures of the plain class, ``prior_pictures`` of them if the base has to paint them. ``min_snr`` is
    gamma of min-SNR weighting, 0 for none. ``density`` and ``shift`` say which noise levels are learned at; the shift 0 stands for that of
    the family. ``precision`` is what a model in fp32 computes in (what is trained is always fp32): ``auto`` is
    bf16 where the hardware is made for it and the model large. ``memory``: ``auto`` turns to ways that need less when memory runs out.
    ``checkpointing`` trades a third more time for much less memory. ``kind`` is written into the file: it says how the concept acts when
    it paints (``method.reach``) and changes nothing of what is learned. Raises ``ValueError`` naming the setting that cannot work.
    """

    method: MethodConfig
    steps: int = 800
    batch: int = 2
    accumulate: int = 1
    weight_decay: float = 0.01
    prior: float = 0.0
    prior_pictures: int = 20
    noise_offset: float = 0.01
    min_snr: float = 0.0
    density: str = OWN
    shift: float = 0.0
    templates: tuple[str, ...] = OBJECT_TEMPLATES
    shuffle: bool = False
    dropout: float = 0.0
    precision: str = "auto"
    memory: str = "auto"
    checkpointing: bool = False
    seed: int = 0
    kind: str = KINDS[0]

    def __post_init__(self) -> None:
        check_least(self, 1, ("steps", "batch", "accumulate", "prior_pictures"))
        check_least(self, 0, ("weight_decay", "prior", "noise_offset", "min_snr", "shift"))
        check_choices(self, density=DENSITIES, precision=PRECISIONS, memory=MEMORY, kind=KINDS)
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout {self.dropout}: expected a share of captions from 0 to below 1")
        _ = self.wording
        self.method.check_training(self)

    @property
    def wording(self) -> Wording:
        return Wording(self.templates, self.shuffle, self.dropout)

    def settings(self) -> dict[str, Any]:
        """Returns all settings by name, those of the loop and those of the method."""
        return {f.name: getattr(part, f.name) for part in (self, self.method) for f in fields(part) if f.name != "method"}

    def update(self, **settings: Any) -> "TrainingConfig":
        """Returns the configuration with some settings changed, wherever they belong. Raises ``ValueError`` for a name that neither the
        loop nor the method has.
        """
        known = self.settings()
        if unknown := [name for name in settings if name not in known]:
            raise ValueError(f"setting {unknown[0]!r}: neither the loop nor the method has it, expected one of {', '.join(known)}")
        own = {f.name for f in fields(self.method)}
        method = replace(self.method, **{name: value for name, value in settings.items() if name in own})
        return replace(self, method=method, **{name: value for name, value in settings.items() if name not in own})

    def parse(self, settings: Sequence[str]) -> "TrainingConfig":
        """Returns the configuration with settings given as ``name=value``. Raises ``ValueError`` for a name or value that cannot be."""
        known, values = self.settings(), {}
        for setting in settings:
            name, _, text = setting.partition("=")
            kind = type(known.get(name))
            if kind not in (bool, int, float, str):
                raise ValueError(f"setting {setting!r}: expected name=value with one of {', '.join(n for n in known if n != 'templates')}")
            try:
                values[name] = {"true": True, "false": False}[text.lower()] if kind is bool else kind(text)
            except (KeyError, ValueError) as error:
                raise ValueError(f"setting {setting!r}: expected a value such as {known[name]!r}") from error
        return self.update(**values)


def check_least(config: Any, least: int, names: Iterable[str]) -> None:
    """Raises ``ValueError`` naming the first of the settings that is below ``least``."""
    for name in names:
        if getattr(config, name) < least:
            raise ValueError(f"{name} {getattr(config, name)}: expected {'0 or more' if least == 0 else f'at least {least}'}")


def check_choices(config: Any, **choices: Sequence[str]) -> None:
    """Raises ``ValueError`` naming the first of the settings that is not one of its choices."""
    for name, known in choices.items():
        if getattr(config, name) not in known:
            raise ValueError(f"{name} {getattr(config, name)!r}: expected one of {', '.join(known)}")
