"""The parts by which one individual of the Doodle world is told from another, and the judge that reads them off pictures.

What is judged is what a look says: two colours, a pattern and its colour, an accessory and its colour. Proportions are not.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn import functional as F

from ..doodle.draw import RGB
from ..doodle.figures import ACCESSORIES, COLOURS, FIGURES, MARKINGS, UNNAMED, Look
from ..doodle.files import JUDGE
from ..doodle.world import Scene, Thing, render
from ..printable import brief

KINDS = tuple(FIGURES)
PALETTE: tuple[RGB, ...] = (*COLOURS.values(), *UNNAMED)
PARTS = {
    "body": len(PALETTE),
    "accent": len(PALETTE),
    "marking": len(MARKINGS),
    "marking_colour": len(PALETTE),
    "accessory": len(ACCESSORIES),
    "accessory_colour": len(PALETTE),
}  # with the number of things that each can be
UNTOLD = -1  # the label of what a look does not have, has in a colour that is none of the palette, or hides
SEEN = 20  # pixels of a colour that must show, of an individual that fills the picture, for it to be told
FLAGS: dict[str, RGB] = {"accent": (1, 2, 3), "marking": (3, 2, 1)}  # colours that nothing wears
SIDE = 128  # pixels of a picture that the judge reads
MARK = "cidm.parts"  # in the metadata of its file
SHIPPED = "doodle"  # in the place of a file: the judge that ships


def labels_of(look: Look) -> np.ndarray:
    """The parts of a look as ``[6]`` int64 indices in the order of ``PARTS``; ``UNTOLD`` where there is nothing to tell."""

    def colour(rgb: RGB) -> int:
        return PALETTE.index(rgb) if rgb in PALETTE else UNTOLD

    hidden = hidden_parts(look.kind, look.marking, look.accessory)
    accent = UNTOLD if "accent" in hidden else colour(look.accent)
    marking = UNTOLD if "marking" in hidden else MARKINGS.index(look.marking)
    marking_colour = UNTOLD if "marking" in hidden or look.marking == "none" else colour(look.marking_colour)
    accessory_colour = UNTOLD if look.accessory == "none" else colour(look.accessory_colour)
    return np.array([colour(look.body), accent, marking, marking_colour, ACCESSORIES.index(look.accessory), accessory_colour])


@cache
def hidden_parts(kind: str, marking: str, accessory: str) -> frozenset[str]:
    """Which of "accent" and "marking" no picture can tell, because what a class wears hides them: a flower on a cat's chest its patch, a
    hat the insides of its ears.
    """
    look = Look(kind, PALETTE[0], FLAGS["accent"], marking, FLAGS["marking"], accessory, PALETTE[1])
    picture, _ = render(Scene((Thing(look, kind, SIDE / 2, SIDE / 2, 44),), None))
    shown = {name: int((picture == flag).all(-1).sum()) for name, flag in FLAGS.items()}
    return frozenset(name for name, count in shown.items() if count < SEEN and not (name == "marking" and marking == "none"))


@dataclass(frozen=True)
class Reading:
    """What the judge reads off B pictures: the logit that each class is ``there [B, K]``, and logits of its ``parts``, by name
    ``[B, K, n]``.
    """

    there: Tensor
    parts: dict[str, Tensor]


class Layer(nn.Module):
    """A residual 3 x 3 convolution, ``dilation`` cells apart."""

    def __init__(self, width: int, dilation: int):
        super().__init__()
        self.norm = nn.GroupNorm(8, width)
        self.conv = nn.Conv2d(width, width, 3, padding=dilation, dilation=dilation)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(F.silu(self.norm(x)))


class PartsJudge(nn.Module):
    """Reads pictures ``[B, 3, 128, 128]`` in [-1, 1]: a convolutional trunk to an eighth of their side, and for every class and every part
    a map of where to look (softmax over cells), whose mean of features is read by a head that all classes share.
    """

    def __init__(self, width: int = 32):
        super().__init__()
        stages: list[nn.Module] = []
        before = 3
        for out, dilations in ((width, (1,)), (2 * width, (1, 1)), (4 * width, (1, 1, 2, 4))):
            halve = nn.Conv2d(before, out, 4, stride=2, padding=1)
            stages.append(nn.Sequential(halve, *(Layer(out, dilation) for dilation in dilations)))
            before = out
        self.stages = nn.ModuleList(stages)
        self.norm = nn.GroupNorm(8, before)
        self.where = nn.Conv2d(before, len(KINDS) * (1 + len(PARTS)), 1)
        self.inner = nn.ModuleDict({name: nn.Linear(before, before) for name in ("there", *PARTS)})
        self.heads = nn.ModuleDict({name: nn.Linear(before, count) for name, count in {"there": 1, **PARTS}.items()})
        self.own = nn.ParameterDict({name: nn.Parameter(torch.zeros(len(KINDS), n)) for name, n in {"there": 1, **PARTS}.items()})

    def features(self, pictures: Tensor) -> list[Tensor]:
        """What the trunk makes of pictures ``[B, 3, H, W]`` of any sides that are multiples of 8, at a half, a quarter and an eighth."""
        found = []
        for stage in self.stages:
            pictures = stage(pictures)
            found.append(pictures)
        return found

    def forward(self, pictures: Tensor) -> Reading:
        cells = F.silu(self.norm(self.features(pictures)[-1])).flatten(2)  # [B, C, hw]
        where = self.where(cells.unsqueeze(-1)).squeeze(-1).float().softmax(-1)  # [B, K (1 + P), hw]
        seen = (where.to(cells.dtype) @ cells.transpose(1, 2)).unflatten(1, (len(KINDS), -1))  # [B, K, 1 + P, C]
        logits = {}
        for i, name in enumerate(("there", *PARTS)):
            inner = F.silu(self.inner[name](seen[:, :, i]))
            logits[name] = self.heads[name](inner).float() + self.own[name]
        return Reading(logits.pop("there").squeeze(-1), logits)

    @torch.no_grad()
    def read(self, pictures: Tensor) -> Reading:
        """Reads pictures ``[N, 3, H, W]`` of any one size, 64 at a time, on the judge's device; what is read is on the CPU."""
        device = next(self.parameters()).device
        found = []
        for part in pictures.split(64):
            if part.shape[-2:] != (SIDE, SIDE):
                part = F.interpolate(part, (SIDE, SIDE), mode="bilinear", antialias=True)
            found.append(self(part.to(device)))
        there = torch.cat([reading.there for reading in found]).cpu()
        return Reading(there, {name: torch.cat([reading.parts[name] for reading in found]).cpu() for name in PARTS})


