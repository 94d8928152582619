"""`cidm doodle`: the model that ships with the pack, trained from nothing, and how well it obeys captions."""

import argparse
import logging
import os
from pathlib import Path
from typing import Any

from ..doodle.training.stages import MEASURES, PREDICTIONS, SEERS, STAGES, STARTS, STEPS, TRAINED
from .arguments import between, whole


def add_commands(into: Any) -> None:
    add_training(into)
    about = "how well the shipped model obeys captions: sampled pictures, read by a classifier trained on renderings"
    judge = into.add_parser("judge", help="measure how well Doodle obeys captions; see its own --help", description=about)
    judge.set_defaults(run=run_judge)
    judge.add_argument("--folder", type=Path, required=True, help="where renderings that teach the classifier are kept")
    judge.add_argument("--captions", type=int, default=500, help="half with one thing, half with two (default: %(default)s)")
    judge.add_argument("--pictures", type=int, default=40_000, help="renderings to learn from (default: %(default)s)")
    judge.add_argument("--workers", type=int, default=2, help="processes that render (default: %(default)s)")
    judge.add_argument("--steps", type=int, default=1500, help="training steps of the classifier (default: %(default)s)")
    judge.add_argument("--base", default="doodle", help="'doodle', or the folder of another Doodle (default: %(default)s)")
    judge.add_argument("--json", type=Path, help="write the figures here too")
    judge.add_argument("--sheet", type=Path, help="save the pictures as one sheet")
    add_measure(into)
    about = (
        "join the pieces that `cidm doodle train --pieces` wrote elsewhere, and write the folders that --base, --vision and --judge take"
    )
    join = into.add_parser("join", help="put a trained Doodle together from its pieces", description=about)
    join.set_defaults(run=run_join)
    join.add_argument("pieces", type=Path, help="the folder with all pieces")
    join.add_argument("--folder", type=Path, required=True, help="where they are put together")
    about = "learn Doodle's ten concepts one after another into a bank, as the bank that ships was made; what is in it already stays"
    ten = into.add_parser("ten", help="learn Doodle's ten concepts", description=about)
    ten.set_defaults(run=run_ten)
    ten.add_argument("bank", type=Path, help="the folder of the bank")
    ten.add_argument("--base", default="doodle", help="'doodle', or the folder of another Doodle (default: %(default)s)")
    about = "for a blind reading: four pictures of each concept, shuffled and numbered; one rendering of each, under letters; and the key"
    strips = into.add_parser("strips", help="shuffled pictures of Doodle's concepts, to be put to the right individual", description=about)
    strips.set_defaults(run=run_strips)
    strips.add_argument("--base", default="doodle", help="'doodle', or the folder of another Doodle (default: %(default)s)")
    strips.add_argument("--bank", type=Path, required=True, help="with Doodle's own concepts, learned on that base")
    strips.add_argument("--seed", type=whole(0), default=0, help="of the order (default: %(default)s)")
    strips.add_argument("--out", type=Path, required=True, help="folder of the two sheets and the key")


