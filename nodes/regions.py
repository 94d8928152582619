"""Saying where: regions drawn, from masks, boxes and grids."""

from comfy_api.latest import io
from torch import Tensor

from ..cidm_ops.measure.pictures import from_image, to_image
from ..cidm_ops.measure.places import region_map
from ..cidm_ops.method.boxes import read_boxes
from ..cidm_ops.method.finding import UNTIL
from ..cidm_ops.method.regions import NOWHERE, RegionMask, box_mask
from . import say
from .paint import HANDLES
from .schema import schema, validate

RegionList = io.Custom("CIDM_REGIONS")
ONE, OTHER = "a <dog> in the snow", "a <cat> in the snow"
SOUGHT = "a <dog> on the left and a cat on the right in the snow\na dog on the left and a <cat> on the right in the snow"
BOXES = f"""[
  {{"text": "{ONE}", "box": [0.02, 0.05, 0.48, 1]}},
  {{"text": "{OTHER}", "box": [0.52, 0.05, 0.98, 1]}}
]"""
REGION_STRENGTH = io.Float.Input("strength", default=1.0, min=0.0, max=1.0, step=0.01, tooltip="Below 1, the global prompt has the rest.")
FEATHER = io.Float.Input(
    "feather", default=0.0, min=0.0, max=0.5, step=0.01, tooltip="Width of the soft edge, as a part of the picture's shorter side."
)


