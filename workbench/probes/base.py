"""What a probe is: options, `fit` from rows and targets to tensors, and a pure `score` on new rows.

Fitted probes are data: a `FittedProbe` scores with what its method's file says and the tensors it holds,
without its training data. It checks that what it scores comes from its own model and site.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import torch

from workbench import registry
from workbench.errors import WorkbenchError
from workbench.probes.places import JOIN, rows_at
from workbench.shapes import Bool, Float, Tensor
from workbench.tensors import Activations, Fingerprint, Intervention, Readout

Weights = Mapping[str, Tensor]
Examples = Float[Tensor, "example *pos d"]
"""`[example, d]` for probes that read one row per example, `[example, pos, d]` for those that read all
of an example's tokens (padding behind them)."""


@dataclass(frozen=True)
class Data:
    """Examples of one site, as a probe fits on them.

    Attributes:
        rows: `[example, d]`, or `[example, pos, d]` where `reads` is "tokens".
        targets: `[example]`: 0 and 1 for classes, numbers for numeric probes; float64. For "pairs",
            0 and 1 for false and true, NaN where unknown: they decide the sign. The first and the second
            of a pair are told by their order.
        mask: `[example, pos]`, True on tokens; None for single rows.
        pairs: `[example]`, examples with equal numbers form a pair; None without pairs.
    """

    rows: Examples
    targets: Float[Tensor, " example"]
    mask: Bool[Tensor, "example pos"] | None = None
    pairs: Tensor | None = None

    def __len__(self) -> int:
        return self.rows.shape[0]

    def at(self, index: Tensor) -> Data:
        """Some of the examples."""
        pick = lambda x: None if x is None else x[index]  # noqa: E731
        return Data(self.rows[index], self.targets[index], pick(self.mask), pick(self.pairs))


@dataclass(frozen=True)
class Probe(ABC):
    """Options of a probe. `fit` is deterministic and leaves its data as it was.

    Attributes:
        target: "class" for two classes, "number" for numeric targets.
        reads: "rows", one per example; "tokens", all of an example's; "pairs", rows in pairs.
    """

    target: ClassVar[Literal["class", "number"]] = "class"
    reads: ClassVar[Literal["rows", "tokens", "pairs"]] = "rows"

    @abstractmethod
    def fit(self, data: Data) -> dict[str, Tensor]:
        """The probe's tensors, float32 on the CPU; "weight" among them, its last axis as wide as a row."""

    def fit_many(self, sites: Mapping[str, Data]) -> dict[str, dict[str, Tensor]]:
        """`fit` at several sites; a probe that can do them in one batch overrides it."""
        return {site: self.fit(data) for site, data in sites.items()}

    @property
    def params(self) -> dict[str, Any]:
        """What `score` needs beside tensors, as JSON values; stored with the fitted probe."""
        return {}

    @staticmethod
    @abstractmethod
    def score(
        weights: Weights,
        params: Mapping[str, Any],
        rows: Examples,
        mask: Bool[Tensor, "example pos"] | None = None,
    ) -> Float[Tensor, " example"]:
        """`[example]`: the logit of class 1, or the predicted number."""

    @staticmethod
    def line(weights: Weights, params: Mapping[str, Any]) -> tuple[Tensor, float] | None:
        """Weight `[d]` and bias of the score where it is linear in a row, else None."""
        return None

    @staticmethod
    def spread(
        weights: Weights,
        params: Mapping[str, Any],
        rows: Examples,
        mask: Bool[Tensor, "example pos"] | None = None,
    ) -> dict[float, Tensor] | None:
        """Quantiles of the predicted distribution by level, `[example]` each; None where a probe gives a
        number alone."""
        return None


