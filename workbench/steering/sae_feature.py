"""Steer with one feature of a sparse autoencoder: add it, clamp it, floor it, or scale it.

With f_j the feature's activation, d_j its decoder row, m_j the largest f_j over the fitted rows:

    add         h' = h + s m_j d_j
    clamp       h' = h + s (c - f_j(h)) d_j           c = level * m_j
    min_clamp   h' = h + s max(c - f_j(h), 0) d_j
    scale       h' = h + s f_j(h) d_j                 s = -1 switches the feature off

The autoencoder's reconstruction error stays in h: only the feature's own direction is written.

The dictionary is any object like `Dictionary` below: it acts at one `site`, and `encoder_row(j)`
gives weight and bias of feature j as they act on the activation itself (a bias that the coder
subtracts from its input folded in), so that `f_j = act(weight . h + bias)`; `fit` checks this on its
rows. Weights are copied into the edit, which then needs no autoencoder. Where features depend on one another
(top-k) or on the row's length there is no such row: `add` writes the decoder row all the same, the other
modes are refused, for nothing that an edit holds says how active the feature is. A dictionary that reads
one site and writes another (a transcoder, `target`) has `add` alone as well, at `target`.

Edits of several features act in their order, each on what the one before has left: additions are the same
in any order, clamps only where no feature's decoder row moves another feature's score.

Shapes: rows `[row, d]`; `shift` d_j (times m_j for `add`) and `probe` `[d]`; `probe_bias`,
    `threshold` `[]`.
Units: `add`: strength counts largest activations m_j, AxBench's factor. `clamp`, `min_clamp`: the
    fraction of the way to the level. `scale`: times the feature's own activation, added.
Source: Templeton et al. (2024), Scaling Monosemanticity,
    https://transformer-circuits.pub/2024/scaling-monosemanticity/, for clamping; Wu et al. (2025),
    AxBench, https://arxiv.org/abs/2501.17148, for adding.
Differs from the paper: features are chosen by the two classes, not by their descriptions. Where m_j
    is not above 0 AxBench takes 50; here that is an error, and `largest` gives a number of one's own.
    AxBench's "subspace clamp" takes away relu(h . v) alone, so that negative projections stay; it is
    not offered. Templeton et al. clamp a feature of a whole forward pass; here a scope says where.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch

from workbench.errors import WorkbenchError, unknown
from workbench.registry import Citation, register
from workbench.shapes import Float, Rows, Tensor, Vector
from workbench.steering.base import Need, SteeringMethod, sites_of
from workbench.tensors import Contrast, Fingerprint, Intervention, above_zero, finite

UNITS = {
    "add": "largest activations of the feature",
    "clamp": "fraction of the way to the level",
    "min_clamp": "fraction of the way to the level",
    "scale": "times the feature's own activation, added",
}
CHOICES = ("mean_difference", "auroc")
ACTIVATIONS = ("relu", "jumprelu")


class Dictionary(Protocol):
    """A sparse autoencoder as this method reads it.

    Attributes:
        site: what it reads, such as "L6.resid_post".
        activation: "relu", or "jumprelu" with `threshold` `[feature]` in the pre-activation; another word
            where a feature has no score of its own.
        decoder: `[feature, d]`.
        target: where it writes, if that is another site.
        rescales: True where what a feature writes depends on the row's length.
    """

    site: str
    activation: str
    decoder: Tensor

    def encode(self, rows: Rows) -> Float[Tensor, "row feature"]:
        """Activations of all features."""
        ...

    def encoder_row(self, feature: int) -> tuple[Vector, Float[Tensor, ""]]:
        """Weight and bias of one feature, as they act on the activation itself."""
        ...


@register(
    "steering",
    Citation(
        "Templeton, Conerly, Marcus, Lindsey, Bricken, et al.",
        "Scaling Monosemanticity",
        2024,
        "https://transformer-circuits.pub/2024/scaling-monosemanticity/",
    ),
)
@dataclass(frozen=True)
class SaeFeature(SteeringMethod):
    """Add, clamp, floor or scale one feature of a sparse autoencoder.

    Attributes:
        mode: "add", "clamp", "min_clamp" or "scale".
        feature: which one; None chooses the feature that tells the classes apart best.
        by: what "best" means: "mean_difference" of activations, or "auroc", which rates how well a
            feature ranks rows and not how large it is.
        level: where clamps set the feature, in multiples of its largest activation; 0 is off.
        largest: m_j, where the fitted rows should not say it.
    """

    needs: ClassVar[tuple[Need, ...]] = ("dictionary",)

    mode: str = "add"
    feature: int | None = None
    by: str = "mean_difference"
    level: float | int = 1.0
    largest: float | int | None = None

    def fit(self, contrast: Contrast, *, dictionary: Any) -> Intervention:
        """The edit at the dictionary's site; other recorded sites are left alone.

        Raises:
            UnknownName: no such mode or choice, or the dictionary's site is not recorded.
            WorkbenchError: no such feature, none that the positive class activates more, one that
                never fires, an `encoder_row` that is not what `encode` computes, or a mode that needs one
                where features have none.
        """
        self._check(dictionary)
        at = str(dictionary.site)
        found = {site: (p, n) for site, p, n in sites_of(contrast, "SaeFeature") if site == at}
        if at not in found:
            raise unknown("SaeFeature.fit(dictionary)", "site", at, contrast.positive)
        device = dictionary.decoder.device
        codes = (dictionary.encode(rows.float().to(device)) for rows in found[at])
        active = tuple(code.detach().double().cpu() for code in codes)
        j = self._chosen(*active)
        if dictionary.activation in ACTIVATIONS:
            _agrees(_probe(dictionary, j), torch.cat(found[at]), torch.cat(active)[:, j], at, j)
        largest = self._largest(j, torch.cat(active)[:, j])
        return self.edit(dictionary, j, largest, contrast.model)

    def edit(
        self, dictionary: Any, feature: int, largest: float, model: Fingerprint | None = None
    ) -> Intervention:
        """The edit of one feature whose largest activation is known; no rows are needed.

        Raises:
            UnknownName, WorkbenchError: what `fit` raises of the options and the dictionary.
        """
        self._check(dictionary)
        j, adds = _within(feature, len(dictionary.decoder)), self.mode == "add"
        row = dictionary.decoder[j].detach().float().cpu()
        tensors = (
            {"shift": largest * row} if adds else _probe(dictionary, j) | {"shift": row.clone()}
        )
        finite(f"SaeFeature(feature {j})", float(tensors["shift"].abs().sum()))
        return Intervention(
            "sae_feature",
            "affine" if adds else "adaptive",
            {_target(dictionary) if adds else str(dictionary.site): tensors},
            unit=UNITS[self.mode],
            params=self._params(j, largest),
            model=model,
            conditional=self.mode in ("min_clamp", "scale")
            or (self.mode == "clamp" and self.level == 0),
        )

    def _check(self, dictionary: Any) -> None:
        for name, value, known in (("mode", self.mode, UNITS), ("by", self.by, CHOICES)):
            if value not in known:
                raise unknown(f"SaeFeature({name})", name, value, known)
        if getattr(dictionary, "rescales", False):
            raise _unfit(
                dictionary, "what a feature writes depends on the length of each row", "none"
            )
        if self.mode != "add":
            if _target(dictionary) != str(dictionary.site):
                raise _unfit(dictionary, "it reads one site and writes another", "add")
            if dictionary.activation not in ACTIVATIONS:
                wrong = f"features of {dictionary.activation!r} have no score of their own"
                raise _unfit(dictionary, wrong, "add")
        finite("SaeFeature(level)", float(self.level))
        if self.largest is not None:
            above_zero("SaeFeature(largest)", self.largest)

    def _params(self, feature: int, largest: float) -> dict[str, Any]:
        params: dict[str, Any] = {"feature": feature, "mode": self.mode, "largest": largest}
        if self.mode == "add":
            return params
        params |= {"rule": "sae_clamp", "level": self.level * largest}
        return params if self.mode == "scale" else params | {"max_strength": 1.0}

    def _chosen(self, positive: Rows, negative: Float[Tensor, "other d"]) -> int:
        if self.feature is not None:
            return _within(self.feature, positive.shape[1])
        scores = positive.mean(0) - negative.mean(0)
        if self.by == "auroc":
            scores = _auroc(positive, negative) - 0.5
        if float(scores.max()) > 0:
            return int(scores.argmax())
        raise WorkbenchError(
            "SaeFeature.fit",
            "no feature is more active on the positive class",
            expected="a feature that tells the classes apart",
            got=f"{positive.shape[1]} features, none above 0 by {self.by}",
            do="say feature=..., or record where the dictionary was trained",
        )

    def _largest(self, feature: int, active: Float[Tensor, " row"]) -> float:
        if self.largest is not None:
            return float(self.largest)
        if float(active.max()) > 0:
            return float(active.max())
        raise WorkbenchError(
            f"SaeFeature.fit(feature {feature})",
            "never fires on these rows, so its size is not known",
            expected="a row that activates it, or largest=...",
            got=f"0 on all {len(active)} rows",
            do="give its largest activation as largest",
        )


def _within(feature: int, n: int) -> int:
    if 0 <= feature < n:
        return int(feature)
    raise WorkbenchError(
        "SaeFeature(feature)",
        "the dictionary has no such feature",
        expected=f"0 to {n - 1}",
        got=feature,
        do="count from 0",
    )


def _target(dictionary: Any) -> str:
    """Where the dictionary writes."""
    return str(getattr(dictionary, "target", dictionary.site))


def _unfit(dictionary: Any, wrong: str, left: str) -> WorkbenchError:
    return WorkbenchError(
        f"SaeFeature at {dictionary.site}",
        f"{wrong}, so that no edit can tell or set how active one is",
        expected="a dictionary of relu or jumprelu features of one site",
        got=f"{dictionary.activation} features of {dictionary.site}, written to {_target(dictionary)}",
        do="mode='add' works" if left == "add" else "take another dictionary",
    )


def _probe(dictionary: Any, feature: int) -> dict[str, Tensor]:
    """How active the feature is, as weight, bias and threshold of the activation itself."""
    weight, bias = dictionary.encoder_row(feature)
    threshold = torch.zeros(())
    if dictionary.activation == "jumprelu":
        threshold = dictionary.threshold[feature].detach().float().cpu().clone()
    return {
        "probe": weight.detach().float().cpu().clone(),
        "probe_bias": torch.as_tensor(bias).detach().float().cpu().clone(),
        "threshold": threshold,
    }


def _agrees(
    tensors: dict[str, Tensor], rows: Rows, active: Float[Tensor, " row"], site: str, j: int
) -> None:
    """Refuse a dictionary whose encoder row is not what it encodes with."""
    score = rows.double() @ tensors["probe"].double() + tensors["probe_bias"].double()
    ours = torch.where(score > tensors["threshold"].clamp_min(0), score, 0.0)
    gap, size = (ours - active).abs(), 1e-4 + float(score.abs().max())
    # float32 may put a row that lies on the threshold on its other side
    near = (score - tensors["threshold"]).abs() < 1e-4 * size
    if bool(((gap > 1e-3 * size) & ~near).any()):
        raise WorkbenchError(
            f"SaeFeature.fit at {site}",
            f"encoder_row({j}) is not what encode computes",
            expected="act(weight . h + bias), with input biases folded in",
            got=f"activations that differ by up to {float(gap.max()):.3g}",
            do="correct the dictionary; features that depend on one another cannot be read alone",
        )


def _auroc(positive: Rows, negative: Float[Tensor, "other d"]) -> Vector:
    """Per feature, the chance that a positive row ranks above a negative one; ties count half."""
    from scipy.stats import rankdata

    ranks = torch.from_numpy(rankdata(torch.cat([positive, negative]).numpy(), axis=0))
    n, m = len(positive), len(negative)
    return (ranks[:n].sum(0) - n * (n + 1) / 2) / (n * m)
