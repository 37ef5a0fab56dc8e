"""LensGrid: what every layer would predict at every position, base and edited."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from workbench import worker
from workbench.errors import WorkbenchError
from workbench.model.model import Model
from workbench.tensors import Intervention
from workbench_widgets.arms import Arms
from workbench_widgets.base import Widget
from workbench_widgets.frames import pack
from workbench_widgets.lens_grid.code import cell
from workbench_widgets.lens_grid.lens import STATISTICS, Lens, lens
from workbench_widgets.pieces import alternatives
from workbench_widgets.stills.grid import grid

WORDS_AT_MOST = 65535


class LensGrid(Widget):
    """The logit lens: a row per layer, a column per token, in each cell the layer's first choice.

    Colours are the probability of that choice, the rank of the model's own choice at the layer,
    KL(model || layer) in nats, or the entropy in nats. Click a cell to follow its position through
    the layers. With edits, tabs show base, edited and their difference, and a slider per edit.
    An edit of `final_norm` or `logits` is in the model's own distribution, not in the lens.

    Args:
        model: any loaded model.
        prompt: text or Prompt.
        edits: interventions; their strengths are where the sliders start.
        layers: those to show, counted from 0; all by default.
        top: tokens with probabilities in the hover.
        link: widgets of the same text share their selected token and layer.

    Example:
        LensGrid(model, "12+34=", edits=[edit]).precompute()

    Raises:
        WorkbenchError: no or several prompts, a prompt beyond the context, an edit that does not
            fit, a layer the model lacks.
    """

    folder = "lens_grid"

    def __init__(
        self,
        model: Model,
        prompt: Any,
        edits: Intervention | Iterable[Intervention] = (),
        *,
        layers: Sequence[int] | None = None,
        top: int = 5,
        link: str = "",
    ):
        self._model, self._arms = model, Arms(model, prompt, edits, "LensGrid")
        self._layers = _checked(layers, model.n_layers)
        self._top = max(1, min(int(top), model.dims.n_vocab))
        self._texts: dict[int, str] = {}
        self._base: Lens | None = None
        self._base_of: tuple[int, ...] = ()
        self._frame_of: tuple[int, ...] = ()
        meta = {
            "title": "Logit lens",
            "tokens": self._arms.texts,
            "layers": self._layers,
            "statistics": list(STATISTICS),
            "edits": self._arms.meta(),
            "complete": not self._arms.edits,
        }
        super().__init__(spec={"strengths": self._arms.strengths}, meta=meta, link=link)
        self.refresh()

    # --- frames --------------------------------------------------------------------------------

    def read(self, side: str = "base") -> Lens:
        """The lens of the base or of the edited side at the present strengths.

        Raises:
            WorkbenchError: a side there is not.
        """
        if side not in self._arms.names:
            raise WorkbenchError(
                "LensGrid.read", "no such side", expected=self._arms.names, got=side, do="name one"
            )
        known = self._known() if side == "base" else None
        if known is not None:
            return known
        edits = self.to_record()
        # what the sides keep is the worker's
        return worker.submit(lambda job: self._read(side, edits, job), label="LensGrid").result()

    def _known(self) -> Lens | None:
        """The base side as read before, unless weights were written into since."""
        return self._base if self._base_of == self._arms.weights else None

    def _read(
        self, side: str, edits: Sequence[Intervention], job: worker.Job | None = None
    ) -> Lens:
        weights = self._arms.weights
        trace = self._arms.run(side, edits, [f"L{n}.resid_post" for n in self._layers])
        resid = trace.stack("resid_post")[:, 0]

        def check(done: int, of: int) -> None:
            if job is not None:
                job.progress(done, of, f"{side}: layers")

        found = lens(self._model, self._arms.tokens, resid, trace.logits[0], self._top, check)
        if side == "base":
            self._base, self._base_of = found, weights
        return found

    def _frame(self, spec: dict[str, Any], job: worker.Job) -> Mapping[str, Any]:
        edits, self._frame_of = self._arms.at(spec), self._arms.weights
        sides = {"base": self._known() or self._read("base", (), job)}
        if edits:
            sides["edited"] = self._read("edited", edits, job)
        words, index = self._words_of(*(side.top for side in sides.values()))
        arrays: dict[str, Any] = {}
        for (name, side), places in zip(sides.items(), index, strict=True):
            arrays[f"{name}_top"] = places
            arrays[f"{name}_top_p"] = side.top_p.astype(np.float32)
            arrays[f"{name}_statistics"] = side.statistics
        return {"words": words, **arrays}

    def _words_of(self, *tops: np.ndarray) -> tuple[list[str], list[np.ndarray]]:
        """The texts of all ids once, and the ids as places among them."""
        ids = np.unique(np.concatenate([top.ravel() for top in tops]))
        fresh = [i for i in ids.tolist() if i not in self._texts]
        # after some token: a first one would lose its space
        before = self._arms.tokens.ids[0, -1:].tolist()
        texts = alternatives(self._model.tokenizer, fresh, before)
        self._texts.update(zip(fresh, texts, strict=True))
        words = [self._texts[i] for i in ids.tolist()]
        dtype = np.uint16 if len(words) <= WORDS_AT_MOST else np.int32
        return words, [np.searchsorted(ids, top).astype(dtype) for top in tops]

    # --- as Python -----------------------------------------------------------------------------

    def to_record(self) -> tuple[Intervention, ...]:
        """The edits at the strengths of the sliders."""
        return self._arms.at(self.spec)

    def to_code(self) -> str:
        """A cell that gives `first`, the top-1 id of every layer and position, without the widget.

        Fitted edits are written to the folder `edits` and loaded from there.
        """
        return cell(self._model, self._arms.tokens, self.to_record(), self._layers)

    def precompute(self, grid: Iterable[float] | None = None) -> LensGrid:
        """Keep first choices and statistics at several strengths of the first edit.

        Without edits the widget is complete as it is.

        Args:
            grid: strengths; 9 over the slider by default.

        Raises:
            WorkbenchError: no strengths, or one that is not a finite number.
        """
        if not self._arms.edits:
            return self
        now = self._arms.at(self.spec)
        strengths = self._arms.grid(grid, self.spec["strengths"][0], 9)
        if self._frame_of != self._arms.weights:
            self.refresh()
        job = worker.submit(
            lambda job: self._swept(strengths, now, job), label="LensGrid.precompute"
        )
        others = [float(edit.strength) for edit in now[1:]]
        self.sweep = pack({"grid": strengths, "others": others, **job.result()})
        return self

    def _swept(
        self, strengths: Sequence[float], now: Sequence[Intervention], job: worker.Job
    ) -> dict[str, Any]:
        first, *others = now
        sides = []
        for i, strength in enumerate(strengths):
            sides.append(self._read("edited", (first.at(strength), *others)))
            job.progress(i + 1, len(strengths), "strengths")
        words, places = self._words_of(*(side.top[..., :1] for side in sides))
        return {
            "words": words,
            "top": np.stack(places)[..., 0],
            "p": np.stack([side.p for side in sides]).astype(np.float16),
            "rank": np.stack([side.rank for side in sides]).clip(max=65535).astype(np.uint16),
            "kl": np.stack([side.kl for side in sides]).astype(np.float16),
            "entropy": np.stack([side.entropy for side in sides]).astype(np.float16),
        }

    # --- pictures ------------------------------------------------------------------------------

    def _words(self) -> str:
        shape = f"{len(self._layers)} layers, {len(self._arms.texts)} tokens"
        frame = self.frame
        if not frame:
            return shape
        side = self._arms.names[-1]
        return f"{shape}; next {self._first(frame, side, -1, -1)!r}"

    def _first(self, frame: Mapping[str, Any], side: str, row: int, col: int) -> str:
        return frame["words"][int(frame[f"{side}_top"][row, col, 0])]

    def _still(self) -> str:
        frame, side = self.frame, self._arms.names[-1]
        if not frame:
            return "<p>Logit lens: not computed</p>"
        labels = [str(n) for n in self._layers[::-1]]
        p = frame[f"{side}_statistics"][0][::-1]
        last = len(labels) - 1
        return grid(
            labels,
            self._arms.texts,
            p,
            lambda r, c: self._first(frame, side, last - r, c),
            lo=0.0,
            hi=1.0,
            caption=f"Logit lens, {side}: probability of each layer's first choice",
            row_name="layer",
            col_name="token",
        )


def _checked(layers: Sequence[int] | None, n_layers: int) -> list[int]:
    found = list(range(n_layers)) if layers is None else sorted({int(n) for n in layers})
    if found and found[0] >= 0 and found[-1] < n_layers:
        return found
    raise WorkbenchError(
        "LensGrid(layers=)",
        "names layers the model lacks" if found else "names no layer",
        expected=f"some of 0 to {n_layers - 1}",
        got=list(layers or []),
        do="count blocks from 0",
    )
