// A chosen cell and the layer that linked widgets show.

/** Open a cell, and show its layer in linked widgets. */
export function choose(view, layer, strength) {
  view.ask({ layer, strength });
  view.select({ layer: view.meta.layers[layer] });
}

/** Go to the layer that was chosen in a linked widget, where the sweep has it. */
export function follow(view) {
  const layer = view.meta.layers.indexOf(view.selection.layer);
  if (layer >= 0 && layer !== view.spec.layer) view.ask({ layer });
}
