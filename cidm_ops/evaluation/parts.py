"""Identity by parts: of what makes a Doodle concept this individual, how much a picture shows, read by the judge of parts.

Only flat pictures are judged: paint, pencil and ink change the colours that are asked about.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..doodle.concepts import CONCEPTS
from ..doodle.figures import Look
from ..doodle.style import STYLES
from ..engines.parts import PARTS, PartsJudge, labels_of, right_parts
from ..measure.interval import Interval, mean_interval, several


@dataclass(frozen=True)
class PartsScore:
    """What is right in pictures of a concept: ``values [N]``, the share of its parts that each shows; their ``mean``; and how often each
    part is right, by name.
    """

    values: Tensor
    mean: Interval
    parts: dict[str, float]


def judged(name: str) -> bool:
    """Whether a concept of this name has parts: it is a thing of the Doodle world."""
    return name in CONCEPTS and CONCEPTS[name].look is not None


def is_flat(prompt: str) -> bool:
    """Whether a prompt asks for no style that changes colours."""
    words = prompt.lower().replace(",", " ").split()
    return not any(style in words for style in STYLES[1:])


def identity_by_parts(judge: PartsJudge, look: Look, pictures: Tensor) -> Tensor:
    """Which parts of a look each of ``pictures [N, 3, H, W]`` in [-1, 1] shows, ``[N, 6]``: 1 or 0, nan for what the look does not have."""
    return right_parts(judge.read(pictures), [look.kind] * len(pictures), np.tile(labels_of(look), (len(pictures), 1)))


def score_parts(right: Tensor) -> PartsScore:
    """Sum up ``right [N, 6]`` of ``identity_by_parts``."""
    values = right.nanmean(1)
    by_name = {name: float(right[:, i].nanmean()) for i, name in enumerate(PARTS) if not bool(right[:, i].isnan().all())}
    return PartsScore(values, mean_interval(values, several(len(values), "picture")), by_name)


def score_flat(judge: PartsJudge, name: str, prompts: Sequence[str], pictures_of: Callable[[str], Sequence[Tensor]]) -> PartsScore:
    """Score the pictures of a concept's flat prompts, of which there is one at least; ``pictures_of`` gives those of a prompt."""
    look = look_of(name)
    flat = [torch.stack([*pictures_of(prompt)]) for prompt in prompts if is_flat(prompt)]
    return score_parts(torch.cat([identity_by_parts(judge, look, pictures) for pictures in flat]))


def look_of(name: str) -> Look:
    """The look of a concept that is ``judged``. Raises ``ValueError`` for any other."""
    if not judged(name) or (look := CONCEPTS[name].look) is None:
        raise ValueError(f"<{name}> has no parts that could be judged: expected a thing of the Doodle world")
    return look
