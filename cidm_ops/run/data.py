"""The pictures of one concept, from a folder or from tensors, as the trainer sees them."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")

# One slot for the whole caption. Plain views of a thing, and plain ways to name a style.
OBJECT_TEMPLATES = (
    "a photo of a {}", "a picture of a {}", "a good photo of a {}", "a close-up of a {}", "a bright photo of a {}",
    "one {}", "a {}", "the {}", "a clear picture of a {}", "a photo of the {}",
)  # fmt: skip
STYLE_TEMPLATES = ("a {}", "the {}", "a picture, {}", "a rendering, {}", "{}")


@dataclass
class ConceptImages:
    """Square pictures ``[N, 3, S, S]`` in [-1, 1], one caption each, masks ``[N, 1, S, S]`` in [0, 1] or ``None``."""

    pictures: Tensor
    captions: list[str]
    masks: Tensor | None = None
    warnings: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if len(self.pictures) == 0:
            raise ValueError("no pictures to learn from: give 4 to 7 of them")
        if len(self.captions) != len(self.pictures):
            raise ValueError(f"{len(self.captions)} captions for {len(self.pictures)} pictures: give one caption per picture")


def from_folder(folder: Path | str, size: int) -> ConceptImages:
    """Read a folder of pictures: centre crop to ``size`` x ``size``, caption from ``name.txt``, mask from ``name_mask.png``.

    Raises ``FileNotFoundError`` for a missing or empty folder and ``ValueError`` naming a picture that cannot be read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder: give a folder with 4 to 7 pictures")
    files = sorted(f for f in folder.iterdir() if f.suffix.lower() in PICTURES and not f.stem.endswith("_mask"))
    if not files:
        raise FileNotFoundError(f"{folder}: no pictures in it: expected 4 to 7 files of {', '.join(PICTURES)}")
    pictures, captions, masks, warnings = [], [], [], []
    for file in files:
        pictures.append(_picture(file, size, "RGB"))
        text, mask = file.with_suffix(".txt"), file.with_name(f"{file.stem}_mask.png")
        captions.append(text.read_text(encoding="utf-8").strip() if text.exists() else "")
        if not text.exists():
            warnings.append(f"{file.name}: no caption file {text.name}, the class word stands alone")
        masks.append(_picture(mask, size, "L") if mask.exists() else None)
    whole = [torch.ones(1, size, size) if m is None else m for m in masks]
    return ConceptImages(
        torch.stack(pictures) * 2 - 1, captions, torch.stack(whole) if any(m is not None for m in masks) else None, warnings
    )


def _picture(file: Path, size: int, mode: str) -> Tensor:
    """A picture ``[C, size, size]`` in [0, 1], upright and centre cropped. Decoded at reduced size where the format can."""
    try:
        with Image.open(file) as image:
            image.draft(mode, (2 * size, 2 * size))
            upright = ImageOps.exif_transpose(image).convert(mode)
            square = ImageOps.fit(upright, (size, size), Image.Resampling.LANCZOS)
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"{file.name}: cannot be read as a picture ({error}): repair or remove it") from error
    array = np.asarray(square, dtype=np.float32) / 255
    return torch.from_numpy(array if mode == "RGB" else array[..., None]).permute(2, 0, 1).contiguous()


def concept_captions(captions: Sequence[str], class_word: str, words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Put the concept words in the place of the class word.

    A caption without the class word gets the words in front. Returns the captions and a warning for each of those.
    """
    spoken = " ".join(words)
    pattern = re.compile(rf"\b{re.escape(class_word)}\b", re.IGNORECASE)
    out, warnings = [], []
    for i, caption in enumerate(captions):
        if pattern.search(caption):
            out.append(pattern.sub(spoken, caption, count=1))
        else:
            out.append(f"{spoken}, {caption}" if caption else spoken)
            if caption:
                warnings.append(
                    f"caption {i + 1} ({caption[:60]!r}) does not hold the class word {class_word!r}: {spoken!r} is put in front"
                )
    return out, warnings
