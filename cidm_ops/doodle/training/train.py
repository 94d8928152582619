"""Train Doodle from nothing, by one command: render, judge of parts, tower, autoencoder, U-Net, decoder, reader, bridge, folders that
every command takes as ``--base``, and, if asked for, a transformer and what ships.

Every stage keeps its own checkpoint and goes on from it, bit for bit; what is finished lies in ``result`` and is only read.
"""

import argparse
import json
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderTiny
from safetensors.torch import load_file
from torch import Tensor

from ...bank.files import write_atomically
from ...engines.parts import PartsJudge, load_judge
from ...models.sd import DOODLE
from ...text_file import read_json
from ..files import TEXT_CONFIG, WEIGHTS, text_state, unet_state, vae_state
from .autoencoder import Comparison, Features, LatentRecipe, Painted, learn_latents, pass_through, sharpen_decoder
from .base import RESULT, result_file, write_base, write_transformer
from .bridge import embed_scenes, learn_bridge, least_squares, new_bridge, retrieval
from .data import rendered
from .described import described_wordings, draw_described, draw_things
from .diffusion import DiffusionRecipe, learn_diffusion, new_unet, repaint, text_encoder
from .folder import Training
from .loop import OutOfTime, Session, save_tensors
from .parts import draw_labels, draw_parts, learn_parts, save_judge
from .pieces import cut, join
from .processes import join_processes, make_once, share_of
from .reader import TextTower, learn_reader, new_reader, personal, plain_wordings
from .renderings import kept, kept_captions
from .stages import FITTED, SHARES, STAGES, STEPS
from .tokens import Tokens, fill, shipped_text, token_ids
from .transformer import learn_transformer, new_transformer, trained_text
from .twins import Twins, draw_twin_labels, draw_twins, layers_of, learn_tower, new_tower, tower_of, write_tower

# What files of ``result`` are called where they ship.
SHIPPED = {"parts": "parts", "tower": "vision", "vae": "vae", "unet": "unet", "text": "text", "reader": "reader", "bridge": "bridge"}
HELD_OUT = 1024  # scenes that the bridge is measured on
PERSONAL = 12_000  # pictures of personal things that the reader learns from
SETTINGS = (
    "pictures", "individuals", "prediction", "gamma", "batch", "lr", "text_lr", "painted",
    "middle", "things", "align", "latent_batch", "latent_noise", "edge", "perceptual", "seer", "begin_with",
)  # fmt: skip
SPREAD = 0.05  # weight of unit spread of the latents
# The most that latents bear in the decoder's last training, which is to be sharp: those that were painted have errors enough.
LAST_NOISE = 0.2
PAINTED = "painted.safetensors"  # latents of the first pictures, as the U-Net paints them
log = logging.getLogger("cidm.doodle")


def train(options: argparse.Namespace) -> None:
    """Run the stages that were asked for, each from its checkpoint, until they are done or the time is over; then cut pieces, if asked."""
    began = time.monotonic()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    join_processes(device, options.minutes)
    share_of(options.batch)  # what cannot work is said at once
    claim(options)
    session = Session(options.folder, deadline=began + 60 * options.minutes)
    make_once(lambda: render_all(options))
    if options.fit:
        left = session.deadline - time.monotonic()
        shares = {stage: share for stage, share in SHARES.items() if stage in options.stages}
        seconds = {TRAINED_AS[stage]: FITTED * share / sum(shares.values()) * left for stage, share in shares.items()}
        session = Session(options.folder, deadline=session.deadline, seconds=seconds)
    training = Training(options, options.folder, device, session)
    try:
        for stage, learn in LEARN.items():
            if stage in options.stages:
                log.info("%s, %.0f s after the beginning", stage, time.monotonic() - began)
                torch.manual_seed(STAGES.index(stage))  # a stage begins with the same weights, whether one ran before it or not
                learn(training)
    except OutOfTime as stop:
        log.info("the time is over: %s", stop)
    if options.pieces:
        done = [file for name in RESULT if (file := training.result(name)).exists()]
        pieces = cut([options.folder / "settings.json", *done], options.pieces)
        log.info("%d pieces with %s in %s", len(pieces), ", ".join(file.stem for file in done) or "nothing yet", options.pieces)


