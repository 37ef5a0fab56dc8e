// Whether the kernel works on this widget, and a new drawing when that changes.

/** @param {import("./base.js").View} view */
export function busy(view) {
  return view.live && ["running", "queued"].includes(view.model.get("status")?.state);
}

/** The frame may come before the word that the work has ended. */
export function redrawWhenItEnds(view) {
  let was = busy(view);
  view.on("change:status", () => {
    if (busy(view) === was) return;
    was = !was;
    view.redraw();
  });
}
