// Draw Regions: an editor of boxes in place of the text field. The value stays the JSON text that the server reads, in the host's own
// widget: it is saved, copied, undone and sent as every other. In a front end without this file the node is that text field.

import { app } from "../../scripts/app.js";
import { addStyle, make } from "./element.js";
import { tell } from "./fields.js";
import { pictureOf, samplerOf, sizeOf } from "./graph.js";

const COLOURS = ["#3474ba", "#d6782c", "#46965c", "#9654a8", "#c44c64", "#3c96a0", "#96783c", "#6064c8"]; // those of Preview Regions
const FIELDS = { strength: [1, 0, 1, 0.01], priority: [0, -100, 100, 1], feather: [0, 0, 0.5, 0.01] }; // usual value, least, most, step
const ABOUT = {
  strength: "Below 1, the global prompt has the rest.",
  priority: "Where regions overlap, the highest wins; equals share.",
  feather: "Width of the soft edge, as a part of the picture's shorter side.",
};
const SHAPES = ["1:1", "4:3", "3:2", "16:9", "2:1", "3:4", "2:3", "9:16"];
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const [LEFT, TOP, RIGHT, BOTTOM] = [0, 1, 2, 3];
const ALL = [LEFT, TOP, RIGHT, BOTTOM];
const STEP = 0.01; // of the picture
const LEAST = 0.02; // side of a box that is drawn
const GRIP = 8; // pixels to either side of an edge
const MOST = 64; // regions
const HELP =
  "Drag on the empty area to draw a box, with Shift also over others; drag boxes, edges and corners. " +
  "Keys: Tab or 1 to 9 choose, arrows move, Shift with arrows resizes, Insert adds, Delete removes, Enter goes to the prompt.";

const STYLE = `
.cidm-regions { display: flex; flex-direction: column; gap: 6px; min-height: 340px; box-sizing: border-box; color: var(--input-text, #ddd);
  font: 12px sans-serif; }
.cidm-regions [hidden] { display: none !important; }
.cidm-regions .bar { display: flex; gap: 6px; align-items: center; flex-wrap: wrap; }
.cidm-regions .count { opacity: 0.75; }
.cidm-regions .help { margin-right: auto; opacity: 0.75; border: 1px solid; border-radius: 50%; padding: 0 5px; cursor: help; }
.cidm-regions fieldset { display: contents; }
.cidm-regions .stage-room { flex: 1 1 0; min-height: 160px; container-type: size; display: grid; place-items: center; }
.cidm-regions .stage { position: relative; width: min(100cqw, 100cqh * var(--ratio)); aspect-ratio: var(--ratio); box-sizing: border-box;
  overflow: hidden; border-radius: 4px; outline: 1px solid var(--border-color, #555); touch-action: none; user-select: none;
  cursor: crosshair; background: linear-gradient(90deg, transparent calc(100% - 1px), #8884 0) 0 0 / 33.333% 100%,
  linear-gradient(transparent calc(100% - 1px), #8884 0) 0 0 / 100% 33.333%, var(--comfy-input-bg, #222); }
.cidm-regions .picture { position: absolute; inset: 0; width: 100%; height: 100%; opacity: 0.5; pointer-events: none; }
.cidm-regions .stage.over { cursor: var(--grip); }
.cidm-regions .box { position: absolute; box-sizing: border-box; border: 2px solid var(--colour); overflow: hidden; pointer-events: none;
  background: color-mix(in srgb, var(--colour) 34%, transparent); line-height: 1.35; padding: 4px; border-radius: 2px; }
.cidm-regions .box b { background: var(--colour); color: #fff; border-radius: 4px; padding: 0 5px; margin-right: 5px; }
.cidm-regions .box[aria-selected="true"] { background: color-mix(in srgb, var(--colour) 52%, transparent); border-width: 3px;
  box-shadow: inset 0 0 0 1px #fff, inset 0 0 0 5px color-mix(in srgb, var(--colour) 60%, transparent); }
.cidm-regions .box i { position: absolute; width: 7px; height: 7px; background: #fff; }
.cidm-regions .stage:focus, .cidm-regions :is(button, select, input, textarea):focus-visible {
  outline: 2px solid var(--p-primary-color, #5ab0ff); outline-offset: 1px; }
.cidm-regions :is(button, select, input, textarea) { background: var(--comfy-input-bg, #222); color: inherit; box-sizing: border-box;
  border: 1px solid var(--border-color, #555); border-radius: 4px; font: inherit; padding: 3px 6px; }
.cidm-regions button { cursor: pointer; }
.cidm-regions button[aria-pressed="true"] { border-color: var(--p-primary-color, #5ab0ff); }
.cidm-regions :disabled { opacity: 0.5; cursor: default; }
.cidm-regions textarea { resize: none; width: 100%; }
.cidm-regions textarea.prompt { flex: 0 0 64px; }
.cidm-regions textarea.raw { flex: 1 1 0; min-height: 120px; font-family: monospace; white-space: pre; }
.cidm-regions label { display: flex; gap: 4px; align-items: center; flex: 1 1 0; }
.cidm-regions input { width: 100%; min-width: 44px; }
.cidm-regions input:invalid { border-color: var(--error-text, #f66); }
.cidm-regions .error { color: var(--error-text, #f66); white-space: pre-wrap; }
`;

