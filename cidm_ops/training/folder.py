"""A folder of pictures as people keep them: phones' rotated photos, cut-outs with alpha, captions and masks beside them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..bank.picture_file import in_colours, open_picture
from ..models.registry import families
from ..text_file import read_text
from .dataset import Dataset
from .listing import TEXT, Remarks, list_folder, list_references

LARGEST_CAPTION = 100_000  # bytes
LARGEST_SIDE = max(family.size for family in families())  # of training, where the base is not known yet


def from_folder(
    folder: Path | str,
    size: int,
    fit: str = "centre",
    flip: bool = False,
    on_picture: Callable[[int, int], None] = lambda done, count: None,
) -> Dataset:
    """Reads a folder: captions from ``name.txt``, masks from ``name_mask.png``, ``masks/name.png`` or the picture's own alpha.

    Subfolders ``N_anything`` hold pictures that count N times. Photos are turned upright and decoded no larger than twice the training
    size; ``size`` 0 stands for that of the base that learns from them. ``on_picture`` is called before each. What is in the folder and not
    used is named in the dataset's warnings. Raises ``FileNotFoundError`` for a missing or empty folder and ``ValueError`` naming a picture,
    mask or caption that cannot be read.
    """
    folder = Path(folder)
    largest = size or LARGEST_SIDE
    listed, several = list_folder(folder), Remarks()
    names = [str(entry.file.relative_to(folder)) for entry in listed.pictures]
    pictures, captions, masks = [], [], []
    for number, (entry, name) in enumerate(zip(listed.pictures, names, strict=True), 1):
        on_picture(number, len(names))
        image = load(entry.file, largest)
        if image.info["pictures"] > 1:
            several.add(name, "it holds several pictures, the first of them is used")
        picture, alpha = split(image)
        pictures.append(picture)
        captions.append(" ".join(read_text(entry.caption, LARGEST_CAPTION).split()) if entry.caption else "")
        masks.append(read_mask(entry.mask, picture) if entry.mask else alpha)
    warnings = (*listed.remarks, *several.lines())
    return Dataset(pictures, captions, masks, names, [entry.repeats for entry in listed.pictures], size, fit, flip, warnings)


def from_picture(file: Path, size: int, fit: str = "centre", flip: bool = False) -> Dataset:
    """Reads a single picture, and its caption from ``name.txt`` if that is there. Raises ``ValueError`` naming what cannot be read."""
    picture, alpha = read_picture(file, size or LARGEST_SIDE)
    text = file.with_suffix(TEXT)
    caption = " ".join(read_text(text, LARGEST_CAPTION).split()) if text.is_file() else ""
    return Dataset([picture], [caption], [alpha], [file.name], [1], size, fit, flip)


def references(folder: Path, size: int = 512) -> tuple[list[Tensor], list[str]]:
    """The pictures ``[3, H, W]`` in [-1, 1] that lie in a folder itself, and what a person should know about the rest.

    Raises ``FileNotFoundError`` for a missing folder and ``ValueError`` naming a picture that cannot be read.
    """
    files, remarks = list_references(folder)
    return [read_picture(file, size)[0] * 2 - 1 for file in files], remarks


def read_picture(file: Path, size: int) -> tuple[Tensor, Tensor | None]:
    """A picture ``[3, H, W]`` in [0, 1], upright, and its alpha ``[1, H, W]`` if it has a transparent part."""
    return split(load(file, size))


def split(image: Image.Image) -> tuple[Tensor, Tensor | None]:
    """The colours ``[3, H, W]`` of a picture in [0, 1], white where one sees through, and its alpha ``[1, H, W]`` if there is any such."""
    if not image.has_transparency_data:
        return _tensor(image), None
    rgba = _tensor(image)
    colour, alpha = rgba[:3], rgba[3:]
    return (colour * alpha + 1 - alpha, alpha) if alpha.min() < 1 else (colour, None)


def read_mask(file: Path, picture: Tensor) -> Tensor:
    """A mask ``[1, H, W]`` in the size of its picture, which may have been decoded smaller; what is transparent in it is not covered.

    Raises ``ValueError`` if it cannot be read or its shape differs.
    """
    image = load(file, max(picture.shape[1:]))
    grey = _tensor(image.convert("L"))
    mask = grey * _tensor(image)[3:] if image.mode == "RGBA" else grey
    (h, w), (height, width) = mask.shape[1:], picture.shape[1:]
    if abs(h * width - w * height) > 0.02 * h * width:
        raise ValueError(f"{file.name} is {w} x {h} and its picture {width} x {height}: make the mask of the picture's size")
    return torch.nn.functional.interpolate(mask[None], (height, width), mode="area")[0]


def load(file: Path, size: int) -> Image.Image:
    """A picture in RGB, or in RGBA if one may see through it, at most twice as large as ``size`` on its shorter side.

    Raises ``ValueError`` and ``MemoryError`` naming the file.
    """
    try:
        image = open_picture(file, 2 * size)
        image = in_colours(image, "RGBA" if image.has_transparency_data else "RGB")
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    except MemoryError as error:
        raise MemoryError(f"{file}: {error}") from error
    if min(image.size) > 2 * size:
        scale = 2 * size / min(image.size)
        image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS)
    return image


def _tensor(image: Image.Image) -> Tensor:
    array = np.asarray(image, dtype=np.float32) / 255
    return torch.from_numpy(array if array.ndim == 3 else array[..., None]).permute(2, 0, 1).contiguous()
