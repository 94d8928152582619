"""Train the Doodle model from nothing: render, autoencoder, latents, diffusion, decoder, image tower, reader, bridge, ship.

Every stage keeps its own checkpoint in the folder and continues from it; a finished stage is only read.
"""

import argparse
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderTiny
from safetensors.torch import load_file
from torch import Tensor

from ...engines.checkpoint import text_model
from ...engines.tokenizer import tokenize
from ..files import ENCODER, TEXT_CONFIG, WEIGHTS, with_table
from .autoencoder import encode, learn_latents, pass_through, sharpen_decoder
from .bridge import embed_scenes, learn_bridge, least_squares, new_bridge, retrieval
from .data import rendered
from .diffusion import Pictures, Tokens, learn_diffusion, new_text_encoder, new_unet
from .loop import Session, save_tensors
from .processes import join_processes, make_once
from .reader import learn_reader, personal, plain_wordings
from .renderings import sharded
from .vision import TextTower, individuals, learn_vision, new_vision

HELD_OUT = 1024  # scenes that the bridge is measured on

log = logging.getLogger("cidm.doodle")


def train(options: argparse.Namespace) -> None:
    """Run the stages that were asked for, each from its checkpoint."""
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    join_processes(device, options.minutes)
    torch.manual_seed(0)
    make_once(lambda: rendered(options.folder, options.pictures, options.workers))
    pictures, captions = rendered(options.folder, options.pictures, options.workers)
    session = Session(options.folder, 60 * options.minutes)
    world = World(pictures, captions, session, device)
    for stage, learn in LEARN.items():
        if stage in options.stages:
            learn(options, world)


@dataclass(frozen=True)
class World:
    """Every stage learns from these pictures and captions, on one device, in one session."""

    pictures: np.ndarray
    captions: list[list[str]]
    session: Session
    device: str


def _autoencoder(options: argparse.Namespace, world: World) -> None:
    vae = pass_through().to(world.device)
    learn_latents(vae, world.pictures, world.session, steps=options.autoencoder_steps)
    save_tensors(vae.state_dict(), options.folder / "latent-autoencoder.safetensors")


def _diffusion(options: argparse.Namespace, world: World) -> None:
    tokens = Tokens(token_ids(world.captions))
    unet, text = (m.to(world.device) for m in (new_unet(), new_text_encoder(tokens.vocabulary, tokens.end)))

    def latent_vae() -> AutoencoderTiny:
        vae = pass_through().to(world.device)
        vae.load_state_dict(load_file(options.folder / "latent-autoencoder.safetensors"))
        return vae

    latents = latents_of(options.folder, world.pictures, latent_vae)
    learn_diffusion(unet, text, Pictures(latents), tokens, world.session, steps=options.diffusion_steps)
    save_tensors(unet.state_dict(), options.folder / "unet.safetensors")
    save_tensors(shipped_text(text.state_dict(), tokens), options.folder / "text.safetensors")


def _decoder(options: argparse.Namespace, world: World) -> None:
    vae = pass_through().to(world.device)
    vae.load_state_dict(load_file(options.folder / "latent-autoencoder.safetensors"))
    sharpen_decoder(vae, world.pictures, world.session, steps=options.decoder_steps)
    save_tensors(vae.state_dict(), options.folder / "vae.safetensors")


def _vision(options: argparse.Namespace, world: World) -> None:
    tokens = Tokens(token_ids(world.captions))
    vision, tower = (m.to(world.device) for m in (new_vision(), TextTower(tokens.vocabulary, tokens.end)))
    people = individuals(options.folder, 3000, options.workers)
    learn_vision(vision, tower, world.pictures, people, tokens, world.session, steps=options.vision_steps)
    save_tensors(vision.state_dict(), options.folder / "image-tower.safetensors")


def _reader(options: argparse.Namespace, world: World) -> None:
    own, words = personal(options.folder, 12_000, options.workers)
    plain = plain_wordings(len(world.pictures))
    tokens = Tokens(token_ids(plain + words))
    vision, tower = (m.to(world.device) for m in (new_vision(), TextTower(tokens.vocabulary, tokens.end)))
    sets = [(world.pictures, 0), (own, sum(map(len, plain)))]
    learn_reader(vision, tower, sets, tokens, world.session, steps=options.reader_steps)
    save_tensors(vision.state_dict() | caption_side(tower, tokens), options.folder / "captions-tower.safetensors")


