// What the frame of a sweep holds at a cell, along a layer, and as a table.

const number = (value) => (value === undefined || Number.isNaN(value) ? null : value);

function at(array, metric, layer, strength) {
  const [, layers, strengths] = array.shape;
  return number(array.values[(metric * layers + layer) * strengths + strength]);
}

/** One cell: its place, state (0 not computed, 1 computed, 2 failed), numbers of the chosen metric. */
export function cellOf(frame, meta, { metric, layer, strength }) {
  const read = (name) => at(frame[name], metric, layer, strength), place = layer * meta.strengths.length + strength;
  return {
    layer: meta.layers[layer], strength: meta.strengths[strength], state: frame.state.values[place],
    error: frame.errors[`${layer},${strength}`] ?? "", mean: read("mean"), low: read("low"), high: read("high"),
    difference: read("difference"), differenceLow: read("difference_low"), differenceHigh: read("difference_high"),
    differs: Boolean(read("differs")),
  };
}

/** The strength curve of the chosen layer, its control, and the baseline. */
export function curveOf(frame, meta, { metric, layer, strength }) {
  const along = (name) => meta.strengths.map((_, j) => at(frame[name], metric, layer, j));
  const series = [{ name: "edit", kind: 0, mean: along("mean"), low: along("low"), high: along("high") }];
  const control = { name: "random direction of the same norm", kind: 1, mean: along("control_mean"), low: along("control_low"), high: along("control_high") };
  if (control.mean.some((value, j) => value !== null && meta.strengths[j] !== 0)) series.push(control);
  const [mean, low, high] = frame.base.values.slice(3 * metric, 3 * metric + 3), about = meta.metrics[metric];
  return {
    label: `${about.name} against strength at layer ${meta.layers[layer]}`, xs: meta.strengths, xName: `strength at layer ${meta.layers[layer]}`,
    yName: `${about.name} (${about.unit})`, within: about.unit.startsWith("fraction") ? [0, 1] : null, series, chosen: strength,
    base: Number.isNaN(mean) ? null : { name: "baseline", mean, low: number(low), high: number(high) },
  };
}

/** Where the cell's continuations and the baseline's begin among the frame's texts, or null. */
export function textsOf(frame, meta, { layer, strength }) {
  const key = meta.strengths[strength] === 0 ? "base" : `${layer},${strength}`;
  const slot = frame.slots?.[key], base = frame.slots?.base;
  if (slot === undefined || base === undefined || !frame.kept) return null;
  return { frame, kept: frame.kept, base: base * frame.kept, other: slot * frame.kept };
}

/** Every computed number, a line per setting and metric. */
export function rows(frame, meta) {
  const names = ["mean", "low", "high", "difference", "difference_low", "difference_high"];
  const out = [["kind", "layer", "strength", "metric", "unit", ...names]];
  meta.metrics.forEach((about, m) => meta.layers.forEach((layer, i) => meta.strengths.forEach((strength, j) => {
    for (const kind of meta.control ? ["", "control_"] : [""]) {
      const values = names.map((name) => at(frame[kind + name], m, i, j));
      if (values[0] === null || (kind && strength === 0)) continue;
      out.push([strength === 0 ? "base" : kind ? "control" : "edit", layer, strength, about.name, about.unit, ...values]);
    }
  })));
  return out;
}
