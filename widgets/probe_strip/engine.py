"""What a setting of ProbeStrip shows: base and edited text with every probe's score; texts are kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from workbench import worker
from workbench.model.changes import counted, versions
from workbench.model.model import Model
from workbench.probes.base import FittedProbe
from workbench.records import Prompt
from workbench.tensors import Intervention
from workbench_widgets.pieces import pieces
from workbench_widgets.probe_strip.reading import Text, at_times, read
from workbench_widgets.probe_strip.scores import scores, sites_of

TEXTS_KEPT = 8

Show = Callable[[dict[str, Any]], None]
Spec = Mapping[str, Any]


class Superseded(Exception):
    """A later setting waits."""


class Engine:
    """One model, its prompts and probes. Another probe, window or threshold reads no text again.

    Args:
        wanted: the setting that is wanted by now; a base text that it shows too is read to its end.
    """

    def __init__(
        self,
        model: Model,
        prompts: Sequence[Prompt],
        probes: Mapping[str, FittedProbe],
        wanted: Callable[[], Spec],
    ):
        self.model, self.prompts, self.probes, self.wanted = model, prompts, probes, wanted
        self.sites = list(dict.fromkeys(s for probe in probes.values() for s in sites_of(probe)))
        self._texts: dict[Any, Text] = {}
        self._reach: dict[tuple[str, Any], float] = {}

    def weights(self) -> tuple[Any, ...]:
        """Changes when weights are trained in place, replaced or moved."""
        return str(self.model.device), *versions(counted(self.model.hf.parameters()))

    def frame(
        self,
        spec: Spec,
        edit: tuple[Any, Intervention] | None,
        job: worker.Job,
        show: Show | None = None,
    ) -> dict[str, Any]:
        """Both sides; `show` gets what is known on the way, and the job the progress.

        Without `show` the job only is asked whether to stop.

        Args:
            edit: what is written, with a key that says what it is; None for the base alone.

        Raises:
            Superseded: a later request waits.
        """
        shown: dict[str, Any] = {"device": str(self.model.device), "edited": None}

        def stream(side: str) -> Show | None:
            tell = show
            return tell and (lambda part: tell({**shown, side: part}))

        shown["base"] = self._side(spec, None, job, stream("base"))
        shown["reach"] = self._reached(spec, shown["base"])
        if edit is not None:
            if show:
                show(shown)
            shown["edited"] = self._side(spec, edit, job, stream("edited"))
        return shown

    def _side(
        self, spec: Spec, edit: tuple[Any, Intervention] | None, job: worker.Job, show: Show | None
    ) -> dict[str, Any]:
        which, most = int(spec["prompt"]), int(spec["max_new_tokens"])
        key = (which, most, self.weights(), edit and edit[0])
        known = self._texts.pop(key, None)
        self._texts[key] = known or self._read(spec, edit, job, show)
        if known is None:
            while len(self._texts) > TEXTS_KEPT:
                del self._texts[next(iter(self._texts))]
        return self.picture(self._texts[key], spec)

    def _read(
        self, spec: Spec, edit: tuple[Any, Intervention] | None, job: worker.Job, show: Show | None
    ) -> Text:
        most = int(spec["max_new_tokens"])
        told = at_times(lambda text: show(self.picture(text, spec))) if show else None

        def on_token(step: int, text: Callable[[], Text]) -> None:
            if job.superseded() and (edit or not self._same_base(spec)):
                raise Superseded
            if told is None:
                return job.check()
            job.progress(step, most, "edited" if edit else "base")
            return told(step, text)

        prompt, edits = self.prompts[int(spec["prompt"])], [] if edit is None else [edit[1]]
        return read(self.model, prompt, self.sites, edits, most, on_token)

    def _same_base(self, spec: Spec) -> bool:
        later = self.wanted()
        return all(later.get(k) == spec[k] for k in ("prompt", "max_new_tokens"))

    def picture(self, text: Text, spec: Spec) -> dict[str, Any]:
        """One side as JSON: its tokens, and the lines of every probe."""
        skip = int(text.ids[0] == self.model.tokenizer.bos_token_id)
        return {
            "ids": text.ids,
            "tokens": pieces(self.model.tokenizer, text.ids),
            "n_prompt": text.n_prompt,
            "skip": skip,
            "stop": text.stop,
            "scores": [
                scores(probe, text.rows, int(spec["window"]), skip)
                for probe in self.probes.values()
            ],
        }

    def _reached(self, spec: Spec, base: Mapping[str, Any]) -> float:
        """How far the slider along the chosen probe goes: twice what the first text spans, rounded."""
        key = (str(spec["probe"]), self.weights())
        if key not in self._reach:
            line = base["scores"][list(self.probes).index(key[0])]["score"][base["skip"] :]
            known = [v for v in line if v is not None]
            self._reach[key] = rounded(2 * (max(known) - min(known))) if known else 1.0
        return self._reach[key]


def rounded(value: float) -> float:
    """The next of 1, 2, 5 and their multiples of ten; 1 for nothing."""
    if not value > 0 or not math.isfinite(value):
        return 1.0
    size = 10.0 ** math.floor(math.log10(value))
    return next(float(f"{k * size:g}") for k in (1, 2, 5, 10) if k * size >= value * (1 - 1e-9))
