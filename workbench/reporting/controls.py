"""Stand-ins for the controls of ipywidgets, which do nothing without a kernel and say so."""

from __future__ import annotations

import base64
import html
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from nbformat import from_dict

from workbench.reporting.clean import clean
from workbench.reporting.saved import KERNEL, Saved, references

Draw = Callable[[str], str]

ROWS = ("HBoxModel", "BoxModel", "GridBoxModel", "GridspecLayoutModel")
COLUMNS = ("VBoxModel", "AccordionModel", "TabModel", "StackModel")
IMAGES = {"png": "image/png", "jpg": "image/jpeg", "jpeg": "image/jpeg", "gif": "image/gif"}


def stand_in(
    saved: Saved, model_id: str, draw_child: Draw, draw_output: Callable[[Any], str]
) -> str | None:
    """A widget of ipywidgets as plain HTML; None for one that has no stand-in."""
    name, state = saved.models.get(model_id, {}).get("model_name", ""), saved.state(model_id)
    if name in ROWS or name in COLUMNS:
        return _box(state, "row" if name in ROWS else "column", draw_child)
    if name == "HTMLModel":
        return f'<div class="afm-text">{clean(str(state.get("value", "")))}</div>'
    if name in ("LabelModel", "HTMLMathModel"):
        return f'<div class="afm-text">{html.escape(str(state.get("value", "")))}</div>'
    if name == "OutputModel":
        return "".join(draw_output(from_dict(o)) for o in state.get("outputs", ()))
    if name == "ImageModel":
        return _image(saved, model_id, str(state.get("format", "png")))
    control = _control(name, state)
    if control is None:
        return None
    label = f"<span>{html.escape(str(state.get('description', '')))}</span>"
    return f'<label class="afm-control">{label} {control} <small>{KERNEL}</small></label>'


def _box(state: Mapping[str, Any], direction: str, draw_child: Draw) -> str:
    titles = state.get("titles") or ()
    parts = []
    for index, child in enumerate(references(state.get("children", []))):
        title = f"<h4>{html.escape(str(titles[index]))}</h4>" if index < len(titles) else ""
        parts.append(f"<div>{title}{draw_child(child)}</div>")
    return f'<div class="afm-{direction}">{"".join(parts)}</div>'


def _image(saved: Saved, model_id: str, form: str) -> str | None:
    data = base64.b64encode(saved.bytes_of(model_id, "value")).decode()
    if form not in IMAGES or not data:
        return None
    return f'<img alt="picture of a widget" src="data:{IMAGES[form]};base64,{data}">'


def _control(name: str, state: Mapping[str, Any]) -> str | None:
    if "_options_labels" in state:
        return _choice(state)
    value = state.get("value")
    if name in ("IntProgressModel", "FloatProgressModel"):
        return f"<progress{_numbers(state, 'max', 'value')}></progress> {_text(value)}"
    if name in ("IntSliderModel", "FloatSliderModel"):
        return f'<input type="range" disabled{_numbers(state, *RANGE)}> {_text(value)}'
    if name in ("CheckboxModel", "ToggleButtonModel", "ValidModel"):
        return f'<input type="checkbox" disabled{" checked" if value else ""}>'
    if name == "ButtonModel":
        return '<input type="button" disabled value="run">'
    if name == "TextareaModel":
        return f"<textarea disabled>{_text(value)}</textarea>"
    if isinstance(value, str | int | float):
        return f'<input disabled value="{_text(value)}">'
    if isinstance(value, Sequence) and all(isinstance(v, str | int | float) for v in value):
        return f'<input disabled value="{" to ".join(map(_text, value))}">'
    return None


RANGE = ("min", "max", "step", "value")
"""In this order: a browser clamps a value to the limits that it knows already."""


def _choice(state: Mapping[str, Any]) -> str:
    chosen = state.get("index")
    picked = chosen if isinstance(chosen, list | tuple) else [chosen]
    options = "".join(
        f"<option{' selected' if i in picked else ''}>{_text(label)}</option>"
        for i, label in enumerate(state["_options_labels"])
    )
    return f"<select disabled{' multiple' if len(picked) > 1 else ''}>{options}</select>"


def _numbers(state: Mapping[str, Any], *names: str) -> str:
    return "".join(f' {n}="{_text(state[n])}"' for n in names if state.get(n) is not None)


def _text(value: Any) -> str:
    return html.escape(f"{value:.6g}" if isinstance(value, float) else str(value))