class CIDMRegion(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        def side(name: str, default: float, what: str) -> io.Float.Input:
            return io.Float.Input(
                name, default=default, min=0.0, max=1.0, step=0.01, tooltip=f"{what} of the box, as a part of the picture."
            )

        return schema(
            node_id="CIDMRegion",
            display_name="Concept Region",
            aliases="regional prompt, attention couple, area, mask, box, conditioning set area, conditioning set mask, character placement",
            category="CIDM/regions",
            description="A place in the picture with a prompt of its own: a mask, or else a box. Chain several.",
            inputs=[
                io.String.Input(
                    "text",
                    default=ONE,
                    multiline=True,
                    tooltip=f"What is there. The whole scene with this region's concept in it works best. {HANDLES}.",
                ),
                side("left", 0.0, "Left edge"),
                side("top", 0.0, "Top edge"),
                side("right", 0.5, "Right edge"),
                side("bottom", 1.0, "Bottom edge"),
                REGION_STRENGTH,
                io.Int.Input("priority", default=0, min=-100, max=100, tooltip="Where regions overlap, the highest wins; equals share."),
                FEATHER,
                io.Mask.Input("mask", optional=True, tooltip="One mask of any size, instead of the box."),
                RegionList.Input("regions", optional=True, tooltip="Regions before this one."),
            ],
            outputs=[RegionList.Output(display_name="regions", tooltip="For Paint in Regions, or for the next Concept Region.")],
        )

    @classmethod
    def execute(cls, text, left, top, right, bottom, strength, priority, feather, mask=None, regions=()) -> io.NodeOutput:
        if mask is not None and (mask := mask.reshape(-1, *mask.shape[-2:])).shape[0] != 1:
            raise ValueError(f"a batch of {len(mask)} masks: expected one for a region; take one Concept Region for each")
        place = RegionMask(box_mask(left, top, right, bottom) if mask is None else mask[0].float().cpu(), strength, priority, feather)
        return io.NodeOutput((*regions, (text, place)))


class CIDMRegionGrid(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="CIDMRegionGrid",
            display_name="Region Grid",
            aliases="regional prompt, columns, rows, grid, attention couple, split image, area",
            category="CIDM/regions",
            description="Divides the picture into columns and rows, one prompt for each cell.",
            inputs=[
                io.String.Input(
                    "texts",
                    default=f"{ONE}\n{OTHER}",
                    multiline=True,
                    tooltip=f"One prompt a line, cells row by row. {HANDLES}.",
                ),
                io.Int.Input("columns", default=2, min=1, max=16, tooltip="Cells side by side."),
                io.Int.Input("rows", default=1, min=1, max=16, tooltip="Cells one below another."),
                REGION_STRENGTH,
                FEATHER,
                RegionList.Input("regions", optional=True, tooltip="Regions before these."),
            ],
            outputs=[RegionList.Output(display_name="regions", tooltip="For Paint in Regions, or for the next Concept Region.")],
        )

    @classmethod
    def validate_inputs(cls, texts: str | None = None, columns: int | None = None, rows: int | None = None) -> bool | str:
        return validate(cell_texts, texts, columns, rows)

    @classmethod
    def execute(cls, texts: str, columns: int, rows: int, strength: float, feather: float, regions=()) -> io.NodeOutput:
        made = []
        for i, line in enumerate(cell_texts(texts, columns, rows)):
            row, column = divmod(i, columns)
            if line.strip():
                mask = box_mask(column / columns, row / rows, (column + 1) / columns, (row + 1) / rows)
                made.append((line.strip(), RegionMask(mask, strength, feather=feather)))
        return io.NodeOutput((*regions, *made))


class CIDMRegionBoxes(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="CIDMRegionBoxes",
            display_name="Draw Regions",
            aliases="regional prompt, draw boxes, bounding box, area editor, layout, attention couple, multi character, mask "
            "editor, canvas",
            category="CIDM/regions",
            description="Boxes drawn with the mouse or the keyboard, each with its prompt, strength, priority and soft edge.",
            inputs=[
                io.String.Input(
                    "boxes",
                    default=BOXES,
                    multiline=True,
                    dynamic_prompts=False,  # its braces are JSON's
                    tooltip="The boxes as JSON: a list of text and box (left, top, right, bottom, as parts of the picture); strength, "
                    f"priority and feather may be left out. {HANDLES}.",
                ),
                RegionList.Input("regions", optional=True, tooltip="Regions before these."),
            ],
            outputs=[RegionList.Output(display_name="regions", tooltip="For Paint in Regions, or for the next Concept Region.")],
        )

    @classmethod
    def validate_inputs(cls, boxes: str | None = None) -> bool | str:
        return validate(read_boxes, boxes)

    @classmethod
    def execute(cls, boxes: str, regions=()) -> io.NodeOutput:
        return io.NodeOutput((*regions, *read_boxes(boxes)))


class CIDMFindRegions(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="CIDMFindRegions",
            display_name="Find Regions",
            aliases="automatic mask, auto regions, regional prompt, attention couple, segment, multi character, no mask",
            category="CIDM/regions",
            description="Regions that nobody has to draw: in the first steps the global prompt lays the picture out, then each of these "
            "prompts gets the place that looked most at its concept. They never overlap.",
            inputs=[
                io.String.Input("texts", default=SOUGHT, multiline=True, tooltip=f"One prompt a line, with one concept each. {HANDLES}."),
                io.Float.Input(
                    "until_percent", default=UNTIL, min=0.01, max=1.0, step=0.01, tooltip="How long to look, as a part of the sampling."
                ),
                REGION_STRENGTH,
                FEATHER,
                RegionList.Input("regions", optional=True, tooltip="Regions before these."),
            ],
            outputs=[RegionList.Output(display_name="regions", tooltip="For Paint in Regions, or for the next Concept Region.")],
        )

    @classmethod
    def execute(cls, texts: str, until_percent: float, strength: float, feather: float, regions=()) -> io.NodeOutput:
        place = RegionMask(NOWHERE, strength, feather=feather, sought=until_percent)
        return io.NodeOutput((*regions, *((line.strip(), place) for line in texts.splitlines() if line.strip())))


class CIDMRegionPreview(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="CIDMRegionPreview",
            display_name="Preview Regions",
            aliases="show mask, preview boxes, show regions, layout preview",
            category="CIDM/regions",
            description="Which region has which part of the picture, with numbers and prompts, alone or over a picture.",
            inputs=[
                RegionList.Input("regions", tooltip="From Draw Regions, Concept Region or Region Grid."),
                io.Image.Input("image", optional=True, tooltip="A picture to see them over, dimmed; the first of a batch."),
            ],
            outputs=[io.Image.Output(display_name="picture", tooltip="The regions, and their prompts below.")],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, regions, image: Tensor | None = None) -> io.NodeOutput:
        picture = to_image(region_map(regions, None if image is None else from_image(image)))
        empty = [u for u, (_, place) in enumerate(regions, 1) if not place.mask.any()]
        lines = [f"region {u}: {text}" for u, (text, _) in enumerate(regions, 1)]
        warnings = [f"region {u} is empty: nothing of it will be painted" for u in empty]
        return say.output(cls, picture, text="\n".join(lines) or "no region", warnings=warnings, picture=picture)


def cell_texts(texts: str, columns: int, rows: int) -> list[str]:
    """Split the prompts of a grid. Raises ``ValueError`` for more of them than cells."""
    lines = texts.splitlines()
    if len(lines) > columns * rows:
        raise ValueError(f"{len(lines)} prompts for {columns} x {rows} cells: give at most one a cell; an empty line leaves a cell out")
    return lines


REGION_NODES = [CIDMRegion, CIDMRegionGrid, CIDMRegionBoxes, CIDMFindRegions, CIDMRegionPreview]
