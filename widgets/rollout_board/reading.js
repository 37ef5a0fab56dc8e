// What the frame of a board holds: lines of arm and measure, rounds of arm and seed, texts.

/** The line of an arm and a measure, or null. */
export function lineOf(frame, arm, metric) {
  return frame.lines.find((line) => line.arm === arm && line.metric === metric) ?? null;
}

/** The number of the round of an arm and a seed, or null where it is not there. */
export function roundOf(frame, arm, seed) {
  const found = frame.rounds.findIndex(([name, one]) => name === arm && one === seed);
  return found < 0 ? null : found;
}

/** Where a transcript stands among the frame's texts, -1 where it is not kept. */
export function textNumber(frame, arm, seed, prompt) {
  const round = roundOf(frame, arm, seed);
  return round === null || prompt >= frame.kept ? -1 : round * frame.kept + prompt;
}
