// The shortest edit from one sequence to another. widgets/align.py does the same, step for step.

/** Table cells above which the middle is paired place by place: 6,000 tokens against as many. */
export const CELLS = 36e6;

/**
 * @param {(string|number)[]} a @param {(string|number)[]} b
 * @returns {{kind: "same"|"changed"|"added"|"removed", a: number|null, b: number|null}[]} in order; the
 *   fewest steps that are not "same" (Levenshtein distance)
 */
export function align(a, b) {
  let start = 0, tail = 0;
  const most = Math.min(a.length, b.length);
  while (start < most && a[start] === b[start]) start++;
  while (tail < most - start && a[a.length - 1 - tail] === b[b.length - 1 - tail]) tail++;
  const n = a.length - start - tail, m = b.length - start - tail;
  const steps = n * m > CELLS ? placed(n, m) : shortest(a, b, start, n, m);
  const out = [];
  let i = 0, j = 0;
  const go = (inA, inB) => {
    const kind = !inB ? "removed" : !inA ? "added" : a[i] === b[j] ? "same" : "changed";
    out.push({ kind, a: inA ? i++ : null, b: inB ? j++ : null });
  };
  for (let k = 0; k < start; k++) go(true, true);
  for (const step of steps) go(step !== ADD, step !== REMOVE);
  for (let k = 0; k < tail; k++) go(true, true);
  return out;
}

/** How many steps are not "same". @param {ReturnType<typeof align>} steps */
export const distance = (steps) => steps.filter((step) => step.kind !== "same").length;

const BOTH = 0, REMOVE = 1, ADD = 2;

function shortest(a, b, start, n, m) {
  const came = new Uint8Array((n + 1) * (m + 1)), width = m + 1;
  let above = Uint32Array.from({ length: width }, (_, j) => j), row = new Uint32Array(width);
  came.fill(ADD, 1, width);
  for (let i = 1; i <= n; i++) {
    row[0] = i;
    came[i * width] = REMOVE;
    const token = a[start + i - 1];
    for (let j = 1; j <= m; j++) {
      const both = above[j - 1] + (token === b[start + j - 1] ? 0 : 1), remove = above[j] + 1, add = row[j - 1] + 1;
      const least = Math.min(both, remove, add);
      row[j] = least;
      came[i * width + j] = least === both ? BOTH : least === remove ? REMOVE : ADD;
    }
    [above, row] = [row, above];
  }
  const steps = [];
  for (let i = n, j = m; i || j;) {
    const step = came[i * width + j];
    steps.push(step);
    if (step !== ADD) i--;
    if (step !== REMOVE) j--;
  }
  return steps.reverse();
}

function placed(n, m) {
  const both = Math.min(n, m);
  return [...new Array(both).fill(BOTH), ...new Array(n - both).fill(REMOVE), ...new Array(m - both).fill(ADD)];
}