def claim(options: argparse.Namespace) -> None:
    """Write down how the model in the folder is trained. Raises ``ValueError`` where it was begun otherwise."""
    file = options.folder / "settings.json"
    now: dict[str, Any] = {key: getattr(options, key) for key in SETTINGS} | {
        "steps": {s: getattr(options, f"{s}_steps") for s in TRAINED_AS}
    }
    before = read_json(file) if file.exists() else now
    before["steps"] = now["steps"] | before["steps"]  # of a training that began when there were fewer stages
    for key, value in now.items():
        if before.get(key, value) != value:
            raise ValueError(f"{options.folder} holds a training with {key} {before[key]}, now it is {value}: give another --folder")
    write_atomically(json.dumps(now, indent=1).encode(), file)


def render_all(options: argparse.Namespace) -> None:
    """Draw and describe what the stages that were asked for learn from, before the device is used and time is shared out: processes that
    draw are forked from this one.
    """
    stages, folder, workers = {*options.stages}, options.folder, options.workers
    if "parts" in stages:
        for name, draw in (("parts", draw_parts), ("parts-labels", draw_labels)):
            kept(folder, name, draw, options.pictures, workers)
    if "tower" in stages:
        for name, draw in (("twins", draw_twins), ("twins-labels", draw_twin_labels)):
            kept(folder, name, draw, options.individuals, workers)
    if stages & {"autoencoder", "diffusion", "decoder", "bridge", "transformer"}:
        kept(folder, "described", draw_described, options.pictures, workers)
    if stages & {"diffusion", "bridge", "transformer"}:
        kept_captions(folder, "described", described_wordings, options.pictures, workers)
    if stages & {"diffusion", "transformer"}:
        kept(folder, "things", draw_things, options.pictures, workers)


