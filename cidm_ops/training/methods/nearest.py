"""What the words of a concept begin as: their class word, or the words of the concept in the bank that is nearest to the new pictures."""

from typing import Any

import torch

from ..method import Batch
from ..objective import add_noise, error

CLASS_WORD, NEAREST = STARTS = ("class word", "nearest")  # what the words begin as
PROBES = 16  # noised pictures that the words of earlier concepts are tried on


def begin_nearest(trainer: Any) -> None:
    """Has the words of a run begin as those of the earlier concept of the class with which the model errs least on the new pictures, before
    anything is learned: FLLP (arXiv 2601.01892) ties a new concept to a stored one too, by hyperbolic cones. Where none does better than
    the class word they begin as ever. They may then grow by as much as words that begin as the class word.
    """
    learner = trainer.learner
    if trainer.start is not None:
        trainer.warnings.append(f"start {NEAREST!r} has no part in it: {trainer.start.name!r} goes on from what it knows")
        return
    own = {encoder: rows.detach().clone() for encoder, rows in learner.tokens.items()}
    choices = {"": own} | {concept.name: concept.tokens for concept in trainer.earlier if learner.same_shape(concept)}
    if len(choices) == 1:
        wanted = trainer.task.class_word
        trainer.warnings.append(f"start {NEAREST!r}: the bank has no earlier {wanted!r} with such words, so they begin as the class word")
        return
    norm, errors = learner.norm, {}
    for name, rows in choices.items():
        learner.copy_words(rows)
        errors[name] = mean_error(trainer)
    learner.began_as = min(errors, key=lambda name: errors[name])
    trainer.task.processes.check_same(f"start {learner.began_as!r}")
    learner.copy_words(choices[learner.began_as])
    learner.norm_stop += learner.norm - norm


@torch.no_grad()
def mean_error(trainer: Any) -> float:
    """Returns the mean error of a run's model on its pictures, at noise that no step of the run draws and that is always the same."""
    total, config, backbone = 0.0, trainer.config, trainer.backbone
    for number in range(PROBES):
        samples, generator = trainer.batches.batch(-1 - number, 1)
        noised = add_noise(samples[0].latent[None], backbone.schedule, generator, config.noise_offset, config.min_snr)
        batch = Batch(noised, samples, 0)
        with trainer.computing(noised.x):
            total += float(error(trainer.learner.answer(noised.x, noised.t, batch.texts), noised, batch.mask).sum())
    return total / PROBES
