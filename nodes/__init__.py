"""The ComfyUI face: schemas that call ``cidm_ops``, one file per area."""

from comfy_api.latest import ComfyExtension, io

from .aggregation import AGGREGATION_NODES
from .bank import BANK_NODES
from .base import BASE_NODES
from .composition import COMPOSITION_NODES
from .contrast import CONTRAST_NODES
from .data import DATA_NODES
from .doodle import DOODLE_NODES
from .editing import EDITING_NODES
from .exchange import EXCHANGE_NODES
from .fisher import FISHER_NODES
from .infusion import INFUSION_NODES
from .inspection import INSPECTION_NODES
from .keep import KEEP_NODES
from .listing import add_routes
from .paint import PAINT_NODES
from .picking import PICKING_NODES
from .pictures import PICTURE_NODES
from .reference import REFERENCE_NODES
from .regions import REGION_NODES
from .reports import REPORT_NODES
from .say import tell_errors
from .scores import SCORE_NODES
from .settings import SETTINGS_NODES
from .sifting import SIFTING_NODES
from .together import TOGETHER_NODES
from .train import TRAIN_NODES
from .views import VIEW_NODES
from .weaving import WEAVING_NODES
from .wish import WISH_NODES


class CIDM(ComfyExtension):
    def __init__(self) -> None:
        add_routes()  # here, as not every host calls on_load

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        teaching = [*BASE_NODES, *DOODLE_NODES, *DATA_NODES, *SIFTING_NODES, *SETTINGS_NODES, *TRAIN_NODES, *TOGETHER_NODES]
        teaching += CONTRAST_NODES
        keeping = [*BANK_NODES, *KEEP_NODES, *PICTURE_NODES, *VIEW_NODES, *EXCHANGE_NODES, *INSPECTION_NODES]
        painting = [*PAINT_NODES, *AGGREGATION_NODES, *REGION_NODES, *COMPOSITION_NODES, *EDITING_NODES, *INFUSION_NODES, *WEAVING_NODES]
        painting += [*WISH_NODES, *REFERENCE_NODES, *PICKING_NODES]
        return [tell_errors(node) for node in (*teaching, *keeping, *painting, *SCORE_NODES, *FISHER_NODES, *REPORT_NODES)]
