"""What all parts of one call of the U-Net know: its rows, and where they are."""

from collections.abc import Sequence

from ..hub import Sites
from .rows import Row
from .state import RunState


class Call:
    """A call of the model in a run, with these rows. ``grid`` are the rows and columns of the image's tokens in the layer that is computed,
    and the scene's stacks that are ``asleep`` do not act yet.
    """

    def __init__(self, run: RunState, sites: Sites, rows: Sequence[Row], asleep: frozenset[int] = frozenset()):
        self.run, self.sites, self.rows, self.asleep = run, sites, rows, asleep
        self.grid: list[int] = []
        self.marks = [run.mark_of(row) for row in rows]
        self.regional = bool(run.scene.masks)

    def check_rows(self, found: int, what: str) -> None:
        """Raises ``ValueError`` when another node has changed how many rows there are, which matters to ``what``."""
        if found != len(self.rows):
            raise ValueError(
                f"a layer reads {found} rows where the sampler sent {len(self.rows)}: another node on this model, such as HyperTile or an "
                f"attention couple, divides or multiplies them, which does not go together with {what}; take one of the two off the model"
            )
