"""The widgets of an executed notebook as it saved them: what they hold, in which mode they open.

A widget that follows the contract of `workbench_widgets` has `meta`, `status`, `seq` and `sweep`; any
other anywidget is mounted as well, and nothing is claimed of it.
"""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from nbformat import NotebookNode

VIEW = "application/vnd.jupyter.widget-view+json"
STATE = "application/vnd.jupyter.widget-state+json"
REFERENCE = "IPY_MODEL_"
KERNEL = "needs a running kernel"
DRAWN = "drawn from its saved state"


@dataclass(frozen=True)
class Saved:
    """Widget models by id, each with `model_module`, `model_name`, `state` and `buffers`."""

    models: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @classmethod
    def of(cls, notebook: NotebookNode) -> Saved:
        """The models that a notebook's metadata hold; none where it saved none."""
        return cls(notebook.metadata.get("widgets", {}).get(STATE, {}).get("state", {}))

    def state(self, model_id: str) -> Mapping[str, Any]:
        """The synced values of a model, without its bytes; empty for one that was not saved."""
        return self.models.get(model_id, {}).get("state", {})

    def mounts(self, model_id: str) -> bool:
        """Whether its module is in the file: an anywidget whose source is text, not an address."""
        if self.models.get(model_id, {}).get("model_module") != "anywidget":
            return False
        source = self.state(model_id).get("_esm", "")
        return bool(source) and not source.startswith(("http://", "https://"))

    def label(self, model_id: str) -> str:
        """What a reader calls it: its class, and its title where it has one."""
        state = self.state(model_id)
        name = str(state.get("_anywidget_id") or self.models.get(model_id, {}).get("model_name"))
        meta = state.get("meta")
        title = str(meta.get("title") or "") if isinstance(meta, Mapping) else ""
        return name.rpartition(".")[2].removesuffix("Model") + (f" ({title})" if title else "")

    def mode(self, model_id: str) -> str:
        """What works without a kernel, in the words that the widget itself uses."""
        settings, meta = self._settings(model_id), self.state(model_id).get("meta")
        if settings:
            return f"precomputed: {settings} settings, no kernel"
        if isinstance(meta, Mapping) and meta.get("complete"):
            return "complete: no kernel needed"
        return KERNEL if self.status(model_id) else DRAWN

    def status(self, model_id: str) -> Mapping[str, Any]:
        """The `status` of a widget that follows the contract; empty for others."""
        status = self.state(model_id).get("status")
        return status if isinstance(status, Mapping) else {}

    def reach(self, model_id: str) -> Iterator[str]:
        """A model and every model that its state refers to, each once, the model first."""
        seen, waiting = set(), [model_id]
        while waiting:
            current = waiting.pop(0)
            if current in seen or current not in self.models:
                continue
            seen.add(current)
            yield current
            waiting += references(self.state(current))

    def bytes_of(self, model_id: str, name: str) -> bytes:
        """One binary value, b"" where there is none."""
        for buffer in self.models.get(model_id, {}).get("buffers", ()):
            if list(buffer["path"]) == [name]:
                return base64.b64decode(buffer["data"])
        return b""

    def _settings(self, model_id: str) -> int:
        """How many settings a sweep holds: the length of `grid` in the header of its packed bytes."""
        packed = self.bytes_of(model_id, "sweep")
        try:
            (length,) = struct.unpack_from("<I", packed)
            header = json.loads(packed[4 : 4 + length])
            grid = header["json"].get("grid")
            return len(grid) if grid is not None else header["arrays"]["grid"]["shape"][0]
        except (struct.error, ValueError, KeyError, TypeError, AttributeError, IndexError):
            return 0


def references(value: Any) -> list[str]:
    """Ids of the models that a state value refers to, in order."""
    if isinstance(value, str):
        return [value.removeprefix(REFERENCE)] if value.startswith(REFERENCE) else []
    if isinstance(value, Mapping):
        return [found for item in value.values() for found in references(item)]
    if isinstance(value, list | tuple):
        return [found for item in value for found in references(item)]
    return []


def shown(notebook: NotebookNode) -> Iterator[tuple[int, str]]:
    """Index of the cell and id of the model for every widget view among the outputs."""
    for index, cell in enumerate(notebook.cells):
        for node in cell.get("outputs", ()):
            view = node.get("data", {}).get(VIEW)
            if view is not None:
                yield index, str(view.get("model_id", ""))
