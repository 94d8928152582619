"""Doodle as a transformer: Lumina 2 in small, on the same latents and with the same text encoder as its U-Net.

A text is what stands between its start and its end, both included: so no engine needs a mask, and none reads padding. It is known where
its weights are trained and tried; it has none that ship.
"""

from dataclasses import replace
from functools import partial
from typing import Any

from .diffusers import TextReader
from .nextdit import LUMINA, PATCH, lumina_shapes
from .registry import register
from .sd import DOODLE

DEPTH, WIDTH, HEADS, KEY_HEADS, WIDE, REFINERS = 7, 192, 6, 2, 384, 1
HEAD = WIDTH // HEADS
_model: dict[str, Any] = {
    "sample_size": DOODLE.size // DOODLE.factor,
    "patch_size": PATCH,
    "in_channels": DOODLE.latent_channels,
    "hidden_size": WIDTH,
    "num_layers": DEPTH,
    "num_refiner_layers": REFINERS,
    "num_attention_heads": HEADS,
    "num_kv_heads": KEY_HEADS,
    "multiple_of": WIDE,
    "ffn_dim_multiplier": WIDE / (4 * WIDTH),
    "axes_dim_rope": (8, 12, 12),  # of a head: places in the text, rows and columns
    "cap_feat_dim": DOODLE.width,
}

DOODLE_TRANSFORMER = register(
    replace(
        LUMINA,
        title="Doodle as a transformer",
        architecture=f"lumina2-{DEPTH}x{WIDTH}",
        size=DOODLE.size,
        diffusers=replace(LUMINA.diffusers, model=_model, vae=DOODLE.diffusers.vae, reader=TextReader(clip=DOODLE.encoder())),
        weigh=partial(lumina_shapes, keys=KEY_HEADS * HEAD, wide=WIDE, text=DOODLE.width, refiners=REFINERS),
    )
)
