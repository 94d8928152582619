"""One run of a sampler on a model with concepts beside it, step by step."""

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..concept_text import plans_of
from ..hub import Sites
from ..method.blending import blend
from ..method.regions import cells
from ..row_plan import RowPlan
from .config import NoiseEstimation
from .rows import ALL, NONE, Job, Row, has_residuals, pack_jobs, rows_of
from .state import RunState
from .unet_call import Moment, UnetCall


@dataclass(frozen=True)
class Unet:
    """The model at one step, as an engine runs it: ``call(jobs, rows, x, text)`` is its answer for some rows of the batch,
    ``background(x)`` what it reads for plain background noised like ``x``, ``template(x)`` what it reads for the template in place of
    the images ``x``, ``reference(x, number)`` for one of the reference's pictures, and ``fits(rows)`` whether there is memory for so many.
    """

    call: Callable[[Sequence[Job], Sequence[int], Tensor, Tensor], Tensor]
    background: Callable[[Tensor], Tensor]
    template: Callable[[Tensor], Tensor]
    reference: Callable[[Tensor, int], Tensor]
    fits: Callable[[int], bool] = lambda rows: True


class SceneRun(RunState):
    """A run: what goes through the U-Net in a step, and what comes of it."""

    def predict(
        self,
        sites: Sites,
        x: Tensor,
        text: Tensor,
        sigma: float,
        keys: Sequence[Hashable],
        unet: Unet,
    ) -> Tensor:
        """The prediction for a batch ``x [B, C, h, w]`` that reads ``text [B, N, D]``, divided into chunks with these ``keys``.

        Raises ``ValueError`` for texts of other regions.
        """
        plans, each = plans_of(text), len(x) // len(keys)
        self.check(plans)
        looking = bool(self.sought) and sigma > min(self.sought.values())
        if self.seen and not looking:
            self.find()
        calls = pack_jobs(self.jobs(plans, each, len(keys), sigma), each, unet.fits)
        answers: dict[Job, Tensor] = {}
        for jobs in calls:
            rows = rows_of(jobs, plans, keys, each)
            at = [job.chunk * each + image for job in jobs for image in range(each)]
            whole = at == list(range(len(x)))
            some, read = (x, text) if whole else (x[at], text[at])
            some = self.hidden(some, rows, unet.background)
            some, read, rows = self.with_guests(some, read, rows, unet)
            size = (some.shape[-2], some.shape[-1])
            moment = Moment(looking, self.active(sigma), self.layout_layers(sigma), self.asleep(sigma), self.referring(sigma))
            with UnetCall(self, sites, rows, size, moment).open(some):
                output = unet.call(jobs, at, some, read)
            answers |= dict(zip(jobs, output.split(each), strict=True))
        return self.blend_passes(answers, len(keys))

    def check(self, plans: Sequence[RowPlan | None]) -> None:
        for plan in plans:
            if plan is not None and plan.regions and len(plan.regions) != len(self.scene.masks):
                raise ValueError(
                    f"a text has the prompts of {len(plan.regions)} regions and the model has {len(self.scene.masks)}: connect the model "
                    "and the conditioning of one Paint in Regions"
                )

    def active(self, sigma: float) -> bool:
        """Whether residuals act at this noise level."""
        first, last = self.residuals
        return not self.scene.infusion.never and last <= sigma <= first

    def layout_layers(self, sigma: float) -> list[str]:
        """The layers whose outputs are the template's at this noise level."""
        if not (template := self.scene.template) or not self.layout_until:
            return []
        attention, residual = self.layout_until
        return [*(template.attention if sigma > attention else ()), *(template.residual if sigma > residual else ())]

    def referring(self, sigma: float) -> bool:
        """Whether texts refer to the reference at this noise level."""
        if not (reference := self.scene.reference) or not self.refers:
            return False
        first, last = self.refers
        return reference.how.strength > 0 and reference.how.start < reference.how.end and last < sigma <= first

    def jobs(self, plans: Sequence[RowPlan | None], each: int, chunks: int, sigma: float) -> list[list[Job]]:
        """List what has to go through the model, in groups that go together: first the batch with its foundations, the template while
        its layout is kept and the reference while it is referred to, then passes of regions.

        ``plans`` are those of ``chunks`` times ``each`` rows.
        """
        texts = [plans[i * each : (i + 1) * each] for i in range(chunks)]
        estimation, hidden = self.passing(sigma)
        around = NONE if estimation and not estimation.features else ALL
        twice = self.active(sigma) and self.scene.infusion.stream == "dual"
        second = [c for c, own in enumerate(texts) if twice and any(map(has_residuals, own))]
        jobs = [[Job(c, around) for c in range(chunks)] + [Job(c, around, foundation=True) for c in second]]
        if self.layout_layers(sigma):
            wanted = next((c for c, own in enumerate(texts) if any(plan and plan.composed for plan in own)), 0)
            jobs[0].append(Job(wanted, NONE, template=True))  # with the conditions of the prompt, such as the size of the image
        if self.referring(sigma) and self.scene.reference:
            marked = next((c for c, own in enumerate(texts) if any(plan and plan.refers for plan in own)), None)
            pictures = range(1, len(self.scene.reference.latents) + 1) if marked is not None else ()
            jobs[0] += [Job(marked or 0, NONE, reference=number) for number in pictures]
        divided = [c for c, own in enumerate(texts) if any(plan and plan.regions for plan in own)]
        for c in divided if estimation else ():
            for u in range(1, len(self.scene.masks) + 1):
                jobs.append([Job(c, u, hidden)] + [Job(c, u, hidden, foundation=True)] * (c in second))
        return jobs

    def passing(self, sigma: float) -> tuple[NoiseEstimation | None, bool]:
        """How regions have passes of their own at this noise level, ``None`` if they have none, and whether those see plain background
        outside of their region.
        """
        how = self.scene.estimation
        if not how or not self.passes:
            return None, False
        first, last, bootstrap = self.passes
        return how if how.alpha < 1 and last < sigma <= first else None, how.bootstrap > 0 and sigma > bootstrap

    def hidden(self, x: Tensor, rows: Sequence[Row], background: Callable[[Tensor], Tensor]) -> Tensor:
        """``x`` with plain background outside of the region of rows that are to see nothing else. The mask is binary, so that noise keeps
        its variance.
        """
        alone = [b for b, row in enumerate(rows) if row.job.hidden]
        if not alone:
            return x
        masks = [self.masks[rows[b].image if len(self.masks) > 1 else 0][rows[b].job.region - 1].mask for b in alone]
        inside = torch.stack([cells(mask, *x.shape[-2:]) for mask in masks])[:, None].to(x.device).bool()
        x = x.clone()
        x[alone] = torch.where(inside, x[alone], background(x[alone]))
        return x

    def with_guests(self, x: Tensor, text: Tensor, rows: list[Row], unet: Unet) -> tuple[Tensor, Tensor, list[Row]]:
        """The images and texts of a call, and its rows, with the template and the reference, and their own texts, in their rows."""
        for job in dict.fromkeys(row.job for row in rows if row.job.guest):
            at = [b for b, row in enumerate(rows) if row.job == job]
            own, read, key = self.guest(job, x[at], unet)
            own = own.to(text.device, text.dtype)
            length = math.lcm(text.shape[1], own.shape[1])  # a text that is repeated means the same to attention
            text, own = text.repeat(1, length // text.shape[1], 1), own.repeat(len(at), length // own.shape[1], 1)
            x = torch.cat([x[: at[0]], read, x[at[-1] + 1 :]])
            text = torch.cat([text[: at[0]], own, text[at[-1] + 1 :]])
            rows = [replace(row, plan=plans_of(own)[0], key=key) if row.job == job else row for row in rows]
        return x, text, rows

    def guest(self, job: Job, x: Tensor, unet: Unet) -> tuple[Tensor, Tensor, str]:
        """The text ``[1, N, C]`` of a picture that is not of the batch, what the model reads for it in place of ``x``, and its key."""
        template, reference = self.scene.template, self.scene.reference
        if job.template and template:
            return template.picture.text, unet.template(x), "template"
        assert reference is not None
        return reference.text, unet.reference(x, job.reference - 1), "reference"

    def blend_passes(self, answers: dict[Job, Tensor], chunks: int) -> Tensor:
        """Return the answers of the batch itself, each blended with those of the passes of its regions."""
        outputs = []
        for job, whole in list(answers.items())[:chunks]:
            passes = [answer for other, answer in answers.items() if other.chunk == job.chunk and other.region > 0 and not other.foundation]
            outputs.append(blend(whole, passes, self.blend_weights(*whole.shape[-2:])) if passes else whole)
        return torch.cat(outputs)
