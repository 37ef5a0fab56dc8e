"""LiveEdit: rows of interventions with sliders; base and edited decoding side by side, rerun as you drag."""

from __future__ import annotations

import html
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from workbench import worker
from workbench.decoding import Decoder, Greedy, Sample
from workbench.errors import WorkbenchError, unknown
from workbench.model.live import Live
from workbench.model.model import Model
from workbench.model.tokens import as_prompts
from workbench.records import Generation
from workbench.tensors import Arm, Intervention
from workbench_widgets.base import Widget
from workbench_widgets.frames import pack
from workbench_widgets.live_edit import figures
from workbench_widgets.live_edit.code import cell
from workbench_widgets.live_edit.making import OPERATIONS, make
from workbench_widgets.live_edit.still import still
from workbench_widgets.pieces import pieces

STREAM_EVERY_S = 0.06
PROMPTS_KEPT = 4


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
        self._model, self._prompts, self._top = model, as_prompts(prompts), top
        given = [edits] if isinstance(edits, Intervention) else list(edits)
        self._given = {f"e{i}": edit for i, edit in enumerate(given)}
        self._made: dict[str, Intervention] = {}
        self._lives: dict[int, Live] = {}
        self._bases: dict[tuple[Any, ...], dict[str, Any]] = {}
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
        """Keep the present rows as an arm."""
        pins = list(self.spec["pins"])
        name = name or f"pin {len(pins) + 1}"
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
                frames.append(self._computed_at(spec, row, strength, job))
                job.progress(i + 1, len(values), f"strength {strength:g}")
            return frames

        found = worker.submit(work, label="LiveEdit.precompute").result(bar=True)
        shared = {key: found[0][key] for key in ("prompt", "base")}
        frames = [{k: v for k, v in one.items() if k not in shared} for one in found]
        self.sweep = pack({"grid": values, "row": row, "shared": shared, "frames": frames})
        return self

    # --- frames --------------------------------------------------------------------------------

    def _frame(self, spec: dict[str, Any], job: worker.Job) -> Mapping[str, Any]:
        edits, which = self._edits(spec["rows"]), self._which(spec)
        prompt, decoder = self._prompts[which], _decoder(spec)
        live = self._live(which)
        run, before = live.run(edits, logits="last"), live.tokens.ids[0].tolist()
        base_next = self._base(spec, which, live)["logprobs"]
        shown = {
            "prompt": self._base(spec, which, live)["prompt"],
            "next": figures.next_token(
                self._model, before, base_next, figures.logprobs(run.logits, edits), self._top
            ),
            "receipts": [_receipt(r) for r in run.receipts],
            "done": False,
        }
        self._show_live({"of": spec, **shown, "base": self._base_so_far(spec, which)})
        if job.superseded():
            return shown | {"base": self._base_so_far(spec, which)}
        base = self._base_continuation(spec, which, decoder, shown, job)
        if not edits:
            return shown | {"base": base, "edited": base, "done": True}
        stream = self._streamer(spec, {**shown, "base": base}, "edited", job)
        edited = self._generated(spec, which, edits, decoder, stream)
        if edited is None or job.superseded():
            return shown | {"base": base}
        full = figures.continuation(self._model, prompt, edited, edits)
        return shown | {"base": base, "edited": full, "done": True}

    def _computed_at(
        self, spec: dict[str, Any], row: int, strength: float, job: worker.Job
    ) -> dict[str, Any]:
        rows = [dict(r) for r in spec["rows"]]
        rows[row] |= {"strength": strength, "on": True}
        at = {**spec, "rows": rows}
        self._job, self._silent = job, True
        try:
            return {"of": at, **self._frame(at, job)}
        finally:
            self._silent = False

    _silent = False

    def _show_live(self, part: dict[str, Any]) -> None:
        if not (self._silent or worker.headless()):
            self._show(part)

    def _live(self, which: int) -> Live:
        """The engine of a prompt; those of the last few prompts are kept."""
        if which not in self._lives:
            while len(self._lives) >= PROMPTS_KEPT:
                del self._lives[next(iter(self._lives))]
            self._lives[which] = Live(self._model, [self._prompts[which]])
        return self._lives[which]

    def _key(self, spec: Mapping[str, Any], which: int) -> tuple[Any, ...]:
        # weights trained in place count their versions
        weights = sum(p._version for p in self._model.hf.parameters())
        asked = (spec["seed"], spec["max_new_tokens"], spec["temperature"])
        return which, weights, id(self._model.hf), str(self._model.device), *asked

    def _base(self, spec: Mapping[str, Any], which: int, live: Live) -> dict[str, Any]:
        key = self._key(spec, which)
        if key not in self._bases:
            plain = self._model.run(live.tokens, logits="last").logits
            texts = pieces(self._model.tokenizer, live.tokens.ids[0].tolist())
            found = {"logprobs": figures.logprobs(plain, []), "prompt": {"tokens": texts}}
            self._bases = {**dict(list(self._bases.items())[-7:]), key: found}
        return self._bases[key]

    def _base_so_far(self, spec: Mapping[str, Any], which: int) -> Any:
        return self._bases.get(self._key(spec, which), {}).get("continuation")

    def _base_continuation(
        self,
        spec: dict[str, Any],
        which: int,
        decoder: Decoder,
        shown: dict[str, Any],
        job: worker.Job,
    ) -> dict[str, Any]:
        known = self._base_so_far(spec, which)
        if known is not None:
            return known
        stream = self._streamer(spec, shown, "base", job, stops=False)
        text = self._generated(spec, which, [], decoder, stream)
        assert text is not None
        found = figures.continuation(self._model, self._prompts[which], text, [])
        self._bases[self._key(spec, which)]["continuation"] = found
        return found

    def _generated(
        self,
        spec: Mapping[str, Any],
        which: int,
        edits: list[Intervention],
        decoder: Decoder,
        on_token: Callable[[int, list[int], list[int]], None],
    ) -> Generation | None:
        """The continuation, or None where a later request made it pointless."""
        try:
            return self._model.generate(
                [self._prompts[which]],
                edits=edits,
                decoder=decoder,
                max_new_tokens=int(spec["max_new_tokens"]),
                seed=int(spec["seed"]),
                on_token=on_token,
            )[0]
        except _Superseded:
            return None

    def _streamer(
        self,
        spec: dict[str, Any],
        shown: dict[str, Any],
        side: str,
        job: worker.Job,
        stops: bool = True,
    ) -> Callable[[int, list[int], list[int]], None]:
        """Shows tokens as they come, at most every `STREAM_EVERY_S`; stops where a later job waits."""
        ids: list[int] = []
        before = self._live(int(spec["prompt"])).tokens.ids[0].tolist()
        told = [time.monotonic()]
        total = int(spec["max_new_tokens"])

        def on_token(step: int, _rows: list[int], new: list[int]) -> None:
            ids.extend(new)
            job.check()
            if stops and job.superseded():
                raise _Superseded
            if time.monotonic() - told[0] < STREAM_EVERY_S:
                return
            told[0] = time.monotonic()
            job.i, job.n = step + 1, total
            texts = pieces(self._model.tokenizer, ids, before)
            self._show_live({"of": spec, **shown, side: {"tokens": texts, "ids": list(ids)}})

        return on_token

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
        key = f"{operation}|{site}|{token}"
        if key not in self._made:
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
            "title": f"{self._model.name} on {self._model.device}",
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


class _Superseded(Exception):
    """A later setting waits."""


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


def _grid(grid: Any, low: float, high: float) -> list[float]:
    if grid is None:
        return [round(low + (high - low) * i / 20, 6) for i in range(21)]
    values = sorted({float(v) for v in grid})
    if not values:
        raise WorkbenchError(
            "precompute", "has no strengths", expected="at least one", got="0", do="pass some"
        )
    return values


def _decoder(spec: Mapping[str, Any]) -> Decoder:
    temperature = float(spec["temperature"])
    return Sample(temperature=temperature) if temperature else Greedy()


def _receipt(receipt: Any) -> dict[str, Any]:
    return {
        "edit": receipt.edit,
        "site": receipt.site,
        "positions": receipt.positions,
        "change": receipt.change,
    }


def _first_line(prompt: Any) -> str:
    text = prompt.text if prompt.text is not None else prompt.messages[-1]["content"]
    return text.strip().replace("\n", " ")[:60]