def _bridge(options: argparse.Namespace, world: World) -> None:
    """Reads the text encoder and the tower of the folder; those that ship where it has none."""
    held_out = min(HELD_OUT, len(world.pictures) // 2)
    state, tower = shipped_or_own(options.folder, "text", "text"), shipped_or_own(options.folder, "image-tower", "vision")
    text = text_model(ENCODER, TEXT_CONFIG, with_table(state), options.folder).eval().to(world.device)
    vision = new_vision()
    vision.load_state_dict(tower)
    pictures, captions = embed_scenes(vision.eval().to(world.device), text, world.pictures, world.captions, options.folder)
    bridge = new_bridge()
    with torch.no_grad():
        bridge.weight.copy_(least_squares(pictures[:-held_out], captions[:-held_out]))
    begun = retrieval(bridge, pictures[-held_out:], captions[-held_out:])
    learn_bridge(bridge, pictures[:-held_out], captions[:-held_out], world.session, steps=options.bridge_steps)
    found = retrieval(bridge, pictures[-held_out:], captions[-held_out:])
    log.info("the bridge finds the right one of 64 held-out captions for %.3f of pictures; by least squares %.3f", found, begun)
    save_tensors(bridge.state_dict(), options.folder / "caption-bridge.safetensors")


def shipped_or_own(folder: Path, source: str, name: str) -> dict[str, Tensor]:
    """Returns the weights of a stage in the folder, or those that ship under a name."""
    own = folder / f"{source}.safetensors"
    file = own if own.exists() else WEIGHTS / f"{name}.safetensors"
    log.info("the bridge is built on %s", file)
    return {k: v.float() if v.is_floating_point() else v for k, v in load_file(file).items()}


def _ship(options: argparse.Namespace, world: World) -> None:
    """Write what the folder has of a model where the pack has its weights, in half precision; what it does not have stays.

    Raises ``FileNotFoundError`` for a folder that has nothing of it.
    """
    files = {
        "unet": "unet",
        "text": "text",
        "vae": "vae",
        "image-tower": "vision",
        "captions-tower": "reader",
        "caption-bridge": "bridge",
    }
    learned = {source: name for source, name in files.items() if (options.folder / f"{source}.safetensors").exists()}
    if not learned:
        raise FileNotFoundError(f"{options.folder} has no part of a Doodle: expected one of {', '.join(files)}, from the stages before")
    log.info("shipping %s", ", ".join(learned))
    for source, name in learned.items():
        state = load_file(options.folder / f"{source}.safetensors")
        save_tensors({k: v.half() if v.is_floating_point() else v for k, v in state.items()}, WEIGHTS / f"{name}.safetensors")


LEARN: dict[str, Callable[[argparse.Namespace, World], None]] = {
    "autoencoder": _autoencoder,
    "diffusion": _diffusion,
    "decoder": _decoder,
    "vision": _vision,
    "reader": _reader,
    "bridge": _bridge,
    "ship": _ship,
}  # in this order: a stage reads what those before it wrote


def token_ids(captions: list[list[str]]) -> list[list[int]]:
    """Ids of all wordings in order, without start and end; captions repeat, so words are looked up once."""
    known: dict[str, list[int]] = {}

    def ids(word: str) -> list[int]:
        if word not in known:
            row = tokenize(word)[0].tolist()
            known[word] = row[1 : row.index(row[-1])]
        return known[word]

    return [[i for word in text.replace(",", " ,").split() for i in ids(word)] for wordings in captions for text in wordings]


def latents_of(folder: Path, pictures: np.ndarray, load_vae: Callable[[], AutoencoderTiny]) -> Tensor:
    """Latents ``[N, C, 16, 16]`` fp16 of all pictures, kept in shards, which processes share out; the autoencoder is loaded where one is
    missing.
    """

    def load() -> AutoencoderTiny:
        return load_vae().to(memory_format=torch.channels_last)

    def make(vae: AutoencoderTiny, some: np.ndarray) -> Tensor:
        return encode(vae, some, 16 if vae.device.type == "cpu" else 256).half()

    return sharded(folder, "latents", pictures, load, make)


def caption_side(tower: TextTower, tokens: Tokens) -> dict[str, Tensor]:
    """A caption side as it is shipped beside its image side."""
    state = shipped_text(tower.encoder.state_dict(), tokens) | {"projection.weight": tower.projection.weight}
    return {f"text.{k}": v for k, v in state.items()}


def shipped_text(state: dict[str, Tensor], tokens: Tokens) -> dict[str, Tensor]:
    """A text encoder in CLIP's names with its trained token rows only; the rest of the table is filled from a seed."""
    state = {k if k.startswith("text_model.") else f"text_model.{k}": v for k, v in state.items() if "position_ids" not in k}
    rows = state.pop("text_model.embeddings.token_embedding.weight")
    return state | {"token_ids": tokens.used.int(), "token_rows": rows[: len(tokens.used)]}
