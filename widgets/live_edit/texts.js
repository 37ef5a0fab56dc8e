import { align } from "../js/align.js";

/** Which tokens of either side the other lacks. While one is still coming, what is not there yet is no difference. */
export function marked(frame) {
  const base = frame.base?.ids ?? [], edited = frame.edited?.ids ?? [];
  const marks = { base: base.map(() => false), edited: edited.map(() => false) };
  if (!base.length || !edited.length) return marks;
  const compared = frame.done ? base : base.slice(0, edited.length);
  for (const step of align(compared, edited)) {
    if (step.kind === "same") continue;
    if (step.a !== null) marks.base[step.a] = true;
    if (step.b !== null) marks.edited[step.b] = true;
  }
  return marks;
}
