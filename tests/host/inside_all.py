"""Runs the checks inside a ComfyUI in one process, which loads it once, in the checkout.

``python inside_all.py PACK RESULTS [PART ...] [--table FILE]``: ``PART`` is a module, all of them without one; with ``--table`` what was
found of the host's nodes is written as markdown.
"""

import importlib
import sys
from pathlib import Path

PARTS = (
    "inside",
    "inside_painting",
    "inside_regions",
    "inside_editing",
    "inside_infusion",
    "inside_weaving",
    "inside_wish",
    "inside_contrast",
    "inside_scores",
    "inside_transformers",
    "inside_joint",
    "inside_joint_texts",
    "inside_engines",
    "inside_native_transformer",
    "inside_joint_training",
    "inside_conditionings",
    "inside_guiders",
    "inside_patches",
    "inside_graphs",
    "inside_methods",  # it gives the pack a second name
)

if __name__ == "__main__":
    asked = [part for part in PARTS if part in sys.argv[3:]] or PARTS
    inside = importlib.import_module("inside")  # takes the rest of the line for the host
    for part in asked:
        inside.run(vars(importlib.import_module(part)))
    if "--table" in sys.orig_argv:
        table = importlib.import_module("subjects").TABLE
        Path(sys.orig_argv[sys.orig_argv.index("--table") + 1]).write_text(table.markdown(), encoding="utf-8")
