"""Model families that this version does not know, by the names in their files, so that such a file can be called what it is."""

import re
from collections.abc import Iterable

# What finds a name that only these have, with ``_`` for every dot; the first that does counts.
FOREIGN: tuple[tuple[str, str], ...] = (
    (r"svdq|qweight|wscales|smooth_factor", "Nunchaku's quantised layers"),
    (r"(double|single)_stream_blocks|(^|_)ff_i_", "HiDream"),
    (r"individual_token_refiner|(img|txt)_(mlp_fc[12]|mod_linear)", "HunyuanVideo"),
    (r"(^|_)blocks_\d+_(self|cross)_attn_[qkv]_proj", "Cosmos"),
    (r"(^|_)blocks_\d+_(self|cross)_attn_[qkvo]", "Wan"),
    (r"patchify_proj|audio_attn|caption_projection", "LTX-Video"),
)


def foreign_family(names: Iterable[str]) -> str:
    """What family some names of layers are of, one that is not known here; "" for none."""
    flat = [name.replace(".", "_") for name in names]
    return next((title for pattern, title in FOREIGN if any(re.search(pattern, name) for name in flat)), "")