const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
const tidy = (value) => Math.round(value * 1e4) / 1e4;
const snap = (value) => tidy(Math.round(value / STEP) * STEP);

/** A box with some of its edges moved; all of them: the whole box, as far as the picture goes. */
function moved(box, edges, dx, dy) {
  if (edges === ALL) {
    dx = clamp(snap(dx), -box[LEFT], 1 - box[RIGHT]);
    dy = clamp(snap(dy), -box[TOP], 1 - box[BOTTOM]);
    return box.map((edge, i) => tidy(edge + (i % 2 ? dy : dx)));
  }
  const next = [...box];
  for (const i of edges) {
    const [low, high] = i < 2 ? [0, box[i + 2] - STEP] : [box[i - 2] + STEP, 1];
    next[i] = tidy(clamp(snap(box[i] + (i % 2 ? dy : dx)), low, high));
  }
  return next;
}

/** The regions of a text; throws what is wrong with it. Whatever else a region has is kept, for the server to judge. */
function parse(text) {
  const regions = JSON.parse(text);
  if (!Array.isArray(regions)) throw new Error("expected a list: [ ... ]");
  regions.forEach((region, i) => {
    const { text, box } = region ?? {};
    const inside = Array.isArray(box) && box.length === 4 && box.every((edge) => Number.isFinite(edge) && 0 <= edge && edge <= 1);
    if (typeof text !== "string" || !inside || box[LEFT] >= box[RIGHT] || box[TOP] >= box[BOTTOM])
      throw new Error(`box ${i + 1}: expected "text" and "box": [left, top, right, bottom], inside 0 to 1`);
  });
  return regions;
}

/** One region a line. */
function format(regions) {
  const lines = regions.map((region) => "  " + JSON.stringify(region, null, 1).replace(/\n */g, " "));
  return lines.length ? `[\n${lines.join(",\n")}\n]` : "[]";
}

let editors = 0;

class Editor {
  constructor(node, widget) {
    Object.assign(this, { node, widget, regions: [], chosen: 0, error: "", open: false, name: `cidm-regions-${editors++}` });
    this.raw = widget.element;
    this.raw.classList.add("raw");
    this.raw.setAttribute("aria-label", "The regions as JSON");
    this.raw.addEventListener("blur", () => this.render());
    const button = (text, title, onclick) => make("button", { type: "button", textContent: text, title, onclick });
    this.count = make("span", { className: "count" });
    this.adding = button("Add", "Add a region", () => this.add());
    this.removing = button("Remove", "Remove the chosen region", () => this.remove());
    this.shape = make("select", { title: "Shape of the picture: the latent's, or by hand; for drawing only", "aria-label": "Shape" });
    this.asPainted = make("option", { value: "" });
    this.shape.append(this.asPainted, ...SHAPES.map((shape) => make("option", { value: shape, textContent: shape })));
    this.shape.onchange = () => this.keepProperty("aspect", this.shape.value || undefined);
    const show = () => this.keepProperty("picture", this.hides() ? undefined : false);
    this.showing = button("Picture", "Show the last picture behind the boxes", show);
    this.picture = make("img", { className: "picture", alt: "", draggable: false });
    this.opening = button("JSON", "Show the text", () => this.render((this.open = !this.open)));
    this.complaint = make("div", { className: "error", role: "alert" });
    this.stage = make("div", { className: "stage", tabIndex: 0, role: "listbox", "aria-label": `Regions. ${HELP}` });
    for (const [event, act] of Object.entries({ pointerdown: this.press, pointermove: this.drag, keydown: this.key, wheel: this.wheel }))
      this.stage.addEventListener(event, act.bind(this));
    for (const event of ["pointerup", "pointercancel"]) this.stage.addEventListener(event, this.release.bind(this));
    this.prompt = make("textarea", { className: "prompt", placeholder: "Draw a box, or choose one", "data-capture-wheel": "true" });
    tell(this.prompt, node, widget.name);
    this.prompt.addEventListener("input", () => this.give("text", this.prompt.value));
    this.fields = Object.entries(FIELDS).map(([key, [, min, max, step]]) => {
      const field = make("input", { type: "number", name: key, min, max, step, title: ABOUT[key] });
      field.addEventListener("input", () => field.value && field.validity.valid && this.give(key, field.valueAsNumber));
      return field;
    });
    const labels = this.fields.map((field) => make("label", { title: field.title }, field.name, field));
    this.about = make("fieldset", {}, this.prompt, make("div", { className: "bar" }, ...labels));
    this.about.addEventListener("change", () => this.done());
    const help = make("span", { className: "help", textContent: "?", title: HELP });
    const bar = make("div", { className: "bar" }, this.count, help, this.adding, this.removing, this.shape, this.showing, this.opening);
    this.room = make("div", { className: "stage-room" }, this.stage);
    this.element = make("div", { className: "cidm-regions", title: "" }, bar, this.complaint, this.raw, this.room, this.about);
    this.element.addEventListener("keydown", (event) => this.keep(event));
    this.element.addEventListener("pointerenter", () => this.read(this.look())); // a text changed behind the widget's back
    this.element.addEventListener("focusin", () => this.watch());
    this.read();
  }

