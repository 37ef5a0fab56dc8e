// Continuations read back from their arrays, and two of them side by side, aligned token by token.

import { align } from "./align.js";
import { h } from "./dom.js";
import { legend, strip } from "./strip.js";

const STYLE = `
.wb-small { font-size: 12px; max-width: 60em }
.wb-transcript { flex: 1 1 340px; min-width: 280px; max-width: 100% }
.wb-about { font-size: 12px; margin-bottom: 4px }`;

const RIGHT = ["wrong", "right", ""];
const ENDS = { eos: "ended by itself", text: "ended at a stop text", length: "cut at the longest length" };
export const MARK = ["✗", "✓", "·"];
export const KIND = ["wb-wrong", "wb-right", "wb-quiet"];

/** The text number `index` of a frame, or null where it is not there. */
export function textAt(frame, index) {
  const ends = frame?.text_ends?.values;
  if (!ends || index < 0 || index >= ends.length - 1) return null;
  const ids = Array.from(frame.text_ids.values.subarray(ends[index], ends[index + 1]));
  return {
    ids, tokens: ids.map((id) => frame.pieces[id]),
    logprobs: Array.from(frame.text_logprobs.values.subarray(ends[index], ends[index + 1])),
    right: frame.text_right.values[index], stop: frame.text_stop[index],
  };
}

/** Both texts as rows of a strip: gaps where one has no token, changed ones marked. */
export function sideBySide(base, other) {
  const steps = align(base.ids, other.ids), above = [], below = [];
  for (const { kind, a, b } of steps) {
    above.push(a === null ? null : token(base, a, kind !== "same"));
    below.push(b === null ? null : token(other, b, kind !== "same"));
  }
  return { above, below, changed: steps.filter(({ kind }) => kind !== "same").length };
}

const token = (text, i, changed) => ({ text: text.tokens[i], value: text.logprobs[i], changed, index: i, title: "log-probability" });

const counted = (n) => `${n} token${n === 1 ? "" : "s"}`;

/** A text's verdict, length and end in words. */
export function about(text) {
  return [RIGHT[text.right], counted(text.ids.length), ENDS[text.stop] ?? text.stop].filter(Boolean).join(", ");
}

/** @param {import("./base.js").View} view */
export function transcript(view) {
  const tokens = strip(view, { label: "transcript, tokens aligned" });
  const words = h("div", { class: "wb-about" }), bar = h("span");
  const element = h("div", { class: "wb-transcript" }, h("style", {}, STYLE), words, tokens.element, bar);
  let state = null;
  return {
    element, get state() { return state; },
    /** What is shown as a file; "" where nothing is. */
    svg: () => (state ? tokens.svg([state.base, state.other].filter(Boolean).map(({ name, text }) => `${name}: ${about(text)}`).join("  |  ")) : ""),
    /** @param {{name: string, text: any}|null} base @param {{name: string, text: any}|null} other */
    show(base, other) {
      const pair = base && other ? sideBySide(base.text, other.text) : null;
      const one = other ?? base;
      state = one ? { base: base && { ...base }, other: other && { ...other }, changed: pair?.changed ?? 0 } : null;
      element.hidden = !one;
      if (!one) return;
      const all = [...(base?.text.logprobs ?? []), ...(other?.text.logprobs ?? [])];
      const scale = { kind: "sequential", lo: Math.min(-1, ...all), hi: 0, unit: "log-probability, nats" };
      words.replaceChildren(...lines(base, other, pair));
      if (pair) tokens.show(pair.above, scale, pair.below);
      else tokens.show(one.text.tokens.map((_, i) => token(one.text, i, false)), scale);
      bar.replaceChildren(legend(scale));
    },
  };
}

function lines(base, other, pair) {
  const line = (which, row) => h("div", {}, h("span", { class: KIND[which.text.right] }, MARK[which.text.right], " "),
    h("b", {}, which.name), h("span", { class: "wb-quiet" }, `${row ? ` (${row} row)` : ""}: ${about(which.text)}`));
  const found = [];
  if (base) found.push(line(base, pair ? "upper" : ""));
  if (other) found.push(line(other, pair ? "lower" : ""));
  if (pair) found.push(h("div", { class: "wb-quiet" }, pair.changed ? `${counted(pair.changed)} changed, added or removed (underlined)` : "the same tokens"));
  return found;
}