def right_parts(reading: Reading, kinds: Sequence[str], labels: np.ndarray) -> Tensor:
    """Which parts are right, ``[N, 6]``: 1 or 0, nan where there is nothing to tell.

    ``kinds`` is the class of the thing that counts in each picture, ``labels [N, 6]`` are its parts. Where the class is not there at all,
    none is right.
    """
    wanted = torch.from_numpy(np.asarray(labels))
    rows, columns = torch.arange(len(kinds)), torch.tensor([KINDS.index(kind) for kind in kinds])
    said = torch.stack([reading.parts[name][rows, columns].argmax(-1) for name in PARTS], 1)
    right = (said == wanted) & (reading.there[rows, columns] > 0)[:, None]
    return torch.where(wanted == UNTOLD, torch.nan, right.float())


def fingerprint_of(judge: PartsJudge) -> str:
    """A short hash of all weights, which tells judges apart."""
    digest = hashlib.sha256()
    for name, weight in judge.state_dict().items():
        digest.update(name.encode() + weight.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()[:12]


def judge_file(judge: Path | str) -> Path:
    """The file of the judge that ships ("doodle"), or of the one that is named."""
    return JUDGE if str(judge) == SHIPPED else Path(judge).expanduser()


def load_judge(file: Path | str, device: torch.device | str = "cpu") -> PartsJudge:
    """The judge that ships ("doodle"), or the one in a file of `cidm doodle train`.

    Raises ``FileNotFoundError`` if there is none, ``ValueError`` for a file of anything else.
    """
    file = judge_file(file)
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such judge of parts: expected parts.safetensors, as `cidm doodle train` writes it")
    try:
        with safe_open(file, "pt") as f:
            if MARK not in (f.metadata() or {}):
                raise ValueError(f"{file} is no judge of parts: expected parts.safetensors, as `cidm doodle train` writes it")
            state = {key: f.get_tensor(key).float() for key in f.keys()}  # noqa: SIM118
        judge = PartsJudge(len(state["stages.0.0.weight"]))
        judge.load_state_dict(state)
    except (SafetensorError, KeyError, RuntimeError) as error:
        raise ValueError(f"{file} is damaged, or a judge of parts of another version ({brief(error)}): train it again") from error
    return judge.eval().requires_grad_(False).to(device)
