"""Checks of training methods inside a ComfyUI, as in inside.py: one that only a test has goes through the code of the nodes."""

import asyncio
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

from inside import data_of, doodle, equal, host, patches, plain, sample

# isort: split

import torch
from pack.cidm_ops.bank.bank import Bank
from pack.cidm_ops.painting.compose import mix
from pack.cidm_ops.training.checkpoint import checkpoint_file
from pack.cidm_ops.training.methods import METHODS, configure, register
from pack.nodes import train
from server import PromptServer

# The toy's file is written for a pack that lies on the path under its own name.
sys.modules.update({name.removeprefix("pack."): module for name, module in [*sys.modules.items()] if name.startswith("pack.cidm_ops")})
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "methods"))

from textual_inversion import TextualInversion  # noqa: E402

NODE = SimpleNamespace(hidden=SimpleNamespace(unique_id="1"))  # what the code of a node reads of itself


def the_method_that_a_test_registers_is_trained_by_the_nodes_and_painted():
    register(TextualInversion())
    server = PromptServer(asyncio.new_event_loop())
    with tempfile.TemporaryDirectory() as folder:
        parts, bank = doodle(), Bank(Path(folder) / "bank")
        given = {"preview_every": 2, "preview_prompt": "a <rex>"}
        task = train.task_of(" rex ", "dog", configure("inversion", steps=3, lr=0.5), given)
        (learned,) = train.learn(NODE, train.backbone_of(*parts), bank, data_of("dog"), task, given)
        assert learned.bank.names == ["rex"] and not checkpoint_file(bank, "rex").exists() and len(learned.losses) == 3
        (again,) = train.learn(NODE, train.backbone_of(*parts), bank, data_of("dog"), task, given)
        assert again.losses == learned.concept.training["losses"], "the same task again learns nothing"
        model, clip, _ = parts
        mixture = mix(host.ComfyBackbone(model, clip), learned.bank, "a <rex> on the beach")
        painted = sample(
            patches.merge(model, mixture.factors(host.ComfyBackbone(model, clip))), patches.conditioning(clip, [mixture]), plain(clip, "")
        )
        base = sample(model, plain(clip, "a dog on the beach"), plain(clip, ""))
        assert float((painted - base).abs().max()) > 1e-2 and torch.isfinite(painted).all()
        equal(sample(model, plain(clip, "a dog on the beach"), plain(clip, "")), base)
    del METHODS["inversion"], server