  /** Takes in the widget's text, where it is not what was written here. */
  read() {
    const text = this.widget.value;
    if (text === this.text) return;
    this.text = text;
    try {
      this.regions = parse(text);
      this.error = "";
    } catch (error) {
      this.regions = [];
      this.error = `These boxes cannot be drawn: ${error.message}. Correct the text below.`;
    }
    this.render();
  }

  /** Looks into the graph for the size of what is painted and for the last picture, and shows them. */
  look() {
    const sampler = this.node.graph && samplerOf(this.node);
    const size = sampler && sizeOf(sampler);
    const painted = (sampler && pictureOf(sampler)) ?? "";
    if (String(size) === String(this.size) && painted === this.painted) return;
    Object.assign(this, { size, painted });
    painted ? (this.picture.src = painted) : this.picture.removeAttribute("src");
    this.render();
  }

  /** What is chosen for the drawing is the node's, and no part of the text; undefined is what is usual. */
  keepProperty(key, value) {
    if (value === undefined) delete this.node.properties[key];
    else this.node.properties[key] = value;
    this.done();
  }

  hides() {
    return this.node.properties.picture === false;
  }

  write() {
    this.widget.value = this.text = format(this.regions);
    this.render();
  }

  /** A change is complete: one step of undo. */
  done() {
    this.render();
    app.canvas.emitBeforeChange();
    app.canvas.emitAfterChange();
  }

  render() {
    const region = this.regions[(this.chosen = clamp(this.chosen, -1, this.regions.length - 1))];
    const raw = this.error || this.open || document.activeElement === this.raw;
    this.raw.hidden = !raw;
    this.room.hidden = this.about.hidden = Boolean(raw);
    this.complaint.hidden = !this.error;
    this.complaint.textContent = this.error;
    this.count.textContent = this.error ? "" : `${this.regions.length} region${this.regions.length === 1 ? "" : "s"}`;
    this.adding.disabled = raw || this.regions.length >= MOST;
    this.removing.disabled = raw || !region;
    this.opening.setAttribute("aria-pressed", String(this.open));
    this.asPainted.textContent = this.size?.join(" x ") ?? "auto";
    this.shape.value = SHAPES.includes(this.node.properties.aspect) ? this.node.properties.aspect : "";
    const [width, height] = this.shape.value ? this.shape.value.split(":") : (this.size ?? [1, 1]);
    this.stage.style.setProperty("--ratio", width / height);
    this.showing.hidden = !this.painted;
    this.showing.setAttribute("aria-pressed", String(!this.hides()));
    this.stage.replaceChildren(...(this.painted && !this.hides() ? [this.picture] : []), ...this.order().map((i) => this.draw(i)));
    this.stage.setAttribute("aria-activedescendant", region ? `${this.name}-${this.chosen}` : "");
    this.about.disabled = !region;
    const value = region?.text ?? "";
    if (this.prompt.value !== value) this.prompt.value = value;
    this.prompt.setAttribute("aria-label", region ? `Prompt of region ${this.chosen + 1}` : "Prompt");
    for (const field of this.fields)
      if (field !== document.activeElement) field.value = region ? (region[field.name] ?? FIELDS[field.name][0]) : "";
  }