def _parts(training: Training) -> None:
    if training.result("parts").exists():
        return
    judge = PartsJudge().to(training.device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub lacks it
    count = training.options.pictures
    learn_parts(judge, training.folder, count, training.options.workers, training.session, steps=training.options.parts_steps)
    save_judge(judge, training.result("parts"))


def _tower(training: Training) -> None:
    if not training.result("tower").exists():
        tower = new_tower().to(training.device)
        options, folder = training.options, training.folder
        pictures, labels = (
            kept(folder, name, draw, options.individuals, options.workers)
            for name, draw in (("twins", draw_twins), ("twins-labels", draw_twin_labels))
        )
        sights = training.sights("twins", pictures.reshape(-1, *pictures.shape[2:]))
        learn_tower(tower, Twins(pictures, np.array(labels), sights), training.session, steps=options.tower_steps)
        training.write("tower", tower.state_dict())
    write_tower(load_file(training.result("tower")), training.folder / "tower")


def _autoencoder(training: Training) -> None:
    if training.result("latents").exists():
        return
    if training.options.begin_with == "shipped":
        vae = AutoencoderTiny(latent_channels=DOODLE.latent_channels)
        vae.load_state_dict(vae_state())
    else:
        vae = pass_through()
    vae.to(training.device)
    recipe = latent_recipe(training, 2e-3, training.options.latent_noise)
    learn_latents(vae, training.pictures(), training.session, steps=training.options.autoencoder_steps, recipe=recipe)
    training.write("latents", vae.state_dict(), half=False)


def latent_recipe(training: Training, lr: float, noise: float) -> LatentRecipe:
    """How autoencoder and decoder are trained, by the options; latents bear up to so much ``noise``."""
    options = training.options
    features = seer(training)
    comparison = Comparison(edge=options.edge, perceptual=options.perceptual if features else 0.0, features=features)
    return LatentRecipe(options.latent_batch, lr, noise, uneven=True, muon=True, spread=SPREAD, comparison=comparison)


def seer(training: Training) -> Features | None:
    """The layers that compare pictures: of the judge of parts, which takes any size, or of the image tower; or none."""
    kind = training.options.seer
    if kind == "none":
        return None
    if kind == "judge":
        return load_judge(training.needed("parts"), training.device).features
    return layers_of(tower_of(load_file(training.needed("tower"))).to(training.device))


def _diffusion(training: Training) -> None:
    if training.result("unet").exists():
        return
    options = training.options
    tokens = training.words()
    text = text_encoder(TEXT_CONFIG, tokens.vocabulary, tokens.end).to(training.device)
    unet = new_unet()
    if options.begin_with == "shipped":
        unet.load_state_dict(unet_state())
        fill(text, text_state(), tokens)
    unet.to(training.device)
    pictures = training.lessons()  # after the networks, so that these begin alike whether the latents are there or not
    recipe = diffusion_recipe(options, options.prediction)
    learn_diffusion(unet, text, pictures, tokens, training.session, steps=options.diffusion_steps, recipe=recipe)
    if count := min(options.painted, len(pictures.latents)):
        first = np.arange(count) * (len(tokens.captions) // len(pictures.latents))  # of each picture's wordings
        ids = tokens.batch(first, np.random.default_rng(0), dropout=0.0, rare=0.0)
        painted = repaint(unet, text, pictures.latents[:count], ids, options.prediction)
        save_tensors({"latents": painted}, training.folder / PAINTED)
    training.write("text", shipped_text(text.state_dict(), tokens))
    training.write("unet", unet.state_dict())


def diffusion_recipe(options: argparse.Namespace, prediction: str) -> DiffusionRecipe:
    """How a model that predicts so is trained, by the options."""
    return DiffusionRecipe(
        prediction, options.gamma, share_of(options.batch), options.lr, options.text_lr, options.middle, options.things, options.align
    )


def _decoder(training: Training) -> None:
    if training.result("vae").exists():
        return
    training.needed("unet")
    pictures, file = training.pictures(), training.folder / PAINTED
    painted = None
    if file.exists():
        latents = load_file(file)["latents"]
        painted = Painted(latents, pictures[: len(latents)])
    vae, recipe = training.latent_vae(), latent_recipe(training, 1e-3, min(LAST_NOISE, training.options.latent_noise))
    sharpen_decoder(vae, pictures, training.session, steps=training.options.decoder_steps, recipe=recipe, painted=painted)
    training.write("vae", vae.state_dict())


def _reader(training: Training) -> None:
    if training.result("reader").exists():
        return
    options, folder = training.options, training.folder
    pictures, _ = rendered(folder, options.pictures, options.workers)
    own, words = personal(folder, min(PERSONAL, options.pictures), options.workers)
    plain = plain_wordings(len(pictures))
    tokens = Tokens(token_ids(plain + words))
    vision, tower = (m.to(training.device) for m in (new_reader(), TextTower(tokens.vocabulary, tokens.end)))
    sets = [(pictures, 0), (own, sum(map(len, plain)))]
    learn_reader(vision, tower, sets, tokens, training.session, steps=options.reader_steps)
    training.write("reader", vision.state_dict() | caption_side(tower, tokens))


def caption_side(tower: TextTower, tokens: Tokens) -> dict[str, Tensor]:
    """A caption side as it is shipped beside its image side."""
    state = shipped_text(tower.encoder.state_dict(), tokens) | {"projection.weight": tower.projection.weight}
    return {f"text.{k}": v for k, v in state.items()}


def _bridge(training: Training) -> None:
    """Learn to lead from the text encoder of the folder to its tower."""
    if training.result("bridge").exists():
        return
    options, folder = training.options, training.folder
    tower = tower_of(load_file(training.needed("tower"))).to(training.device)
    text = trained_text(training.needed("text")).to(training.device)
    said = kept_captions(folder, "described", described_wordings, options.pictures, options.workers)
    pictures, captions = embed_scenes(tower, text, training.pictures(), said, folder)
    held_out = min(HELD_OUT, len(pictures) // 2)
    bridge = new_bridge()
    with torch.no_grad():
        bridge.weight.copy_(least_squares(pictures[:-held_out], captions[:-held_out]))
    begun = retrieval(bridge, pictures[-held_out:], captions[-held_out:])
    learn_bridge(bridge, pictures[:-held_out], captions[:-held_out], training.session, steps=options.bridge_steps)
    found = retrieval(bridge, pictures[-held_out:], captions[-held_out:])
    log.info("the bridge finds the right one of 64 held-out captions for %.3f of pictures; by least squares %.3f", found, begun)
    training.write("bridge", bridge.state_dict())


def _ship(training: Training) -> None:
    """Put what the folder has of a model where the pack has its weights; what it does not have stays.

    Raises ``FileNotFoundError`` for a folder that has nothing of it.
    """
    made = {name: file for name in SHIPPED if (file := training.result(name)).exists()}
    if not made:
        raise FileNotFoundError(f"{training.folder} has no part of a Doodle: expected one of {', '.join(SHIPPED)}, from the stages before")
    log.info("shipping %s", ", ".join(made))
    for name, file in made.items():
        write_atomically(file.read_bytes(), WEIGHTS / f"{SHIPPED[name]}.safetensors")


def _base(training: Training) -> None:
    for name in ("unet", "text", "vae"):
        training.needed(name)
    write_base(training.folder)


def _transformer(training: Training) -> None:
    """Learn on the U-Net's text encoder, whose words are known by then, whatever the U-Net predicts."""
    text = training.needed("text")
    if not training.result("transformer").exists():
        options, model = training.options, new_transformer()
        model.to(training.device)
        learn_transformer(
            model,
            trained_text(text).to(training.device),
            training.lessons(),
            training.words(),
            training.session,
            steps=options.transformer_steps,
            recipe=diffusion_recipe(options, "flow"),
        )
        training.write("transformer", model.state_dict())
    write_transformer(training.folder)


def assemble(pieces: Path, folder: Path) -> list[Path]:
    """Put together what was trained elsewhere: the files of ``result``, and the folders that other commands take, as far as it got. Returns
    what can be given to ``--base``, ``--vision`` and ``--judge``.
    """
    known = ["settings.json", *(result_file(folder, name).name for name in RESULT)]
    files = join(pieces, folder / "result", known)
    settings = next((file for file in files if file.name == "settings.json"), None)
    if settings is None:
        raise ValueError(f"{pieces} does not say how its Doodle was trained: bring the pieces again")
    settings.replace(folder / "settings.json")
    made = []
    if all(result_file(folder, name).exists() for name in ("unet", "text", "latents")):
        made.append(write_base(folder))
    if all(result_file(folder, name).exists() for name in ("transformer", "text", "latents")):
        made.append(write_transformer(folder))
    if result_file(folder, "tower").exists():
        write_tower(load_file(result_file(folder, "tower")), folder / "tower")
        made.append(folder / "tower")
    return [*made, *(file for file in [result_file(folder, "parts")] if file.exists())]


LEARN: dict[str, Callable[[Training], None]] = {
    "parts": _parts,
    "tower": _tower,
    "autoencoder": _autoencoder,
    "diffusion": _diffusion,
    "decoder": _decoder,
    "reader": _reader,
    "bridge": _bridge,
    "base": _base,
    "transformer": _transformer,
    "ship": _ship,
}  # in the order of STAGES
TRAINED_AS = {stage: {"parts": "judge-of-parts"}.get(stage, stage) for stage in STEPS}
