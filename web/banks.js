// Names of banks, and of concepts that are there, offered in the fields that ask for them. The widgets stay text: a new name can be
// typed, and what is saved and sent is what it always was.

import { app } from "../../scripts/app.js";
import { offer } from "./choices.js";
import { asChoice, banks, conceptsFor, matching } from "./concepts.js";
import { FIELDS, fieldOf, tell, type } from "./fields.js";

const MEANT = {
  bank: async () => {
    const names = await banks();
    const has = (beginning) => names.filter((name) => name.toLowerCase().includes(beginning.toLowerCase()));
    return (beginning) => has(beginning).map((name) => ({ text: name, name }));
  },
  concept: async (node) => {
    const { every, concepts } = await conceptsFor(node);
    return (beginning) => matching(concepts, beginning).map(asChoice((name) => name, every));
  },
};
MEANT.concepts = MEANT.concept;

let taking = false; // while a choice is being written
let asked = {}; // the field and what finds its choices: asked for each time the field is entered

/** The part of a field that one name is in: all of it, or what stands between commas and line breaks. */
function part(field, kind) {
  const { value, selectionStart } = field;
  if (kind !== "concepts") return [0, value.length];
  const start = Math.max(...[",", "\n"].map((mark) => value.lastIndexOf(mark, selectionStart - 1) + 1));
  const blank = value.slice(start).match(/^[ \t]*/)[0].length;
  return [start + blank, selectionStart + value.slice(selectionStart).search(/[,\n]|$/)];
}

/** Opens the list, with all that there is until something is typed. */
async function suggest(field, typed) {
  const found = fieldOf(field);
  if (taking || !(found?.kind in MEANT)) return;
  if (!typed || asked.field !== field) asked = { field, choices: MEANT[found.kind](found.node) };
  const choices = await asked.choices;
  if (asked.field !== field || document.activeElement !== field) return;
  const [start, end] = part(field, found.kind);
  offer(field, choices(typed ? field.value.slice(start, end).trim() : ""), (choice) => take(field, choice.name, start, end), { at: start });
}

function take(field, name, start, end) {
  taking = true;
  type(field, name, start, end);
  taking = false;
  if (field.closest(".graphdialog")) field.dispatchEvent(new KeyboardEvent("keydown", { key: "Enter", bubbles: true })); // it asks no more
}

app.registerExtension({
  name: "cidm.Banks",
  init() {
    document.addEventListener("focusin", ({ target }) => suggest(target, false));
    document.addEventListener("click", ({ target }) => target === document.activeElement && suggest(target, false));
    document.addEventListener("input", ({ target }) => suggest(target, true));
    document.addEventListener("focusout", () => (asked = {}));
  },
  /** The classic canvas asks for short texts in a dialog, which does not say what for. */
  nodeCreated(node) {
    for (const widget of node.widgets ?? []) {
      if (!(widget.name in (FIELDS[node.comfyClass] ?? {})) || !widget.onClick) continue;
      const ask = widget.onClick;
      widget.onClick = function (...given) {
        ask.apply(this, given);
        const field = app.canvas.prompt_box?.querySelector(".value");
        if (!field) return;
        tell(field, node, widget.name);
        if (document.activeElement === field) suggest(field, false);
      };
    }
  },
});
