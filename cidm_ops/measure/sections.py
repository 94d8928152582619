"""Each score as a section of a report: its figure with an interval, what it is, a table, plots and sheets.

Nothing is computed here: a section takes what was scored. Pictures are ``[3, H, W]`` in [-1, 1], of any shape.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from .divergence import Divergence, Levels, mean_over_latents
from .diversity import DiversityScore
from .forgetting import ForgettingScore
from .interval import Interval
from .pictures import heat_map
from .plots import interval_plot, line_plot, scatter_plot
from .presence import PresenceScore
from .report import Section
from .routing import RoutingScore
from .scores import ImageAlignment, TextAlignment, mean_over
from .sheets import Strip, sheet
from .wasserstein import Wasserstein

MOST = 48  # pictures of one sheet
IA = "Mean cosine of every picture with every reference, in the space of the image tower (CIDM 4.1). 1 is the same picture."
IMS = (
    "Cosine of every picture with the mean of the references, in the space of the image tower: identity matching, after MetaCloak. How the "
    "IMS of the leaderboards is computed is unpublished, so this is our reading. 1 is what the references have in common."
)
TA = "2.5 max(0, cosine) of every picture with its own caption (CLIPScore's scaling, as in CIDM 4.1), and the plain cosine."
PRESENCE = (
    "A picture or region shows the concept whose references it lies nearest to, by mean cosine. The figure is how often that is the one "
    "expected."
)
COLLAPSED = (
    "Collapsed are {collapsed}: their mean cosine with the references of the concept that was asked for is below {bound:.3f}, which best "
    "tells a reference of a concept from one of another."
)
DIVERSITY = "Mean 1 - cosine over all pairs of different pictures: 0 where all are the same."
W2 = (
    "Squared 2-Wasserstein distance of Gaussians through the features of both sets (our estimator). The mean term moves when identity "
    "does, and should; that pictures get alike shows in the covariance term and in a ratio of spreads below 1. Nothing below the noise "
    "floor, what two halves of the original's pictures are apart, means anything."
)
LFD = (
    "How far the customised model's scores are from the original's on noised latents of the original (our estimator), without guidance. "
    "Eps form: mean squared difference per latent value over trained timesteps. Likelihood form: its integral over ln sigma, in nats. 0 is "
    "untouched."
)
FORGETTING = (
    "The best a concept ever was in the sequence, less what it is after the last task; 0 where the last is the best. Mean over concepts."
)


def image_section(
    groups: Mapping[str, ImageAlignment],
    pictures: Sequence[Tensor],
    shown: Sequence[Tensor] = (),
    title: str = "Image alignment (IA)",
    what: str = "concept",
    matched: bool = False,
) -> Section:
    """Shows the image alignment of groups, each a ``what``: a concept or a region. ``pictures`` are those of all groups in turn, ``shown``
    some of the references. ``matched``: the figure, the plot and the order of the pictures are those of identity matching.
    """
    figures = {name: g.matching if matched else g.mean for name, g in groups.items()}
    total = mean_over([*figures.values()], what)
    columns = ("", "IA", "low", "high", "least", "most", "pictures", "references among themselves", "IMS", "low", "high")
    rows = [
        [name, *_of(g.mean), float(g.values.min()), float(g.values.max()), len(g.values), g.ceiling, *_of(g.matching)]
        for name, g in groups.items()
    ]
    plot = interval_plot(_with_mean(figures, total), title)
    everything = torch.cat([g.matches if matched else g.values for g in groups.values()])
    named = [name for name, g in groups.items() for _ in g.values]
    order = everything.argsort(descending=True)[:MOST].tolist()
    strips = [Strip("References", shown[:MOST])] if len(shown) else []
    strips.append(Strip("Most alike first", [pictures[i] for i in order], [(f"{everything[i]:.3f}", named[i]) for i in order]))
    return Section(title, IMS if matched else IA, total, columns, rows, [plot, sheet(strips, title)])


def text_section(groups: Mapping[str, TextAlignment], pictures: Sequence[Tensor], captions: Sequence[str]) -> Section:
    """Shows the text alignment of groups; ``pictures`` and ``captions`` are those of all groups in turn."""
    title = "Text alignment (TA)"
    total = mean_over([g.mean for g in groups.values()], "concept")
    rows = [[name, g.mean.value, g.mean.low, g.mean.high, float(g.cosines.mean()), len(g.cosines)] for name, g in groups.items()]
    everything = torch.cat([g.cosines for g in groups.values()])
    order = everything.argsort(descending=True)[:MOST].tolist()
    strip = Strip("Closest to its caption first", [pictures[i] for i in order], [(f"{everything[i]:.3f}", captions[i]) for i in order])
    plot = interval_plot(_with_mean({name: g.mean for name, g in groups.items()}, total), title)
    shown = sheet([strip], title, "Under each picture: the plain cosine, and its caption.", side=150)
    return Section(title, TA, total, ("", "TA", "low", "high", "plain cosine", "pictures"), rows, [plot, shown])


def presence_section(score: PresenceScore, pictures: Sequence[Tensor]) -> Section:
    """Shows which concept each of ``pictures [N]`` or crops was found to show."""
    title = "Presence"
    names, parts = score.confusion()
    rows = []
    for row, name in enumerate(names):
        mine = [i for i, want in enumerate(score.expected) if want == name]
        found, above = float(parts[row, score.names.index(name)]), float(score.margins[mine].mean())
        fallen = math.nan if score.bound is None else float((score.own[mine] < score.bound).float().mean())
        rows.append([name, found, above, len(mine), fallen])
    order = sorted(range(len(score.expected)), key=lambda i: float(score.margins[i]))[:MOST]
    labels = []
    for i in order:
        seen, want = score.found[i], score.expected[i]
        labels.append((f"{seen} {score.cosines[i]:.2f}", f"expected {want}" if seen != want else "right"))
    note = f"Pairs of references of one concept lie above pairs of two with probability {score.told_apart:.3f}; 0.5 is chance."
    if score.collapsed is not None:
        note = f"{note} {COLLAPSED.format(collapsed=score.collapsed, bound=score.bound)}"
    drawn = heat_map(parts, names, score.names, "Expected (rows) and found (columns)", "Part of the pictures in each row.")
    shown = sheet([Strip("The least certain first", [pictures[i] for i in order], labels)], title)
    columns = ("expected", "found", "cosine above the next", "pictures", "collapsed")
    return Section(title, f"{PRESENCE} {note}", score.right, columns, rows, [drawn, shown])


def diversity_section(score: DiversityScore, pictures: Sequence[Tensor]) -> Section:
    """Shows how varied ``pictures`` are."""
    title = "Diversity"
    measured = {"pictures": score.own, "base": score.base, "pictures / base": score.ratio}
    known = [(name, interval) for name, interval in measured.items() if interval is not None]
    rows = [[name, i.value, i.low, i.high, i.over] for name, i in known]
    shown = sheet([Strip("The pictures", pictures[:MOST])], title)
    columns = ("", "mean 1 - cosine", "low", "high", "over")
    return Section(title, DIVERSITY, score.own, columns, rows, [interval_plot(known, title), shown])


def wasserstein_section(
    found: Wasserstein, interval: Interval, features: tuple[Tensor, Tensor], pictures: tuple[Sequence[Tensor], Sequence[Tensor]]
) -> Section:
    """Shows a distance with its interval, and the ``features [N, E]`` and ``pictures`` that it is of: original, customised."""
    title = "Wasserstein metric, W2 squared (our estimator)"
    rows: list[list[object]] = [
        ["W2 squared", found.squared],
        ["mean term", found.mean],
        ["covariance term", found.covariance],
        ["noise floor", found.floor],
        ["spread of the original, tr S", found.spread_x],
        ["spread of the customised, tr S", found.spread_y],
        ["ratio of spreads", found.ratio],
    ]
    middle = features[0].double().mean(0)
    axes = torch.linalg.svd(torch.cat(features).double() - middle, full_matrices=False).Vh[:2].T
    flat = [((z.double() - middle) @ axes).tolist() for z in features]
    spots = [[(p[0], p[1] if len(p) > 1 else 0.0) for p in points] for points in flat]
    note = "The features on the two directions in which they vary most."
    drawn = scatter_plot(dict(zip(("original", "customised"), spots, strict=True)), "Both sets", note)
    strips = [Strip("Original", pictures[0][: MOST // 2]), Strip("Customised", pictures[1][: MOST // 2])]
    return Section(title, W2, interval, ("", ""), rows, [drawn, sheet(strips, "What was compared")])


def divergence_section(groups: Mapping[str, Divergence], levels: Levels) -> Section:
    """Shows the divergence of groups of prompts."""
    title = "Latent Fisher divergence (our estimator)"
    eps = {name: d.interval() for name, d in groups.items()}
    nats = {name: d.likelihood_interval() for name, d in groups.items()}
    columns = ("prompts", "eps form", "low", "high", "likelihood form, nats", "low", "high", "latents")
    rows = [[n, e.value, e.low, e.high, nats[n].value, nats[n].low, nats[n].high, len(groups[n].eps)] for n, e in eps.items()]
    labels = [f"{s:.3g}" for s in levels.sigmas.tolist()]
    curve = line_plot({n: d.curve.tolist() for n, d in groups.items()}, labels, "Where it differs", "Eps form by noise level.", "sigma")
    total = mean_over_latents(groups.values())
    return Section(title, LFD, total, columns, rows, [interval_plot(list(eps.items()), title, "Eps form."), curve])


def forgetting_section(score: ForgettingScore, points: Sequence[str]) -> Section:
    """Shows what concepts lost along a sequence whose ``points`` have these names."""
    title, names, scores = "Forgetting", score.names, score.scores
    rows = [[name, *scores[:, i].tolist(), float(score.lost[i])] for i, name in enumerate(names)]
    curve = line_plot({n: scores[:, i].tolist() for i, n in enumerate(names)}, points, "Each concept along the sequence")
    top = max(1e-9, float(scores.nan_to_num(0).abs().max()))
    drawn = heat_map(scores.T.nan_to_num(0), names, points, "Scores", "Concepts by point in the sequence; 0 before they were learned.", top)
    return Section(title, FORGETTING, score.mean, ("concept", *points, "best - last"), rows, [curve, drawn])


def routing_section(score: RoutingScore) -> Section:
    """Shows how much of each concept prompts take."""
    title, weights = "Routing", score.weights
    handles = [f"<{name}>" for name in score.names]
    top = max(1.0, float(weights.abs().max())) if weights.numel() else 1.0
    drawn = heat_map(weights, score.prompts, handles, title, "Weight of each concept for each prompt, mean over layers.", top)
    about = "How much of each concept every prompt takes, mean over layers. The figure: the part that goes to concepts named in it."
    rows = [[prompt, *weights[i].tolist(), float(score.share[i])] for i, prompt in enumerate(score.prompts)]
    return Section(title, about, score.mean, ("prompt", *handles, "share of those named"), rows, [drawn])


def _of(interval: Interval) -> tuple[float, float, float]:
    """An interval as three cells of a table."""
    return interval.value, interval.low, interval.high


def _with_mean(groups: Mapping[str, Interval], total: Interval) -> list[tuple[str, Interval]]:
    """The figures of a plot: every group, and their mean where there are several."""
    return [*groups.items(), ("mean", total)] if len(groups) > 1 else list(groups.items())
