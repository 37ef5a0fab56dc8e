// What the rows were, to go back to. The events of one drag are one step.

const DRAG_MS = 1000;

export class History {
  past = [];
  future = [];
  last = { of: "", at: -Infinity };

  push(rows, of = "", now = Date.now()) {
    const same = of !== "" && of === this.last.of && now - this.last.at < DRAG_MS;
    this.last = { of, at: now };
    this.future = [];
    if (!same) this.past.push(rows);
  }

  undo(rows) { return this.move(this.past, this.future, rows); }

  redo(rows) { return this.move(this.future, this.past, rows); }

  move(from, to, rows) {
    if (!from.length) return null;
    to.push(rows);
    this.last = { of: "", at: -Infinity };
    return from.pop();
  }
}
