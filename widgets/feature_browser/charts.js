// A feature's histogram of activations, and the tokens that it promotes and suppresses as bars.

import { h, s, short, visible } from "../js/dom.js";

const WIDE = 220, TALL = 78, LEFT = 4, BOTTOM = 16, TOP = 14;

/** Tokens by activation; heights are logarithmic, since a feature is mostly a little active. */
export function histogram(counts, largest) {
  const most = Math.max(...counts, 1), n = counts.length, step = (WIDE - 2 * LEFT) / n, floor = TALL - BOTTOM;
  const total = counts.reduce((sum, one) => sum + one, 0);
  const edge = (i) => short((largest * i) / n);
  const bars = counts.map((count, i) => {
    const tall = count ? Math.max(2, ((floor - TOP) * Math.log10(1 + count)) / Math.log10(1 + most)) : 0;
    return s("rect", { class: "wb-bin", x: LEFT + i * step, y: floor - tall, width: Math.max(1, step - 1), height: tall, fill: "#d58a00" },
      s("title", {}, `${edge(i)} to ${edge(i + 1)}: ${count.toLocaleString("en")} tokens`));
  });
  const at = (value, x, y, anchor) => s("text", { x, y, "text-anchor": anchor, fill: "currentColor" }, value);
  return s("svg", {
    xmlns: "http://www.w3.org/2000/svg", class: "wb-histogram", width: WIDE, height: TALL, viewBox: `0 0 ${WIDE} ${TALL}`, role: "img", "font-size": 10, "font-family": "system-ui, sans-serif",
    "aria-label": `histogram of ${total.toLocaleString("en")} activations from 0 to ${short(largest)}; the fullest of ${n} steps has ${most.toLocaleString("en")}`,
  }, ...bars, s("line", { x1: LEFT, x2: WIDE - LEFT, y1: floor + 0.5, y2: floor + 0.5, stroke: "currentColor", "stroke-opacity": 0.5 }),
  at("0", LEFT, TALL - 4, "start"), at(short(largest), WIDE - LEFT, TALL - 4, "end"), at("activation", WIDE / 2, TALL - 4, "middle"),
  at(`tokens, log scale, up to ${most.toLocaleString("en")}`, LEFT, 9, "start"));
}

/** Tokens with bars; both sides share `most`, so that their lengths compare. */
export function bars(tokens, most, kind) {
  return tokens.map(({ text, value }) => h("div", { class: `wb-effect wb-${kind}`, title: `${visible(text)}: ${short(value)} logits per unit` },
    h("span", { class: "wb-token" }, visible(text)),
    h("span", { class: "wb-track", "aria-hidden": "true" }, h("i", { style: { width: `${(100 * Math.abs(value)) / (most || 1)}%` } })),
    h("span", { class: "wb-number" }, short(value))));
}
