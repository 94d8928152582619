// The banks of the server and their concepts, as lists to choose from.

import { api } from "../../scripts/api.js";
import { bankOf } from "./graph.js";

/** What the server has at an address; undefined where it has nothing. */
async function get(address) {
  const answer = await api.fetchApi(address);
  return answer.ok ? answer.json() : undefined;
}

export const banks = async () => (await get("/cidm/banks")) ?? [];

/** The concepts at an address, each with the bank it is of and the address of its thumbnail. */
async function concepts(address, bank) {
  const picture = ({ name, thumbnail }) => (thumbnail ? api.apiURL(`${address}/${encodeURIComponent(name)}/thumbnail`) : "");
  return (await get(address))?.map((concept) => ({ ...concept, bank, picture: picture(concept) }));
}

const bankAt = (name) => concepts(`/cidm/banks/${encodeURIComponent(name)}`, name);

/**
 * The concepts that the texts of a node can name: those of the bank that is wired to it and those that are learned into it on the way;
 * where no bank is wired, those of all banks.
 */
export async function conceptsFor(node) {
  const bank = bankOf(node);
  if (!bank) {
    const every = await Promise.all((await banks()).map(bankAt));
    return { every: true, concepts: every.flatMap((found) => found ?? []) };
  }
  let found = bank.name ? await bankAt(bank.name) : [];
  if (bank.kind === "doodle" && !found?.length) found = await concepts("/cidm/doodle", bank.name); // as it will be
  const coming = bank.coming.map((concept) => ({ ...concept, words: [`<${concept.name}>`], bank: bank.name, picture: "" }));
  const known = new Map(coming.map((concept) => [concept.name, concept]));
  for (const concept of found ?? []) known.set(concept.name, concept);
  return { every: false, concepts: [...known.values()] };
}

/** Concepts that a beginning may mean: first those whose name begins so, then those with a word that does. */
export function matching(concepts, beginning) {
  const sought = beginning.toLowerCase();
  const begins = (text) => text.toLowerCase().startsWith(sought);
  const named = concepts.filter(({ name }) => begins(name));
  const about = ({ name, class_word, words }) => [name, class_word, ...words].join(" ").split(/[^\p{L}\p{N}]+/u);
  return [...named, ...concepts.filter((concept) => !named.includes(concept) && about(concept).some(begins))];
}

/** A concept as a choice. */
export const asChoice = (text, every) => (concept) => ({
  text: text(concept.name),
  about: [concept.class_word, every && concept.bank].filter(Boolean).join(" · "),
  picture: concept.picture,
  name: concept.name,
});
