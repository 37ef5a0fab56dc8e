"""Logistic probe: a logistic regression with an L2 penalty on standardised rows.

    p(1 | h) = 1 / (1 + exp(-(w . h + b)))
    minimise  C sum_i log(1 + exp(-y_i (w' . z_i + b'))) + |w'|^2 / 2       y_i = -1, +1
    z = (h - mean) / std,   w = w' / std,   b = b' - w . mean

Shapes: rows `[row, d]`, targets `[row]`; weight `[d]` and bias `[]` in the rows' own units.
Units: the score is the log odds of class 1 in nats; C has none.
Source: Alain and Bengio (2016), Understanding intermediate layers using linear classifier probes,
    https://arxiv.org/abs/1610.01644; the penalty is that of scikit-learn's LogisticRegression(C).
Differs from the paper: the paper trains its probes by gradient steps along with the network and without
    a penalty; here each is fitted once to its optimum, for two classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby

import torch

from workbench.errors import DeviceUnavailable
from workbench.linalg import logistic_many
from workbench.probes.base import Data, two_classes
from workbench.probes.linear import LinearProbe, line_tensors, warn_if_wide
from workbench.registry import Citation, register
from workbench.shapes import Tensor

AT_ONCE = 2**28
"""Most numbers in the rows of sites that an accelerator fits at once: 1 GiB of float32."""


@register(
    "probes",
    Citation(
        "Alain, Bengio",
        "Understanding intermediate layers using linear classifier probes",
        2016,
        "https://arxiv.org/abs/1610.01644",
    ),
)
@dataclass(frozen=True)
class Logistic(LinearProbe):
    """Logistic regression with an L2 penalty; many sites in one batch on an accelerator.

    Attributes:
        inverse_penalty: scikit-learn's C; smaller is a stronger penalty.
        standardised: penalise coordinates at unit variance; False penalises the raw ones.
        device: where it is fitted; "auto" is where the rows are, which is the CPU for recorded ones.
    """

    inverse_penalty: float | int = 1.0
    standardised: bool = True
    device: str = "auto"

    def fit(self, data: Data) -> dict[str, Tensor]:
        """Weight and bias at the optimum; a UserWarning for more features than rows."""
        return self.fit_many({"one site": data})["one site"]

    def fit_many(self, sites: Mapping[str, Data]) -> dict[str, dict[str, Tensor]]:
        """`fit` at several sites: in batches on an accelerator; one by one on a CPU, whose cache holds
        the rows of one site but not of many."""
        found = {}
        for batch in self._batches(sites):
            rows = torch.stack([sites[site].rows.to(self._place(sites[site])) for site in batch])
            rows = rows.float() if rows.dtype != torch.float64 else rows
            ones = torch.stack([sites[site].targets == 1 for site in batch])
            weights, biases = logistic_many(rows, ones, self.inverse_penalty, self.standardised)
            for site, weight, bias in zip(batch, weights, biases, strict=True):
                found[site] = line_tensors(weight, bias)
        return {site: found[site] for site in sites}

    def _batches(self, sites: Mapping[str, Data]) -> Iterator[list[str]]:
        """Names of sites that are fitted together: of one shape, type and device."""
        for data in sites.values():
            warn_if_wide("Logistic.fit", two_classes("Logistic.fit", data))
        kind = {
            s: (tuple(d.rows.shape), str(d.rows.dtype), str(self._place(d)))
            for s, d in sites.items()
        }
        for (shape, _, place), group in groupby(
            sorted(sites, key=kind.__getitem__), kind.__getitem__
        ):
            names = list(group)
            most = 1 if place == "cpu" else max(1, AT_ONCE // (shape[0] * shape[1]))
            yield from (names[i : i + most] for i in range(0, len(names), most))

    def _place(self, data: Data) -> torch.device:
        if self.device == "auto":
            return data.rows.device
        place = torch.device(self.device)
        if place.type == "cuda" and not torch.cuda.is_available():
            raise DeviceUnavailable(
                "Logistic(device)",
                "no such device here",
                expected="'auto', 'cpu', or a device of this machine",
                got=repr(self.device),
                do="use device='auto'",
            )
        return place
