"""One run of a sampler on a transformer that joins texts and image, with concepts beside it and regions, step by step."""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from ..concept_text import plans_of
from ..joint_sites import JointSites
from ..method.pieces import Piece
from ..method.regions import RegionMask
from ..models.family import Family
from .joint_call import JointCall, JointMoment, RowTexts
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
        self.apart_until = level_of(scene.apart) if scene.apart else None  # a noise level
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
        """See ``SceneRun``."""
        plans, each = plans_of(text), len(x) // len(keys)
        self.check(plans)
        looking = bool(self.sought) and sigma > min(self.sought.values())
        if self.seen and not looking:
            self.find()
        now = JointMoment(looking, self.apart_until is not None and sigma > self.apart_until)
        grid = self.family.grids(x.shape[-2], x.shape[-1])[0]
        jobs = [job for group in self.jobs(plans, each, len(keys), sigma) for job in group]
        rows = {job: rows_of([job], plans, keys, each) for job in jobs}
        texts = {job: self.texts_of(rows[job], text[job.chunk * each : (job.chunk + 1) * each], grid, looking) for job in jobs}
        answers: dict[tuple[Job, int], Tensor] = {}
        for count, parts in divided(texts):
            for call in pack_jobs([[part] for part in parts], count, unet.fits):
                pairs = [(job, image) for job, images in call for image in images]
                at = [job.chunk * each + image for job, image in pairs]
                own = [rows[job][image] for job, image in pairs]
                some = self.hidden(x if at == list(range(len(x))) else x[at], own, unet.background)
                read = torch.cat([texts[job][image].tokens for job, image in pairs])
                first = texts[pairs[0][0]][pairs[0][1]]
                with JointCall(self, sites, own, first, grid, self.pieces, now).open(some):
                    output = unet.call([job for job, _ in call], at, some, read)
                answers |= dict(zip(pairs, output.split(1), strict=True))
        whole = {job: torch.cat([answers[job, image] for image in range(each)]) for job in jobs}
        return self.blend_passes(whole, len(keys))

    def texts_of(self, rows: Sequence[Row], text: Tensor, grid: tuple[int, int], looking: bool) -> list[RowTexts]:
        """Return what the rows of one job read, whose own texts are ``text [B, N, C]``."""
        regions = sorted({u for row in rows for u in self.regions_of(row, grid, looking)})
        return [RowTexts(row, text[b : b + 1], regions) for b, row in enumerate(rows)]

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


def divided(texts: Mapping[Job, Sequence[RowTexts]]) -> Iterator[tuple[int, list[tuple[Job, list[int]]]]]:
    """The images of jobs that can go through the model together, since they read texts of the same regions and lengths: how many of each
    job, and the jobs with the numbers of their images.
    """
    alike: dict[Hashable, list[tuple[Job, list[int]]]] = {}
    for job, own in texts.items():
        images: dict[Hashable, list[int]] = {}
        for image, text in enumerate(own):
            images.setdefault(text.layout, []).append(image)
        for layout, numbers in images.items():
            alike.setdefault((layout, len(numbers)), []).append((job, numbers))
    for parts in alike.values():
        yield len(parts[0][1]), parts
