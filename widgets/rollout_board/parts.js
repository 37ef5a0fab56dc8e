// What other widgets use of this one: a table that keys move through, and transcripts side by side.

export { cells } from "./cells.js";
export { KIND, MARK, textAt, transcript } from "./transcripts.js";
export { busy, redrawWhenItEnds } from "./work.js";
