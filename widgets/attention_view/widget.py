"""AttentionView: what every head looks at, and one head's pattern, base and edited."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from workbench import worker
from workbench.errors import WorkbenchError
from workbench.model.model import Model
from workbench.sites import Site
from workbench.tensors import Intervention
from workbench_widgets.arms import Arms
from workbench_widgets.attention_view.code import cell
from workbench_widgets.attention_view.heads import STATISTICS, statistics
from workbench_widgets.base import Widget
from workbench_widgets.frames import pack
from workbench_widgets.stills.grid import grid

SMALL = 2 * 2**20
AT_ONCE = 2**28
HALF_FROM = 512
TOKENS_DRAWN = 1024


class AttentionView(Widget):
    """Heads by layers, coloured by what they look at; click a head for its pattern.

    The statistics are entropy in nats, attention to the first token, to the token before, and the
    mean distance looked back in tokens, each a mean over the queries after the first. A pattern has
    a row per query and a column per key. With edits, tabs show base, edited and their difference.

    Args:
        model: any loaded model whose patterns can be read.
        prompt: text or Prompt.
        edits: interventions; their strengths are where the sliders start.
        link: widgets of the same text share their selected layer, head and token.

    Example:
        AttentionView(model, "12+34=").precompute()

    Raises:
        SiteUnavailable: the model or its backend has no patterns to read.
        WorkbenchError: no or several prompts, a prompt beyond the context, an edit that does not fit.
    """

    folder = "attention_view"

    def __init__(
        self,
        model: Model,
        prompt: Any,
        edits: Intervention | Iterable[Intervention] = (),
        link: str = "",
    ):
        for layer in range(model.n_layers):
            model.backend.check(Site(layer, "pattern"), write=False)
        self._model, self._arms = model, Arms(model, prompt, edits, "AttentionView")
        self._base: np.ndarray | None = None
        self._base_of: tuple[int, ...] = ()
        meta = {
            "title": "Attention",
            "tokens": self._arms.texts,
            "layers": list(range(model.n_layers)),
            "heads": model.n_heads,
            "statistics": list(STATISTICS),
            "edits": self._arms.meta(),
        }
        super().__init__(spec={"strengths": self._arms.strengths}, meta=meta, link=link)
        self.refresh()

    # --- frames --------------------------------------------------------------------------------

    def pattern(self, layer: int, head: int, side: str = "base") -> Tensor:
        """One head's pattern `[query, key]`, on the base or the edited side.

        Raises:
            WorkbenchError: a layer, head or side there is not.
        """
        where = self._place(layer, head, side)
        edits = self.to_record()
        job = worker.submit(lambda _: self._layer(where[0], side, edits), label="AttentionView")
        return job.result()[where[1]]

    def _layer(self, layer: int, side: str, edits: Sequence[Intervention]) -> Tensor:
        """`[head, query, key]`."""
        site = f"L{layer}.pattern"
        return self._arms.run(side, edits, [site], "none")[site][0].float()

    def _heads(
        self, side: str, edits: Sequence[Intervention], job: worker.Job | None = None
    ) -> np.ndarray:
        """`[statistic, layer, head]`; patterns of a long prompt are read a few layers at a time."""
        found, groups = [], list(self._groups())
        for group in groups:
            sites = [f"L{n}.pattern" for n in group]
            trace = self._arms.run(side, edits, sites, "none")
            found += [statistics(trace[site][0]) for site in sites]
            if len(groups) > 1:
                self._arms.forget(side)
            if job is not None:
                job.progress(group[-1] + 1, self._model.n_layers, f"{side}: layers")
        return torch.stack(found, 1).cpu().numpy()

    def _groups(self) -> Iterator[range]:
        size = 4 * self._model.n_heads * len(self._arms.texts) ** 2
        step = max(1, AT_ONCE // size)
        for start in range(0, self._model.n_layers, step):
            yield range(start, min(self._model.n_layers, start + step))

    def _frame(self, spec: dict[str, Any], job: worker.Job) -> Mapping[str, Any]:
        edits = self._arms.at(spec)
        base, weights = self._known(), self._arms.weights
        if base is None:
            base = self._heads("base", (), job)
            self._base, self._base_of = base, weights
        frame = {"base": base}
        if edits:
            frame["edited"] = self._heads("edited", edits, job)
        return frame

    def _known(self) -> np.ndarray | None:
        """The base side as read before, unless weights were written into since."""
        return self._base if self._base_of == self._arms.weights else None

    def _fetch(self, what: str, arguments: Mapping[str, Any], job: worker.Job) -> Mapping[str, Any]:
        if what != "pattern":
            return super()._fetch(what, arguments, job)
        self._drawable()
        spec = dict(self.spec)
        layer, head = self._place(arguments.get("layer"), arguments.get("head"), "base")
        edits = self._arms.at(spec)
        found = {
            side: self._layer(layer, side, edits)[head].cpu().numpy() for side in self._arms.names
        }
        dtype = np.float16 if len(self._arms.texts) > HALF_FROM else np.float32
        arrays = {side: values.astype(dtype) for side, values in found.items()}
        return {"of": spec, "layer": layer, "head": head, **arrays}

    def _drawable(self) -> None:
        count = len(self._arms.texts)
        if count > TOKENS_DRAWN:
            raise WorkbenchError(
                "AttentionView",
                f"a pattern of {count:,} tokens is {count * count:,} cells",
                expected=f"at most {TOKENS_DRAWN:,} tokens to draw one",
                got=f"{count:,}",
                do="shorten the prompt, or take .pattern(layer, head)",
            )

    def _place(self, layer: Any, head: Any, side: str) -> tuple[int, int]:
        known = (self._model.n_layers, self._model.n_heads)
        fits = all(
            isinstance(i, int) and 0 <= i < n for i, n in zip((layer, head), known, strict=True)
        )
        if fits and side in self._arms.names:
            return layer, head
        raise WorkbenchError(
            "AttentionView.pattern",
            "there is no such pattern",
            expected=f"layer below {known[0]}, head below {known[1]}, one of {self._arms.names}",
            got=(layer, head, side),
            do="count both from 0",
        )

    # --- as Python -----------------------------------------------------------------------------

    def to_record(self) -> tuple[Intervention, ...]:
        """The edits at the strengths of the sliders."""
        return self._arms.at(self.spec)

    def to_code(self) -> str:
        """A cell that gives `heads`, the statistics, and the chosen head's `pattern`.

        Fitted edits are written to the folder `edits` and loaded from there.
        """
        at = self.selection
        edits = self.to_record()
        return cell(self._model, self._arms.tokens, edits, at.get("layer"), at.get("head"))

    def precompute(self, grid: Iterable[float] | None = None) -> AttentionView:
        """Keep statistics, and all patterns in 1/255 where that takes at most 2 MB, without a kernel.

        Args:
            grid: strengths of the first edit; 5 over the slider by default.

        Raises:
            WorkbenchError: no strengths, or one that is not a finite number.
        """
        now = self._arms.at(self.spec)
        strengths = self._arms.grid(grid, self.spec["strengths"][0], 5) if now else []
        if self._known() is None:
            self.refresh()
        settings = [(now[0].at(strength), *now[1:]) for strength in strengths]
        job = worker.submit(
            lambda job: self._swept(settings, job), label="AttentionView.precompute"
        )
        kept, others = job.result(), [float(edit.strength) for edit in now[1:]]
        self.sweep = pack({"grid": strengths, "others": others, **kept}) if kept else b""
        self.meta = {**self.meta, "complete": bool(kept) and not strengths}
        return self

    def _swept(
        self, settings: Sequence[Sequence[Intervention]], job: worker.Job
    ) -> dict[str, np.ndarray]:
        per_side = self._model.n_layers * self._model.n_heads * len(self._arms.texts) ** 2
        small = per_side * (1 + len(settings)) <= SMALL
        kept: dict[str, np.ndarray] = {}
        if small:
            kept["base_patterns"] = self._patterns("base", ())
        heads, patterns = [], []
        for i, edits in enumerate(settings):
            heads.append(self._heads("edited", edits))
            if small:
                patterns.append(self._patterns("edited", edits))
            job.progress(i + 1, len(settings), "strengths")
        if heads:
            kept["edited"] = np.stack(heads)
        if patterns:
            kept["edited_patterns"] = np.stack(patterns)
        return kept

    def _patterns(self, side: str, edits: Sequence[Intervention]) -> np.ndarray:
        """`[layer, head, query, key]` in 1/255."""
        trace = self._arms.run(side, edits, ["L*.pattern"], "none")
        return (trace.stack("pattern")[:, 0].float() * 255).round().byte().cpu().numpy()

    # --- pictures ------------------------------------------------------------------------------

    def _words(self) -> str:
        shape = f"{self._model.n_layers} layers, {self._model.n_heads} heads"
        frame = self.frame
        if not frame:
            return shape
        entropy = (
            float(np.nanmean(frame[self._arms.names[-1]][0])) if len(self._arms.texts) > 1 else 0
        )
        return f"{shape}, {len(self._arms.texts)} tokens; mean entropy {entropy:.2f} nats"

    def _still(self) -> str:
        frame, side = self.frame, self._arms.names[-1]
        if not frame:
            return "<p>Attention: not computed</p>"
        values = frame[side][0][::-1]
        most = float(np.nan_to_num(values).max())
        return grid(
            [str(n) for n in range(self._model.n_layers)][::-1],
            [str(n) for n in range(self._model.n_heads)],
            values,
            lambda r, c: f"{values[r, c]:.2f}",
            lo=0.0,
            hi=most or 1.0,
            caption=f"Attention, {side}: entropy of each head in nats",
            row_name="layer",
            col_name="head",
        )
