"""Many queued prompts on one server: nothing grows, nothing stays behind, and the first pictures come again bit for bit.

``python tests/host/soak.py CHECKOUT [PROMPTS]`` queues 500 and prints the figures as JSON; the tests have a short form.
"""

import hashlib
import json
import random
import shutil
import statistics
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

HERE = Path(__file__).resolve().parent
if __name__ == "__main__":
    sys.path[:0] = [str(HERE.parent), str(HERE.parents[1]), str(HERE.parents[1] / ".ci")]

from comfy_server import Server, message  # noqa: E402

GRAPHS = HERE / "saved"
PAINTED = ("ten_concepts_any_prompt", "draw_regions", "find_regions", "infusion_on_doodle", "watch_a_training")
TEXTS = ("a <dog> in the snow", "a <cat:0.6> on the beach", "a <duck> in a meadow", "<ink> of a <bear> on the street", "a red car")
OURS = ("hooks", "wrappers", "scenes", "texts")  # what the pack puts on models
SETTLED = 50  # prompts after which memory should stay


@dataclass
class Soak:
    """The figures of a soak. ``megabytes`` are those of resident memory after each prompt, ``kept`` those of them that the pack keeps on
    purpose, which have a bound of their own; ``growth`` is that of the others after the first prompts as a part of them, ``None`` after too
    few. ``left`` counts what stayed on models when the host had let everything go; ``again`` says whether the first pictures came again
    bit for bit.
    """

    prompts: int
    ended: dict[str, int] = field(default_factory=dict)
    growth: float | None = None
    megabytes: list[int] = field(default_factory=list)
    kept: list[int] = field(default_factory=list)
    left: dict[str, int] = field(default_factory=dict)
    again: bool = False
    errors: list[str] = field(default_factory=list)


def start(host: Any, folder: Path) -> Server:
    """A server that can be asked what is left over."""
    shutil.copytree(HERE / "left_over", folder / "custom_nodes" / "left_over", ignore=shutil.ignore_patterns("__pycache__"))
    return Server(host, folder)


def graph(name: str, draw: random.Random) -> dict[str, Any]:
    """A workflow that ships, short and small, with other seeds, and with another prompt, bank and strength where it has one."""
    prompt = json.loads((GRAPHS / f"{name}.json").read_text(encoding="utf-8"))
    for node in prompt.values():
        inputs, kind = node["inputs"], node["class_type"]
        for seed in {"seed", "noise_seed"} & inputs.keys():
            inputs[seed] = draw.randrange(1000)
        if "steps" in inputs:
            inputs["steps"] = 2
        if kind == "EmptyLatentImage":
            inputs |= {"width": draw.choice((128, 160)), "height": 128}
            inputs["batch_size"] = inputs["batch_size"] if isinstance(inputs["batch_size"], list) else draw.choice((1, 2))
        elif kind == "CIDMEncodePrompt" and kind_of_bank(prompt, inputs) == "CIDMDoodleBank":
            inputs["text"] = draw.choice(TEXTS)
        elif kind == "CIDMOpenBank":
            inputs["name"] = f"{name}_{draw.randrange(2)}"
        elif kind in ("CIDMAggregate", "CIDMPaintRegions"):
            inputs["mode"] = draw.choice(("exact", "soft")) if kind == "CIDMAggregate" else inputs["mode"]
            inputs["strength"] = draw.choice((1.0, 0.7))
    return prompt


def kind_of_bank(prompt: dict[str, Any], inputs: dict[str, Any]) -> str:
    """The kind of node that a node has its bank from."""
    return prompt[inputs["bank"][0]]["class_type"]


def endless(prompt: dict[str, Any]) -> dict[str, Any]:
    """The same training, longer than anybody waits."""
    for node in prompt.values():
        if node["class_type"].startswith("CIDMTrain"):
            node["inputs"]["steps"] = 100_000
    return prompt


