"""Each score as a section of a report: its figure with an interval, what it is, a table, plots and sheets.

Embeddings are unit vectors ``[N, E]`` of one image tower; pictures are ``[3, H, W]`` in [-1, 1], of any shape.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from .divergence import Divergence, Levels
from .diversity import diversity_interval, diversity_ratio
from .forgetting import forgetting, forgetting_interval
from .interval import Interval, mean_interval, several
from .pictures import heat_map
from .plots import interval_plot, line_plot, scatter_plot
from .presence import Presence, separation
from .report import Section
from .scores import alignments, clip_scores, self_alignment
from .sheets import Strip, sheet
from .wasserstein import wasserstein, wasserstein_interval

MOST = 48  # pictures of one sheet
IA = "Mean cosine of every picture with every reference, in the space of the image tower (CIDM 4.1). 1 is the same picture."
TA = "2.5 max(0, cosine) of every picture with its own caption (CLIPScore's scaling, as in CIDM 4.1), and the plain cosine."
PRESENCE = (
    "A picture or region shows the concept whose references it lies nearest to, by mean cosine. The figure is how often that is the one "
    "expected."
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
    groups: Mapping[str, tuple[Tensor, Tensor]],
    pictures: Sequence[Tensor],
    shown: Sequence[Tensor] = (),
    title: str = "Image alignment (IA)",
    what: str = "concept",
) -> Section:
    """Of groups (each a ``what``: a concept or a region) of embeddings ``[N, E]`` and references ``[M, E]``; ``pictures`` are those of all
    groups in turn.
    """
    values = {name: alignments(embeddings, references).cpu() for name, (embeddings, references) in groups.items()}
    found = {name: mean_interval(v, several(len(v), "picture")) for name, v in values.items()}
    ceilings = [self_alignment(r) if len(r) > 1 else float("nan") for _, r in groups.values()]
    total = _total(found, what)
    columns = ("", "IA", "low", "high", "least", "most", "pictures", "references among themselves")
    rows = [
        [name, i.value, i.low, i.high, float(v.min()), float(v.max()), len(v), ceiling]
        for (name, i), v, ceiling in zip(found.items(), values.values(), ceilings, strict=True)
    ]
    plots = [interval_plot([*found.items(), *_also("mean", total, found)], title)]
    everything = torch.cat(list(values.values()))
    named = [name for name, v in values.items() for _ in v]
    order = everything.argsort(descending=True)[:MOST].tolist()
    strips = [Strip("References", shown[:MOST])] if len(shown) else []
    strips.append(Strip("Most alike first", [pictures[i] for i in order], [(f"{everything[i]:.3f}", named[i]) for i in order]))
    return Section(title, IA, total, columns, rows, [*plots, sheet(strips, title)])


def text_section(cosines: Mapping[str, Tensor], pictures: Sequence[Tensor], captions: Sequence[str]) -> Section:
    """Of groups of cosines ``[N]`` of pictures with their captions; ``pictures`` and ``captions`` are those of all groups in turn."""
    title = "Text alignment (TA)"
    found = {name: mean_interval(clip_scores(c), several(len(c), "picture")) for name, c in cosines.items()}
    total = _total(found, "concept")
    rows = [[name, i.value, i.low, i.high, float(c.mean()), len(c)] for (name, i), c in zip(found.items(), cosines.values(), strict=True)]
    everything = torch.cat(list(cosines.values()))
    order = everything.argsort(descending=True)[:MOST].tolist()
    strip = Strip("Closest to its caption first", [pictures[i] for i in order], [(f"{everything[i]:.3f}", captions[i]) for i in order])
    plot = interval_plot([*found.items(), *_also("mean", total, found)], title)
    shown = sheet([strip], title, "Under each picture: the plain cosine, and its caption.", side=150)
    return Section(title, TA, total, ("", "TA", "low", "high", "plain cosine", "pictures"), rows, [plot, shown])


def presence_section(
    presence: Presence, references: Mapping[str, Tensor], embeddings: Tensor, expected: Sequence[str], pictures: Sequence[Tensor]
) -> Section:
    """Of pictures or crops ``[N, E]`` in which ``expected [N]`` should be. Raises ``ValueError`` for a name without references."""
    if unknown := sorted(set(expected) - set(presence.names)):
        raise ValueError(f"there are no references of {', '.join(map(repr, unknown))}: expected names out of {', '.join(presence.names)}")
    title = "Presence"
    cosines, found = presence.cosines(embeddings).cpu(), presence.found(embeddings)
    right = torch.tensor([float(a == b) for a, b in zip(found, expected, strict=True)])
    rows, parts = presence.table(embeddings, expected)
    total = mean_interval(right, several(len(right), "picture"))
    own = torch.tensor([presence.names.index(name) for name in expected])
    margin = cosines.gather(1, own[:, None])[:, 0] - cosines.scatter(1, own[:, None], -torch.inf).amax(1)
    table = []
    for row, name in enumerate(rows):
        mine = [i for i, want in enumerate(expected) if want == name]
        table.append([name, float(parts[row, presence.names.index(name)]), float(margin[mine].mean()), len(mine)])
    order = sorted(range(len(expected)), key=lambda i: float(margin[i]))[:MOST]
    labels = [(f"{found[i]} {cosines[i].max():.2f}", f"expected {expected[i]}" if found[i] != expected[i] else "right") for i in order]
    note = f"Pairs of references of one concept lie above pairs of two with probability {separation(references):.3f}; 0.5 is chance."
    drawn = heat_map(parts, rows, presence.names, "Expected (rows) and found (columns)", "Part of the pictures in each row.")
    shown = sheet([Strip("The least certain first", [pictures[i] for i in order], labels)], title)
    columns = ("expected", "found", "cosine above the next", "pictures")
    return Section(title, f"{PRESENCE} {note}", total, columns, table, [drawn, shown])


def diversity_section(embeddings: Tensor, pictures: Sequence[Tensor], base: Tensor | None = None) -> Section:
    """Of pictures ``[N, E]``, beside those of the ``base [M, E]``."""
    title = "Diversity"
    own = diversity_interval(embeddings)
    rows: list[tuple[str, Interval]] = [("pictures", own)]
    if base is not None:
        rows += [("base", diversity_interval(base)), ("pictures / base", diversity_ratio(embeddings, base))]
    table = [[name, i.value, i.low, i.high, i.over] for name, i in rows]
    shown = sheet([Strip("The pictures", pictures[:MOST])], title)
    return Section(title, DIVERSITY, own, ("", "mean 1 - cosine", "low", "high", "over"), table, [interval_plot(rows, title), shown])


def wasserstein_section(base: Tensor, embeddings: Tensor, base_pictures: Sequence[Tensor], pictures: Sequence[Tensor]) -> Section:
    """Of features of the original model's pictures ``[N, E]`` and of the customised one's ``[M, E]``."""
    title = "Wasserstein metric, W2 squared (our estimator)"
    found, interval = wasserstein(base, embeddings), wasserstein_interval(base, embeddings)
    rows: list[list[object]] = [
        ["W2 squared", found.squared],
        ["mean term", found.mean],
        ["covariance term", found.covariance],
        ["noise floor", found.floor],
        ["spread of the original, tr S", found.spread_x],
        ["spread of the customised, tr S", found.spread_y],
        ["ratio of spreads", found.ratio],
    ]
    middle = base.double().mean(0)
    axes = torch.linalg.svd(torch.cat([base, embeddings]).double() - middle, full_matrices=False).Vh[:2].T
    flat = {name: ((z.double() - middle) @ axes).tolist() for name, z in (("original", base), ("customised", embeddings))}
    note = "The features on the two directions in which they vary most."
    drawn = scatter_plot({k: [(p[0], p[1] if len(p) > 1 else 0.0) for p in v] for k, v in flat.items()}, "Both sets", note)
    strips = [Strip("Original", base_pictures[: MOST // 2]), Strip("Customised", pictures[: MOST // 2])]
    return Section(title, W2, interval, ("", ""), rows, [drawn, sheet(strips, "What was compared")])


def divergence_section(groups: Mapping[str, Divergence], levels: Levels) -> Section:
    """Of groups of prompts."""
    title = "Latent Fisher divergence (our estimator)"
    eps = {name: d.interval() for name, d in groups.items()}
    nats = {name: d.likelihood_interval() for name, d in groups.items()}
    columns = ("prompts", "eps form", "low", "high", "likelihood form, nats", "low", "high", "latents")
    rows = [[n, e.value, e.low, e.high, nats[n].value, nats[n].low, nats[n].high, len(groups[n].eps)] for n, e in eps.items()]
    whole = mean_interval(torch.cat([d.eps for d in groups.values()]), several(sum(len(d.eps) for d in groups.values()), "latent"))
    labels = [f"{s:.3g}" for s in levels.sigmas.tolist()]
    curve = line_plot({n: d.curve.tolist() for n, d in groups.items()}, labels, "Where it differs", "Eps form by noise level.", "sigma")
    return Section(title, LFD, whole, columns, rows, [interval_plot(list(eps.items()), title, "Eps form."), curve])


def forgetting_section(names: Sequence[str], scores: Tensor, points: Sequence[str]) -> Section:
    """Of scores ``[points, concepts]``, nan where a concept was not yet learned."""
    title = "Forgetting"
    lost = forgetting(scores)
    rows = [[name, *scores[:, i].tolist(), float(lost[i])] for i, name in enumerate(names)]
    curve = line_plot({n: scores[:, i].tolist() for i, n in enumerate(names)}, points, "Each concept along the sequence")
    top = max(1e-9, float(scores.nan_to_num(0).abs().max()))
    drawn = heat_map(scores.T.nan_to_num(0), names, points, "Scores", "Concepts by point in the sequence; 0 before they were learned.", top)
    return Section(title, FORGETTING, forgetting_interval(scores), ("concept", *points, "best - last"), rows, [curve, drawn])


def routing_section(prompts: Sequence[str], names: Sequence[str], weights: Tensor, named: Sequence[Sequence[str]]) -> Section:
    """Of weights ``[prompts, concepts]``, means over layers, and the concepts ``named`` in each prompt."""
    title = "Routing"
    size = weights.abs()
    right = torch.stack([size[i, [names.index(n) for n in own]].sum() for i, own in enumerate(named)])
    share = right / size.sum(1).clamp(min=1e-12)
    spoken = [i for i, own in enumerate(named) if own]
    figure = mean_interval(share[spoken], several(len(spoken), "prompt")) if spoken else None
    top = max(1.0, float(size.max())) if weights.numel() else 1.0
    drawn = heat_map(weights, prompts, [f"<{n}>" for n in names], title, "Weight of each concept for each prompt, mean over layers.", top)
    about = "How much of each concept every prompt takes, mean over layers. The figure: the part that goes to concepts named in it."
    rows = [[prompt, *weights[i].tolist(), float(share[i])] for i, prompt in enumerate(prompts)]
    return Section(title, about, figure, ("prompt", *(f"<{n}>" for n in names), "share of those named"), rows, [drawn])


def _total(found: Mapping[str, Interval], what: str) -> Interval:
    """The only figure, or the mean over groups, groups drawn again."""
    if len(found) == 1:
        return next(iter(found.values()))
    return mean_interval(torch.tensor([i.value for i in found.values()]), several(len(found), what))


def _also(name: str, total: Interval, found: Mapping[str, Interval]) -> list[tuple[str, Interval]]:
    return [(name, total)] if len(found) > 1 else []
