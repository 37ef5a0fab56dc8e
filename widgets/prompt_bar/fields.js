// The editable texts of a prompt: one field, or one per chat message.

import { h } from "../js/dom.js";

/** @param {import("../js/base.js").View} view @param {"prompt"|"other"} which @param {string} label */
export function fields(view, which, label) {
  const box = h("div", { class: "wb-pb-fields" });
  let made = "";
  const inputs = () => [...box.querySelectorAll("textarea")];
  const ask = () => {
    const told = view.spec[which], texts = inputs().map((input) => input.value);
    const next = told.messages
      ? { messages: told.messages.map((message, k) => ({ ...message, content: texts[k] })) } : { text: texts[0] };
    view.ask({ [which]: next, span: null, other_span: null });
  };
  const field = (name, value) => {
    const input = h("textarea", { rows: 1, spellcheck: "false", "aria-label": name });
    input.value = value;
    view.listen(input, "input", () => { fit(input); ask(); });
    return h("label", { class: "wb-pb-field" }, h("span", { class: "wb-quiet" }, name), input);
  };
  return {
    element: box,
    show() {
      const told = view.spec[which];
      box.hidden = !told;
      if (!told) return;
      const parts = told.messages ?? [{ role: label, content: told.text }];
      const shape = JSON.stringify(parts.map((part) => part.role));
      if (shape !== made) box.replaceChildren(...parts.map((part) => field(part.role, part.content)));
      made = shape;
      inputs().forEach((input, k) => {
        // what is being typed is ahead of what the kernel last said
        if (document.activeElement !== input && input.value !== parts[k].content) input.value = parts[k].content;
        input.readOnly = !view.live;
        fit(input);
      });
    },
  };
}

function fit(input) {
  input.style.height = "auto";
  if (input.scrollHeight) input.style.height = `${Math.min(input.scrollHeight + 2, 160)}px`;
}
