"""A custom node pack for the soak: what the server's process still holds, at ``/left_over``."""

import ctypes
import gc
from pathlib import Path

import torch
from aiohttp import web
from comfy.model_patcher import ModelPatcher
from server import PromptServer

NODE_CLASS_MAPPINGS: dict = {}


def resident() -> int:
    """The bytes of memory that the process has, what its allocator keeps for later given back."""
    ctypes.CDLL(None).malloc_trim(0)
    pages = Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * 4096


def left_over() -> dict[str, int]:
    """Counts of what the pack puts on models: nothing of it may stay when the host has let everything go. ``kept`` are the bytes that the
    pack keeps on purpose, up to a bound: encoded texts and concepts that were read.
    """
    gc.collect()
    found = dict.fromkeys(("hooks", "wrappers", "scenes", "texts", "kept"), 0)
    for thing in gc.get_objects():
        kind = type(thing)
        if issubclass(kind, torch.nn.Module):
            found["hooks"] += len(thing.__dict__.get("_forward_hooks", ())) + len(thing.__dict__.get("_forward_pre_hooks", ()))
        elif issubclass(kind, ModelPatcher):
            found["wrappers"] += sum("cidm" in by_key for by_key in getattr(thing, "wrappers", {}).values())
        elif kind.__name__ == "ConceptText":
            found["texts"] += 1
        elif kind.__name__ == "HostRun":
            found["scenes"] += 1
        elif kind.__name__ == "Kept":
            found["kept"] += thing.taken
    return {**found, "resident": resident()}


@PromptServer.instance.routes.get("/left_over")
async def answer(request: web.Request) -> web.Response:
    return web.json_response(left_over())
