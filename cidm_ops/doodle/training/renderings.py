"""Renderings by number, kept on disk: a set is a function from a seed to pictures, and a file for each number of them."""

from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ...bank.files import write_atomically
from ...bank.formats import write_array
from .loop import save_tensors
from .processes import rank_and_count, wait_for_all

CHUNK = 250
SHARD = 8000
Network = TypeVar("Network", bound=nn.Module)
Draw = Callable[[int], np.ndarray]
Words = Callable[[int], list[str]]


def kept(folder: Path, name: str, draw: Draw, count: int, workers: int) -> np.ndarray:
    """The uint8 arrays ``draw(0) .. draw(count - 1)``, all of one shape, as one array ``[count, ...]`` (memory-mapped).

    Drawn into ``folder`` the first time, in chunks that are kept, so a run that was stopped goes on; later calls open the file.
    """
    file = folder / f"{name}-{count}.npy"
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        chunks = [(folder / f"{name}-{count}-{start}.npy", draw, start, min(start + CHUNK, count)) for start in range(0, count, CHUNK)]
        spread(_write, [chunk for chunk in chunks if not chunk[0].exists()], workers)
        _join([chunk[0] for chunk in chunks], count, file)
    return np.load(file, mmap_mode="r")


def spread(make: Callable[[Any], Any], todo: Sequence[Any], workers: int) -> list[Any]:
    """What ``make`` gives for each of what is to do, in order, made by so many processes; by this one where one is enough."""
    if workers == 1 or len(todo) < 2:
        return list(map(make, todo))
    with ProcessPoolExecutor(workers) as pool:
        return list(pool.map(make, todo))


def _write(chunk: tuple[Path, Draw, int, int]) -> None:
    file, draw, start, stop = chunk
    write_array(np.stack([draw(seed) for seed in range(start, stop)]), file)


def _join(chunks: list[Path], count: int, file: Path) -> None:
    """Put the chunks into one array, larger than memory, under a name that it gets when it is whole; the chunks go."""
    first = np.load(chunks[0], mmap_mode="r")
    partial = file.with_name(f".{file.name}.partial")
    whole = np.lib.format.open_memmap(partial, "w+", np.uint8, (count, *first.shape[1:]))
    for i, chunk in enumerate(chunks):
        whole[i * CHUNK : (i + 1) * CHUNK] = np.load(chunk, mmap_mode="r")
    whole.flush()
    del whole
    partial.replace(file)
    for chunk in chunks:
        chunk.unlink()


def kept_captions(folder: Path, name: str, words: Words, count: int, workers: int) -> list[list[str]]:
    """The captions ``words(0) .. words(count - 1)`` of pictures, some wordings of each, kept in ``folder``."""
    file = folder / f"{name}-captions-{count}.txt"
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        chunks = [(words, start, min(start + CHUNK, count)) for start in range(0, count, CHUNK)]
        write_atomically("\n".join(line for lines in spread(_say, chunks, workers) for line in lines).encode(), file)
    return [line.split("\t") for line in file.read_text(encoding="utf-8").split("\n")]


def sharded(
    folder: Path,
    name: str,
    pictures: np.ndarray,
    load: Callable[[], Network],
    make: Callable[[Network, np.ndarray], Tensor],
    device: torch.device,
) -> Tensor:
    """What a network makes of all pictures ``[N, ...]``.

    A CPU keeps it in shards, which processes share out, and loads the network where one is missing. A GPU makes it sooner than a disk gives
    it, so there it is made each time, and stays there.
    """
    shards = range(0, len(pictures), SHARD)
    if device.type != "cpu":
        here = load()
        return torch.cat([make(here, pictures[start : start + SHARD]) for start in shards])
    network = None
    rank, count = rank_and_count()
    files = [folder / f"{name}-{i}.safetensors" for i in range(len(shards))]
    for i, (start, file) in enumerate(zip(shards, files, strict=True)):
        if i % count == rank and not file.exists():
            network = network or load()
            save_tensors({name: make(network, pictures[start : start + SHARD])}, file)
    wait_for_all()
    return torch.cat([load_file(file)[name] for file in files])


def _say(chunk: tuple[Words, int, int]) -> list[str]:
    words, start, stop = chunk
    return ["\t".join(words(seed)) for seed in range(start, stop)]
