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

/** Draw again when the widget has become wider or narrower; `view.room` is its width in px, 0 before it has one. */
export function redrawWhenResized(view) {
  view.room = 0;
  if (!globalThis.ResizeObserver) return;
  const observer = new ResizeObserver(() => {
    // hidden for a while: it will come back
    const now = view.body.clientWidth || view.room;
    if (now === view.room) return;
    view.room = now;
    view.redraw();
  });
  observer.observe(view.body);
  view.atEnd(() => observer.disconnect());
}
