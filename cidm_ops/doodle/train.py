"""Train the Doodle model from nothing: render, autoencoder, latents, diffusion, decoder, image tower, ship.

Every stage keeps its own checkpoint in the folder and continues from it; a finished stage is only read.
"""

import argparse
import logging
import os
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import Tensor

from ..engines.tokenizer import tokenize
from .autoencoder import encode, learn_latents, pass_through, sharpen_decoder
from .data import rendered
from .diffusion import Tokens, learn_diffusion, new_text_encoder, new_unet
from .files import WEIGHTS
from .loop import write_atomically
from .reader import learn_reader, personal, plain_wordings
from .vision import TextTower, individuals, learn_vision, new_vision

STAGES = ("autoencoder", "diffusion", "decoder", "vision", "reader", "ship")
STEPS = {"autoencoder": 1900, "diffusion": 9000, "decoder": 4000, "vision": 2500, "reader": 1200}
SHARD = 8000


def main(arguments: list[str] | None = None) -> None:
    """``cidm doodle train``."""
    parser = argparse.ArgumentParser(prog="cidm doodle train", description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="where pictures, latents and checkpoints are kept (4 GB)")
    parser.add_argument("--pictures", type=int, default=40_000)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--workers", type=int, default=2, help="processes that render")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop a stage after this time, with a checkpoint")
    for stage, steps in STEPS.items():
        parser.add_argument(f"--{stage}-steps", type=int, default=steps)
    args = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    if "RANK" in os.environ:  # under torchrun: one thread per process
        dist.init_process_group("gloo" if args.device == "cpu" else "nccl")
        torch.set_num_threads(1)
    torch.manual_seed(0)
    pictures, captions = rendered(args.folder, args.pictures, args.workers)
    options = dict(folder=args.folder, stop_after=60 * args.minutes)
    if "autoencoder" in args.stages:
        vae = pass_through().to(args.device)
        learn_latents(vae, pictures, steps=args.autoencoder_steps, **options)
        write_atomically(vae.state_dict(), args.folder / "latent-autoencoder.safetensors")
    if "diffusion" in args.stages:
        tokens = Tokens(token_ids(captions))
        unet, text = (m.to(args.device) for m in (new_unet(), new_text_encoder(tokens.vocabulary, tokens.end)))
        latents = latents_of(args.folder, pictures, args.device)
        learn_diffusion(unet, text, latents, tokens, steps=args.diffusion_steps, muon=True, **options)
        write_atomically(unet.state_dict(), args.folder / "unet.safetensors")
        write_atomically(shipped_text(text.state_dict(), tokens), args.folder / "text.safetensors")
    if "decoder" in args.stages:
        vae = pass_through().to(args.device)
        vae.load_state_dict(load_file(args.folder / "latent-autoencoder.safetensors"))
        sharpen_decoder(vae, pictures, steps=args.decoder_steps, **options)
        write_atomically(vae.state_dict(), args.folder / "vae.safetensors")
    if "vision" in args.stages:
        tokens = Tokens(token_ids(captions))
        vision, tower = (m.to(args.device) for m in (new_vision(), TextTower(tokens.vocabulary, tokens.end)))
        people = individuals(args.folder, 3000, args.workers)
        learn_vision(vision, tower, pictures, people, tokens, steps=args.vision_steps, **options)
        write_atomically(vision.state_dict(), args.folder / "image-tower.safetensors")
    if "reader" in args.stages:
        own, words = personal(args.folder, 12_000, args.workers)
        plain = plain_wordings(len(pictures))
        tokens = Tokens(token_ids(plain + words))
        vision, tower = (m.to(args.device) for m in (new_vision(), TextTower(tokens.vocabulary, tokens.end)))
        sets = [(pictures, 0), (own, sum(map(len, plain)))]
        learn_reader(vision, tower, sets, tokens, steps=args.reader_steps, **options)
        write_atomically(vision.state_dict() | caption_side(tower, tokens), args.folder / "captions-tower.safetensors")
    if "ship" in args.stages:
        files = {"unet": "unet", "text": "text", "vae": "vae", "image-tower": "vision", "captions-tower": "reader"}
        for source, name in files.items():
            state = load_file(args.folder / f"{source}.safetensors")
            write_atomically({k: v.half() if v.is_floating_point() else v for k, v in state.items()}, WEIGHTS / f"{name}.safetensors")


def token_ids(captions: list[list[str]]) -> list[list[int]]:
    """Ids of all wordings in order, without start and end; captions repeat, so words are looked up once."""
    known: dict[str, list[int]] = {}

    def ids(word: str) -> list[int]:
        if word not in known:
            row = tokenize(word)[0].tolist()
            known[word] = row[1 : row.index(row[-1])]
        return known[word]

    return [[i for word in text.replace(",", " ,").split() for i in ids(word)] for wordings in captions for text in wordings]


def latents_of(folder: Path, pictures: np.ndarray, device: str) -> Tensor:
    """Latents ``[N, C, 16, 16]`` fp16 of all pictures, kept in shards."""
    vae = None
    shards = []
    for i, start in enumerate(range(0, len(pictures), SHARD)):
        file = folder / f"latents-{i}.safetensors"
        if not file.exists():
            if vae is None:
                vae = pass_through().to(device)
                vae.load_state_dict(load_file(folder / "latent-autoencoder.safetensors"))
                vae.to(memory_format=torch.channels_last)
            write_atomically({"latents": encode(vae, pictures[start : start + SHARD], 16).half()}, file)
        shards.append(load_file(file)["latents"])
    return torch.cat(shards)


def caption_side(tower: TextTower, tokens: Tokens) -> dict[str, Tensor]:
    """A caption side as it is shipped beside its image side."""
    state = shipped_text(tower.encoder.state_dict(), tokens) | {"projection.weight": tower.projection.weight}
    return {f"text.{k}": v for k, v in state.items()}


def shipped_text(state: dict[str, Tensor], tokens: Tokens) -> dict[str, Tensor]:
    """A text encoder in CLIP's names with its trained token rows only; the rest of the table is filled from a seed."""
    state = {k if k.startswith("text_model.") else f"text_model.{k}": v for k, v in state.items() if "position_ids" not in k}
    rows = state.pop("text_model.embeddings.token_embedding.weight")
    return state | {"token_ids": tokens.used.int(), "token_rows": rows[: len(tokens.used)]}


if __name__ == "__main__":
    main()
