// What is wired to what in the graph that is shown: the bank that a text is read with, the sampler that paints regions, its latent and
// its last picture. Reroutes are nodes like others, and subgraphs are looked into and out of.

import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";

const OPENS = { CIDMOpenBank: "bank", CIDMDoodleBank: "doodle", CIDMExpandBank: "bank" }; // nodes whose `name` is a bank's
const LEARNS = ["CIDMTrainConcept", "CIDMTrainInfusion", "CIDMImportConcept"]; // nodes whose `name` is a concept's, after they have run
const LEARNS_TOGETHER = ["CIDMTrainTogether", "CIDMContrastWords"]; // their `names` have a line `name: class word` for each concept
const INPUTS = -10; // ids that a subgraph's own ends have in its links
const OUTPUTS = -20;

const root = () => app.graph.rootGraph ?? app.graph;
const framesOf = (graph) =>
  [root(), ...(root().subgraphs?.values() ?? [])].flatMap((outer) => outer._nodes.filter((node) => node.subgraph === graph));

function* origins(graph, link) {
  if (Number(link?.origin_id) === INPUTS) {
    for (const frame of framesOf(graph)) yield* origins(frame.graph, frame.graph.getLink(frame.inputs[link.origin_slot]?.link));
    return;
  }
  const node = link && graph.getNodeById(link.origin_id);
  if (!node?.subgraph) return node && (yield node);
  for (const id of node.subgraph.outputs[link.origin_slot].linkIds) yield* origins(node.subgraph, node.subgraph.getLink(id));
}

function* targets(graph, link) {
  if (Number(link?.target_id) === OUTPUTS) {
    for (const frame of framesOf(graph))
      for (const id of frame.outputs[link.target_slot]?.links ?? []) yield* targets(frame.graph, frame.graph.getLink(id));
    return;
  }
  const node = link && graph.getNodeById(link.target_id);
  if (!node?.subgraph) return node && (yield node);
  for (const id of node.subgraph.inputs[link.target_slot].linkIds) yield* targets(node.subgraph, node.subgraph.getLink(id));
}

const carries = (slot, types) => slot.type === "*" || types.includes(slot.type);

/** The nodes that feed a node's inputs of these types. */
function* before(node, types) {
  for (const input of node.inputs ?? [])
    if (input.link != null && carries(input, types)) yield* origins(node.graph, node.graph.getLink(input.link));
}

/** The nodes that a node's outputs of these types feed. */
function* after(node, types) {
  for (const output of node.outputs ?? [])
    if (carries(output, types)) for (const id of output.links ?? []) yield* targets(node.graph, node.graph.getLink(id));
}

/** All nodes that are reached step by step, the nearest first. */
function* walk(node, step, ...types) {
  const seen = new Set([node]);
  for (const from of seen)
    for (const found of step(from, types)) {
      if (seen.has(found)) continue;
      seen.add(found);
      yield found;
    }
}

/** What a widget says, or the first widget of the node that is wired to it. */
function valueOf(node, name) {
  const input = node.inputs?.find((input) => input.widget?.name === name && input.link != null);
  if (!input) return node.widgets?.find((widget) => widget.name === name)?.value;
  const [source] = origins(node.graph, node.graph.getLink(input.link));
  return source?.widgets?.[0]?.value;
}

function namesIn(lines) {
  const entries = lines.split("\n").map((line) => line.split(":").map((part) => part.trim()));
  return entries.filter(([name, kind]) => name && kind).map(([name, class_word]) => ({ name, class_word }));
}

/** The bank that a node's texts are read with, `{ kind, name, coming }`: the nearest that is opened before it, or before the node that
 * takes its texts on, as Paint in Regions does for a region. `coming` are the concepts that are learned on the way. */
export function bankOf(node) {
  const reads = (node) => node.inputs?.some((input) => input.type === "CIDM_BANK" && input.link != null);
  const reader = [node, ...walk(node, after, "CIDM_REGIONS", "CIDM_SETTINGS")].find(reads);
  if (!reader) return;
  const coming = [];
  for (const source of [reader, ...walk(reader, before, "CIDM_BANK")]) {
    const name = String(valueOf(source, "name") ?? "").trim();
    if (source.comfyClass in OPENS) return { kind: OPENS[source.comfyClass], name, coming };
    if (name && LEARNS.includes(source.comfyClass)) coming.push({ name, class_word: String(valueOf(source, "class_word") ?? "") });
    if (LEARNS_TOGETHER.includes(source.comfyClass)) coming.push(...namesIn(String(valueOf(source, "names") ?? "")));
  }
}

/** The sampler that paints with the regions of a node. */
export function samplerOf(node) {
  const paints = (node) => node.inputs?.some((input) => input.name === "latent_image");
  return [...walk(node, after, "CIDM_REGIONS", "MODEL", "GUIDER")].find(paints);
}

/** Width and height of what a sampler paints, where a node says them that its latent comes from. */
export function sizeOf(sampler) {
  for (const source of walk(sampler, before, "LATENT")) {
    const size = [Number(valueOf(source, "width")), Number(valueOf(source, "height"))];
    if (size.every((side) => side > 0)) return size;
  }
}

/** Address of the last picture that a node after a sampler has shown or saved; ours draw figures and do not count. */
export function pictureOf(sampler) {
  for (const node of walk(sampler, after, "LATENT", "IMAGE")) {
    const id = node.graph === root() ? node.id : `${node.graph.id}:${node.id}`;
    const [picture] = (!node.comfyClass?.startsWith("CIDM") && app.nodeOutputs?.[id]?.images) || [];
    if (!picture) continue;
    const { filename, subfolder = "", type = "output" } = picture;
    return api.apiURL(`/view?${new URLSearchParams({ filename, subfolder, type })}`);
  }
}
