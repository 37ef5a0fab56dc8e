"""MLP probe: one hidden layer, for what is there but not along a line.

    score = v . relu(W z + c) + b        z = (h - mean) / std, folded into W and c
    minimise  mean log(1 + exp(-y score)) + (|W|^2 + |v|^2) / (2 C n)

Shapes: rows `[row, d]`, targets `[row]`; weight `[hidden, d]`, inner_bias `[hidden]`, outer `[hidden]`,
    bias `[]`.
Units: the score is the log odds of class 1 in nats; C has none.
Source: Hewitt and Liang (2019), Designing and Interpreting Probes with Control Tasks,
    https://arxiv.org/abs/1909.03368.
Differs from the paper: two classes; trained on all rows by L-BFGS (scikit-learn's MLPClassifier) at one
    size and penalty, where the paper trains by Adam and searches sizes, dropout and penalties. As the
    paper warns, such a probe fits shuffled labels too: read it beside its control.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from workbench.errors import WorkbenchError
from workbench.linalg import standardise
from workbench.probes.base import Data, Examples, Probe, Weights, two_classes
from workbench.registry import Citation, register
from workbench.shapes import Bool, Float, Tensor


@register(
    "probes",
    Citation(
        "Hewitt, Liang",
        "Designing and Interpreting Probes with Control Tasks",
        2019,
        "https://arxiv.org/abs/1909.03368",
    ),
)
@dataclass(frozen=True)
class Mlp(Probe):
    """One hidden layer of rectified units; it has no direction.

    Attributes:
        hidden: units of the hidden layer.
        inverse_penalty: C, as of the logistic probe; smaller is a stronger penalty.
        steps: most steps of training; where they end early, that too is a penalty.
        early_stopping: train by Adam and stop where a held-out tenth of the rows no longer gains; the
            penalty then counts beside the loss of a batch of up to 200 rows, so that it is stronger.
        seed: of the first weights and of the held-out tenth.
    """

    hidden: int = 32
    inverse_penalty: float | int = 1.0
    steps: int = 300
    early_stopping: bool = False
    seed: int = 0

    def fit(self, data: Data) -> dict[str, Tensor]:
        """The two layers, with standardisation folded into the first.

        Raises:
            WorkbenchError: not two classes, or options that are not above 0.
        """
        self._check(two_classes("Mlp.fit", data))
        rows = data.rows.double()[None].cpu()
        z, mean, scale = (x[0] for x in standardise(rows, True))
        (inner, outer), (inner_bias, bias) = self._trained(z[:, :-1].float(), data.targets)
        weight = inner.mT / scale
        return {
            "weight": weight.float(),
            "inner_bias": (inner_bias - weight @ mean).float(),
            "outer": outer[:, 0].float(),
            "bias": bias[0].float(),
        }

    def _trained(
        self, z: Float[Tensor, "row d"], targets: Float[Tensor, " row"]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Weights and biases of both layers on standardised rows, in float64."""
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.neural_network import MLPClassifier

        network = MLPClassifier(
            (self.hidden,),
            solver="adam" if self.early_stopping else "lbfgs",
            alpha=1 / self.inverse_penalty,
            max_iter=self.steps,
            early_stopping=self.early_stopping,
            learning_rate_init=0.01,
            n_iter_no_change=30,
            random_state=self.seed,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # `steps` is an option of the probe
            network.fit(z.numpy(), targets.cpu().numpy().astype(int))
        weights = [torch.tensor(x).double() for x in network.coefs_]
        return weights, [torch.tensor(x).double() for x in network.intercepts_]

    def _check(self, data: Data) -> None:
        least = min(int(data.targets.sum()), int((1 - data.targets).sum()))
        if self.early_stopping and least < 10:
            raise WorkbenchError(
                "Mlp(early_stopping)",
                "has too few rows to hold a tenth out",
                expected="10 rows of each class",
                got=least,
                do="add rows, or leave early_stopping off",
            )
        for name in ("hidden", "steps", "inverse_penalty"):
            if not 0 < getattr(self, name) < float("inf"):
                raise WorkbenchError(
                    f"Mlp({name})",
                    "cannot be used",
                    expected="a finite number above 0",
                    got=getattr(self, name),
                    do="leave it at its default",
                )

    @staticmethod
    def score(
        weights: Weights,
        params: Mapping[str, Any],
        rows: Examples,
        mask: Bool[Tensor, "example pos"] | None = None,
    ) -> Float[Tensor, " example"]:
        """`[example]`: the log odds of class 1, in float32 where the rows are."""
        own = {name: tensor.to(rows.device) for name, tensor in weights.items()}
        units = (rows.to(own["weight"].dtype) @ own["weight"].mT + own["inner_bias"]).relu()
        return units @ own["outer"] + own["bias"]
