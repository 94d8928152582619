"""Concepts painted into photos of the Doodle world where a mask is, and photos restyled: is the concept there, does the rest stay, and how
visible is the seam. Resumable.
"""

import json
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from ...bank.bank import Bank
from ...bank.files import write_atomically
from ...bank.formats import write_picture
from ...doodle.files import TEN
from ...engines.diffusers import load
from ...engines.doodle import DoodleReader, DoodleTower
from ...evaluation.doodle import GUIDANCE
from ...grammar import article
from ...measure.report import to_pixels
from ...measure.scores import caption_cosines, clip_scores, embed
from ...method.editing import COVERED, feathered
from ...method.regions import RegionMask, cells
from ...painting.composition import compose_regions
from ...painting.editing import FEATHER, Edit, edit
from ...painting.paint import Photo, SamplingConfig, paint_latents, unit_noise
from .photos import RenderedPhoto, StylePhoto, photos, plain_words, style_photos
from .scenes import sheet
from .scores import mean, presence_of_ten
from .templates import UNLIKE, cells_of, overlap, psnr
from .timing import machine

log = logging.getLogger("cidm.bench")

STEPS = 25
SHOWN = 6  # photos on each sheet, as many as scenes shows
HOLE = slice(6, 124), slice(136, 248)  # rows and columns of the right half where a thing is inserted
GROWN = 4  # pixels that a silhouette is grown by, for it to be replaced
REACH = 24  # pixels beside a mask that the decoder and half covered cells reach


@dataclass(frozen=True)
class Row:
    """A way to paint into a photo: which of its prompts is said, whether a thing is replaced or inserted, for how much of the sampling,
    and whether in a mask, in a region beside a prompt for the rest, by ``cidm edit`` with the place cut out, or from noise without a photo.
    """

    says: str = "own"
    replace: bool = False
    denoise: float = 1.0
    masked: bool = True
    region: bool = False
    cut: bool = False
    photo: bool = True


THINGS = {
    "insert": Row(),
    "insert_word": Row("word"),
    "insert_whole": Row("whole"),
    "insert_region": Row(region=True),
    "insert_place": Row(cut=True),
    "fast": Row(region=True, photo=False),
    "replace": Row(replace=True),
    "replace_75": Row(replace=True, denoise=0.75),
    "replace_50": Row(replace=True, denoise=0.5),
    "unmasked_75": Row("whole", replace=True, denoise=0.75, masked=False),
}
STYLES = {"style_noise": 0.0, "style_65": 0.65, "style_50": 0.5}  # how much of the sampling over the photo; 0 from noise
ROWS = (*THINGS, *STYLES)
PHOTOS = ("photo", "style_photo", "style_drawn")  # what the photos themselves score, and exact drawings in the style
# A figure, what it is held against, a figure or nothing, and the least or the most by which it may differ: the acceptance.
ACCEPTANCE: dict[str, tuple[str, str, str, float]] = {
    "insert_there": ("insert_present", "", "least", 0.85),
    "insert_like_fast": ("insert_ia", "fast_ia", "least", -0.05),
    "replace_there": ("replace_present", "", "least", 0.85),
    "replace_75_there": ("replace_75_present", "", "least", 0.7),
    "replace_75_keeps_the_shape": ("replace_75_silhouette", "", "least", 0.6),
    "insert_keeps_the_rest": ("insert_outside", "insert_outside_round", "least", -0.1),
    "replace_keeps_the_rest": ("replace_outside", "replace_outside_round", "least", -0.1),
    "insert_seam": ("insert_seam", "", "most", 1.3),
    "replace_seam": ("replace_seam", "", "most", 1.3),
    "style_like_noise": ("style_65_ia", "style_noise_ia", "least", -0.05),
    "style_keeps_the_thing": ("style_65_ta", "style_photo_ta", "least", -0.05),
    "style_keeps_it_as_noise_does": ("style_65_ta", "style_noise_ta", "least", -0.05),
}


