"""Amplified keys of a span are used only while the token they lead to stays plausible without them.

    each step:  raw forward (kept); if p_2nd < beta p_1st: the raw token
                S = all layers; forward with the span's keys scaled in S; y = its argmax
                accept y if p_raw(y) > beta max p_raw, else S = the top L / 2^trial layers, again
                a set of one layer, or `max_trials` trials: the raw token

    sensitivity, at the first decode step, each layer l steered alone, d the cosine distance:
    Sens(l) = mean_j [d(pre_j, post_j^l) + d(pre_j^l, post_j) - 2 d(pre_j, post_j)]

with pre_j, post_j the residual stream before and after the attention of layer j, at the last position.

Shapes: decisions are per row; see `workbench.stepwise.base`.
Units: the edit's strength 1 is the fitted factor alpha.
Source: Kang and Kim (2026), Enhancing Instruction Following of LLMs via Activation Steering with
    Dynamic Rejection, https://arxiv.org/abs/2603.06745.
Differs from the paper: `ranking="released"` is the released code, which averages over the layers that
    were steered (so ranks layers by how much others disturb them) and leaves the last term out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch

from workbench.registry import Citation, register
from workbench.shapes import Float, Tensor
from workbench.stepwise.base import Step


@register(
    "stepwise",
    Citation(
        "Kang, Kim",
        "Enhancing Instruction Following of LLMs via Activation Steering with Dynamic Rejection",
        2026,
        "https://arxiv.org/abs/2603.06745",
    ),
)
class Directer:
    """Take the steered token where the raw model finds it plausible."""

    on_prompt: ClassVar[bool] = False
    greedy: ClassVar[bool] = True

    def __init__(self, params: Mapping[str, Any], n_rows: int):
        self.beta, self.trials = float(params["beta"]), int(params["max_trials"])
        self.released = params["ranking"] == "released"
        self.order: Tensor | None = None
        self.accepted: list[list[int]] = [[] for _ in range(n_rows)]

    @staticmethod
    def record(_: Sequence[int]) -> tuple[str, ...]:
        """The stream around every attention, for the sensitivities."""
        return ("L*.resid_pre", "L*.attn_out")

    def keep(self, rows: list[int]) -> None:
        """Go on with these rows only."""
        self.order = None if self.order is None else self.order[:, rows]
        self.accepted = [self.accepted[row] for row in rows]

    def step(self, step: Step) -> Float[Tensor, "batch vocab"]:
        """Raw logits, and steered ones in the rows whose steered token was accepted."""
        raw = step.forward(0.0)
        if step.number == 0:
            return raw
        if self.order is None:
            self.order = self._ranked(step, _around(step))
        raw_p = raw.softmax(-1).cpu()
        top = raw_p.topk(2, -1).values
        pending = ~(top[:, 1] < self.beta * top[:, 0])
        size, out = len(step.layers), raw
        for trial in range(self.trials):
            size = len(step.layers) >> trial
            if not bool(pending.any()) or (size < 2 and trial):
                break
            factors = self._factors(step.layers, size, pending)
            steered = step.forward(factors, commit=False)
            token = steered.argmax(-1, keepdim=True).cpu()
            fits = raw_p.gather(1, token)[:, 0] > self.beta * top[:, 0]
            taken = pending & fits
            out = torch.where(taken[:, None].to(out.device), steered, out)
            for row in taken.nonzero()[:, 0].tolist():
                self.accepted[row].append(size)
            pending = pending & ~taken
        return out

    def _factors(self, layers: Sequence[int], size: int, rows: Tensor) -> dict[int, Tensor]:
        """Per layer, 1 in the rows where it is among the `size` most sensitive."""
        assert self.order is not None
        chosen = torch.zeros(len(layers), len(rows))
        chosen.scatter_(0, self.order[:size], 1.0)
        return {layer: chosen[i] * rows for i, layer in enumerate(layers)}

    def _ranked(self, step: Step, raw: tuple[Tensor, Tensor]) -> Tensor:
        """Places in `step.layers`, most sensitive first, `[layer, batch]`."""
        table: list[Tensor] = []
        ones = torch.ones(raw[0].shape[1])
        for layer in step.layers:
            step.forward({layer: ones}, commit=False)
            pre, post = _around(step)
            moved = _distance(raw[0], post) + _distance(pre, raw[1])
            table.append(moved if self.released else moved - 2 * _distance(*raw))
        # [steered, seen, batch]
        every = torch.stack(table)
        sensitivity = every.mean(0)[list(step.layers)] if self.released else every.mean(1)
        return sensitivity.argsort(dim=0, descending=True, stable=True).cpu()


def _around(step: Step) -> tuple[Tensor, Tensor]:
    """Stream before and after every attention `[layer, batch, d]` at the last position."""
    values = step.values
    layers = sorted(int(site[1:].partition(".")[0]) for site in values if "resid_pre" in site)
    pre = torch.stack([values[f"L{n}.resid_pre"][:, -1].float() for n in layers])
    return pre, pre + torch.stack([values[f"L{n}.attn_out"][:, -1].float() for n in layers])


def _distance(a: Tensor, b: Tensor) -> Tensor:
    return 1 - torch.nn.functional.cosine_similarity(a, b, dim=-1)
