"""Scores of whole sequences and banks, and the page that holds them all."""

from pathlib import Path

import folder_paths
from comfy_api.latest import io

from ..cidm_ops.bank.bank import Bank
from ..cidm_ops.measure.forgetting import points_in, score_forgetting, scores_of
from ..cidm_ops.measure.report import write_html
from ..cidm_ops.measure.routing import score_routing
from ..cidm_ops.measure.sections import forgetting_section, routing_section
from ..cidm_ops.painting.compose import AggregationConfig, mix
from . import host, say
from .bank import BANK
from .paint import BATCH, CLIP, HANDLES, MODE, MODEL, SETTINGS, STRENGTH, read_aggregation
from .results import BEFORE, CATEGORY, Results, finish, outputs
from .schema import schema

SEQUENCE = '[{"dog": 0.70},\n {"dog": 0.70, "cat": 0.85}]'


class CIDMForgetting(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="CIDMForgetting",
            display_name="Forgetting",
            aliases="catastrophic forgetting, forgetting matrix, continual learning, evaluate",
            category=CATEGORY,
            description="What concepts lost on the way: best minus last along a sequence of tasks, from folders of cidm evaluate or from "
            "a table.",
            inputs=[
                io.String.Input(
                    "table",
                    default=SEQUENCE,
                    multiline=True,
                    tooltip="The scores after each task as JSON, or the folders that cidm evaluate wrote after each, one a line.",
                ),
                BEFORE,
            ],
            outputs=outputs("Mean over concepts of the best minus the last: 0 where nothing was forgotten."),
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def fingerprint_inputs(cls, table: str, **_) -> list[float]:
        files = [Path(line.strip()) / "scores.json" for line in table.splitlines() if line.strip()]
        return [] if table.lstrip().startswith("[") else [file.stat().st_mtime for file in files if file.exists()]

    @classmethod
    def execute(cls, table: str, results=None) -> io.NodeOutput:
        if table.lstrip().startswith("["):
            points = points_in(table)
            labels = [str(i + 1) for i in range(len(points))]
        else:
            folders = [Path(line.strip()) for line in table.splitlines() if line.strip()]
            points, labels = [scores_of(folder) for folder in folders], [folder.name for folder in folders]
        return finish(cls, forgetting_section(score_forgetting(points), labels), results)


class CIDMRoutingTable(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="CIDMRoutingTable",
            display_name="Routing Table",
            aliases="lora weights, layer weights, heat map",
            category=CATEGORY,
            description="How much of each concept of a bank every prompt takes, mean over layers: whether the right one is heard, and "
            "who else.",
            inputs=[
                MODEL,
                CLIP,
                BANK,
                io.String.Input("texts", default=BATCH, multiline=True, tooltip=f"One prompt a line. {HANDLES}."),
                MODE,
                STRENGTH,
                SETTINGS,
                BEFORE,
            ],
            outputs=outputs("The share of all weight that goes to concepts named in their prompt, in [0, 1]."),
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls, model, clip, bank: Bank, texts: str, mode: str, strength: float, settings: AggregationConfig | None = None, results=None
    ) -> io.NodeOutput:
        prompts = [line.strip() for line in texts.splitlines() if line.strip()]
        if not prompts:
            raise ValueError("there is no prompt: write one a line")
        backbone = host.ComfyBackbone(model, clip)
        how = read_aggregation(settings, mode, strength)
        mixtures = [mix(backbone, bank, prompt, how) for prompt in prompts]
        section = routing_section(score_routing(prompts, bank.names, mixtures))
        return finish(cls, section, results, warnings=list(dict.fromkeys(w for m in mixtures for w in m.warnings)))


class CIDMScoreReport(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="CIDMScoreReport",
            display_name="Score Report",
            aliases="report, results, html report, table of scores, benchmark, evaluate",
            category=CATEGORY,
            description="Writes all results that were chained into one page of HTML in the output folder, with tables, intervals, plots "
            "and sheets. The page needs nothing else and can be sent.",
            inputs=[
                Results.Input("results", tooltip="The last of the chained scores."),
                io.String.Input("title", default="What was measured", tooltip="The page's title."),
                io.String.Input(
                    "note", default="", multiline=True, tooltip="What the reader should know: the model, the pictures, what cannot be said."
                ),
                io.String.Input("filename_prefix", default="cidm/report", tooltip="Name of the file in ComfyUI's output folder."),
            ],
            outputs=[io.String.Output(display_name="file", tooltip="Full path of the page.")],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, results, title: str, note: str, filename_prefix: str) -> io.NodeOutput:
        folder, name, number, _, _ = folder_paths.get_save_image_path(filename_prefix, folder_paths.get_output_directory())
        file = Path(folder) / f"{name}_{number:05}_.html"
        write_html(file, title, results, warning=note.strip())
        shown = file.relative_to(folder_paths.get_output_directory())
        return say.output(cls, str(file), text=f"{len(results)} scores, in the output folder: {shown}")


REPORT_NODES = [CIDMForgetting, CIDMRoutingTable, CIDMScoreReport]
