"""Token ids of the CLIP text encoder of SD1.x, without ComfyUI and without a download.

The vocabulary (byte-pair merges, of which CLIP uses the first 48,894) is a data file of the package `refiners`, which is
read and never imported. The rules around it are those of transformers' CLIPTokenizer, so the ids equal those of ComfyUI.
Prompt syntax of a host (weights in parentheses, `embedding:`) is no part of it: text is text.
"""

import gzip
from collections.abc import Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
from torch import Tensor

from ..models.encoder import Encoder
from ..models.sd import CLIP_L

MERGES = 49152 - 256 - 2
WORD = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def tokenize(text: str, encoder: Encoder = CLIP_L) -> Tensor:
    """The ids of a text in the chunks of an encoder with CLIP's vocabulary, ``[chunks, N]`` int64."""
    return in_chunks(token_ids(text), encoder)


def in_chunks(ids: Sequence[int], encoder: Encoder) -> Tensor:
    """Ids in rows ``[chunks, N]`` int64: start, as many as fit, end and padding; longer text goes on in the next row."""
    start = [] if encoder.start is None else [encoder.start]
    chunks = [ids[i : i + encoder.room] for i in range(0, len(ids), encoder.room)] or [[]]
    return torch.tensor([[*start, *chunk, encoder.end, *[encoder.pad] * (encoder.room - len(chunk))] for chunk in chunks])


def cut_to_end(ids: Tensor, encoder: Encoder) -> Tensor:
    """The ids ``[1, N]`` of a chunk up to its end, without what fills it up."""
    return ids[:, : int((ids[0] == encoder.end).int().argmax()) + 1]


def token_ids(text: str) -> list[int]:
    """Ids of the text alone, without start, end and padding.

    Raises ModuleNotFoundError when the package with the vocabulary is not installed.
    """
    return clip_bpe().encode(text, add_special_tokens=False).ids


@cache
def clip_bpe() -> Tokenizer:
    """CLIP's byte-pair encoding, as transformers.CLIPTokenizer sets it up."""
    merges = [(left, right) for left, right in map(str.split, vocabulary_file().split("\n")[1 : MERGES + 1])]
    alphabet = byte_letters()
    words = [*alphabet, *(letter + "</w>" for letter in alphabet), *("".join(pair) for pair in merges), "<|startoftext|>", "<|endoftext|>"]
    bpe = Tokenizer(
        models.BPE(
            vocab={word: i for i, word in enumerate(words)},
            merges=merges,
            continuing_subword_prefix="",
            end_of_word_suffix="</w>",
            unk_token="<|endoftext|>",
        )
    )
    bpe.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()])
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(WORD), behavior="removed", invert=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    bpe.add_special_tokens(["<|startoftext|>", "<|endoftext|>"])
    return bpe


def byte_letters() -> list[str]:
    """A printable letter for each of the 256 bytes, in the order of CLIP's vocabulary: printable bytes first, as themselves."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    return [chr(byte) for byte in printable] + [chr(256 + i) for i in range(256 - len(printable))]


def vocabulary_file() -> str:
    """The text of CLIP's merges file."""
    try:
        place = distribution("refiners").locate_file("refiners/foundationals/clip/bpe_simple_vocab_16e6.txt.gz")
    except PackageNotFoundError as error:
        raise ModuleNotFoundError(
            "CLIP's vocabulary comes with the package 'refiners', which is not installed: pip install 'cidm[headless]'"
        ) from error
    return gzip.decompress(Path(str(place)).read_bytes()).decode("utf-8")
