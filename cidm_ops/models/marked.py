"""The Doodle of marks: Doodle at the same size, with latents of 16 channels, as Flux.1 and Stable Diffusion 3 have them, a U-Net that
is wide where cells hold marks, and a wider text.

Its text is another width than Doodle's, so no concept of the one is taken for one of the other. It is known where its weights are trained
and tried; it has none that ship.
"""

from dataclasses import replace
from typing import Any

from .registry import register
from .sd import DOODLE

CHANNELS, WIDTH = 16, 160
_text: dict[str, Any] = {"hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_hidden_layers": 3, "projection_dim": WIDTH}
_encoder = replace(DOODLE.encoder(), width=WIDTH)

MARKED = register(
    replace(
        DOODLE,
        title="Doodle of marks",
        architecture=f"sd1-7x{WIDTH}",
        encoders=(_encoder,),
        latent_channels=CHANNELS,
        diffusers=replace(
            DOODLE.diffusers,
            model={
                **DOODLE.diffusers.model,
                "in_channels": CHANNELS,
                "out_channels": CHANNELS,
                "block_out_channels": (128, 128, 128),
                "cross_attention_dim": WIDTH,
            },
            texts={_encoder.name: {**DOODLE.diffusers.texts[_encoder.name], **_text}},
            vae={"latent_channels": CHANNELS},
        ),
    )
)
