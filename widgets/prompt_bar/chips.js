// From a frame to chips, and from chosen chips to positions in each prompt.

const SPECIAL = 0, TEMPLATE = 4, ROLES = [2, 5, 3, 1]; // stripes, places in Okabe-Ito

/** @returns {(import("../js/strip_tokens.js").Token|null)[][]} one list per prompt, of equal length where aligned */
export function rowsOf(frame, withIds = true) {
  if (!frame.pairs) return frame.sides.map((side) => side.ids.map((_, i) => chip(side, i, false, withIds)));
  const [a, b] = frame.sides, out = [[], []];
  for (const [i, j] of frame.pairs) {
    const changed = i < 0 || j < 0 || a.ids[i] !== b.ids[j];
    out[0].push(i < 0 ? null : chip(a, i, changed, withIds));
    out[1].push(j < 0 ? null : chip(b, j, changed, withIds));
  }
  return out;
}

function chip(side, i, changed, withIds) {
  const turn = side.turn[i], template = side.roles.length && turn < 0 && !side.special[i];
  const about = [`id ${side.ids[i]}`];
  if (side.special[i]) about.push("special");
  else if (side.shown[i]) about.push("part of a character");
  if (turn >= 0) about.push(`${side.roles[turn]}'s turn`);
  if (template) about.push("written by the chat template");
  return {
    text: side.text[i], shown: side.shown[i] || undefined, index: i, changed, title: about.join(", "),
    kind: side.special[i] ? SPECIAL : template ? TEMPLATE : turn >= 0 ? roleKind(side, side.roles[turn]) : undefined,
    note: withIds ? `${i}\n#${side.ids[i]}` : undefined,
  };
}

const roleKind = (side, role) => ROLES[[...new Set(side.roles)].indexOf(role) % ROLES.length];

/** The stripes that a frame uses, with their names. */
export function kindsOf(frame) {
  const found = new Map();
  for (const side of frame.sides) {
    if (side.special.some(Boolean)) found.set(SPECIAL, "special token");
    for (const role of side.roles) found.set(roleKind(side, role), role);
    if (side.roles.length && side.turn.some((turn, i) => turn < 0 && !side.special[i])) found.set(TEMPLATE, "chat template");
  }
  return [...found].map(([kind, name]) => ({ kind, name }));
}

/** Positions under chosen columns, per prompt: `[start, stop]`, or null where there are only gaps. */
export function spansOf(rows, span) {
  return [0, 1].map((r) => {
    const found = span ? (rows[r] ?? []).slice(span.start, span.stop).filter(Boolean).map((token) => token.index) : [];
    return found.length ? [found[0], found[found.length - 1] + 1] : null;
  });
}

/** The columns of a span given as positions; null for none. */
export function columnsOf(row, span) {
  if (!span) return null;
  const inside = row.flatMap((token, k) => (token && token.index >= span[0] && token.index < span[1] ? [k] : []));
  return inside.length ? { start: inside[0], stop: inside[inside.length - 1] + 1 } : null;
}

/** Every token as a line: position, id, text, whether it is special, whose turn it is. */
export function tableOf(frame) {
  const names = ["position", "id", "token", "special", "role"];
  const line = (side, i) => (i < 0 ? names.map(() => "")
    : [i, side.ids[i], side.text[i] || side.shown[i], side.special[i] ? "special" : "", side.roles[side.turn[i]] ?? ""]);
  const [a, b] = frame.sides;
  if (!b) return [names, ...a.ids.map((_, i) => line(a, i))];
  return [[...names, ...names.map((name) => `other ${name}`)], ...frame.pairs.map(([i, j]) => [...line(a, i), ...line(b, j)])];
}

/** What the bar says of a frame, in words. */
export function wordsOf(frame, rows, spans) {
  const [a, b] = frame.sides;
  const words = [b ? `${a.ids.length} and ${b.ids.length} tokens` : `${a.ids.length} of ${a.n_context || "any number of"} tokens`];
  if (b) {
    const differ = rows[0].filter((token, k) => (token ?? rows[1][k]).changed).length;
    const straight = a.ids.length === b.ids.length && frame.pairs.every(([i, j]) => i === j);
    words.push(differ ? `${differ} differ` : "equal", straight ? "positions correspond one to one" : "positions shift");
  }
  if (spans[0]) words.push(`span(${spans[0].join(", ")})`);
  if (spans[1]) words.push(`other span(${spans[1].join(", ")})`);
  if (!frame.sides.every((side) => side.exact)) words.push("the tokenizer changes this text: the tokens are what the model reads");
  return words.join(" · ");
}
