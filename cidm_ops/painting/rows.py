"""Which rows go through the U-Net, and what each of them stands for.

A batch of a sampler is divided into chunks, one for each text, of the same images in the same order. A chunk may go through the model
more than once: as the foundation of Infusion's second stream, and as the pass of a single region. A template that concepts are woven
into goes through beside it.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from ..concept_text import plans_of
from ..row_plan import RowPlan

Item = TypeVar("Item")
ALL, NONE = 0, -1  # regions: all of them, or none


@dataclass(frozen=True)
class Job:
    """A chunk of the batch on its way through the model: with the features of one region, of ``ALL`` or of ``NONE``; ``hidden``: seeing
    plain background outside of that region; ``foundation``: without residuals, for the rows that take their attention from it;
    ``template``: not the chunk itself, but the template in its place, for the rows that take their layout from it; ``reference``: in its
    place the picture of that number, from 1, for the rows that refer to it.
    """

    chunk: int
    region: int = ALL
    hidden: bool = False
    foundation: bool = False
    template: bool = False
    reference: int = 0

    @property
    def guest(self) -> bool:
        """Whether a picture that is not of the batch goes through in its place."""
        return self.template or self.reference > 0


@dataclass(frozen=True)
class Row:
    """One row of a call of the U-Net: what its text means, which image of the batch it is, and ``source``, the row whose attention it
    takes, itself if it has no foundation. ``key`` tells its text apart from those of other rows; ``None`` if nobody knows.
    """

    plan: RowPlan | None
    image: int
    job: Job
    source: int
    key: Hashable

    @property
    def composed(self) -> bool:
        """Whether its text was composed with concepts."""
        return self.plan is not None and self.plan.composed

    @property
    def regional(self) -> bool:
        """Whether its text says itself what regions read."""
        return self.plan is not None and bool(self.plan.regions)


def has_residuals(plan: RowPlan | None) -> bool:
    """Whether a text carries residuals, its own or those of a region's text."""
    return plan is not None and bool(plan.residuals or any(has_residuals(p) for region in plan.regions for p in plans_of(region)))


def rows_of(jobs: Sequence[Job], plans: Sequence[RowPlan | None], keys: Sequence[Hashable], each: int) -> list[Row]:
    """The rows of a call: jobs of ``each`` images one after another, for a batch with these ``plans`` and ``keys``."""
    start = {(job.chunk, job.region, job.foundation): number * each for number, job in enumerate(jobs)}
    rows = []
    for number, job in enumerate(jobs):
        source = start.get((job.chunk, job.region, True), number * each)
        for image in range(each):
            plan = plans[job.chunk * each + image]
            key = plan.key if plan is not None else keys[job.chunk] and (keys[job.chunk], image)
            rows.append(Row(plan, image, job, source + image, key))
    return rows


def pack_jobs(jobs: Sequence[Sequence[Item]], each: int, fits: Callable[[int], bool]) -> list[list[Item]]:
    """Pack groups of jobs, or of parts of them with ``each`` rows, that have to go together into as few calls as fit; ``fits`` says whether
    so many rows do. The first group always goes first.
    """
    calls: list[list[Item]] = []
    for group in jobs:
        if calls and fits((len(calls[-1]) + len(group)) * each):
            calls[-1] += group
        else:
            calls.append([*group])
    return calls
