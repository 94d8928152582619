"""What a script of a benchmark needs inside a ComfyUI: its modules, and the pack as a custom node has it.

Imported by the scripts ``host_*.py``, which run as ``python host_X.py PACK OUT ARGUMENTS...`` in the checkout, with its Python.
"""

import importlib.util
import json
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

PACK, OUT, *ARGUMENTS = sys.argv[1:]
sys.argv[1:] = []
sys.path[0] = str(Path.cwd())

import torch  # noqa: E402

if not torch.cuda.is_available():
    sys.argv.append("--cpu")

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import comfy.sample  # noqa: E402
import comfy.sd  # noqa: E402
import comfyui_version  # noqa: E402
import utils.extra_config  # noqa: E402, F401 -- as main.py does: comfy has a module of that name
from comfy_extras import nodes_hooks  # noqa: E402

spec: Any = importlib.util.spec_from_file_location("pack", Path(PACK) / "__init__.py", submodule_search_locations=[PACK])
pack = importlib.util.module_from_spec(spec)
sys.modules["pack"] = pack
spec.loader.exec_module(pack)

from pack.cidm_ops.benchmarks.speed.timing import machine  # noqa: E402
from pack.nodes.host import known_family  # noqa: E402

ALONE = not torch.cuda.is_available() and torch.get_num_threads() == 1
CLOCK = time.process_time if ALONE else time.perf_counter  # the time of one thread is not that of others on a shared machine


def painter(
    model: Any, positive: list, negative: list, pixels: int, batch: int = 1, count: int = 3, guidance: float = 7.0
) -> Callable[[], list[float]]:
    """A call that paints in so many steps, and gives the seconds of each of them but the first, which sets up."""

    def call() -> list[float]:
        stamps = []

        def stamp(*_: Any) -> None:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            stamps.append(CLOCK())

        latent = comfy.sample.fix_empty_latent_channels(model, torch.zeros(batch, *known_family(model).latent_shape(pixels, pixels)))
        comfy.sample.sample(
            model,
            comfy.sample.prepare_noise(latent, 1),
            count,
            guidance,
            "euler",
            "normal",
            positive,
            negative,
            latent,
            seed=1,
            callback=stamp,
            disable_pbar=True,
        )
        return [b - a for a, b in zip(stamps, stamps[1:], strict=False)]

    return call


def steps(sides: Mapping[str, Callable[[], list[float]]], rounds: int, warmup: int = 1) -> dict[str, list[float]]:
    """Seconds per step of the painters of each side, in turns; ``warmup`` rounds do not count."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(-warmup, rounds):
        for name, call in sides.items():
            seconds = call()
            if number >= 0:
                times[name] += seconds
    return times


def hooked(parts: Iterable[tuple[Any, str, list, list]], rest: tuple[list, list], area: str = "default") -> tuple[list, list]:
    """The positive and the negative text of the host's own way to paint regions, by its nodes: for each a mask, the LoRA of a hook and
    texts, and ``rest`` where no mask is.
    """

    def use(node: Any, **inputs: Any) -> tuple:
        return getattr(node, node.FUNCTION)(**inputs)

    pair: dict[str, list] = {}
    for mask, lora, positive, negative in parts:
        (hook,) = use(nodes_hooks.CreateHookLora(), lora_name=lora, strength_model=1.0, strength_clip=0.0)
        node = nodes_hooks.PairConditioningSetPropertiesAndCombine() if pair else nodes_hooks.PairConditioningSetProperties()
        new = {"positive_NEW": positive, "negative_NEW": negative}
        positive, negative = use(node, **pair, **new, strength=1.0, set_cond_area=area, mask=mask[None], hooks=hook)
        pair = {"positive": positive, "negative": negative}
    outside = {"positive_DEFAULT": rest[0], "negative_DEFAULT": rest[1]}
    return use(nodes_hooks.PairConditioningSetDefaultAndCombine(), **pair, **outside)


def tell(figures: dict[str, Any]) -> None:
    """The script's result."""
    Path(OUT).write_text(json.dumps(figures | machine() | {"comfyui": comfyui_version.__version__}))
