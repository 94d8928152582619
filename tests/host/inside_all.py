"""All checks inside a ComfyUI in one process, which loads the host once: ``python inside_all.py PACK RESULTS``, in the checkout."""

import time

import inside
import inside_conditionings
import inside_graphs
import inside_guiders
import inside_infusion
import inside_painting
import inside_patches
import inside_regions
import inside_scores
import inside_methods  # isort: skip -- it gives the pack a second name

PARTS = (
    inside,
    inside_painting,
    inside_regions,
    inside_infusion,
    inside_scores,
    inside_conditionings,
    inside_guiders,
    inside_patches,
    inside_graphs,
    inside_methods,
)

if __name__ == "__main__":
    for part in PARTS:
        inside.run(vars(part))