def add_training(into: Any) -> None:
    """Adds the training of Doodle."""
    about = (
        "train Doodle from nothing: a judge of parts, an image tower, latents, a U-Net and its text encoder, a reader and a bridge; every "
        "stage keeps a checkpoint in the folder and goes on from it; what comes of it are FOLDER/base and FOLDER/transformer for --base, "
        "FOLDER/tower for --vision, and FOLDER/result/parts.safetensors for --judge, and with the stage ship what the pack has"
    )
    train = into.add_parser("train", help="train Doodle from scratch; see its own --help", description=about)
    train.set_defaults(run=run_training)
    train.add_argument("--folder", type=Path, required=True, help="where renderings, latents, checkpoints and results are kept (14 GB)")
    train.add_argument(
        "--stages", nargs="+", choices=STAGES, default=list(TRAINED), help="which of them (default: all but transformer and ship)"
    )
    train.add_argument("--minutes", type=float, default=float("inf"), help="stop after this time, with a checkpoint; the same goes on")
    train.add_argument("--fit", action="store_true", help="as many steps as let all stages end within --minutes, at most those given")
    train.add_argument(
        "--pieces", type=Path, help="write what was made into this folder, in pieces of at most 15 MiB, for `cidm doodle join`"
    )
    train.add_argument("--device", help="torch device (default: cuda where there is one, else cpu)")
    train.add_argument("--workers", type=whole(1), default=os.cpu_count() or 1, help="processes that render (default: %(default)s)")
    train.add_argument("--pictures", type=whole(1), default=40_000, help="renderings for all stages but the tower (default: %(default)s)")
    train.add_argument("--individuals", type=whole(1), default=8000, help="pairs of twins for the tower (default: %(default)s)")
    train.add_argument("--prediction", choices=PREDICTIONS, default=PREDICTIONS[0], help="of the U-Net (default: %(default)s)")
    train.add_argument(
        "--gamma", type=between(0), default=0.0, help="of min-SNR weights; 0: every timestep counts alike (default: %(default)s)"
    )
    train.add_argument("--batch", type=whole(1), default=128, help="pictures of a step of U-Net or transformer (default: %(default)s)")
    train.add_argument("--lr", type=between(1e-9), default=3e-3, help="largest learning rate of either (default: %(default)s)")
    train.add_argument("--text-lr", type=between(0), default=8e-4, help="that of the text encoder (default: %(default)s)")
    train.add_argument(
        "--middle", type=between(0, 1), default=0.75, help="share of pictures at the noise that settles marks (default: %(default)s)"
    )
    train.add_argument("--things", type=between(1), default=6.0, help="how often cells with things count (default: %(default)s)")
    train.add_argument("--align", type=between(0), default=0.5, help="weight of what the judge sees (default: %(default)s)")
    train.add_argument(
        "--painted", type=whole(0), default=4000, help="latents painted for the decoder's last training (default: %(default)s)"
    )
    train.add_argument("--latent-batch", type=whole(2), default=16, help="crops of a step of the autoencoder (default: %(default)s)")
    train.add_argument(
        "--latent-noise", type=between(0), default=0.8, help="the most that latents bear, of their spread (default: %(default)s)"
    )
    train.add_argument("--edge", type=between(0), default=1.0, help="weight of edges when pictures are compared (default: %(default)s)")
    train.add_argument("--seer", choices=SEERS, default=SEERS[0], help="whose layers compare pictures too (default: %(default)s)")
    train.add_argument("--perceptual", type=between(0), default=0.1, help="weight of those layers (default: %(default)s)")
    train.add_argument(
        "--begin-with", choices=STARTS, default=STARTS[0], help="what autoencoder, U-Net and text encoder begin with: nothing, or those "
        "that ship (default: %(default)s)"
    )  # fmt: skip
    for stage, steps in STEPS.items():
        train.add_argument(f"--{stage}-steps", type=whole(1), default=steps, help="default: %(default)s")


def add_measure(into: Any) -> None:
    """Adds the figures of the Doodle."""
    about = (
        "psnr: what the autoencoder keeps of held-out renderings and of the ten concepts, in dB, and whether the judge still sees their "
        "parts; parts: how sure the judge is on held-out renderings; tower: areas under the curve of one individual against others and "
        "against its twin, who differs in one mark; captions: which named parts are in what the base paints"
    )
    measure = into.add_parser("measure", help="measure a Doodle; see its own --help", description=about)
    measure.set_defaults(run=run_measure)
    measure.add_argument("what", choices=MEASURES, help="what to measure")
    measure.add_argument("--folder", type=Path, default=Path("doodle-data"), help="of `cidm doodle train` (default: %(default)s)")
    measure.add_argument("--count", type=whole(2), default=500, help="held-out pictures or captions (default: %(default)s)")
    measure.add_argument("--shipped", action="store_true", help="of what ships, where no other is named")
    measure.add_argument("--vision", help="tower: as of `cidm evaluate` (default: FOLDER/tower)")
    measure.add_argument("--base", help="captions: as of `cidm generate` (default: FOLDER/base)")
    measure.add_argument("--judge", help="as of `cidm evaluate` (default: FOLDER/result/parts.safetensors)")
    measure.add_argument("--steps", type=whole(1), default=25, help="captions: sampling steps (default: %(default)s)")
    measure.add_argument("--guidance", type=float, default=5.0, help="captions: classifier-free guidance (default: %(default)s)")
    measure.add_argument("--batch", type=whole(1), default=25, help="captions: pictures painted together (default: %(default)s)")
    measure.add_argument("--sheet", type=Path, help="captions: save the first 24 beside exact renderings")
    measure.add_argument("--json", type=Path, help="write the figures here too")


def run_judge(options: argparse.Namespace) -> None:
    from ..doodle.training.obedience import judge

    judge(options)


def run_training(options: argparse.Namespace) -> None:
    from ..doodle.training.train import train

    if options.fit and options.minutes == float("inf"):
        raise ValueError("--fit needs a time: give --minutes")
    train(options)


def run_measure(options: argparse.Namespace) -> None:
    from ..doodle.training.measures import measure

    measure(options)


def run_join(options: argparse.Namespace) -> None:
    from ..doodle.training.train import assemble

    for made in assemble(options.pieces, options.folder):
        print(made)


def run_ten(options: argparse.Namespace) -> None:
    from ..bank.bank import Bank
    from ..engines.diffusers import load
    from ..evaluation.ten import learn_ten

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    learn_ten(Bank(options.bank), load(options.base))


def run_strips(options: argparse.Namespace) -> None:
    from ..bank.bank import Bank
    from ..evaluation.blind import write_strips
    from ..evaluation.doodle import DoodleBench

    key = write_strips(DoodleBench(options.base), Bank(options.bank), options.out, options.seed)
    print(f"{len(key)} pictures in {options.out / 'pictures.png'}; read them beside individuals.png before key.json")