  /** Regions from the lowest to the highest, the chosen one on top. */
  order() {
    const height = (i) => (i === this.chosen ? Infinity : (this.regions[i].priority ?? 0));
    return this.regions.map((_, i) => i).sort((a, b) => height(a) - height(b) || a - b);
  }

  draw(i) {
    const { box, text } = this.regions[i];
    const chosen = i === this.chosen;
    const label = `Region ${i + 1}: ${text || "no prompt"}`;
    const drawn = make("div", { className: "box", role: "option", id: `${this.name}-${i}`, "aria-label": label, "aria-selected": chosen });
    drawn.append(make("b", { textContent: i + 1 }), text);
    const corners = chosen ? ["0 auto auto 0", "0 0 auto auto", "auto auto 0 0", "auto 0 0 auto"] : [];
    drawn.append(...corners.map((at) => make("i", { style: `inset: ${at}` })));
    const part = (value) => `${100 * value}%`;
    Object.assign(drawn.style, { left: part(box[LEFT]), top: part(box[TOP]) });
    Object.assign(drawn.style, { width: part(box[RIGHT] - box[LEFT]), height: part(box[BOTTOM] - box[TOP]) });
    drawn.style.setProperty("--colour", COLOURS[i % COLOURS.length]);
    return drawn;
  }

  choose(i) {
    this.chosen = i;
    this.render();
  }

  give(key, value) {
    const region = this.regions[this.chosen];
    if (key in FIELDS && value === FIELDS[key][0]) delete region[key];
    else region[key] = value;
    this.write();
  }

  add(box) {
    if (this.regions.length >= MOST || this.error) return;
    const shift = 0.04 * (this.regions.length % 6);
    this.chosen = this.regions.push({ text: "", box: box ?? moved([0.2, 0.2, 0.6, 0.6], ALL, shift, shift) }) - 1;
    this.write();
    if (!box) this.done();
  }

  remove() {
    if (!this.regions[this.chosen]) return;
    this.regions.splice(this.chosen, 1);
    this.write();
    this.done();
  }

  /** Where the pointer is, as parts of the picture. */
  at(event) {
    const { left, top, width, height } = this.stage.getBoundingClientRect();
    return [(event.clientX - left) / width, (event.clientY - top) / height, GRIP / width, GRIP / height];
  }

  /** The region under the pointer and which of its edges; its inside is all of them. */
  under(event) {
    const [x, y, wide, high] = this.at(event);
    for (const i of event.shiftKey ? [] : this.order().reverse()) {
      const { box } = this.regions[i];
      const near = [wide, high].map((grip, axis) => Math.min(grip, (box[axis + 2] - box[axis]) / 3));
      if (x < box[LEFT] - near[0] || x > box[RIGHT] + near[0] || y < box[TOP] - near[1] || y > box[BOTTOM] + near[1]) continue;
      const edges = ALL.filter((edge) => Math.abs((edge % 2 ? y : x) - box[edge]) <= near[edge % 2]);
      return { i, edges: edges.length ? edges : ALL };
    }
  }

  press(event) {
    if (event.button === 1) return app.canvas.processMouseDown(event); // pans the graph, as over a text field
    if (event.button !== 0) return;
    event.stopPropagation();
    this.stage.focus({ preventScroll: true });
    this.stage.setPointerCapture(event.pointerId);
    const hit = this.under(event);
    this.choose(hit ? hit.i : -1);
    this.held = { start: this.at(event), edges: hit?.edges, box: hit && [...this.regions[hit.i].box], changed: false };
  }

  drag(event) {
    if (!this.held) {
      if (event.buttons & 4) return app.canvas.processMouseMove(event);
      return this.hover(event);
    }
    event.stopPropagation();
    const [x, y] = this.at(event);
    const { start, edges, box } = this.held;
    if (box) this.place(moved(box, edges, x - start[0], y - start[1]));
    else {
      const [xs, ys] = [[start[0], x], [start[1], y]].map((pair) => pair.map((v) => clamp(snap(v), 0, 1)).sort((a, b) => a - b));
      if (xs[1] - xs[0] < LEAST || ys[1] - ys[0] < LEAST) return;
      const drawn = [xs[0], ys[0], xs[1], ys[1]];
      this.regions[this.chosen] ? this.place(drawn) : this.add(drawn);
      this.held.changed = true;
    }
  }

  /** The box of the chosen region becomes this one. */
  place(box) {
    if (String(box) === String(this.regions[this.chosen].box)) return;
    this.regions[this.chosen].box = box;
    if (this.held) this.held.changed = true;
    this.write();
  }

