"""Graphs from a grammar: what the table has one node at a time is chained at random, and is the host's own picture or refused by name.

``CIDM_EXAMPLES=1000`` draws as many graphs instead of a few.

    graph := patch* ours patch* text? end      patch: a model patch of inside_patches.py, text: a node of inside_conditionings.py
    ours  := one of the subjects               end:   KSampler, or a guider of inside_guiders.py
"""

import os
import random
from dataclasses import dataclass
from typing import Any

from inside_conditionings import TEXTS, Text
from inside_guiders import GUIDERS, Guider
from inside_patches import PATCHES
from subjects import PLAIN, SAID, SUBJECTS, Patch, Scene, Subject, attempt, check_all, scene, verdict

# isort: split

import torch

GRAPHS = int(os.environ.get("CIDM_EXAMPLES", 20))
ALIKE = [patch for patch in PATCHES if not patch.paint]  # one step of one image
MOST = 2  # patches on one side of ours


@dataclass(frozen=True)
class Graph:
    """One of them: our part is at ``place`` among the patches."""

    subject: Subject
    patches: tuple[Patch, ...]
    place: int
    text: Text | None
    guider: Guider | None

    def __str__(self) -> str:
        chain = [patch.title for patch in self.patches]
        chain.insert(self.place, self.subject.name.upper())
        chain += [self.text.title] if self.text else []
        return " -> ".join([*chain, self.guider.title if self.guider else "KSampler"])

    @property
    def because(self) -> tuple[str, ...]:
        """What an error may name it by."""
        words = [word for patch in self.patches for word in (patch.node, *patch.because)]
        words += [self.text.node] if self.text else []
        return (*words, *([self.guider.node or "guider"] if self.guider else ()))

    def ours(self, s: Scene) -> torch.Tensor:
        model = applied(s, s.model, self.patches[: self.place])
        model, positive = self.subject.make(s, model)
        return self.ended(s, applied(s, model, self.patches[self.place :]), positive)

    def plainly(self, s: Scene) -> torch.Tensor:
        """The host alone: its own loader stands where ours does. What acts beside the layers is not multiplied with their weights."""
        before, after = self.patches[: self.place], self.patches[self.place :]
        if not self.subject.weights:
            before, after = (*before, *(p for p in after if p.scales)), tuple(p for p in after if not p.scales)
        model = applied(s, s.model, before)
        model = applied(s, s.with_lora(model) if self.subject.lora else model, after)
        return self.ended(s, model, s.text(SAID.get(self.subject.name, PLAIN)))

    def ended(self, s: Scene, model: Any, positive: list) -> torch.Tensor:
        positive, negative = self.text.act(positive) if self.text else (positive, s.negative)
        if self.guider:
            return s.guided(self.guider.make(s, model, positive, s.model))
        return s.paint(model, positive, negative)


def applied(s: Scene, model: Any, patches: tuple[Patch, ...]) -> Any:
    for patch in patches:
        model = patch.apply(s, model)
    return model


def draw(dice: random.Random) -> Graph:
    """In regions, a node that writes other numbers into the text changes the global one, which is seen where no region is: see there."""
    subject = dice.choice(list(SUBJECTS.values()))
    place, after = dice.randint(0, MOST), dice.randint(0, MOST)
    patches = tuple(dice.sample(ALIKE, place + after))
    texts = [text for text in TEXTS if text.steps == 1 and not (text.tensor and subject.column == "regions")]
    return Graph(subject, patches, place, dice.choice([None, *texts]), dice.choice([None, *GUIDERS]))


def the_graphs_from_a_grammar_paint_what_the_host_does_or_are_refused_by_name():
    s, found = scene(), {}
    dice, impossible = random.Random(0), 0
    while len(found) < GRAPHS:
        graph = draw(dice)
        try:
            want = graph.plainly(s)
            assert want.isfinite().all()
        except Exception:  # the host alone cannot
            impossible += 1
            assert impossible < GRAPHS, "the host alone cannot paint what the grammar says"
            continue
        got = attempt(lambda: graph.ours(s), graph.because)  # noqa: B023 -- called at once
        found[(str(graph),)] = verdict(got, want)
    refused = sum(said.startswith("refused") for said in found.values())
    print(f"{len(found)} graphs: {refused} refused by name; {impossible} that the host alone cannot paint")
    assert refused < len(found) / 2
    check_all(found)
