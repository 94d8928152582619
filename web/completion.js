// Handles of concepts, offered while a prompt is typed: `<` opens the list of what the bank has that the prompt will be read with.
//
// One listener on the document serves the classic canvas, Nodes 2.0 and the region editor: whatever field is typed in, fields.js says
// whether it is one of ours and of which node.

import { app } from "../../scripts/app.js";
import { close, offer } from "./choices.js";
import { asChoice, conceptsFor, matching } from "./concepts.js";
import { fieldOf, type } from "./fields.js";

const BEGUN = /<([A-Za-z0-9_.-]*)$/; // a handle that is being typed, up to the caret
const REST = /^[A-Za-z0-9_.-]*>/; // and what it had behind the caret, if it was whole

let asked = {}; // the field, where its handle begins, and the concepts that it can mean: asked for once a handle

async function complete(event) {
  const field = event.target;
  const found = fieldOf(field);
  if (found?.kind !== "prompt") return;
  const begin = begunAt(field);
  if (begin < 0) return close();
  if (asked.field !== field || asked.begin !== begin) asked = { field, begin, concepts: conceptsFor(found.node) };
  const { every, concepts } = await asked.concepts;
  if (asked.field !== field || begunAt(field) !== begin || document.activeElement !== field) return; // typed on meanwhile
  const beginning = field.value.slice(begin + 1, field.selectionStart);
  const choices = matching(concepts, beginning).map(asChoice((name) => `<${name}>`, every));
  offer(field, choices, (choice) => write(field, begin, choice.text), { chosen: 0, at: begin });
}

function begunAt({ value, selectionStart, selectionEnd }) {
  const match = selectionStart === selectionEnd && BEGUN.exec(value.slice(0, selectionStart));
  return match ? match.index : -1;
}

function write(field, begin, handle) {
  const end = field.selectionStart;
  const [rest] = REST.exec(field.value.slice(end)) ?? [""];
  type(field, handle, begin, end + rest.length);
}

app.registerExtension({
  name: "cidm.Completion",
  init() {
    document.addEventListener("input", complete);
    document.addEventListener("focusout", () => (asked = {}));
  },
});