  release(event) {
    if (event.button === 1) return app.canvas.processMouseUp(event);
    const changed = this.held?.changed;
    this.held = null;
    if (changed) this.done();
  }

  hover(event) {
    const edges = this.under(event)?.edges;
    const [across, along] = [edges?.some((i) => i % 2 === 0), edges?.some((i) => i % 2)];
    const slanted = edges?.includes(LEFT) === edges?.includes(TOP) ? "nwse-resize" : "nesw-resize";
    this.stage.classList.toggle("over", Boolean(edges));
    this.stage.style.setProperty("--grip", edges === ALL ? "move" : across && along ? slanted : across ? "ew-resize" : "ns-resize");
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const region = this.regions[this.chosen];
    if (event.key === "Tab") {
      const next = this.chosen + (event.shiftKey ? -1 : 1);
      if (!this.regions[next]) return; // on to the next control
      this.choose(next);
    } else if (/^[1-9]$/.test(event.key)) {
      if (this.regions[event.key - 1]) this.choose(event.key - 1);
    } else if (event.key in ARROWS) {
      const [dx, dy] = ARROWS[event.key];
      if (region) this.place(moved(region.box, event.shiftKey ? [RIGHT, BOTTOM] : ALL, dx * STEP, dy * STEP));
      if (region) this.done();
    } else if (event.key === "Delete" || event.key === "Backspace") this.remove();
    else if (event.key === "Insert") this.add();
    else if (event.key === "Enter") this.prompt.focus();
    else return;
    event.preventDefault();
  }

  /** Keys pressed in here are not the graph's: Delete must not remove the node. Those with Ctrl stay everybody's: queue, undo, save. */
  keep(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    event.stopPropagation();
    if (event.key === "Escape") event.target === this.stage ? this.choose(-1) : this.stage.focus();
  }

  /** While the focus is in here, a press on the graph takes it away; there it would stay. */
  watch() {
    this.leave?.abort();
    this.leave = new AbortController();
    const leave = () => {
      this.leave.abort();
      if (this.element.contains(document.activeElement)) document.activeElement.blur();
    };
    app.canvas.canvas.addEventListener("pointerdown", leave, { capture: true, signal: this.leave.signal });
  }

  wheel(event) {
    if (window.LiteGraph?.vueNodesMode) return; // there it reaches the graph by itself
    event.preventDefault();
    app.canvas.processMouseWheel(event);
  }
}

/** What a function of the host does, and after it something more. */
const also = (before, after) =>
  function (...given) {
    const result = before?.apply(this, given);
    after();
    return result;
  };

const living = new Set(); // editors of nodes that are there
const gone = new Set(); // and of removed ones

/** Undo makes nodes anew, and the Vue renderer keeps the element of the old one on the page: the new editor takes its place. */
function takeOver(id, editor) {
  for (const old of gone) {
    const stays = old.element.isConnected && !editor.element.isConnected && window.LiteGraph.vueNodesMode;
    if (stays && old.id === id) old.element.replaceWith(editor.element);
    if (!old.element.isConnected) gone.delete(old);
  }
}

app.registerExtension({
  name: "cidm.Regions",
  init() {
    addStyle(STYLE);
    const look = () => living.forEach((editor) => editor.look());
    for (const event of ["graphChanged", "executed"]) app.api.addEventListener(event, () => setTimeout(look)); // after the host's own
  },
  nodeCreated(node) {
    const widget = node.comfyClass === "CIDMRegionBoxes" && node.widgets?.find(({ name }) => name === "boxes");
    if (!widget?.element) return;
    const editor = new Editor(node, widget);
    widget.element = editor.element;
    const minor = Number(window.__COMFYUI_FRONTEND_VERSION__?.split(".")[1] ?? Infinity);
    if (minor >= 29) widget.type = "CIDM_BOXES"; // the Vue renderer mounts elements of types unknown to it; before, it left them out
    widget.tooltip = "Regions of the picture, each with its prompt.";
    widget.options.getMinHeight = () => 340;
    widget.callback = also(widget.callback, () => editor.read());
    node.onRemoved = also(node.onRemoved, () => {
      living.delete(editor);
      gone.add({ id: node.id, element: editor.element });
    });
    living.add(editor);
    node.onConfigure = also(node.onConfigure, () => {
      editor.read();
      editor.render();
      setTimeout(() => takeOver(node.id, editor), 100);
      setTimeout(() => editor.look(), 100); // its links come after it
    });
    node.setSize([Math.max(node.size[0], 400), Math.max(node.size[1], 540)]);
  },
});
