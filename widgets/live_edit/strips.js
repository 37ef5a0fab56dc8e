// Thin bars below a continuation, one per token: what it cost, and how far the edit moved the model there.

import { h, s, short } from "../js/dom.js";

const HIGH = 26, STEP = 7;

/** @param {{words: string, values: (number|null)[], tokens: string[], kind: number}} what values in nats, at least 0; kind is an Okabe-Ito colour of style.css */
export function bars({ words, values, tokens, kind }) {
  const known = values.filter((v) => v !== null);
  if (!known.length) return null;
  const most = Math.max(...known, 0.01), width = values.length * STEP;
  const mean = known.reduce((a, b) => a + b, 0) / known.length;
  const picture = s("svg", { width, height: HIGH, role: "img", "aria-label": `${words}: mean ${short(mean)}, most ${short(most)} nats` });
  values.forEach((value, i) => {
    if (value === null) return;
    const tall = Math.max(0.5, ((HIGH - 1) * value) / most);
    picture.append(s("rect", { x: i * STEP, y: HIGH - tall, width: STEP - 1, height: tall, class: `kind${kind}` },
      s("title", {}, `${i} ${JSON.stringify(tokens[i])}: ${short(value)} nats`)));
  });
  return h("div", { class: "bars-of" }, h("small", { class: "wb-quiet" }, `${words}, up to ${short(most)} nats`), h("div", { class: "scroll" }, picture));
}

/** What a side has to show: its surprise, and, where edits act, the divergence. */
export function stripsOf(side, edited) {
  if (!side?.logprobs) return [];
  const tokens = side.tokens, found = [bars({ words: "−log p", values: side.logprobs.map((v) => (v === null ? null : Math.max(0, -v))), tokens, kind: edited ? 1 : 0 })];
  if (edited) found.push(bars({ words: "KL(edited ‖ base)", values: side.kl_nats, tokens, kind: 3 }));
  return found.filter(Boolean);
}
