"""Switch experts on and off that one kind of prompt is routed to and another is not.

    RD[l, e] = rate of tokens routed to e, positive - negative        rank by |RD| over all layers
    activated expert:   s_e -> max(s) + 0.01        deactivated:   s_e -> min(s) - 0.01

with s the router's logits of a token, before the model's own softmax and choice of experts.

Shapes: rows `[token, expert]` of router logits per class and layer; `bias` `[expert]` holds +1 for an
    activated expert, -1 for a deactivated one, 0 for the others.
Units: strength s is the fraction of the way to the setting: 1 is the paper's, 0 leaves routing alone.
Source: Fayyaz et al. (2025), Steering MoE LLMs via Expert (De)Activation,
    https://arxiv.org/abs/2509.09660.
Differs from the paper: it takes log_softmax of the logits first; softmax and top-k do not see that
    shift, and without it an expert that is not named keeps its logit bit for bit. The margin 0.01
    grows where the dtype could not hold it. All tokens of the prompt (and its completion) are target
    tokens; the paper has data sets that mark some. The numbers of experts are tuned per model in the
    paper; the default here is one of each kind per layer on average.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from workbench.errors import WorkbenchError
from workbench.registry import Citation, register
from workbench.shapes import Float, Rows, Tensor
from workbench.steering.base import SteeringMethod, sites_of
from workbench.tensors import Contrast, Intervention


@register(
    "steering",
    Citation(
        "Fayyaz et al.",
        "Steering MoE LLMs via Expert (De)Activation",
        2025,
        "https://arxiv.org/abs/2509.09660",
    ),
)
@dataclass(frozen=True)
class SteerMoe(SteeringMethod):
    """Route tokens to the experts that only the positive class uses, and away from the others.

    Attributes:
        n_activate, n_deactivate: experts over all layers; None is one per layer on average, 0 none.
        top_k: experts that read a token; None is the model's own number.
    """

    n_activate: int | None = None
    n_deactivate: int | None = None
    top_k: int | None = None

    needs = ("dims",)
    sites = "L*.router_logits"
    pool = "all"

    def fit(self, contrast: Contrast, *, dims: Any) -> Intervention:
        """The setting of the experts with the largest difference of rates.

        At most `top_k` experts of a layer are activated, since the model would drop one more
        silently, and at most all but `top_k` deactivated, since the model has to choose so many.

        Raises:
            WorkbenchError: a model without experts, numbers out of range, rows that are not router
                logits, or an equal rate everywhere.
        """
        k = self._checked(dims)
        rates = {
            site: _rate(p, k, dims.n_experts) - _rate(n, k, dims.n_experts)
            for site, p, n in sites_of(contrast, "SteerMoe")
        }
        wanted = [len(rates) if n is None else n for n in (self.n_activate, self.n_deactivate)]
        tensors = {site: torch.zeros(dims.n_experts) for site in rates}
        _choose(rates, tensors, wanted[0], k, +1)
        _choose(rates, tensors, wanted[1], dims.n_experts - k, -1)
        chosen = {site: {"bias": bias} for site, bias in tensors.items() if bool(bias.any())}
        if not chosen:
            raise _refused("SteerMoe.fit", "no expert is chosen", "rates that differ", "none")
        return Intervention(
            "steer_moe",
            "adaptive",
            chosen,
            unit="fraction of the way to experts switched on and off",
            params={
                "rule": "steer_moe",
                "experts": {s: t["bias"].int().tolist() for s, t in chosen.items()},
                "max_strength": 1.0,
            },
            model=contrast.model,
        )

    def _checked(self, dims: Any) -> int:
        """Experts per token, after checking that there are some to choose from."""
        k = self.top_k or dims.n_routed
        if not 0 < k < dims.n_experts:
            raise _refused(
                "SteerMoe.fit",
                "the model does not choose among experts",
                "a mixture of experts that reads a token with some of them",
                f"{dims.n_experts} experts, {k} per token",
            )
        for name in ("n_activate", "n_deactivate"):
            if (getattr(self, name) or 0) < 0:
                raise _refused(f"SteerMoe({name})", "is negative", "0 or more", getattr(self, name))
        return k


def _rate(rows: Rows, k: int, n_experts: int) -> Float[Tensor, " expert"]:
    """Share of the tokens that each expert reads."""
    if rows.shape[1] != n_experts:
        raise _refused(
            "SteerMoe.fit", "rows are no router logits", f"{n_experts} wide", rows.shape[1]
        )
    chosen = rows.double().topk(k, dim=-1).indices
    return torch.zeros_like(rows, dtype=torch.float64).scatter_(1, chosen, 1.0).mean(0)


def _choose(
    rates: dict[str, Tensor], tensors: dict[str, Tensor], wanted: int, per_layer: int, sign: int
) -> None:
    """Mark the `wanted` experts with the largest difference of that sign, so many a layer at most."""
    ranked = sorted(
        (
            (-sign * float(rd[e]), order, e, site)
            for order, (site, rd) in enumerate(rates.items())
            for e in range(len(rd))
            if sign * float(rd[e]) > 0
        )
    )
    for _, _, expert, site in ranked:
        if wanted and int((tensors[site] == sign).sum()) < per_layer:
            tensors[site][expert] = sign
            wanted -= 1


def _refused(where: str, wrong: str, expected: object, got: object) -> WorkbenchError:
    return WorkbenchError(
        where, wrong, expected=expected, got=got, do="check the model, the sites and the options"
    )
