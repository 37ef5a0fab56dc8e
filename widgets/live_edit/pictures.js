import { csv, svgText } from "../js/export.js";
import { s, short, visible } from "../js/dom.js";
import { OKABE_ITO } from "../js/palette.js";

const LINE = 16, WIDE = 720, CHARS = 48;

export function toCsv(frame) {
  const rows = [["side", "position", "id", "token", "logprob_nats", "base_logprob_nats", "kl_nats"]];
  for (const side of ["base", "edited"]) {
    const found = frame[side];
    found?.tokens?.forEach((token, i) => rows.push([side, i, found.ids[i], token, found.logprobs?.[i], found.base_logprobs?.[i], found.kl_nats?.[i]]));
  }
  return csv(rows);
}

/** The next token's bars above the two continuations. */
export function toSvg(frame, theme) {
  const texts = ["base", "edited"].map((side) => wrapped((frame[side]?.tokens ?? []).join("")));
  const bars = frame.next.tokens.length * LINE, height = 60 + bars + LINE * Math.max(texts[0].length, texts[1].length);
  const text = (x, y, words, more = {}) => s("text", { x, y, fill: theme.ink, ...more }, words);
  const root = s("svg", { xmlns: "http://www.w3.org/2000/svg", width: WIDE, height, "font-family": "monospace", "font-size": 12 },
    s("rect", { width: WIDE, height, fill: theme.paper }), text(8, 16, "next token: base (blue) and edited (orange)"));
  const most = Math.max(...frame.next.base, ...frame.next.edited);
  frame.next.tokens.forEach((token, k) => {
    const y = 24 + k * LINE, size = (p) => (240 * p) / most;
    root.append(text(8, y + 11, visible(token)),
      s("rect", { x: 90, y: y + 1, width: size(frame.next.base[k]), height: 6, fill: OKABE_ITO[0] }),
      s("rect", { x: 90, y: y + 8, width: size(frame.next.edited[k]), height: 6, fill: OKABE_ITO[1] }),
      text(345, y + 11, `${short(frame.next.base[k])}  ${short(frame.next.edited[k])}`));
  });
  texts.forEach((lines, side) => {
    const x = 8 + side * (WIDE / 2);
    root.append(text(x, bars + 44, ["base", "edited"][side], { "font-weight": "bold" }));
    lines.forEach((line, i) => root.append(text(x, bars + 60 + i * LINE, line)));
  });
  return svgText(root);
}

function wrapped(text) {
  return text.split("\n").flatMap((line) => line.match(new RegExp(`.{1,${CHARS}}`, "gu")) ?? [""]);
}
