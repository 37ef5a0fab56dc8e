"""What the model does for one setting: the next token at once, then two continuations, token by token."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from workbench import worker
from workbench.decoding import Decoder, Greedy, Sample
from workbench.model.changes import counted, versions
from workbench.model.live import Live
from workbench.model.model import Model
from workbench.records import Generation, Prompt
from workbench.tensors import Intervention
from workbench_widgets.live_edit import figures
from workbench_widgets.pieces import pieces

STREAM_EVERY_S = 0.06
PROMPTS_KEPT = 4
BASES_KEPT = 8

Show = Callable[[dict[str, Any]], None]
Spec = Mapping[str, Any]


class Engine:
    """One model and its prompts; keeps what the unedited model said, and the streams of a few prompts.

    Args:
        top: next tokens in a frame.
    """

    def __init__(self, model: Model, prompts: Sequence[Prompt], top: int):
        self.model, self.prompts, self.top = model, prompts, top
        self._lives: dict[int, Live] = {}
        self._bases: dict[tuple[Any, ...], dict[str, Any]] = {}

    def weights(self) -> tuple[Any, ...]:
        """Changes when weights are trained in place, replaced or moved."""
        return str(self.model.device), *versions(counted(self.model.hf.parameters()))

    def frame(
        self, spec: Spec, edits: list[Intervention], job: worker.Job, show: Show
    ) -> dict[str, Any]:
        """The frame of a setting. `show` gets what is known on the way.

        Where a later request waits, it ends early, with what it has and `done` False.
        """
        which = int(spec["prompt"])
        live, base = self._live(which), self._base(spec, which)
        # positions that only the continuation has are no mistake yet
        run = live.run([replace(edit, conditional=True) for edit in edits], logits="last")
        near = figures.next_token(
            self.model,
            live.tokens.ids[0].tolist(),
            base["logprobs"],
            figures.logprobs(run.logits, edits),
            self.top,
        )
        shown = {
            "prompt": base["prompt"],
            "next": near,
            "receipts": [_receipt(r) for r in run.receipts],
            "device": str(self.model.device),
            "base": base.get("continuation"),
            "done": False,
        }
        show(shown)
        if base.get("continuation") is None:
            base["continuation"] = self._continued(spec, which, [], job, show, shown, "base")
        shown |= {"base": base["continuation"]}
        if not edits and base["continuation"] is not None:
            return shown | {"edited": base["continuation"], "done": True}
        edited = self._continued(spec, which, edits, job, show, shown, "edited")
        return shown | ({} if edited is None else {"edited": edited, "done": True})

    def _live(self, which: int) -> Live:
        if which not in self._lives:
            while len(self._lives) >= PROMPTS_KEPT:
                del self._lives[next(iter(self._lives))]
            self._lives[which] = Live(self.model, [self.prompts[which]])
        return self._lives[which]

    def _base(self, spec: Spec, which: int) -> dict[str, Any]:
        """What the model says without edits, as far as it is known."""
        asked = (spec["seed"], spec["max_new_tokens"], spec["temperature"])
        key = (which, self.weights(), *asked)
        if key not in self._bases:
            while len(self._bases) >= BASES_KEPT:
                del self._bases[next(iter(self._bases))]
            tokens = self._live(which).tokens
            plain = self.model.run(tokens, logits="last").logits
            texts = pieces(self.model.tokenizer, tokens.ids[0].tolist())
            self._bases[key] = {
                "logprobs": figures.logprobs(plain, []),
                "prompt": {"tokens": texts},
            }
        return self._bases[key]

    def _continued(
        self,
        spec: Spec,
        which: int,
        edits: list[Intervention],
        job: worker.Job,
        show: Show,
        shown: dict[str, Any],
        side: str,
    ) -> dict[str, Any] | None:
        """A whole continuation, streamed; None where a later request made it pointless."""
        stream = self._streamer(spec, which, job, lambda part: show({**shown, side: part}))
        try:
            text = self._generated(spec, which, edits, stream)
        except _Superseded:
            return None
        if job.superseded():
            return None
        return figures.continuation(self.model, self.prompts[which], text, edits)

    def _generated(
        self, spec: Spec, which: int, edits: list[Intervention], on_token: Any
    ) -> Generation:
        return self.model.generate(
            [self.prompts[which]],
            edits=edits,
            decoder=_decoder(spec),
            max_new_tokens=int(spec["max_new_tokens"]),
            seed=int(spec["seed"]),
            on_token=on_token,
        )[0]

    def _streamer(
        self, spec: Spec, which: int, job: worker.Job, show: Show
    ) -> Callable[[int, list[int], list[int]], None]:
        """Shows tokens as they come, at most every `STREAM_EVERY_S`; stops where a later job waits."""
        before = self._live(which).tokens.ids[0].tolist()
        ids: list[int] = []
        told = [time.monotonic()]
        total = int(spec["max_new_tokens"])

        def on_token(step: int, _rows: list[int], new: list[int]) -> None:
            ids.extend(new)
            if job.superseded():
                raise _Superseded
            job.progress(step + 1, total)
            if time.monotonic() - told[0] >= STREAM_EVERY_S:
                told[0] = time.monotonic()
                show({"tokens": pieces(self.model.tokenizer, ids, before), "ids": list(ids)})

        return on_token


class _Superseded(Exception):
    """A later setting waits."""


def _decoder(spec: Spec) -> Decoder:
    temperature = float(spec["temperature"])
    return Sample(temperature=temperature) if temperature else Greedy()


def _receipt(receipt: Any) -> dict[str, Any]:
    return {
        "edit": receipt.edit,
        "site": receipt.site,
        "positions": receipt.positions,
        "change": receipt.change,
    }
