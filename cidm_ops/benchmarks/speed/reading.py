"""Texts are read before steps are timed, as nearly all steps of a run find theirs."""

from ...training.trainer import Trainer


def read_texts(run: Trainer) -> None:
    """Take the first step, and where the words have stopped read every text that a run meets."""
    with run.attach():
        run.advance()
    if not run.learner.texts_learn:
        for text in run.batches.texts():
            run.learner.encode([text])
