"""LiveEdit: rows of interventions with sliders; base and edited decoding side by side, rerun as you drag."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from workbench import worker
from workbench.errors import EditError, WorkbenchError, unknown
from workbench.model.model import Model
from workbench.model.tokens import as_prompts
from workbench.tensors import Arm, Intervention
from workbench_widgets.base import Widget
from workbench_widgets.frames import pack
from workbench_widgets.live_edit.code import cell
from workbench_widgets.live_edit.engine import Engine
from workbench_widgets.live_edit.making import OPERATIONS, make
from workbench_widgets.live_edit.still import still

LARGEST_SEED = 2**53 - 1
"""Above it a browser rounds the number, and another seed comes back."""


class LiveEdit(Widget):
    """Edit activations while the model answers.

    Every row is an intervention: on or off, where, at which positions, how strong. As a slider moves
    the next token's probabilities follow at once, and the continuation streams in from its first
    token beside the unedited one, under the same seed. Pinned settings become arms of a comparison.

    Args:
        model: any loaded model.
        prompts: one or many; one is shown at a time.
        edits: fitted interventions, a row each; rows can be added and removed in the widget.
        max_new_tokens: longest continuation.
        temperature: 0 is greedy; above, samples under `seed`, the same draws for both sides.
        top: next tokens shown.
        link: widgets of the same text share their selected token.

    Raises:
        WorkbenchError: no prompts, something that is no edit, or a number out of its range.

    Example:
        live = LiveEdit(model, prompts, edits=[edit])
        live.precompute()            # so that the slider works in a page without a kernel
        live.arms()                  # what was pinned, for wb.compare or RolloutBoard
    """

    folder = "live_edit"

    def __init__(
        self,
        model: Model,
        prompts: Any,
        edits: Intervention | Iterable[Intervention] = (),
        *,
        max_new_tokens: int = 32,
        temperature: float = 0.0,
        seed: int = 0,
        top: int = 8,
        link: str = "",
    ):
        self._model, self._prompts = model, as_prompts(prompts)
        _check("max_new_tokens", max_new_tokens, int, 1, 10**6)
        _check("temperature", temperature, int | float, 0, 100)
        _check("seed", seed, int, 0, LARGEST_SEED)
        _check("top", top, int, 1, 1000)
        self._given = {f"e{i}": edit for i, edit in enumerate(_as_data(edits))}
        self._made: dict[tuple[Any, ...], Intervention] = {}
        self._engine = Engine(model, self._prompts, min(top, model.dims.n_vocab))
        self._swept: Any = None
        rows = [_row(key, edit) for key, edit in self._given.items()]
        spec = {
            "prompt": 0,
            "rows": rows,
            "seed": seed,
            "max_new_tokens": max_new_tokens,
            "temperature": float(temperature),
            "pins": [],
        }
        super().__init__(spec=spec, meta=self._about(), link=link)
        self.refresh()

    def arms(self) -> list[Arm]:
        """The baseline and every pinned setting, for `wb.compare` and RolloutBoard."""
        pins = [Arm(pin["name"], self._edits(pin["rows"])) for pin in self.spec["pins"]]
        return [Arm("base"), *pins]

    def pin(self, name: str = "") -> LiveEdit:
        """Keep the present rows as an arm.

        Raises:
            WorkbenchError: another arm has that name.
        """
        pins = list(self.spec["pins"])
        taken = {"base", *(pin["name"] for pin in pins)}
        name = name or next(n for i in range(1, len(taken) + 1) if (n := f"pin {i}") not in taken)
        if name in taken:
            raise WorkbenchError(
                "LiveEdit.pin",
                "the name is taken",
                expected=f"none of {sorted(taken)}",
                got=name,
                do="choose another",
            )
        self.ask(pins=[*pins, {"name": name, "rows": self.spec["rows"]}])
        return self

    def to_record(self) -> tuple[Intervention, ...]:
        """The interventions that are on, at the strengths and scopes that the rows say."""
        return tuple(self._edits(self.spec["rows"]))

    def to_code(self, folder: str = "edits") -> str:
        """A cell that generates the edited continuation, bit for bit; fitted edits go to `folder`."""
        spec = self.spec
        prompt = self._prompts[self._which(spec)]
        return cell(self._model, prompt, self.to_record(), spec, self._prompts[:8], folder)

    def precompute(self, grid: Any = None, row: int = 0) -> LiveEdit:
        """Frames for a page without a kernel: one row's slider at every strength of `grid`.

        Args:
            grid: strengths; 21 over the slider's range where left out.
            row: which row moves; the others stay as they are.
        """
        spec = dict(self.spec)
        if not 0 <= row < len(spec["rows"]):
            raise WorkbenchError(
                "LiveEdit.precompute(row=)",
                "there is no such row",
                expected=f"0 to {len(spec['rows']) - 1}",
                got=row,
                do="give the widget an edit first",
            )
        values = _grid(grid, *spec["rows"][row]["range"])

        def work(job: worker.Job) -> list[dict[str, Any]]:
            frames = []
            for i, strength in enumerate(values):
                at = _moved(spec, row, strength)
                frames.append(self._engine.frame(at, self._edits(at["rows"]), job, lambda _: None))
                job.progress(i + 1, len(values), f"strength {strength:g}")
            return frames

        found = worker.submit(work, label="LiveEdit.precompute").result(bar=True)
        shared = {key: found[0][key] for key in ("prompt", "base")}
        frames = [{k: v for k, v in one.items() if k not in shared} for one in found]
        self._swept = _rest(spec, row), row
        self.sweep = pack(
            {"grid": values, "row": row, "of": spec, "shared": shared, "frames": frames}
        )
        return self

    # --- frames --------------------------------------------------------------------------------

    def _frame(self, spec: dict[str, Any], job: worker.Job) -> Mapping[str, Any]:
        self._which(spec)

        def show(part: dict[str, Any]) -> None:
            if not worker.headless():
                self._show({"of": spec, **part})

        return self._engine.frame(spec, self._edits(spec["rows"]), job, show)

    def _needs_frame(self, old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
        if self._swept is not None and _rest(new, self._swept[1]) != self._swept[0]:
            self.sweep, self._swept = b"", None  # it speaks of another setting
        return {**old, "pins": 0} != {**new, "pins": 0}

    # --- rows ----------------------------------------------------------------------------------

    def _edits(self, rows: Sequence[Mapping[str, Any]]) -> list[Intervention]:
        return [self._edit(row) for row in rows if row.get("on") and row.get("strength")]

    def _edit(self, row: Mapping[str, Any]) -> Intervention:
        edit = self._made_edit(row["make"]) if row.get("make") else self._given.get(row["id"])
        if edit is None:
            raise unknown("LiveEdit", "edit", row.get("id"), self._given)
        return edit.at(float(row["strength"])).within(row.get("scope") or "all")

    def _made_edit(self, asked: Mapping[str, str]) -> Intervention:
        operation, site, token = asked["operation"], asked["site"], asked.get("token", "")
        key = (operation, site, token, self._engine.weights())
        if key not in self._made:
            # those of other weights are of no use any more
            self._made = {k: v for k, v in self._made.items() if k[3:] == key[3:]}
            self._made[key] = make(self._model, operation, site, self._prompts[:8], token)
        return self._made[key]

    def _which(self, spec: Mapping[str, Any]) -> int:
        which = int(spec["prompt"])
        if not 0 <= which < len(self._prompts):
            raise WorkbenchError(
                "LiveEdit",
                "there is no such prompt",
                expected=f"0 to {len(self._prompts) - 1}",
                got=which,
                do="choose another",
            )
        return which

    # --- words ---------------------------------------------------------------------------------

    def _about(self) -> dict[str, Any]:
        writable = [s for s in self._model.sites(write=True) if not s.startswith("hf:")]
        inside = dict.fromkeys(s.partition(".")[2] for s in writable if s.startswith("L0."))
        outside = [s for s in writable if "." not in s]
        return {
            "title": self._model.name,
            "prompts": [_first_line(p) for p in self._prompts],
            "parts": list(inside),
            "outside": outside,
            "n_layers": self._model.n_layers,
            "operations": {k: {"words": w, "unit": u, "range": r} for k, (w, u, r) in OPERATIONS.items()},
            "arms": "live.arms()",
        }  # fmt: skip

    def _fetch(self, what: str, arguments: Mapping[str, Any], job: worker.Job) -> Mapping[str, Any]:
        if what != "code":
            return super()._fetch(what, arguments, job)
        return {"code": self.to_code()}

    def _words(self) -> str:
        frame = self.frame
        on = sum(1 for row in self.spec["rows"] if row["on"])
        said = f"{self._model.name}, {on} edit{'s' * (on != 1)} on"
        if "next" in frame:
            kl = frame["next"]["kl_nats"]
            said += f", KL {kl:.3g} nats at the next token" if kl is not None else ""
        return said

    def _still(self) -> str:
        words = html.escape(self.status["msg"] or self._words())
        return still(self.frame, self.spec, words)


def _as_data(edits: Any) -> list[Intervention]:
    """The edits as given, one strength each; one that a row of another widget made is data here."""
    try:
        many = [edits] if isinstance(edits, Intervention) else list(edits)
    except TypeError:
        many = [edits]
    for edit in many:
        if not isinstance(edit, Intervention) or not isinstance(edit.strength, int | float):
            raise EditError(
                "LiveEdit(edits=)",
                "holds something that no slider can move",
                expected="interventions with one strength each",
                got=repr(edit)[:80],
                do="pass what a method's fit returns, at one strength",
            )
    return [
        replace(edit, params={k: v for k, v in edit.params.items() if k != "make"}) for edit in many
    ]


def _check(name: str, value: Any, kind: Any, low: float, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, kind) or not low <= value <= high:
        raise WorkbenchError(
            f"LiveEdit({name}=)",
            "is out of range",
            expected=f"a number from {low} to {high}",
            got=repr(value),
            do="correct it",
        )


def _row(key: str, edit: Intervention) -> dict[str, Any]:
    reach = 180.0 if edit.operation == "rotate" else max(2.0, 2 * abs(float(edit.strength)))
    return {
        "id": key,
        "label": edit.label,
        "site": ", ".join(edit.sites),
        "unit": edit.unit,
        "scope": str(edit.scope),
        "strength": float(edit.strength),
        "range": [-reach, reach],
        "on": True,
    }


def _moved(spec: Mapping[str, Any], row: int, strength: float) -> dict[str, Any]:
    rows = [dict(r) for r in spec["rows"]]
    rows[row] |= {"strength": strength, "on": True}
    return {**spec, "rows": rows}


def _rest(spec: Mapping[str, Any], row: int) -> Any:
    """What a sweep of one row takes as given: all but that row's slider and the pins."""
    if row >= len(spec["rows"]):
        return None
    return {**_moved(spec, row, 0.0), "pins": 0}


def _grid(grid: Any, low: float, high: float) -> list[float]:
    if grid is None:
        return [round(low + (high - low) * i / 20, 6) for i in range(21)]
    try:
        values = sorted({float(v) for v in grid})
    except (TypeError, ValueError):
        values = []
    if not values:
        raise WorkbenchError(
            "precompute",
            "has no strengths",
            expected="a list of numbers",
            got=repr(grid)[:80],
            do="pass some",
        )
    return values


def _first_line(prompt: Any) -> str:
    text = prompt.text if prompt.text is not None else prompt.messages[-1]["content"]
    return text.strip().replace("\n", " ")[:60]
