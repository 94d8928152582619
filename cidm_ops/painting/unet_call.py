"""One call of the U-Net: every row with its own text, its own mixture of concepts at each token, its regions and its residuals."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from torch import Tensor

from ..adapters import attach
from ..hub import Attention, Sites, change_outputs, intercept, observe_grid, read_layerwise
from .call import Call
from .deltas import Deltas
from .referring import Referring
from .region_reading import RegionReading
from .residuals import Residuals
from .rows import Row, has_residuals
from .state import RunState


@dataclass(frozen=True)
class Moment:
    """What a scene does at one noise level: ``looking`` whether sought regions are looked for, ``residuals`` whether they act, ``layout``
    the layers whose outputs are the template's, ``asleep`` which of the scene's stacks do not act yet, and ``referring`` whether the
    reference is seen.
    """

    looking: bool = False
    residuals: bool = False
    layout: Sequence[str] = ()
    asleep: frozenset[int] = frozenset()
    referring: bool = False


class UnetCall(Call):
    """The hooks of one call at a ``moment``. ``size`` is that of the latent."""

    def __init__(self, run: RunState, sites: Sites, rows: Sequence[Row], size: tuple[int, int], moment: Moment):
        super().__init__(run, sites, rows, moment.asleep)
        self.looking, self.layout = moment.looking, moment.layout
        acting = moment.residuals and any(has_residuals(row.plan) for row in rows)
        self.deltas = Deltas(self)
        self.regions = RegionReading(self, self.deltas, size, acting)
        self.residuals = Residuals(self, self.regions.keys_and_values, acting)
        self.referring = Referring(self, moment.referring)

    @contextmanager
    def open(self, x: Tensor) -> Iterator[None]:
        """Let the model's layers do what the rows say, while this is open."""
        sites, regional, infused = self.sites, self.regional, bool(self.residuals.carried)
        with ExitStack() as hooks:
            self.grid = hooks.enter_context(observe_grid(sites.tokenizers))
            hooks.enter_context(read_layerwise(sites.blocks.values()))
            for layers in self.deltas.by_stack(x):
                hooks.enter_context(attach(sites.layers, layers))
            hooks.enter_context(change_outputs([sites.layers[name] for name in self.layout], self.of_template))
            if self.referring.rows:
                hooks.enter_context(intercept(self.referring.self_attentions(), self.referring.answer))
            if regional or infused:
                keyed = self.residuals.change_keys if infused and self.run.scene.infusion.stream == "released_code" else None
                select = self.regions.select_queries if regional else None
                hooks.enter_context(intercept(sites.cross_attention, self.attention, keyed, select))
            yield

    def of_template(self, output: Tensor) -> Tensor:
        """The output ``[B, ...]`` of a layer, in which every row has that of the template for its image (Plug-and-Play)."""
        self.check_rows(len(output), "a template")
        template = {row.image: number for number, row in enumerate(self.rows) if row.job.template}
        return output[[template[row.image] for row in self.rows]]

    def attention(self, at: Attention, out: Tensor) -> Tensor:
        """The output ``[B, T, C]`` of a cross-attention that has answered ``out [B, S, C]``."""
        self.check_rows(len(out), "regions" if self.regional else "concepts of Infusion")
        if self.looking:
            self.regions.look(at)
        if self.regional:
            out = self.regions.answer(at, out)
        return self.residuals.add_to(at, out)
