"""Settings as concept files and the digests of tasks have them: flat, by name, in the order of the first version."""

from dataclasses import fields
from typing import Any

from .captions import OBJECT_TEMPLATES
from .config import MethodConfig, TrainingConfig
from .method import Method

# A setting with the value that stands here does not count in a digest, and never may: tasks that were learned long ago are known by it.
FIRST: dict[str, Any] = {
    "steps": 800,
    "batch": 2,
    "accumulate": 1,
    "targets": "cross_attention",
    "rank": 4,
    "alpha": 0.0,
    "lr": 1e-4,
    "lr_tokens": 1e-3,
    "lr_text": 0.0,
    "weight_decay": 0.01,
    "mode": "corrected",
    "consolidation": 0.1,
    "shared": 0.0,
    "norm_stop": 0.55,
    "init_sigma": 0.013,
    "groups": "block",
    "attention": 0.0,
    "prior": 0.0,
    "prior_pictures": 20,
    "noise_offset": 0.01,
    "min_snr": 0.0,
    "templates": OBJECT_TEMPLATES,
    "shuffle": False,
    "dropout": 0.0,
    "precision": "auto",
    "memory": "auto",
    "checkpointing": False,
    "seed": 0,
    "method": "cidm",
    "stream": "dual",
    "anchor": 0.0,
    "kind": "thing",
}


def flat_settings(config: TrainingConfig, method: Method) -> dict[str, Any]:
    """Returns every setting of a run by name, in the order of ``FIRST``, what came later behind it. A method of the first version also
    states the settings of the others, as its files always did.
    """
    values = config.settings() | {"method": method.name}
    if method.states_all:
        values = FIRST | dict(method.stated) | values
    return {name: values[name] for name in FIRST if name in values} | values


def counting_settings(config: TrainingConfig, method: Method) -> dict[str, Any]:
    """Returns the settings that a task's digest counts: those that are not at their defaults, so that a setting that is new changes no old
    task, and without ``kind``, which follows the templates.
    """
    defaults = {f.name: f.default for part in (TrainingConfig, MethodConfig, type(config.method)) for f in fields(part)} | FIRST
    return {n: v for n, v in flat_settings(config, method).items() if n != "kind" and v != defaults.get(n)}
