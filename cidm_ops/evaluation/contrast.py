"""What pictures and words are compared by, without ComfyUI: image towers from files, and common things that the base paints or that Doodle
renders.
"""

from collections.abc import Callable, Sequence

import torch

from ..backbone import Backbone
from ..doodle.concepts import common_things
from ..doodle.files import SCALE as DOODLE_SCALE
from ..engines.towers import Tower, load_tower
from ..models.sd import DOODLE
from ..training.canvases import CutOut, cut_drawn
from ..training.prior import COMMON, paint_common
from ..training.spaces import CLIP_SCALE, CLIP_SIDE, Contrast, Space, space_for


def contrast_by(
    backbone: Backbone,
    towers: Sequence[str] = (),
    common: Sequence[str] | None = None,
    seed: int = 0,
    on_picture: Callable[[int, int], None] = lambda done, count: None,
) -> Contrast:
    """Returns what the words of a base are contrasted by: image towers, as ``load_tower`` takes them, and common things. For Doodle both
    are there already; for other bases a tower has to be given, and the base paints the things.

    Raises ``ValueError`` without a tower and for one that no text encoder of the base leads to.
    """
    own = backbone.architecture == DOODLE.architecture
    if not towers and not own:
        raise ValueError(
            "there is no image tower: give one with --vision, for Stable Diffusion 1 the whole CLIP-L (a folder or a .safetensors file of "
            "transformers, with text_projection), for SDXL the vision model of CLIP bigG"
        )
    spaces = tuple(space_of(backbone, load_tower(place, backbone.device)) for place in towers or ["doodle"])
    if own and common is None:
        return Contrast(spaces, rendered_common(seed=seed))
    side = max(space.side for space in spaces)
    return Contrast(spaces, paint_common(backbone, COMMON if common is None else common, side, seed, on_picture))


def space_of(backbone: Backbone, tower: Tower) -> Space:
    """Returns the space of a tower for a base. Raises what ``space_for`` does."""
    side, bridged = tower.side or CLIP_SIDE, backbone.architecture == DOODLE.architecture
    width = tower(torch.zeros(1, 3, side, side)).shape[1]
    scale = DOODLE_SCALE if bridged else CLIP_SCALE
    return space_for(backbone, tower.see, width, tower.projection, scale=scale, side=side, about=tower.fingerprint)


def rendered_common(count: int = 24, seed: int = 0) -> tuple[CutOut, ...]:
    """Cuts out what Doodle renders of plain things."""
    return tuple(cut_drawn(common_things(count, seed)))