def run(folder: Path = Path("runs/editing"), scenes: int = 84, rows: Sequence[str] = ROWS) -> dict[str, Any]:
    """Edit every photo by each row and score it, by row: ``present`` is the share of photos in which the concept is the nearest of the ten,
    and of empty places, to what is in the right half; ``ia`` its likeness there; ``other``, the share in which the thing on the left is
    still read by its kind and colour, out of all; ``outside``, the PSNR in dB to the photo away from the mask, before the photo's own
    pixels are put back, and ``outside_round`` that of the photo as the autoencoder returns it; ``seam``, the mean gradient on the mask's
    edge by that inside, after they are put back; ``silhouette``, the overlap of what differs there from the empty photo with the thing that
    was replaced, and ``photo_silhouette`` that of the thing itself.

    Of styles: ``ia``, and ``ta``, the text alignment with what the photo shows in plain words, beside ``style_photo_ta``, the photo's own,
    and ``style_drawn_ta``, that of the same drawn in the style. ``_interval``: half the 95 % interval of the mean over photos. ``accepted``
    says of each aim whether it is met, where its rows were run.
    Raises ``ValueError`` for a row that there is none of.
    """
    if unknown := [row for row in rows if row not in ROWS]:
        raise ValueError(f"row {unknown[0]!r}: expected some of {', '.join(ROWS)}")
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.INFO)
    folder.mkdir(parents=True, exist_ok=True)
    studio, file = Studio(folder), folder / "scores.json"
    scores: dict[str, dict[str, dict[str, float]]] = json.loads(file.read_text()) if file.exists() else {}
    things, styles = photos(scenes), style_photos(-(-scenes * 3 // 7))
    jobs: list[tuple[str, int, RenderedPhoto | StylePhoto]] = [("thing", i, photo) for i, photo in enumerate(things)]
    jobs += [("style", i, photo) for i, photo in enumerate(styles)]
    for kind, number, photo in jobs:
        known, own = scores.setdefault(f"{kind} {number}", {}), THINGS if kind == "thing" else STYLES
        missing = [row for row in rows if row in own and row not in known]
        if missing:
            known |= studio.score(number, photo, missing)
            write_atomically(json.dumps(scores).encode(), file)
            log.info("%s %d: %s", kind, number, {row: known[row] for row in missing})
    figures = summarise([scores[f"{kind} {number}"] for kind, number, _ in jobs], [*rows, *PHOTOS])
    for kind, own in (("things", THINGS), ("styles", STYLES)):
        if shown := [row for row in own if row in rows]:
            write_picture(sheet(folder, shown, 110), folder / f"{kind}.png")
    told = {"photos": scenes, "style_photos": len(styles), "steps": STEPS, "guidance": GUIDANCE}
    return figures | {"accepted": accepted(figures)} | told | machine()


def summarise(scores: Iterable[dict[str, dict[str, float]]], rows: Sequence[str]) -> dict[str, Any]:
    """The mean of every score of a row over the photos that have it, and half its 95 % interval."""
    values: dict[str, list[float]] = {}
    for photo in scores:
        for row in rows:
            for name, value in photo.get(row, {}).items():
                values.setdefault(f"{row}_{name}", []).append(value)
    figures: dict[str, Any] = {}
    for name, some in values.items():
        figures |= mean(name, some)
    return figures


def accepted(figures: dict[str, Any]) -> dict[str, bool]:
    """Whether each aim is met whose figures are there."""
    met = {}
    for aim, (figure_of, beside, side, bound) in ACCEPTANCE.items():
        if figure_of in figures and (not beside or beside in figures):
            difference = figures[figure_of] - (figures[beside] if beside else 0.0)
            met[aim] = difference >= bound if side == "least" else difference <= bound
    return met


class Studio:
    """Doodle, its ten concepts, and what reads pictures."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.backbone, self.bank = folder, load("doodle"), Bank(TEN)
        self.tower, self.reader = DoodleTower(), DoodleReader()
        self.presence = presence_of_ten(self.tower)
        self.words, self.captions = plain_words(), dict[str, Tensor]()  # of all of them in a place

    @torch.no_grad()
    def score(self, number: int, photo: RenderedPhoto | StylePhoto, rows: Sequence[str]) -> dict[str, dict[str, float]]:
        """Paint a photo by some rows and score what came out."""
        found: dict[str, dict[str, float]] = {}
        if isinstance(photo, StylePhoto):
            found |= {"style_photo": self.judge_style(photo, photo.picture), "style_drawn": self.judge_style(photo, photo.drawn)}
        else:
            other = float(self.read(cells_of(photo.filled, 2)[0], photo.where) == photo.other)
            found["photo"] = {"other": other, "silhouette": silhouette(photo, photo.filled)}
        for row in rows:
            if isinstance(photo, StylePhoto):
                picture = self.restyle(number, photo, STYLES[row])
                found[row] = self.judge_style(photo, picture)
            else:
                picture, found[row] = self.edit(number, photo, THINGS[row])
            if number < SHOWN:
                self.show(row, number, picture)
        return {row: {name: round(value, 4) for name, value in own.items()} for row, own in found.items()}

    def show(self, row: str, number: int, picture: Tensor) -> None:
        """Keep a picture for the sheet."""
        write_picture(Image.fromarray(to_pixels(picture[None])[0]), self.folder / f"{row}-{number}.png")

    def edit(self, number: int, photo: RenderedPhoto, row: Row) -> tuple[Tensor, dict[str, float]]:
        """A photo ``[3, 128, 256]`` edited by a row, the rest of it put back, and its scores."""
        before, hole = photo.filled if row.replace else photo.empty, hole_of(photo, row)
        if row.cut:
            place = Edit(before, [(photo.own, hole)], margin=0.0, size=128)
            edited, _ = edit(self.backbone, self.bank, place, SamplingConfig(STEPS, GUIDANCE), number)
            return edited, self.judge(photo, edited, edited, hole, row)
        clean = self.backbone.encode_image(before[None]).float()
        painted = self.backbone.decode_latent(self.paint(number, photo, row, clean, hole)).float().clamp(-1, 1)[0]
        if not (row.photo and row.masked):
            return painted, self.judge(photo, painted, painted, hole, row)
        weight = feathered(hole, FEATHER)
        edited = torch.where(weight > 0, before + weight * (painted - before), before)
        far = F.max_pool2d(hole[None, None], 2 * REACH + 1, 1, REACH)[0, 0] < COVERED
        back = self.backbone.decode_latent(clean)[0]
        kept = {"outside": psnr(painted[:, far], before[:, far]), "outside_round": psnr(back[:, far], before[:, far])}
        return edited, self.judge(photo, edited, painted, hole, row) | kept

    def paint(self, number: int, photo: RenderedPhoto, row: Row, clean: Tensor, hole: Tensor) -> Tensor:
        """Latents of a photo painted over, or with its prompts from noise."""
        own = {"own": photo.own, "word": photo.word, "whole": photo.whole}[row.says]
        prompt, regions = (photo.plain, [(own, RegionMask(hole))]) if row.region else (own, [])
        composition = compose_regions(self.backbone, self.bank, prompt, regions)
        noise = unit_noise(self.backbone.family, number, 1, *photo.empty.shape[-2:])
        mask = cells(hole, *clean.shape[-2:]) if row.masked else torch.ones(clean.shape[-2:])
        over = Photo(clean, mask, row.denoise) if row.photo else None
        return paint_latents(self.backbone, composition, noise, SamplingConfig(STEPS, GUIDANCE), photo=over)

    def judge(self, photo: RenderedPhoto, edited: Tensor, painted: Tensor, hole: Tensor, row: Row) -> dict[str, float]:
        """Score what is in the two halves of an edited photo, and the edge between what was painted and what was put back."""
        left, right = cells_of(edited, 2)
        seen = embed(self.tower, right[None])
        found = {
            "present": float(self.presence.found(seen)[0] == photo.name),
            "ia": float(self.presence.cosines(seen)[0, self.presence.names.index(photo.name)]),
            "other": float(self.read(left, photo.where) == photo.other),
            "seam": seam(edited, hole),
        }
        if row.replace:
            found["silhouette"] = silhouette(photo, painted)
        return found

    def read(self, half: Tensor, where: str) -> str:
        """The plain thing that a half shows, out of all."""
        if where not in self.captions:
            self.captions[where] = F.normalize(self.reader.captions([f"{article(words)} {where}" for words in self.words]), dim=-1)
        return self.words[int((embed(self.reader, half[None]) @ self.captions[where].T).argmax())]

    def restyle(self, number: int, photo: StylePhoto, denoise: float) -> Tensor:
        """A photo ``[3, 128, 128]`` in a style, or from noise what it shows."""
        clean = self.backbone.encode_image(photo.picture[None]).float()
        composition = compose_regions(self.backbone, self.bank, photo.own, [])
        over = Photo(clean, torch.ones(clean.shape[-2:]), denoise) if denoise else None
        noise = unit_noise(self.backbone.family, number, 1, *photo.picture.shape[-2:])
        latents = paint_latents(self.backbone, composition, noise, SamplingConfig(STEPS, GUIDANCE), photo=over)
        return self.backbone.decode_latent(latents).float().clamp(-1, 1)[0]

    def judge_style(self, photo: StylePhoto, picture: Tensor) -> dict[str, float]:
        """Score how like the style a picture is, and whether it still shows what the photo does."""
        cosines = self.presence.cosines(embed(self.tower, picture[None]))
        return {"ia": float(cosines[0, self.presence.names.index(photo.name)]), "ta": self.text_alignment(picture, photo.plain)}

    def text_alignment(self, picture: Tensor, caption: str) -> float:
        text = F.normalize(self.reader.captions([caption]), dim=-1)
        return float(clip_scores(caption_cosines(embed(self.reader, picture[None]), text))[0])


def hole_of(photo: RenderedPhoto, row: Row) -> Tensor:
    """Where a row paints, ``[H, W]`` of 0 and 1: around the thing that is replaced, or most of the empty half."""
    if row.replace:
        return (F.max_pool2d(photo.mask[None, None], 2 * GROWN + 1, 1, GROWN)[0, 0] >= COVERED).float()
    hole = torch.zeros(photo.empty.shape[-2:])
    hole[HOLE] = 1
    return hole


def silhouette(photo: RenderedPhoto, picture: Tensor) -> float:
    """How far what stands in the right half of a picture ``[3, H, W]``, other than in the empty photo, covers the thing of the photo."""
    stands = (picture - photo.empty).abs().amax(0) > UNLIKE
    return overlap(*(cells_of(which[None], 2)[1][0] for which in (stands, photo.mask >= COVERED)))


def seam(picture: Tensor, hole: Tensor) -> float:
    """The mean gradient of a picture ``[3, H, W]`` on the edge of ``hole [H, W]``, two pixels wide, by that inside of it."""
    across = F.pad(picture.diff(dim=2).abs(), (0, 1, 0, 0)) + F.pad(picture.diff(dim=1).abs(), (0, 0, 0, 1))
    grown, shrunk = (F.max_pool2d(sign * hole[None, None], 3, 1, 1)[0, 0] * sign for sign in (1, -1))
    gradient, edge, inside = across.mean(0), (grown > 0) & (shrunk <= 0), shrunk > 0
    return float(gradient[edge].mean() / gradient[inside].mean().clamp(min=1e-6))
