"""The table of the host's nodes, its parts in one process, which share a scene: ``python inside_table.py PACK RESULTS [--table FILE]``.

A script as inside.py; with ``--table`` what was found is written as markdown.
"""

import inside_conditionings
import inside_graphs
import inside_guiders
import inside_patches
from inside import run
from subjects import written

if __name__ == "__main__":
    for part in (inside_conditionings, inside_guiders, inside_patches, inside_graphs):
        run(vars(part))
    written()
