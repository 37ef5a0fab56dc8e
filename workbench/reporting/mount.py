"""Saved widgets in a page: a place for each, and one inert JSON block that `host.js` starts them from.

Each place holds the static picture of its widget, which stays until the module has drawn.
"""

from __future__ import annotations

import hashlib
import html
from collections.abc import Callable
from typing import Any

from workbench.reporting import controls
from workbench.reporting.saved import KERNEL, Saved

INTERNAL = ("_esm", "_css", "_dom_classes", "layout", "tabbable", "tooltip")
"""What a front end reads for itself; no module does."""


class Mounts:
    """Draws widget views and remembers which models the page then needs."""

    def __init__(self, saved: Saved, draw_output: Callable[[Any], str]):
        self.saved = saved
        self.drawn: list[str] = []
        self._draw_output = draw_output
        self._open: list[str] = []

    def view(self, model_id: str, still: str) -> str:
        """A widget's place, with `still`, safe HTML, where its module does not start."""
        if self.saved.mounts(model_id):
            self.drawn.append(model_id)
            return (
                f'<div class="afm" data-afm="{html.escape(model_id)}">{self._trouble(model_id)}'
                f'<div class="afm-still">{still}</div></div>'
            )
        stand_in = None if model_id in self._open else self._stand_in(model_id)
        if stand_in is not None:
            return stand_in
        return f'<div class="afm-still">{still}<p class="afm-note">{KERNEL}</p></div>'

    def block(self) -> dict[str, Any] | None:
        """Models, modules and styles of the page, each once; None where no module is mounted."""
        if not self.drawn:
            return None
        models: dict[str, Any] = {}
        modules: dict[str, str] = {}
        styles: dict[str, str] = {}
        for model_id in dict.fromkeys(m for top in self.drawn for m in self.saved.reach(top)):
            model = self.saved.models[model_id]
            kept = {k: v for k, v in model["state"].items() if not _internal(k)}
            models[model_id] = {"state": kept, "buffers": model.get("buffers", [])}
            if self.saved.mounts(model_id):
                models[model_id]["module"] = _once(modules, model["state"]["_esm"])
                _once(styles, model["state"].get("_css") or "")
        return {"models": models, "modules": modules, "styles": styles}

    def modes(self) -> list[tuple[str, str]]:
        """Each mounted widget's label and what of it works on the page."""
        return [(self.saved.label(m), self._mode(m)) for m in dict.fromkeys(self.drawn)]

    def _mode(self, model_id: str) -> str:
        status = self.saved.status(model_id)
        failed = f"; its last run failed: {status.get('msg')}" if _failed(status) else ""
        return self.saved.mode(model_id) + failed

    def _stand_in(self, model_id: str) -> str | None:
        # A box that holds itself would otherwise never end.
        self._open.append(model_id)
        try:
            return controls.stand_in(self.saved, model_id, self._child, self._draw_output)
        finally:
            self._open.pop()

    def _child(self, model_id: str) -> str:
        return self.view(model_id, html.escape(self.saved.label(model_id)))

    def _trouble(self, model_id: str) -> str:
        status = self.saved.status(model_id)
        if not _failed(status):
            return ""
        said = html.escape(str(status.get("msg") or "no message"))
        return f'<p class="afm-note afm-error">The last run of this widget failed: {said}</p>'


def _failed(status: Any) -> bool:
    return status.get("state") == "error"


def _internal(name: str) -> bool:
    return name in INTERNAL or name.startswith(("_model_", "_view_"))


def _once(kept: dict[str, str], source: str) -> str:
    name = hashlib.sha256(source.encode()).hexdigest()[:16]
    if source:
        kept[name] = source
    return name
