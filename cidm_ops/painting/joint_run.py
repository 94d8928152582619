"""One run of a sampler on a transformer that joins texts and image, with concepts beside it and regions, step by step."""

from collections.abc import Callable, Hashable, Sequence

import torch
from torch import Tensor

from ..concept_text import plans_of
from ..joint_sites import JointSites
from ..method.pieces import Piece
from ..method.regions import RegionMask
from ..models.family import Family
from .joint_call import JointCall, JointText
from .rows import NONE, Job, Row, pack_jobs, rows_of
from .run import SceneRun, Unet
from .scene import Scene
from .state import Attend


class JointRun(SceneRun):
    """A run of a transformer of a ``family``. All rows of a call read texts of the same regions and lengths, in one sequence with the
    image; what reads others goes through the model in a call of its own.
    """

    def __init__(self, scene: Scene, layers: Sequence[str], attend: Attend, level_of: Callable[[float], float], family: Family):
        self.family = family
        self.pieces: dict[Hashable, list[Piece]] = {}
        super().__init__(scene, layers, attend, level_of)

    def begin(self) -> None:
        super().begin()
        self.pieces.clear()

    def place(self, masks: list[Sequence[RegionMask]]) -> None:
        super().place(masks)
        self.pieces.clear()

    def predict(  # type: ignore[override]  # other places of another kind of model
        self, sites: JointSites, x: Tensor, text: Tensor, sigma: float, keys: Sequence[Hashable], unet: Unet
    ) -> Tensor:
        """See ``SceneRun``. Raises ``ValueError`` for images of one text that read texts of other regions or lengths, too."""
        plans, each = plans_of(text), len(x) // len(keys)
        self.check(plans)
        looking = bool(self.sought) and sigma > min(self.sought.values())
        if self.seen and not looking:
            self.find()
        grid = self.family.grids(x.shape[-2], x.shape[-1])[0]
        jobs = [job for group in self.jobs(plans, each, len(keys), sigma) for job in group]
        texts = {
            job: self.texts_of(rows_of([job], plans, keys, each), text[job.chunk * each : (job.chunk + 1) * each], grid, looking)
            for job in jobs
        }
        alike: dict[Hashable, list[Job]] = {}
        for job in jobs:
            alike.setdefault(texts[job][0].layout, []).append(job)
        answers: dict[Job, Tensor] = {}
        for own in alike.values():
            for call in pack_jobs([[job] for job in own], each, unet.fits):
                rows = rows_of(call, plans, keys, each)
                at = [job.chunk * each + image for job in call for image in range(each)]
                some = self.hidden(x if at == list(range(len(x))) else x[at], rows, unet.background)
                read = torch.cat([one.tokens for job in call for one in texts[job]])
                with JointCall(self, sites, rows, texts[call[0]][0], grid, self.pieces, looking).open(some):
                    output = unet.call(call, at, some, read)
                answers |= dict(zip(call, output.split(each), strict=True))
        return self.blend_passes({job: answers[job] for job in jobs}, len(keys))

    def texts_of(self, rows: Sequence[Row], text: Tensor, grid: tuple[int, int], looking: bool) -> list[JointText]:
        """Return what the rows of one job read, whose own texts are ``text [B, N, C]``."""
        regions = sorted({u for row in rows for u in self.regions_of(row, grid, looking)})
        found = [JointText(row, text[b : b + 1], regions) for b, row in enumerate(rows)]
        if len({one.layout for one in found}) > 1:
            lengths = " and ".join(dict.fromkeys(str(list(one.lengths)) for one in found))
            raise ValueError(
                f"images of one batch read texts of {lengths} tokens: on {self.family.title} the texts of all images and of their regions "
                "have to be as long; paint them in several batches"
            )
        return found

    def regions_of(self, row: Row, grid: tuple[int, int], looking: bool) -> list[int]:
        """The regions whose text a row reads: those that have a token, and those that are looked for. A row whose one text means the same
        everywhere reads it once.
        """
        if self.region_of(row) == NONE or not (row.regional or self.differs(row)):
            return []
        shares = self.shares_of(row, *grid, torch.zeros(()))
        sought = self.sought if looking and row.regional and row.job.region <= 0 else {}
        return [u for u in range(1, len(shares)) if shares[u].any() or u in sought]

    def differs(self, row: Row) -> bool:
        """Whether concepts that act on a row are mixed otherwise in some region."""
        acting = (stack.weights for stack in self.scene.stacks if row.composed or stack.negative)
        return any(bool((weights != weights[:, :1]).any()) for weights in acting)
