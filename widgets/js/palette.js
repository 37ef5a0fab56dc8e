// Three palettes that people with any colour vision can read: cividis for amounts, PuOr for signed
// differences, Okabe-Ito for kinds. tests/unit/test_palettes.py holds them against plotly's.

export const CIVIDIS = ["#00224e", "#123570", "#3b496c", "#575d6d", "#707173", "#8a8678", "#a59c74", "#c3b369", "#e1cc55", "#fee838"];
export const PUOR = ["#7f3b08", "#b35806", "#e08214", "#fdb863", "#fee0b6", "#f7f7f7", "#d8daeb", "#b2abd2", "#8073ac", "#542788", "#2d004b"];
export const OKABE_ITO = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#f0e442", "#000000"];

const rgb = (hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
const STOPS = { cividis: CIVIDIS.map(rgb), puor: PUOR.map(rgb) };

function between(stops, t) {
  const place = Math.max(0, Math.min(1, t)) * (stops.length - 1);
  const i = Math.min(stops.length - 2, Math.floor(place)), f = place - i;
  return stops[i].map((a, k) => Math.round(a + (stops[i + 1][k] - a) * f));
}

/** @param {number} t 0 to 1 @returns {number[]} red, green, blue */
export const sequential = (t) => between(STOPS.cividis, t);
/** @param {number} t -1 (orange) to 1 (purple) */
export const diverging = (t) => between(STOPS.puor, (t + 1) / 2);
export const categorical = (i) => OKABE_ITO[i % OKABE_ITO.length];
export const css = ([r, g, b]) => `rgb(${r},${g},${b})`;

/** Black or white, whichever reads better on the colour: WCAG contrast of at least 4.5. */
export function inkOn(colour) {
  const [r, g, b] = colour.map((c) => (c /= 255) <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
  const light = 0.2126 * r + 0.7152 * g + 0.0722 * b;
  return (light + 0.05) / 0.05 > 1.05 / (light + 0.05) ? "#000" : "#fff";
}
