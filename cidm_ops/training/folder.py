"""A folder of pictures as people keep them: phones' rotated photos, cut-outs with alpha, captions and masks beside them."""

import re
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from .dataset import Dataset

PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
REPEATS = re.compile(r"(\d+)_")  # kohya: 10_dog is ten times what lies in it
MASKS = ("mask", "masks")


def from_folder(folder: Path | str, size: int, fit: str = "centre", flip: bool = False) -> Dataset:
    """Read a folder: captions from ``name.txt``, masks from ``name_mask.png``, ``masks/name.png`` or the picture's own alpha.

    Subfolders ``N_anything`` hold pictures that count N times. Photos are turned upright and decoded no larger than twice
    the training size. Raises ``FileNotFoundError`` for a missing or empty folder and ``ValueError`` naming a picture that
    cannot be read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder: give a folder with 4 to 7 pictures")
    found = [(file, 1) for file in pictures_in(folder)]
    for sub in sorted(f for f in folder.iterdir() if f.is_dir()):
        if match := REPEATS.match(sub.name):
            found += [(file, int(match[1])) for file in pictures_in(sub)]
    if not found:
        raise FileNotFoundError(f"{folder}: no pictures in it: expected 4 to 7 files of {', '.join(PICTURES)}")
    pictures, captions, masks, warnings = [], [], [], []
    for file, _ in found:
        picture, alpha = read_picture(file, size)
        pictures.append(picture)
        text = file.with_suffix(".txt")
        captions.append(" ".join(text.read_text(encoding="utf-8").split()) if text.exists() else "")
        if not text.exists():
            warnings.append(f"{file.name}: no caption file {text.name}, the class word stands alone")
        mask = mask_of(file)
        masks.append(read_mask(mask, picture) if mask else alpha)
    names = [str(file.relative_to(folder)) for file, _ in found]
    return Dataset(pictures, captions, masks, names, [n for _, n in found], size, fit, flip, tuple(warnings))


def pictures_in(folder: Path) -> list[Path]:
    """Picture files of a folder in order, masks left out."""
    return sorted(f for f in folder.iterdir() if f.suffix.lower() in PICTURES and not f.stem.endswith("_mask"))


def mask_of(file: Path) -> Path | None:
    """The mask file that belongs to a picture."""
    places = [file.with_name(f"{file.stem}_mask.png"), *(file.parent / m / f"{file.stem}.png" for m in MASKS)]
    return next((place for place in places if place.is_file()), None)


def read_picture(file: Path, size: int) -> tuple[Tensor, Tensor | None]:
    """A picture ``[3, H, W]`` in [0, 1], upright, and its alpha ``[1, H, W]`` if it has a transparent part."""
    image = _open(file, size)
    if "A" not in image.getbands() and "transparency" not in image.info:
        return _tensor(image.convert("RGB")), None
    rgba = _tensor(image.convert("RGBA"))
    colour, alpha = rgba[:3], rgba[3:]
    return (colour * alpha + 1 - alpha, alpha) if alpha.min() < 1 else (colour, None)  # see-through is white


def read_mask(file: Path, picture: Tensor) -> Tensor:
    """A mask ``[1, H, W]`` in the size of its picture, which may have been decoded smaller. Raises ``ValueError`` if the shape differs."""
    mask = _tensor(_open(file, max(picture.shape[1:])).convert("L"))
    (h, w), (height, width) = mask.shape[1:], picture.shape[1:]
    if abs(h * width - w * height) > 0.02 * h * width:
        raise ValueError(f"{file.name} is {w} x {h} and its picture {width} x {height}: make the mask of the picture's size")
    return torch.nn.functional.interpolate(mask[None], (height, width), mode="area")[0]


def _open(file: Path, size: int) -> Image.Image:
    try:
        with Image.open(file) as image:
            image.draft("RGB", (2 * size, 2 * size))  # a JPEG of several megapixels is decoded at the scale needed
            upright = ImageOps.exif_transpose(image)
            upright.load()
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"{file.name}: cannot be read as a picture ({error}): repair or remove it") from error
    if min(upright.size) > 2 * size:
        scale = 2 * size / min(upright.size)
        upright = upright.resize((round(upright.width * scale), round(upright.height * scale)), Image.Resampling.LANCZOS)
    return upright


def _tensor(image: Image.Image) -> Tensor:
    array = np.asarray(image, dtype=np.float32) / 255
    return torch.from_numpy(array if array.ndim == 3 else array[..., None]).permute(2, 0, 1).contiguous()
