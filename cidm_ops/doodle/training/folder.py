"""The folder of a training: what its stages read, and what they leave for those after them."""

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderTiny
from safetensors.torch import load_file
from torch import Tensor

from ...engines.parts import load_judge
from .alignment import sights_of
from .autoencoder import encode, pass_through
from .base import result_file
from .described import described_wordings, draw_described, draw_things
from .diffusion import Pictures
from .loop import Session, save_tensors
from .renderings import kept, kept_captions, sharded
from .tokens import Tokens, token_ids

MADE_BY = {"latents": "autoencoder", "vae": "decoder", "unet": "diffusion", "text": "diffusion"}  # where it is not the stage of the name


@dataclass(frozen=True)
class Training:
    """A training of Doodle: its options, the folder with all that it makes, where it computes, and for how long."""

    options: argparse.Namespace
    folder: Path
    device: str
    session: Session

    def result(self, name: str) -> Path:
        """The file of what a stage made."""
        return result_file(self.folder, name)

    def needed(self, name: str) -> Path:
        """The file of what an earlier stage made. Raises ``FileNotFoundError`` that says which stage is missing."""
        file = self.result(name)
        if not file.exists():
            raise FileNotFoundError(f"{file} is not there: the stage {MADE_BY.get(name, name)} comes first")
        return file

    def write(self, name: str, state: Mapping[str, Tensor], half: bool = True) -> None:
        """Keep what a stage made."""
        save_tensors({k: v.half() if half and v.is_floating_point() else v for k, v in state.items()}, self.result(name))

    def pictures(self) -> np.ndarray:
        """The renderings ``[N, 128, 128, 3]`` that autoencoder, U-Net and transformer learn from."""
        return kept(self.folder, "described", draw_described, self.options.pictures, self.options.workers)

    def words(self) -> Tokens:
        """The captions of those, in all wordings."""
        return Tokens(token_ids(kept_captions(self.folder, "described", described_wordings, self.options.pictures, self.options.workers)))

    def lessons(self) -> Pictures:
        """Their latents, small enough to stay on the device, and what the recipe asks for beside them."""
        return Pictures(
            latents_of(self.folder, self.pictures(), self.latent_vae, torch.device(self.device)),
            np.array(kept(self.folder, "things", draw_things, self.options.pictures, self.options.workers)),
            self.sights("described", self.pictures()),
        )

    def latent_vae(self) -> AutoencoderTiny:
        """The autoencoder of the latents, with the decoder that was trained beside the encoder."""
        vae = pass_through()
        vae.load_state_dict(load_file(self.needed("latents")))
        return vae.to(self.device)

    def sights(self, name: str, pictures: np.ndarray) -> Tensor | None:
        """What the judge sees in the pictures of that name, where it is asked for."""
        if not self.options.align:
            return None
        return sights_of(self.folder, name, pictures, lambda: load_judge(self.needed("parts"), self.device), torch.device(self.device))


def latents_of(folder: Path, pictures: np.ndarray, load_vae: Callable[[], AutoencoderTiny], device: torch.device) -> Tensor:
    """Latents ``[N, C, 16, 16]`` fp16 of all pictures on the device; see ``sharded``."""

    def load() -> AutoencoderTiny:
        return load_vae().to(memory_format=torch.channels_last)

    def make(vae: AutoencoderTiny, some: np.ndarray) -> Tensor:
        return encode(vae, some, 16 if vae.device.type == "cpu" else 256).half()

    return sharded(folder, "latents", pictures, load, make, device)
