// From a frame to the tokens that the strip draws, one list per text, aligned where there are two.

/** The row of values that the spec names; -1 where there are none. */
export function placeOf(frame, spec) {
  return frame.names.length ? Math.max(0, frame.names.indexOf(spec.row)) : -1;
}

/** @returns {(import("../js/strip_tokens.js").Token|null)[][]} one list, or two of equal length with gaps */
export function rowsOf(frame, place) {
  const sides = frame.sides.map((side, k) => tokens(side, k ? frame.other_values : frame.values, place));
  if (!frame.pairs) return sides;
  const out = [[], []], pairs = frame.pairs.values;
  for (let k = 0; k < pairs.length; k += 2) {
    const pair = [sides[0][pairs[k]] ?? null, sides[1][pairs[k + 1]] ?? null];
    const [a, b] = pair, changed = !a || !b || a.text !== b.text || a.shown !== b.shown;
    pair.forEach((token, r) => out[r].push(token && { ...token, changed }));
  }
  return out;
}

function tokens(side, values, place) {
  const n = side.text.length;
  return side.text.map((text, i) => ({
    text, shown: side.shown[i] || undefined, index: side.first + i,
    value: place < 0 ? undefined : values.values[place * n + i],
  }));
}

/** Every row of numbers as a table, the aligned other text beside the first. */
export function tableOf(frame) {
  const names = ["position", "token", ...frame.names.map((name, k) => (frame.scales[k].unit ? `${name} (${frame.scales[k].unit})` : name))];
  const line = (k, i) => {
    const side = frame.sides[k], values = k ? frame.other_values : frame.values, n = side.text.length;
    if (i < 0) return names.map(() => "");
    const numbers = frame.names.map((_, row) => values.values[row * n + i]);
    return [side.first + i, side.text[i] || side.shown[i], ...numbers.map((v) => (Number.isNaN(v) ? "" : v))];
  };
  if (!frame.pairs) return [names, ...frame.sides[0].text.map((_, i) => line(0, i))];
  const pairs = frame.pairs.values, lines = [];
  for (let k = 0; k < pairs.length; k += 2) lines.push([...line(0, pairs[k]), ...line(1, pairs[k + 1])]);
  return [[...names, ...names.map((name) => `other ${name}`)], ...lines];
}
