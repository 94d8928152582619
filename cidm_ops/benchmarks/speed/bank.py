"""How a bank grows: opening, reading a prompt, adding, renaming, removing and painting in banks of made-up files, each ten times as large.

The files are small (one layer of rank 1) with a header as a real one has; what is timed reads headers, the index and single files.
Painting is Doodle's, with one of its own concepts among all the others.
"""

import json
import math
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...bank import manage
from ...bank.bank import Bank
from ...bank.concept_file import load_concept, save_concept
from ...bank.index import INDEX, LARGEST
from ...engines.diffusers import load
from ...painting.paint import SamplingConfig, paint, unit_noise
from .opening import openings
from .timing import machine

TEN = Path(__file__).resolve().parents[2] / "doodle" / "ten"
COUNTS = (1_000, 10_000, 100_000)
PATTERN = "c{:07d}"
STEPS = 4  # of painting: what the bank adds to it does not depend on them


def run(counts: Sequence[int] = COUNTS) -> dict[str, Any]:
    """Measure each size; ``growth`` is the exponent between the last two: 0 does not grow, 1 grows as the bank does."""
    backbone = load("doodle")
    sizes: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as room:
        for count in counts:
            folder = Path(room) / str(count)
            make_up(folder, count)
            sizes[str(count)] = measure(folder, count, backbone)
            print(json.dumps({count: sizes[str(count)]}), flush=True)
            shutil.rmtree(folder)
    growth = {}
    if len(counts) > 1:
        (less, before), (more, after) = (list(sizes.items())[-2], list(sizes.items())[-1])
        scale = math.log(int(more) / int(less))
        growth = {key: round(math.log(max(after[key], 1e-9) / max(before[key], 1e-9)) / scale, 2) for key in after if key != "files_mb"}
    return {"sizes": sizes, "growth": growth, "largest_index_mb": LARGEST / 2**20} | machine()


def make_up(folder: Path, count: int) -> None:
    """Writes a bank of ``count`` concepts, which differ in their names, words and numbers, and the one of Doodle that is painted."""
    folder.mkdir(parents=True)
    real = load_concept(TEN / "dog.safetensors")
    layer = next(iter(real.factors))
    name = PATTERN.format(0)
    words = tuple(f"<{name}.{i}>" for i in range(len(real.words)))
    one = replace(real.factors[layer], up=real.factors[layer].up[:, :1], down=real.factors[layer].down[:1])
    save_concept(replace(real, name=name, words=words, factors={layer: one}, task=1_000_000), folder / f"{name}.safetensors")
    like = (folder / f"{name}.safetensors").read_bytes()
    task = like.index(b"1000000")
    for number in range(count - 1):
        own = PATTERN.format(number)
        data = like[:task] + f"{1_000_000 + number:07d}".encode() + like[task + 7 :]
        (folder / f"{own}.safetensors").write_bytes(data.replace(name.encode(), own.encode()))
    save_concept(replace(real, task=9_999_999), folder / "dog.safetensors")


def measure(folder: Path, count: int, backbone: Any) -> dict[str, float]:
    """Returns seconds of each operation, and MB."""
    found: dict[str, float] = {"files_mb": round(sum(f.stat().st_size for f in folder.iterdir()) / 2**20, 1)}

    @contextmanager
    def timed(what: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        found[f"{what}_seconds"] = round(time.perf_counter() - began, 4)

    with timed("open_first"):  # every file is read, and the index is written
        bank = Bank(folder)
    assert len(bank.names) == count and not bank.damaged, "the made-up bank is whole"
    found["index_mb"] = round((folder / INDEX).stat().st_size / 2**20, 2)
    opened = openings(folder, 3)
    found["open_seconds"] = round(min(seconds for seconds, _ in opened), 4)
    found["open_mb"] = round(min(added for _, added in opened), 1)
    with timed("prompt"):
        bank.read("a <dog> beside a <c0000001>")
    with timed("get"):
        dog = bank.get("dog")
    with timed("paint_first"):
        painted(backbone, bank)
    with timed("paint"):
        painted(backbone, bank)
    operations: dict[str, Callable[[], Any]] = {
        "add": lambda: Bank(folder).add(replace(dog, name="cat", words=("<cat.1>", "<cat.2>"))),
        "rename": lambda: manage.rename(Bank(folder), "cat", "hen"),
        "describe": lambda: manage.describe(Bank(folder), "hen", {"author": "nobody"}),
        "remove": lambda: manage.remove(Bank(folder), "hen"),
    }
    for what, call in operations.items():
        with timed(what):
            call()
    return found


def painted(backbone: Any, bank: Bank) -> Any:
    noise = unit_noise(backbone.family, 0, 1, 128, 128)
    return paint(backbone, bank, "a <dog> in the snow", noise, SamplingConfig(STEPS, 2.0))
