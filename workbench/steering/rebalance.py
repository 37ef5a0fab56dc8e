"""Push a reasoning model away from hesitation, or from haste, by the confidence of each step.

    S = mean(O) - mean(U),   O: c <= q25_c and v >= q75_v,   U: c >= q75_c and v <= q25_v
    at each boundary token while thinking:  h += alpha(c, v) S        (`workbench.stepwise.control_law`)

c is a step's confidence, v = (c_s - c_{s-1})^2 / 4; rows of S are the stream at a step's first token.

Shapes: `shift` S `[d]` at one layer.
Units: strength s multiplies the coefficient alpha; alpha counts vectors S.
Source: Li, Tu, Ding, Wang, Zhen, Chen, Li and Tian (2026), Efficient Reasoning with Balanced
    Thinking, https://arxiv.org/abs/2603.12372.
Differs from the paper: S has its own length, as in the released code, whose constants belong to it
    (`unit=True` is the paper's). `sets="released"` sorts by confidence alone, as the code does where its
    list of hesitation words finds none. Confidence when fitting is the geometric mean of the drawn
    tokens' probabilities, when steering the arithmetic mean of the largest ones, both as released.
    As released, a trace's first step counts among the confidences alone. Our reading: a boundary token
    belongs to the step it ends; unfinished steps are left out; every second step tests the layers; low1
    and low2 are the options' values: the code prints distances to a linear boundary, and no source says
    how the published values came from them. Where 1 is so close to q75_c that no slope gives
    F1(1) = 0.01, F1 is a straight line.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch

from workbench.errors import WorkbenchError, unknown
from workbench.registry import Citation, register
from workbench.scopes import Scope
from workbench.shapes import Float, Rows, Tensor
from workbench.steering.base import SteeringMethod
from workbench.stepwise.control_law import ControlLaw, slope, variance
from workbench.tensors import Contrast, Intervention

Token = int | str
COMPONENTS, RIDGE = 64, 1.0
"""Of the prediction that chooses the layer, as released."""
OPTION = "correct the option"


@dataclass(frozen=True)
class _Part:
    """One step of one trace: its place among the generated tokens, confidence and variance."""

    trace: int
    start: int
    c: float
    v: float
    first: bool


@register(
    "steering",
    Citation(
        "Li, Tu, Ding, Wang, Zhen, Chen, Li, Tian",
        "Efficient Reasoning with Balanced Thinking",
        2026,
        "https://arxiv.org/abs/2603.12372",
    ),
)
@dataclass(frozen=True)
class Rebalance(SteeringMethod):
    """Steer reasoning at step boundaries by the confidence of the step just finished.

    Attributes:
        boundary: tokens that end a step: ids, or texts that are one token. Papers: a blank line.
        think_start, think_end: tokens around the thinking; None is from the first, to the last token.
        layer: where the vector is read and added; None is the layer that predicts confidence best.
        sets: which steps are compared; see above.
        unit: scale S to length 1.
        low1, low2, high2: the law's values at low confidence, in O and in U.
        max_new_tokens: length of the traces it writes on its prompts.
    """

    boundary: tuple[Token, ...] = ("\n",)
    think_start: Token | None = None
    think_end: Token | None = None
    layer: int | None = None
    sets: Literal["paper", "released"] = "paper"
    unit: bool = False
    low1: float | int = -1.0
    low2: float | int = -2.0
    high2: float | int = 0.1
    max_new_tokens: int = 96

    needs = ("dims", "run", "generate", "encode")
    sites = ""

    def fit(
        self,
        contrast: Contrast,
        *,
        dims: Any,
        run: Callable[..., Any],
        generate: Callable[..., Any],
        encode: Callable[[str], list[int]],
    ) -> Intervention:
        """The vector and the law, from the model's own traces on the prompts of both classes.

        Raises:
            WorkbenchError: too few steps, equally confident ones, an empty set, a layer the model
                lacks, or a boundary that is not one token.
        """
        self._check(dims)
        tokens = {name: _id(name, getattr(self, name), encode) for name in _SPAN}
        ends = [_id("boundary", token, encode) for token in self.boundary]
        prompts = [prompt for side in contrast.prompts or () for prompt in side]
        traces = generate(prompts, max_new_tokens=self.max_new_tokens) if prompts else []
        parts = [
            part
            for i, trace in enumerate(traces)
            for part in _parts(i, trace, ends, encode, **tokens)
        ]
        law = self._law(parts)
        later = [part for part in parts if not part.first]
        layers = range(dims.n_layers) if self.layer is None else [self.layer]
        rows = _rows(run, prompts, traces, later, layers)
        layer, fits = self._best(rows, later)
        shift = self._vector(rows[layer], later, law)
        return Intervention(
            "rebalance",
            "affine",
            {f"L{layer}.resid_post": {"shift": shift}},
            unit="times the coefficient that the last step's confidence asks for",
            scope=Scope.generated(),
            params={
                "stepwise": "rebalance",
                "law": asdict(law),
                "boundary": ends,
                **tokens,
                "fit_r2": {str(n): r2 for n, r2 in fits.items()},
            },
            model=contrast.model,
            conditional=True,
        )

    def _check(self, dims: Any) -> None:
        if self.sets not in ("paper", "released"):
            raise unknown("Rebalance(sets)", "sets", self.sets, ("paper", "released"))
        if self.layer is not None and not 0 <= self.layer < dims.n_layers:
            raise _refused(
                "Rebalance(layer)",
                "is beyond the model",
                f"0 to {dims.n_layers - 1}",
                self.layer,
                OPTION,
            )
        if not (self.low1 < 0 and all(map(math.isfinite, (self.low1, self.low2, self.high2)))):
            raise _refused(
                "Rebalance(low1, low2, high2)",
                "do not make a law",
                "finite numbers, low1 below 0",
                (self.low1, self.low2, self.high2),
                OPTION,
            )
        if not self.boundary or isinstance(self.boundary, str):
            raise _refused(
                "Rebalance(boundary)",
                "is not a list of tokens",
                "tokens that end a step",
                repr(self.boundary),
                OPTION,
            )

    def _law(self, parts: Sequence[_Part]) -> ControlLaw:
        moved = [part.v for part in parts if not part.first]
        if len(moved) < 8:
            raise _refused(
                "Rebalance.fit",
                "finds too few finished steps",
                "at least 8 that follow another",
                len(moved),
            )
        c = torch.tensor([part.c for part in parts], dtype=torch.float64)
        v = torch.tensor(moved, dtype=torch.float64)
        quarter = torch.tensor([0.25, 0.75], dtype=torch.float64)
        (q25_c, q75_c), (q25_v, q75_v) = c.quantile(quarter).tolist(), v.quantile(quarter).tolist()
        if q75_c - q25_c < 1e-9:
            raise _refused(
                "Rebalance.fit", "all steps are equally sure", "confidences that differ", q25_c
            )
        k = slope(q25_c, q75_c, float(self.low1))
        lows = float(self.low1), float(self.low2), float(self.high2)
        return ControlLaw(q25_c, q75_c, q25_v, q75_v, *lows, k)

    def _best(self, rows: dict[int, Rows], parts: Sequence[_Part]) -> tuple[int, dict[int, float]]:
        """The layer that predicts confidence best on every second step, and all their R^2."""
        c = torch.tensor([p.c for p in parts], dtype=torch.float64)
        fits = {n: _r2(h.double(), c) for n, h in rows.items()}
        return max(fits, key=lambda n: fits[n]), fits

    def _vector(self, rows: Rows, parts: Sequence[_Part], law: ControlLaw) -> Float[Tensor, " d"]:
        paper = self.sets == "paper"
        over = [p.c <= law.q25_c and (p.v >= law.q75_v or not paper) for p in parts]
        under = [p.c >= law.q75_c and (p.v <= law.q25_v or not paper) for p in parts]
        if not any(over) or not any(under):
            raise _refused(
                "Rebalance.fit",
                "a set of steps is empty",
                "unsure, uneven steps and sure, even ones",
                f"{sum(over)} and {sum(under)} of {len(parts)}",
            )
        wide = rows.double()
        shift = wide[torch.tensor(over)].mean(0) - wide[torch.tensor(under)].mean(0)
        return (shift / shift.norm() if self.unit else shift).float()


_SPAN = ("think_start", "think_end")


def _id(name: str, token: Token | None, encode: Callable[[str], list[int]]) -> int | None:
    if token is None or isinstance(token, int):
        return token
    ids = encode(token)
    if len(ids) != 1:
        raise _refused(
            f"Rebalance({name})",
            f"{token!r} is not one token",
            "a text that is one token at the start of a text, or an id",
            ids,
            "pass the id that stands in the model's own texts",
        )
    return ids[0]


def _parts(
    index: int,
    trace: Any,
    ends: Sequence[int | None],
    encode: Callable[[str], list[int]],
    think_start: int | None,
    think_end: int | None,
) -> list[_Part]:
    """The finished steps of the thinking in one trace."""
    found: list[_Part] = []
    text = trace.prompt.text
    thinking = think_start is None or text is None or think_start in encode(text)
    begun, before = 0, None
    for place, token in enumerate(trace.ids):
        if token in (think_start, think_end):
            thinking, begun, before = token == think_start, place + 1, None
        elif thinking and token in ends:
            logs = trace.logprobs[begun : place + 1]
            c = math.exp(sum(logs) / len(logs))
            found.append(_Part(index, begun, c, variance(c, before), before is None))
            begun, before = place + 1, c
    return found


def _rows(
    run: Callable[..., Any],
    prompts: Sequence[Any],
    traces: Sequence[Any],
    parts: Sequence[_Part],
    layers: Sequence[int],
    size: int = 16,
) -> dict[int, Rows]:
    """The stream at the first token of every step, per layer."""
    sites = {n: f"L{n}.resid_post" for n in layers}
    found: dict[int, list[Tensor]] = {n: [] for n in layers}
    for first in range(0, len(traces), size):
        ids = [list(trace.ids) for trace in traces[first : first + size]]
        read = run(prompts[first : first + size], record=list(sites.values()), completions=ids)
        for part in parts:
            if first <= part.trace < first + size:
                row = part.trace - first
                column = part.start - len(ids[row])
                for n, site in sites.items():
                    found[n].append(read[site][row, column].float().cpu())
    return {n: torch.stack(rows) for n, rows in found.items()}


def _r2(rows: Rows, wanted: Tensor) -> float:
    """R^2 on every second row of a ridge regression on principal components of the others."""
    train, test = rows[::2], rows[1::2]
    mean, level = train.mean(0), wanted[::2].mean()
    directions = torch.linalg.svd(train - mean, full_matrices=False).Vh[:COMPONENTS]
    x, y = (train - mean) @ directions.T, wanted[::2] - level
    eye = torch.eye(x.shape[1], dtype=x.dtype)
    weight = torch.linalg.solve(x.T @ x + RIDGE * eye, x.T @ y)
    error = wanted[1::2] - level - ((test - mean) @ directions.T) @ weight
    spread = (wanted[1::2] - wanted[1::2].mean()).square().sum().clamp(min=1e-30)
    return float(1 - error.square().sum() / spread)


def _refused(
    where: str,
    wrong: str,
    expected: object,
    got: object,
    do: str = "give more prompts, longer traces, another boundary, or sets='released'",
) -> WorkbenchError:
    return WorkbenchError(where, wrong, expected=expected, got=got, do=do)
