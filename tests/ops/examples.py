"""How many inputs the property tests build: few and the same ones by default, ``CIDM_EXAMPLES=10000`` as many of each kind, at random."""

import os

from hypothesis import HealthCheck, settings

COUNT = int(os.environ.get("CIDM_EXAMPLES", "0"))


def examples(count: int) -> settings:
    """So many inputs in the default run."""
    return settings(
        max_examples=COUNT or count, derandomize=not COUNT, database=None, deadline=None, suppress_health_check=list(HealthCheck)
    )
