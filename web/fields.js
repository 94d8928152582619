// Which text fields of the page are widgets of ours, and what they hold. The classic canvas shows long texts in text areas of its own and
// asks for short ones in a dialog; Nodes 2.0 draws both as parts of a node's element. Nothing of a widget is changed.

import { app } from "../../scripts/app.js";

/** What the text widgets of our nodes hold: a prompt, a bank's name, a concept's name, or names of concepts with commas or line breaks. */
export const FIELDS = {
  CIDMPaint: { prompt: "prompt", negative: "prompt" },
  CIDMEncodePrompt: { text: "prompt" },
  CIDMAggregate: { text: "prompt" },
  CIDMAggregateBatch: { texts: "prompt" },
  CIDMPaintRegions: { text: "prompt" },
  CIDMRegionGuider: { text: "prompt" },
  CIDMRegion: { text: "prompt" },
  CIDMRegionGrid: { texts: "prompt" },
  CIDMRegionBoxes: { boxes: "prompt" },
  CIDMFindRegions: { texts: "prompt" },
  CIDMInfusion: { text: "prompt" },
  CIDMRoutingPreview: { text: "prompt" },
  CIDMRoutingTable: { texts: "prompt" },
  CIDMTrainingSettings: { preview_prompt: "prompt" },
  CIDMOpenBank: { name: "bank" },
  CIDMDoodleBank: { name: "bank" },
  CIDMManageBank: { other_bank: "bank", concept: "concept" },
  CIDMConceptCard: { name: "concept" },
  CIDMOverlapMap: { first: "concept", second: "concept" },
  CIDMExportConcept: { names: "concepts" },
};

const told = new WeakMap(); // fields that say themselves whose they are, by element

/** Says that an element is the field of a node's widget, where the page does not. */
export function tell(element, node, name) {
  told.set(element, { node, kind: FIELDS[node.comfyClass][name] });
}

/**
 * The node of a field and what it holds, `{ node, kind }`, or undefined for all fields that are not ours.
 *
 * It works in both renderers, as it asks what has the focus and not how it came there: in the classic canvas the text area is the
 * widget's own element; in Nodes 2.0 the field is inside the node's element, which has its id in `data-node-id`, and is labelled with
 * the widget's label or name.
 */
export function fieldOf(element) {
  if (told.has(element)) return told.get(element);
  if (!element.matches?.("textarea, input:not([type]), input[type=text]")) return;
  const id = element.closest("[data-node-id]")?.dataset.nodeId;
  const shown = id ? [app.canvas.graph.getNodeById(id)] : app.canvas.graph._nodes;
  const labels = [element.ariaLabel, element.labels?.[0]?.textContent.trim()].filter(Boolean);
  for (const node of shown) {
    const kinds = FIELDS[node?.comfyClass] ?? {};
    const own = (widget) => (id ? labels.some((label) => [widget.label, widget.name].includes(label)) : widget.element === element);
    const widget = node?.widgets?.find((widget) => widget.name in kinds && own(widget));
    if (widget && !element.readOnly) return { node, kind: kinds[widget.name] };
  }
}

/** Types a text over a part of a field as a person would, so that the widget and the browser's undo take notice. */
export function type(element, text, start, end) {
  element.focus();
  element.setSelectionRange(start, end);
  document.execCommand("insertText", false, text);
}
