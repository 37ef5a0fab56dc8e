"""A point as Python: how its edit is fitted, and a cell that generates with it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from workbench import registry
from workbench.model.tokens import as_prompts
from workbench.records import Prompt
from workbench.sweep.methods import MethodPoint, MethodSweep
from workbench.tensors import Intervention
from workbench_widgets.cells import FOLDER, edit_code, list_code, model_line, prompt_code
from workbench_widgets.steering_lab.settings import METHOD, kind_of

INLINE = 32
"""Labelled prompts that a cell writes out; more of them go to a file."""


class Recipe:
    """How the edits of a sweep are made, in Python. Texts are kept: a frame asks for all of them."""

    def __init__(self, sweep: MethodSweep):
        self.sweep, self._fitted = sweep, sweep._fitted
        self._made: dict[tuple[str, int | None], tuple[str, str]] = {}

    def frame(self) -> dict[str, Any]:
        """`recipes`: method, layer, its edit at strength 1 as Python, and its unit, for all that is
        fitted."""
        for point, cell in self.sweep.done.items():
            key = point.method, point.layer
            if kind_of(point) != METHOD or cell.error or key in self._made:
                continue
            if (edit := self.sweep.edit_at(point)) is not None:
                self._made[key] = self.made(point, edit), edit.unit
        return {"recipes": [[*key, *texts] for key, texts in self._made.items()]}

    def made(self, point: MethodPoint, edit: Intervention) -> str:
        """The expression that fits the edit from `model` and `data`, at strength 1."""
        asked = {n: getattr(self._fitted, n) for n in ("positive", "negative")}
        said = [self._method(point.method), "model", "data"]
        if point.method in self._fitted.sites:
            said.append(repr(self._fitted.sites[point.method]))
        if asked != {"positive": True, "negative": False}:
            said += [f"{name}={label!r}" for name, label in asked.items()]
        only = "" if point.layer is None else f".only({', '.join(map(repr, edit.sites))})"
        return f"wb.steering.fit({', '.join(said)}){only}"

    def cell(self, point: MethodPoint, edit: Intervention, folder: str | Path = FOLDER) -> str:
        """The text of a cell with the edit and its continuations. What a call cannot make again, a
        control or a method that was handed something, is loaded from a file that is written now."""
        sweep = self.sweep
        again = kind_of(point) == METHOD and not self._fitted.handed.get(point.method)
        lines = ["import workbench as wb", "from workbench.decoding import Greedy, Sample", ""]
        lines += [model_line(sweep.model)]
        if again:
            lines += data_lines(self._fitted.data, Path(folder))
            lines += [f"edit = {self.made(point, edit)}.at({float(edit.strength)!r})"]
        else:
            lines += [f"edit = {edit_code(edit, folder)}"]
        lines += [f"prompts = {list_code(map(prompt_code, sweep.prompts))}"]
        options = {**sweep.options, "decoder": sweep.decoder, "seed": sweep.seed}
        said = "".join(f", {k}={v!r}" for k, v in options.items() if v not in (None, ""))
        lines += [f"texts = model.generate(prompts, edits=[edit]{said})"]
        return "\n".join([*lines, "[text.text for text in texts]", ""])

    def _method(self, name: str) -> str:
        """The method as an argument: its name, or itself where its options are not the default."""
        method = self.sweep.methods[name]
        if name in registry.names("steering") and method == type(method)():
            return repr(name)
        return f"wb.steering.{method!r}"


def data_lines(data: Sequence[Prompt], folder: Path) -> list[str]:
    """Lines that make `data`: the prompts written out, or read from a file that is written now."""
    many = as_prompts(data)
    if len(many) <= INLINE:
        return [f"data = {list_code(map(_labelled, many))}"]
    text = json.dumps([_kept(p) for p in many], ensure_ascii=False, sort_keys=True)
    path = folder / f"data-{hashlib.sha256(text.encode()).hexdigest()[:8]}.json"
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8")
    read = f"json.loads(pathlib.Path({path.as_posix()!r}).read_text('utf-8'))"
    return ["import json, pathlib", f"data = [wb.Prompt(**one) for one in {read}]"]


def _labelled(prompt: Prompt) -> str:
    """The prompt with what a fit reads of its `meta`."""
    said = prompt_code(prompt)
    if "completion" not in prompt.meta:
        return said
    return f"{said[:-1]}, meta={ {'completion': prompt.meta['completion']}!r})"


def _kept(prompt: Prompt) -> dict[str, Any]:
    found = {k: v for k, v in asdict(prompt).items() if k != "meta" and v not in (None, (), "")}
    if "completion" in prompt.meta:
        found["meta"] = {"completion": prompt.meta["completion"]}
    return found
