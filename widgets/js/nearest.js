// Sliders of a page without a kernel: they walk over the precomputed settings, one a step.

/** Index of the value closest to `wanted`: between two of them the page snaps. */
export function nearest(values, wanted) {
  let best = 0;
  values.forEach((one, i) => { if (Math.abs(one - wanted) < Math.abs(values[best] - wanted)) best = i; });
  return best;
}

/**
 * Let a slider walk over settings, or over a range where `settings` is null.
 * @param {HTMLInputElement} input @param {{min, max, step}} range @param {number[]|null} settings
 * @returns {boolean} whether it walked over something else before
 */
export function walk(input, { min, max, step }, settings) {
  const key = settings ? JSON.stringify(settings) : "";
  if (input.dataset.settings === key) return false;
  input.dataset.settings = key;
  // a step between two settings would snap back: keys could never leave one
  Object.assign(input, settings ? { min: 0, max: settings.length - 1, step: 1 } : { min, max, step });
  return true;
}

const settingsOf = (input) => (input.dataset.settings ? JSON.parse(input.dataset.settings) : null);

/** Put a walking slider at a strength. */
export function putAt(input, strength) {
  const settings = settingsOf(input);
  input.value = String(settings ? nearest(settings, strength) : strength);
}

/** The strength at which a walking slider stands. */
export function strengthOf(input) {
  const settings = settingsOf(input);
  return settings ? settings[Number(input.value)] : Number(input.value);
}
