// One list of choices for the whole page, under the field that has the focus. The focus stays in the field; what the list shows comes
// from files and is only ever text.

import { addStyle, make } from "./element.js";

const STYLE = `
.cidm-choices { position: fixed; z-index: 10000; max-height: 264px; max-width: min(420px, 90vw); min-width: 160px; overflow: auto;
  margin: 0; padding: 4px; box-sizing: border-box; border: 1px solid var(--border-color, #555); border-radius: 6px; font: 13px sans-serif;
  background: var(--comfy-menu-bg, #222); color: var(--fg-color, #ddd); box-shadow: 0 4px 16px #0008; }
.cidm-choices[hidden] { display: none; }
.cidm-choices [role=option] { display: flex; gap: 8px; align-items: center; padding: 3px 6px; border-radius: 4px; cursor: pointer; }
.cidm-choices [role=option] > * { unicode-bidi: isolate; white-space: nowrap; overflow: hidden; text-overflow: ellipsis; }
.cidm-choices [role=option]:hover { background: color-mix(in srgb, var(--fg-color, #ddd) 10%, transparent); }
.cidm-choices [aria-selected=true] { background: color-mix(in srgb, var(--p-primary-color, #5ab0ff) 35%, transparent); }
.cidm-choices small { opacity: 0.7; font-size: 12px; margin-left: auto; padding-left: 12px; }
.cidm-choices :is(img, .none) { flex: none; width: 32px; height: 32px; border-radius: 4px; object-fit: cover; }
.cidm-choices .none { display: grid; place-items: center; background: color-mix(in srgb, var(--fg-color, #ddd) 14%, transparent); }
`;

const list = make("div", { id: "cidm-choices", className: "cidm-choices", role: "listbox", "aria-label": "Choices", hidden: true });
let open; // { field, choices, take, chosen } while the list is open

function build() {
  addStyle(STYLE);
  document.body.append(list);
  window.addEventListener("keydown", press, true); // before the graph and the dialog hear of it
  document.addEventListener("focusout", (event) => event.target === open?.field && close());
  for (const event of ["pointerdown", "wheel"])
    window.addEventListener(event, (event) => list.contains(event.target) || event.target === open?.field || close(), true);
  list.addEventListener("pointerdown", (event) => event.preventDefault()); // the focus stays in the field
  list.addEventListener("click", (event) => {
    const option = event.target.closest("[role=option]");
    if (option) take([...list.children].indexOf(option));
  });
}

/**
 * Shows choices under a field: `{ text, about, picture }`, picture an address, "" for none, undefined where choices have none.
 * `take` gets the one that is taken. `chosen` is the one that Enter takes from the beginning on; -1: none, until an arrow is pressed.
 */
export function offer(field, choices, take, { chosen = -1, at = field.selectionStart } = {}) {
  if (!choices.length) return close();
  if (!list.isConnected) build();
  if (open && open.field !== field) close();
  open = { field, choices, take };
  list.replaceChildren(...choices.map(draw));
  list.hidden = false;
  place(field, at);
  for (const [name, value] of Object.entries({ "aria-autocomplete": "list", "aria-controls": list.id })) field.setAttribute(name, value);
  choose(chosen);
}

export function close() {
  if (!open) return;
  for (const name of ["aria-autocomplete", "aria-controls", "aria-activedescendant"]) open.field.removeAttribute(name);
  open = undefined;
  list.hidden = true;
  list.replaceChildren();
}

function draw({ text, about = "", picture }, i) {
  const option = make("div", { id: `${list.id}-${i}`, role: "option", "aria-selected": "false" });
  const letter = text.replace(/\W/g, "").slice(0, 1).toUpperCase();
  if (picture) option.append(make("img", { src: picture, alt: "" }));
  else if (picture === "") option.append(make("span", { className: "none", textContent: letter, "aria-hidden": "true" }));
  option.append(make("span", { textContent: text }), make("small", { textContent: about }));
  return option;
}

function choose(i) {
  open.chosen = i;
  for (const [j, option] of [...list.children].entries()) option.setAttribute("aria-selected", String(j === i));
  list.children[i]?.scrollIntoView({ block: "nearest" });
  if (i < 0) open.field.removeAttribute("aria-activedescendant");
  else open.field.setAttribute("aria-activedescendant", list.children[i].id);
}

function take(i) {
  const { choices, take } = open;
  close();
  take(choices[i]);
}

/** Arrows choose, Enter and Tab take what is chosen, Escape closes. All other keys, and these while the list is closed, are the field's. */
function press(event) {
  if (!open || event.target !== open.field || event.isComposing || event.ctrlKey || event.metaKey || event.altKey) return;
  const { chosen, choices } = open;
  if (event.key === "ArrowDown") choose((chosen + 1) % choices.length);
  else if (event.key === "ArrowUp") choose((Math.max(chosen, 0) + choices.length - 1) % choices.length);
  else if ((event.key === "Enter" || event.key === "Tab") && chosen >= 0 && !event.shiftKey) take(chosen);
  else if (event.key === "Escape") close();
  else return;
  event.preventDefault();
  event.stopImmediatePropagation();
}

/** Puts the list under the line of a text area that has the place `at`, or under a field of one line; above it where there is no room. */
function place(field, at) {
  const { left, top, height } = field.getBoundingClientRect();
  const scale = height / field.offsetHeight || 1;
  const line = field.matches("textarea") ? caret(field, at) : { x: 0, y: 0, height: field.offsetHeight };
  const [under, over] = [top + scale * (line.y + line.height) + 4, top + scale * line.y - 4];
  const x = Math.min(left + scale * line.x, innerWidth - list.offsetWidth - 8);
  const y = under + list.offsetHeight > innerHeight && over > list.offsetHeight ? over - list.offsetHeight : under;
  Object.assign(list.style, { left: `${Math.max(x, 8)}px`, top: `${y}px` });
}

const LAID_OUT = ["font", "letterSpacing", "lineHeight", "padding", "border", "boxSizing", "textIndent", "wordSpacing"];

/** Where a place of a text area's text is, in its own pixels: measured in a copy, as text areas do not tell. */
function caret(field, at) {
  const style = getComputedStyle(field);
  const copy = document.createElement("div");
  const mark = document.createElement("span");
  for (const name of LAID_OUT) copy.style[name] = style[name];
  Object.assign(copy.style, { position: "absolute", visibility: "hidden", whiteSpace: "pre-wrap", overflowWrap: "break-word" });
  copy.style.width = `${field.clientWidth + parseFloat(style.borderLeftWidth) + parseFloat(style.borderRightWidth)}px`;
  mark.textContent = "<";
  copy.append(field.value.slice(0, at), mark);
  document.body.append(copy);
  const found = { x: mark.offsetLeft, y: Math.min(mark.offsetTop - field.scrollTop, field.clientHeight), height: mark.offsetHeight };
  copy.remove();
  return found;
}