def queued(count: int, draw: random.Random) -> Iterator[tuple[dict[str, Any], bool]]:
    """Prompts, and whether each is cancelled: all kinds of painting in turn, trainings among them, every tenth one cancelled."""
    for i in range(count):
        if i % 10 == 9:
            yield endless(graph("watch_a_training", draw)), True
        else:
            yield graph(PAINTED[i % len(PAINTED)], draw), False


def run(server: Server, prompt: dict[str, Any], cancelled: bool = False, delay: float = 0.0) -> tuple[str, str, list[str]]:
    """How a prompt ended, its error, and the digests of its pictures."""
    number = server.queue(prompt)
    if cancelled:
        server.wait_for(lambda: server.get("/queue")["queue_running"], 60)
        time.sleep(delay)
        server.post("/interrupt", {})
    entry = server.finished(number, 120)
    ended = (
        "cancelled" if any(kind == "execution_interrupted" for kind, _ in entry["status"]["messages"]) else entry["status"]["status_str"]
    )
    server.post("/history", {"delete": [number]})  # the host keeps 10,000 prompts and what came of them
    pictures = [picture for node in sorted(entry["outputs"]) for picture in entry["outputs"][node].get("images", ())]
    return ended, message(entry), [digest(server, picture) for picture in pictures]


def digest(server: Server, picture: dict[str, str]) -> str:
    """That of the pixels: a file also says when what its nodes read was changed."""
    with urllib.request.urlopen(f"{server.url}/view?{urllib.parse.urlencode(picture)}", timeout=60) as answer:
        return hashlib.sha256(Image.open(BytesIO(answer.read())).tobytes()).hexdigest()


def let_go(server: Server, seconds: float = 20) -> dict[str, int]:
    """What is left over once the host, which does it in its own time, has unloaded its models and dropped what it kept of prompts."""
    server.post("/free", {"unload_models": True, "free_memory": True})
    end = time.monotonic() + seconds
    while any((left := {kind: count for kind, count in server.get("/left_over").items() if kind in OURS}).values()):
        if time.monotonic() > end:
            break
        time.sleep(0.5)
    return left


def soak(server: Server, prompts: int, seed: int = 0) -> Soak:
    """Queue so many prompts, one after another."""
    found, draw = Soak(prompts), random.Random(seed)
    first = [graph(name, random.Random(1)) for name in PAINTED]
    before = [run(server, prompt)[2] for prompt in first]
    ended: Counter[str] = Counter()
    memory: list[int] = []
    kept: list[int] = []
    for prompt, cancelled in queued(prompts, draw):
        how, error, _ = run(server, prompt, cancelled, draw.uniform(0.2, 3))
        ended[how] += 1
        found.errors += [error] if error else []
        left = server.get("/left_over")
        memory.append(left["resident"])
        kept.append(left["kept"])
    found.left = let_go(server)
    found.again = before == [run(server, prompt)[2] for prompt in first]
    found.ended, found.megabytes, found.kept = dict(ended), [m >> 20 for m in memory], [k >> 20 for k in kept]
    found.growth = growth([m - k for m, k in zip(memory, kept, strict=True)])
    return found


def growth(memory: Sequence[int]) -> float | None:
    """By what part of it the memory grew since it settled: medians of ten prompts, since every prompt needs another amount."""
    if len(memory) < SETTLED + 20:
        return None
    return statistics.median(memory[-10:]) / statistics.median(memory[SETTLED : SETTLED + 10]) - 1


if __name__ == "__main__":
    from hosts import host

    checkout = host(Path(sys.argv[1]).expanduser().resolve())
    with tempfile.TemporaryDirectory() as folder:
        running = start(checkout, Path(folder))
        try:
            result = soak(running, int(sys.argv[2]) if len(sys.argv) > 2 else 500)
        finally:
            running.close()
    print(json.dumps({"comfyui": checkout.version, **vars(result)}))
