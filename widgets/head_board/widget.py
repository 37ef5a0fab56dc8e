"""HeadBoard: all heads by a score; open one; and where a neuron or a direction is most active."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from workbench import worker
from workbench.errors import WorkbenchError
from workbench.locate.base import Cases
from workbench.model.live import Live
from workbench.model.model import Model
from workbench.model.tokens import as_prompts
from workbench.sites import Site
from workbench.tensors import Intervention
from workbench_widgets.base import Widget
from workbench_widgets.frames import pack
from workbench_widgets.head_board.code import cell
from workbench_widgets.head_board.examples import Feature, feature, most_active
from workbench_widgets.head_board.scores import PARTS, scores_of
from workbench_widgets.head_board.still import still
from workbench_widgets.next_tokens import next_tokens
from workbench_widgets.pieces import pieces
from workbench_widgets.stills.words import cut, number
from workbench_widgets.transcripts import shown

SMALL = 2 * 2**20
HALF_FROM = 512
TOKENS_DRAWN = 1024
PROMPTS_NAMED = 200
STRENGTHS = (0.0, 0.5, 1.0)


class HeadBoard(Widget):
    """Every head, coloured by a score; a list of them sorted by it; click one to open it.

    An opened head shows its attention pattern on a chosen prompt, all its scores with 95 % intervals
    and its rank in each, and the next token with and without the head: a slider moves the strength of
    its ablation (1 writes nothing), which `to_record()` gives as an edit. A second tab shows the tokens
    at which a neuron or a direction is most active, with what stands around them.

    Args:
        model: any loaded model.
        prompts: those on which patterns, ablations and examples are shown.
        found: a Map of heads, or several: every measure is a score to choose.
        neuron: such as "L3.mlp_post[neuron=12]", a Readout, a linear FittedProbe, or an addition.
        top: next tokens shown of each run.
        examples: how many prompts the second tab shows.
        link: widgets of the same text share their selected layer and head.

    Example:
        scores = [locate.find(name, model, prompts) for name in ("induction_heads", "head_ablation")]
        HeadBoard(model, prompts, scores).choose(layer=2, head=5).to_record()

    Raises:
        WorkbenchError: no maps of heads of this model, or a neuron or direction it lacks.
        PromptError: no prompts, or one beyond the context.
    """

    folder = "head_board"

    def __init__(
        self,
        model: Model,
        prompts: Any,
        found: Any,
        *,
        neuron: Any = None,
        top: int = 6,
        examples: int = 12,
        link: str = "",
    ):
        self._model, self._scores = model, scores_of(found, model)
        self._prompts = as_prompts(prompts)
        self._tokens = [model.tokens(prompt) for prompt in self._prompts]
        self._given = neuron
        self._features: dict[Any, Feature] = {}
        if neuron is not None:
            self._feature(neuron if isinstance(neuron, str) else "")
        self._top = max(1, min(int(top), model.dims.n_vocab))
        self._examples = max(1, int(examples))
        self._lives: tuple[int, dict[str, Live]] | None = None
        text = neuron if isinstance(neuron, str) else ""
        spec = {"head": None, "prompt": 0, "strength": 1.0, "neuron": text}
        super().__init__(spec=spec, meta=self._about(), link=link)
        self.refresh()

    def _about(self) -> dict[str, Any]:
        given = self._given
        return {
            "title": "Heads",
            "layers": list(range(self._model.n_layers)),
            "heads": self._model.n_heads,
            "scores": [{"name": s.name, "unit": s.unit} for s in self._scores],
            "prompts": [cut(shown(p), 90) for p in self._prompts[:PROMPTS_NAMED]],
            # a neuron can be typed in; a direction is what it is
            "feature": None if given is None or isinstance(given, str) else self._feature("").name,
            "complete": False,
        }

    # --- what is chosen ------------------------------------------------------------------------

    def choose(
        self, layer: int, head: int, *, prompt: int | None = None, strength: float | int = 1.0
    ) -> HeadBoard:
        """Open a head, both counted from 0. Returns the widget.

        Raises:
            WorkbenchError: a head or prompt there is not.
        """
        at = self.spec["prompt"] if prompt is None else prompt
        self._checked([layer, head])
        self._prompt(at)
        self.ask(head=[layer, head], prompt=at, strength=float(strength))
        return self

    def _checked(self, head: Any) -> tuple[int, int]:
        known = (self._model.n_layers, self._model.n_heads)
        if isinstance(head, Sequence) and len(head) == 2:
            fits = (isinstance(i, int) and 0 <= i < n for i, n in zip(head, known, strict=True))
            if all(fits):
                return head[0], head[1]
        raise WorkbenchError(
            "HeadBoard",
            "has no such head",
            expected=f"layer below {known[0]}, head below {known[1]}",
            got=head,
            do="count both from 0",
        )

    def _prompt(self, index: Any) -> int:
        if isinstance(index, int) and 0 <= index < len(self._prompts):
            return index
        raise WorkbenchError(
            "HeadBoard",
            "has no such prompt",
            expected=f"0 to {len(self._prompts) - 1}",
            got=index,
            do="count from 0",
        )

    # --- frames --------------------------------------------------------------------------------

    def _needs_frame(self, old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
        # how a frame is shown is in `view`; everything else asks for numbers
        return old != new

    def _frame(self, spec: dict[str, Any], job: worker.Job) -> Mapping[str, Any]:
        frame: dict[str, Any] = self._arrays()
        if spec.get("head") is not None:
            head, prompt = self._checked(spec["head"]), self._prompt(spec.get("prompt"))
            frame |= self._opened(head, prompt, spec)
        if spec.get("neuron") or self._given is not None:
            frame["examples"] = self._active(str(spec.get("neuron") or ""), job)
        return frame

    def _arrays(self) -> dict[str, np.ndarray]:
        """Mean, low, high and n, `[score, layer, head]` each."""
        values = np.stack([score.values for score in self._scores])
        return {name: values[:, i] for i, name in enumerate(PARTS)}

    def _opened(
        self, head: tuple[int, int], prompt: int, spec: Mapping[str, Any]
    ) -> dict[str, Any]:
        ids = self._tokens[prompt].ids[0].tolist()
        frame: dict[str, Any] = {"tokens": pieces(self._model.tokenizer, ids)}
        frame["opened"] = self._without(head, prompt, _strength(spec))
        if len(ids) <= TOKENS_DRAWN:
            pattern = self.pattern(*head, prompt)
            frame["pattern"] = pattern.astype(np.float16 if len(ids) > HALF_FROM else np.float32)
        return frame

    def pattern(self, layer: int, head: int, prompt: int = 0) -> np.ndarray:
        """One head's attention pattern `[query, key]` on a prompt.

        Raises:
            WorkbenchError: a head or prompt there is not.
            SiteUnavailable: the model or its backend has no patterns to read.
        """
        self._checked([layer, head])
        site = f"L{layer}.pattern"
        trace = self._model.run(self._tokens[self._prompt(prompt)], [site], logits="none")
        return trace[site][0, head].float().cpu().numpy()

    def _without(self, head: tuple[int, int], prompt: int, strength: float) -> dict[str, Any]:
        """The next token with the head and without it."""
        edit = replace(self._ablation(*head).at(strength), conditional=True)
        lives = self._kept(prompt)
        runs = {"base": lives["base"].run(()).logits[:, -1]}
        runs["edited"] = lives["edited"].run((edit,)).logits[:, -1]
        return next_tokens(self._model, self._case(prompt), runs, self._top)

    def _kept(self, prompt: int) -> dict[str, Live]:
        if self._lives is None or self._lives[0] != prompt:
            tokens = self._tokens[prompt]
            self._lives = prompt, {n: Live(self._model, tokens) for n in ("base", "edited")}
        return self._lives[1]

    def _case(self, prompt: int) -> Cases:
        return Cases(self._tokens[prompt])

    def _ablation(self, layer: int, head: int) -> Intervention:
        """An edit that takes a share of a head's output away; 1 is all of it."""
        site = f"L{layer}.z[head={head}]"
        self._model.backend.check(Site(layer, "z"), write=True)
        return Intervention(
            "custom",
            "affine",
            {site: {"scale": -torch.ones(self._model.dims.d_head)}},
            unit="share of the head taken away",
            model=self._model.fingerprint_shape,
            name=f"without L{layer} head {head}",
        )

    def _feature(self, text: str) -> Feature:
        """The feature of a typed neuron, or of what was given."""
        given = text or self._given
        if text not in self._features:
            self._features[text] = feature(self._model, given)
        return self._features[text]

    def _active(self, text: str, job: worker.Job) -> dict[str, Any]:
        """The most active tokens, kept: a moved slider does not change them."""
        key = (text, id(self._given))
        if getattr(self, "_active_of", None) != key:
            one = self._feature(text)
            check = lambda done, of: job.progress(done, of, f"{one.name}: prompts")  # noqa: E731
            rows = most_active(self._model, self._prompts, one, self._examples, check)
            self._rows = {
                "name": one.name,
                "unit": one.unit,
                "rows": rows,
                "of": len(self._prompts),
            }
            self._active_of = key
        return self._rows

    # --- as Python -----------------------------------------------------------------------------

    def to_record(self) -> Intervention:
        """The ablation of the chosen head at the slider's strength.

        Raises:
            WorkbenchError: no head is chosen.
        """
        if self.spec["head"] is None:
            raise WorkbenchError(
                "HeadBoard.to_record",
                "has no head chosen",
                expected="a clicked head",
                got="none",
                do="click one, or choose(layer=..., head=...)",
            )
        return self._ablation(*self._checked(self.spec["head"])).at(_strength(self.spec))

    def to_code(self) -> str:
        """A cell that gives the chosen head's `pattern`, its `edit`, and `p` of the next token without it."""
        edit = self.to_record()
        layer, head = self._checked(self.spec["head"])
        return cell(
            self._model, self._prompts[self._prompt(self.spec["prompt"])], edit, layer, head
        )

    def precompute(self, grid: Iterable[float] | None = None, heads: int = 8) -> HeadBoard:
        """Keep patterns and ablations on the chosen prompt for a page without a kernel.

        All patterns in 1/255 where that takes at most 2 MB; ablations of the strongest heads of the
        chosen score, and of the chosen head. Returns the widget.

        Args:
            grid: strengths of the ablation; 0, a half and 1 by default.
            heads: how many.

        Raises:
            WorkbenchError: no strengths, or one that is not a finite number.
        """
        strengths = _grid(grid, _strength(self.spec))
        prompt = self._prompt(self.spec["prompt"])
        wanted = self._best(heads)
        if self.spec["head"] is not None:
            wanted.append(self._checked(self.spec["head"]))
        job = worker.submit(
            lambda job: self._swept(dict.fromkeys(wanted), strengths, prompt, job),
            label="HeadBoard.precompute",
        )
        self.sweep = pack({"grid": strengths, "prompt": prompt, **job.result()})
        return self

    def _best(self, n: int) -> list[tuple[int, int]]:
        values = np.abs(np.nan_to_num(self._scores[self._score()].values[0]))
        order = np.argsort(-values, axis=None, kind="stable")[:n]
        return [(int(k) // values.shape[1], int(k) % values.shape[1]) for k in order]

    def _swept(
        self,
        heads: Iterable[tuple[int, int]],
        strengths: Sequence[float],
        prompt: int,
        job: worker.Job,
    ) -> dict[str, Any]:
        many, kept = list(heads), {}
        for done, head in enumerate(many):
            kept[f"{head[0]},{head[1]}"] = [self._without(head, prompt, s) for s in strengths]
            job.progress(done + 1, len(many), "heads")
        ids = self._tokens[prompt].ids[0].tolist()
        found: dict[str, Any] = {"opened": kept, "tokens": pieces(self._model.tokenizer, ids)}
        if self._model.n_layers * self._model.n_heads * len(ids) ** 2 <= SMALL:
            trace = self._model.run(self._tokens[prompt], ["L*.pattern"], logits="none")
            patterns = (trace.stack("pattern")[:, 0].float() * 255).round().byte()
            found["patterns"] = patterns.cpu().numpy()
        return found

    # --- pictures ------------------------------------------------------------------------------

    def _score(self) -> int:
        return min(max(int(self.view.get("score") or 0), 0), len(self._scores) - 1)

    def _words(self) -> str:
        score = self._scores[self._score()]
        layer, head = self._best(1)[0]
        value = number(float(score.values[0, layer, head]))
        return f"{len(self._scores)} scores; {score.name} {value} at L{layer} head {head}"

    def _still(self) -> str:
        score = self._scores[self._score()]
        return still(score, self.frame.get("examples"), self._best(8))


def _strength(spec: Mapping[str, Any]) -> float:
    value = spec.get("strength")
    if isinstance(value, int | float) and not isinstance(value, bool) and np.isfinite(value):
        return float(value)
    raise WorkbenchError(
        "HeadBoard", "needs a strength", expected="a finite number", got=value, do="choose one"
    )


def _grid(given: Iterable[float] | None, now: float) -> list[float]:
    try:
        found = [_strength({"strength": s}) for s in (STRENGTHS if given is None else given)]
    except TypeError:
        found = []
    if not found:
        raise WorkbenchError(
            "HeadBoard.precompute",
            "needs strengths",
            expected="a list of finite numbers",
            got=repr(given)[:80],
            do="pass some, or leave it out",
        )
    return sorted({*found, now})