@dataclass(frozen=True, repr=False)
class FittedProbe:
    """A probe that was fitted at one site: data, like an intervention.

    Attributes:
        method: registry name of the probe.
        site, pool: where its rows came from and how positions became rows.
        tensors, params: what its method's `score` reads.
        classes: labels of class 0 and class 1; empty for numbers.
        model: the model it was fitted on; it scores no other.
    """

    method: str
    site: str
    pool: str
    tensors: Mapping[str, Tensor]
    params: Mapping[str, Any] = field(default_factory=dict)
    classes: tuple[Any, ...] = ()
    model: Fingerprint | None = None

    def __repr__(self) -> str:
        about = f"classes {self.classes[0]} and {self.classes[1]}" if self.classes else "a number"
        model = f", {self.model.name}" if self.model else ""
        return f"FittedProbe({self.method} at {self.site}, pool {self.pool}: {about}{model})"

    def score(
        self, rows: Examples | Activations, mask: Bool[Tensor, "example pos"] | None = None
    ) -> Float[Tensor, " example"]:
        """The logit of class 1, or the predicted number, `[example]`.

        Args:
            rows: activations of this site, or recorded Activations, whose model and site are checked.
            mask: True on tokens, for a probe that reads all tokens of an example.

        Raises:
            WorkbenchError: another model, site, pool or width than it was fitted on.
        """
        rows, mask = self._checked(rows, mask)
        return self._probe.score(self.tensors, self.params, rows, mask)

    def probability(self, rows: Any, mask: Any = None) -> Float[Tensor, " example"]:
        """Of class 1: the logistic function of the score, in nats of odds. Not calibrated.

        Raises:
            WorkbenchError: a probe of numbers; or as `score`.
        """
        if self._probe.target != "class":
            raise WorkbenchError(
                f"probe {self.method!r} at {self.site}",
                "predicts a number, which has no probability",
                expected="a probe of two classes",
                got=self.method,
                do="use score()",
            )
        return self.score(rows, mask).sigmoid()

    @property
    def readout(self) -> Readout:
        """The linear read-out that a gate or a decoder takes.

        Raises:
            WorkbenchError: the probe is not linear.
        """
        found = self._probe.line(self.tensors, self.params)
        if found is None or JOIN in self.site:
            raise WorkbenchError(
                f"probe {self.method!r} at {self.site}",
                "is no line at one site, so it has no direction",
                expected="a linear probe of one site",
                got=self.method,
                do="use logistic, mass_mean, lda or ridge for a direction; score() works for all",
            )
        weight, bias = found
        return Readout(self.site, weight, float(bias))

    def edit(self, **options: Any) -> Intervention:
        """An addition along the probe's direction: at strength 1 the score rises by 1.

        Raises:
            WorkbenchError: the probe is not linear, or its weight is zero.
        """
        weight = self.readout.weight
        if not bool(weight.any()):
            raise WorkbenchError(
                f"probe {self.method!r} at {self.site}",
                "has a weight of zero, so no edit moves its score",
                expected="a weight other than zero",
                got=f"{len(weight)} zeros",
                do="look whether these rows vary",
            )
        shift = (weight.double() / weight.double().square().sum()).float()
        return Intervention(
            "custom",
            "affine",
            {self.site: {"shift": shift}},
            unit="units of the probe's score",
            model=self.model,
            name=f"{self.method} probe",
            **options,
        )

    @property
    def _probe(self) -> type[Probe]:
        return registry.get("probes", self.method)

    def _checked(self, rows: Any, mask: Any) -> tuple[Any, Any]:
        width = self.tensors["weight"].shape[-1]
        if isinstance(rows, Activations):
            check_model(self, rows.model)
            found = rows_at(rows, self.site, width)
            if found is None or rows.pool != self.pool:
                raise _misfit(
                    self,
                    f"rows of {self.site}, pool {self.pool!r}",
                    f"{list(rows.values)[:6]}, pool {rows.pool!r}",
                )
            from workbench.probes.examples import examples

            own = replace(rows, values={self.site: found})
            data = examples(own, self.site, self._probe.reads)
            rows, mask = data.rows, data.mask
        if rows.shape[-1] != width:
            raise _misfit(self, f"rows of width {width}", f"width {rows.shape[-1]}")
        return rows, mask


def check_model(probe: FittedProbe, model: Fingerprint) -> None:
    """Refuse a model that the probe was not fitted on.

    Raises:
        WorkbenchError: other weights, or another width or depth.
    """
    own = probe.model
    if own is None:
        return
    shapes = (own.d_model, own.n_layers) != (model.d_model, model.n_layers)
    if shapes or (own.weights and model.weights and own.weights != model.weights):
        raise _misfit(probe, f"activations of {own.name}", f"those of {model.name}")


def _misfit(probe: FittedProbe, expected: str, got: str) -> WorkbenchError:
    return WorkbenchError(
        f"probe {probe.method!r} at {probe.site}",
        "was fitted on something else",
        expected=expected,
        got=got,
        do="fit it on these activations",
    )


def two_classes(where: str, data: Data) -> Data:
    """The data after checking that two classes of finite rows are there.

    Raises:
        WorkbenchError: targets other than 0 and 1, no row of one of them, or rows that are not finite.
    """
    _check_finite(where, data)
    counts = int((data.targets == 0).sum()), int((data.targets == 1).sum())
    if min(counts) < 1 or sum(counts) != len(data):
        raise WorkbenchError(
            where,
            "needs two classes",
            expected="targets 0 and 1, at least one row of each",
            got=f"{counts[0]} and {counts[1]} of {len(data)} rows",
            do="check the labels: constant ones cannot be told apart",
        )
    return data


def numbers(where: str, data: Data) -> Data:
    """The data after checking that finite, varying numbers are to be predicted.

    Raises:
        WorkbenchError: constant or non-finite targets, or rows that are not finite.
    """
    _check_finite(where, data)
    if not bool(data.targets.isfinite().all()) or data.targets.unique().numel() < 2:
        raise WorkbenchError(
            where,
            "needs numbers that vary",
            expected="finite targets of at least two values",
            got=f"{data.targets.unique()[:3].tolist()}",
            do="check the labels",
        )
    return data


def _check_finite(where: str, data: Data) -> None:
    rows = data.rows if data.mask is None else data.rows[data.mask]
    if not len(data) or not bool(torch.isfinite(rows).all()):
        raise WorkbenchError(
            where,
            "has no rows, or NaN or infinite ones",
            expected="finite activations",
            got=f"{len(data)} examples",
            do="record again in float32 or bfloat16",
        )
