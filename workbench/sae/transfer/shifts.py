"""STS, the SAE-based transferability score: which features demonstrations move, and who uses them.

    Delta_j = E_i [ (h_j(x_i) - h_j(demonstrations, x_i))^2 ]        D_N = the N features of largest Delta
    STS_act(target) = E_i sum_{j in D_N} h_j(x_i)^power
    STS_ICL(target) = E_i sum_{j in D_N} |h_j(target's demonstrations, x_i) - h_j(x_i)|^power

h_j(x) is the mean of a feature over the tokens of x (of squares, for squares); every query weighs the same.
In-context demonstrations of a source domain stand in for fine-tuning on it: its scores of other domains
forecast how strongly fine-tuning moves them, not in which direction.

Shapes: Delta `[feature]`; scores `[prompt]`.
Units: activations to the power given; Delta in squared activations.
Source: Zhang et al. (2026), SAE as a Crystal Ball, https://arxiv.org/abs/2603.02908, and its release,
    https://github.com/PKU-ML/STS.
Differs from the paper: `align="query_tokens"` compares every token with itself. The release subtracts
    row r of two generations, that is other tokens, so that features of large variance win: `align="row"`.
    It scores with the mean of squares where the paper writes the sum of first powers: `power`, `reduce`.
    Features are ranked by what exceeds the same statistic without information, see
    `workbench.sae.transfer.paired.Setting`. For small dictionaries N is a tenth of the features, at most 100.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from workbench.comparison.stats import mean_interval
from workbench.errors import WorkbenchError, unknown
from workbench.sae.dictionary import Dictionary
from workbench.sae.transfer.demonstrations import Domain
from workbench.sae.transfer.paired import Effects, Setting, between, effects_of, scores_of
from workbench.shapes import Float

POWERS = {"act": 1, "icl": 2}
"""Of the paper's two scores."""
KINDS = {"act": "active", "icl": "moved"}
MOST, SHARE = 100, 10


@dataclass(frozen=True, repr=False)
class Shift:
    """The features that a source domain moves.

    Attributes:
        dims: D_N, largest excess first; fewer than were asked for where fewer moved.
        delta: mean squared movement of each feature.
        null: the same without information; None where none was measured.
        align: how tokens were compared; "models" for two models.
        n_tokens: how many were.
        dictionary: its name.
        source: what moved them.
        excess: whether `null` was taken off before the ranking.
    """

    dims: tuple[int, ...]
    delta: Float[Tensor, " feature"]
    null: Float[Tensor, " feature"] | None
    align: str
    n_tokens: int
    dictionary: str
    source: str
    excess: bool = True

    @property
    def ranked(self) -> Float[Tensor, " feature"]:
        """What features are ranked by."""
        return self.delta if self.null is None or not self.excess else self.delta - self.null

    @property
    def share(self) -> float:
        """Share of the whole squared movement that `dims` carry; NaN where nothing moved."""
        whole = float(self.delta.sum())
        return float(self.delta[list(self.dims)].sum()) / whole if whole > 0 else float("nan")

    def take(self, n: int | None = None) -> Shift:
        """The same movement with another N."""
        n = _clipped(n, len(self.delta))
        order = torch.argsort(self.ranked, descending=True, stable=True)[:n]
        return replace(self, dims=tuple(order[self.ranked[order] > 0].tolist()))

    def lowest(self, among: Sequence[int] | None = None) -> tuple[int, ...]:
        """As many features as `dims` that move least, of those `among`, or of all that moved."""
        some = among if among is not None else torch.nonzero(self.delta > 0)[:, 0].tolist()
        order = torch.argsort(self.ranked[list(some)], stable=True)[: len(self.dims)]
        return tuple(int(some[i]) for i in order.tolist())

    def overlap(self, other: Shift | Sequence[int], among: int | None = None) -> Overlap:
        """How many of `dims` another shift has too, beside what chance gives.

        Args:
            other: a shift of the same dictionary, or features.
            among: of how many features chance draws; all of the dictionary by default. Dead ones make
                any overlap look unlikely.
        """
        if isinstance(other, Shift) and other.dictionary != self.dictionary:
            raise WorkbenchError(
                "Shift.overlap",
                "the shifts are of two dictionaries, whose features have nothing in common",
                expected=self.dictionary,
                got=other.dictionary,
                do="measure both with one dictionary",
            )
        return overlap(self.dims, _dims(other), among or len(self.delta))

    def frame(self) -> Any:
        """A row per feature of `dims`, as a pandas DataFrame."""
        import pandas as pd

        chosen = list(self.dims)
        null = torch.zeros_like(self.delta) if self.null is None else self.null
        return pd.DataFrame(
            {
                "rank": range(len(chosen)),
                "feature": chosen,
                "delta": self.delta[chosen].tolist(),
                "null": null[chosen].tolist(),
                "excess": (self.delta - null)[chosen].tolist(),
            }
        )

    def __repr__(self) -> str:
        if not self.dims:
            return f"Shift({self.source}: nothing moved, {self.n_tokens} tokens, {self.align})"
        some = ", ".join(map(str, self.dims[:5])) + (", ..." if len(self.dims) > 5 else "")
        return (
            f"Shift({self.source}: {len(self.dims)} of {len(self.delta)} features of "
            f"{self.dictionary} ({some}) carry {self.share:.0%} of the movement; "
            f"{self.n_tokens} tokens, {self.align})"
        )


@dataclass(frozen=True)
class Overlap:
    """Features that two sets share.

    Attributes:
        shared: how many.
        expected: how many chance gives.
        p: probability of at least so many by chance, hypergeometric.
        sizes: of both sets, and of what chance draws from.
    """

    shared: int
    expected: float
    p: float
    sizes: tuple[int, int, int]


def overlap(a: Sequence[int], b: Sequence[int], among: int) -> Overlap:
    """Features in both `a` and `b`, beside two random sets of these sizes `among` so many features."""
    from scipy.stats import hypergeom

    shared = len(set(a) & set(b))
    p = float(hypergeom.sf(shared - 1, among, len(set(a)), len(set(b))))
    expected = len(set(a)) * len(set(b)) / among
    return Overlap(shared, expected, p, (len(set(a)), len(set(b)), among))


@dataclass(frozen=True)
class Scores:
    """The score of one target domain.

    Attributes:
        values: of each prompt, `[prompt]`.
        mean, low, high: over prompts, with a 95 % bootstrap interval.
        kind, power, reduce: see `sts`.
        unit: what values are counted in.
    """

    values: np.ndarray
    mean: float
    low: float
    high: float
    kind: str
    power: int
    reduce: str
    unit: str


def shift_dims(
    dictionary: Dictionary,
    model: Any,
    queries: Any,
    demonstrations: Any,
    *,
    n: int | None = None,
    align: str = "query_tokens",
    excess: bool = True,
    null: str = "base",
    counted: str = "prompt",
    separator: str = "\n",
    join: str = "text",
    source: str = "demonstrations",
    seed: int = 0,
    force: bool = False,
    progress: bool = True,
) -> Shift:
    """The features that in-context demonstrations move on `queries`, in the model as it is.

    Args:
        dictionary, model: whose features of what; the model untuned.
        queries: prompts of the source domain, two or more.
        demonstrations: worked examples that are put before each, see `sae.with_demonstrations`.
        n: how many features; by default 100, or a tenth of the dictionary where that is less.
        align: what is compared with what, see `workbench.sae.transfer.paired.Setting`.
        excess: rank by what exceeds the null.
        null: "base" (two base runs: exactly 0 where tokens are compared with themselves) or "shuffled"
            (demonstrations of the same tokens in random order; one more run).
        counted: tokens of the query that count: its "prompt", its gold "completion", or "both".
        separator: between demonstrations.
        join: "ids" for tokenizers that merge across the border.
        source: what reports call it.
        seed: of the shuffle.
        force: read another model than the dictionary was trained on.
        progress: show bars.

    Returns:
        A Shift; one without dimensions where nothing moved, as with empty demonstrations.

    Raises:
        WorkbenchError: one query only; a dictionary that does not fit; NaN activations.
        PromptError: no room in the context; demonstrations without completions.

    Warns:
        UserWarning: n is larger than the dictionary; queries are among the demonstrations.
    """
    setting = Setting(align, null, counted, separator, join, seed)
    domain = Domain(queries, demonstrations if demonstrations is not None else ())
    warn_of_leaks(source, domain)
    found = effects_of(
        dictionary,
        model,
        domain,
        setting,
        where="sae.shift_dims",
        force=force,
        progress=progress,
    )
    return shift_of(found, dictionary.name, source, align, n=n, excess=excess)


def actual_shift(
    dictionary: Dictionary,
    before: Any,
    after: Any,
    queries: Any,
    *,
    n: int | None = None,
    counted: str = "prompt",
    align: str = "query_tokens",
    source: str = "training",
    force: bool = False,
    progress: bool = True,
) -> Shift:
    """The features that training really moved: two models read the same tokens.

    Args:
        dictionary: of the model before.
        before, after: the model, and what it became.
        queries: what both read.
        n, counted, align, source, force, progress: as in `shift_dims`.

    Raises:
        WorkbenchError: one query only; models of two widths; NaN activations.
    """
    found = between(
        dictionary,
        (before, after),
        queries,
        Setting(align=align, counted=counted),
        where="sae.actual_shift",
        force=force,
        progress=progress,
    )
    return shift_of(found, dictionary.name, source, "models", n=n, excess=False)


def shift_of(
    found: Effects, dictionary: str, source: str, align: str, *, n: int | None, excess: bool
) -> Shift:
    """The shift that a domain's effects show."""
    tokens = int(found.tokens.sum())
    shift = Shift((), found.delta, found.null, align, tokens, dictionary, source, excess)
    return shift.take(n)


def sts(
    dictionary: Dictionary,
    model: Any,
    targets: Any,
    shift: Shift | Sequence[int],
    *,
    kind: str = "act",
    power: int | None = None,
    reduce: str = "sum",
    demonstrations: Any = None,
    align: str = "query_tokens",
    counted: str = "prompt",
    separator: str = "\n",
    join: str = "text",
    force: bool = False,
    progress: bool = True,
) -> Scores:
    """How much a target domain uses the shifted features ("act"), or how far its own demonstrations move
    them ("icl").

    Args:
        dictionary, model: as in `shift_dims`.
        targets: prompts of the target domain, two or more.
        shift: of a source domain; or features, such as those that really shifted.
        kind: which score.
        power: of each term; 1 for "act" and 2 for "icl" by default, as in the paper.
        reduce: "sum" or "mean" over the features.
        demonstrations: of the target domain, for "icl".
        align, counted, separator, join, force, progress: as in `shift_dims`.

    Raises:
        WorkbenchError: no features, features of another dictionary, one prompt; otherwise as `shift_dims`.
    """
    power = checked(kind, power, reduce)
    dims = checked_dims(shift, dictionary.n_features, dictionary.name)
    if kind == "act":
        demonstrations = None
    found = effects_of(
        dictionary,
        model,
        Domain(targets, demonstrations),
        Setting(align=align, counted=counted, separator=separator, join=join),
        where="sae.sts",
        force=force,
        progress=progress,
    )
    return scored(found, dims, kind, power, reduce)


def scored(found: Effects, dims: Sequence[int], kind: str, power: int, reduce: str) -> Scores:
    """A domain's score on some features."""
    what = KINDS[kind]
    values = scores_of(found.stat(what)[power], dims, reduce)
    each = mean_interval(found.shares(values))
    unit = unit_of(kind, power, reduce)
    return Scores(
        values.double().numpy(), each.mean, each.low, each.high, kind, power, reduce, unit
    )


def unit_of(kind: str, power: int, reduce: str) -> str:
    """What scores are counted in."""
    of = {"act": "activation", "icl": "movement"}[kind]
    return f"{reduce} of {of}{'^2' if power == 2 else ''}"


def checked(kind: str, power: int | None, reduce: str) -> int:
    """The power, by default the paper's.

    Raises:
        UnknownName: another kind, power or reduction.
    """
    if kind not in KINDS:
        raise unknown("sae.sts(kind=...)", "score", kind, KINDS)
    if reduce not in ("sum", "mean"):
        raise unknown("sae.sts(reduce=...)", "reduction", reduce, ("sum", "mean"))
    power = POWERS[kind] if power is None else power
    if power not in (1, 2):
        raise unknown("sae.sts(power=...)", "power", power, ("1", "2"))
    return power


def checked_dims(shift: Shift | Sequence[int], n_features: int, name: str) -> tuple[int, ...]:
    """Its features.

    Raises:
        WorkbenchError: none, or of another dictionary.
    """
    dims = _dims(shift)
    foreign = isinstance(shift, Shift) and (
        len(shift.delta) != n_features or (shift.dictionary != name)
    )
    if foreign or (dims and not 0 <= min(dims) <= max(dims) < n_features):
        raise WorkbenchError(
            "sae.sts(shift=...)",
            "holds features of another dictionary",
            expected=f"features 0 to {n_features - 1} of {name}",
            got=repr(shift) if isinstance(shift, Shift) else f"up to {max(dims)}",
            do="measure the shift with this dictionary",
        )
    if not dims:
        raise WorkbenchError(
            "sae.sts(shift=...)",
            "has no dimensions: nothing moved",
            expected="at least one feature",
            got=repr(shift),
            do="give demonstrations that change what the model does",
        )
    return dims


def _dims(shift: Shift | Sequence[int]) -> tuple[int, ...]:
    """Each once."""
    return shift.dims if isinstance(shift, Shift) else tuple(dict.fromkeys(map(int, shift)))


def _clipped(n: int | None, width: int) -> int:
    """How many dimensions: a tenth of a small dictionary by default, never more than it has."""
    if n is None:
        return min(MOST, max(1, width // SHARE))
    if n < 1:
        raise WorkbenchError(
            "sae.shift_dims(n=...)",
            "must be positive",
            expected="at least 1",
            got=n,
            do="leave it out",
        )
    if n > width:
        warnings.warn(
            f"sae.shift_dims(n={n}): the dictionary has {width} features; all of them are taken",
            UserWarning,
            stacklevel=3,
        )
    return min(n, width)


def warn_of_leaks(name: str, domain: Domain) -> None:
    """Warn where a query is its own demonstration: the model then only has to copy."""
    shown, asked = (
        [(p.text, p.messages) for p in some]
        for some in (domain.demonstrations or (), domain.queries)
    )
    n = sum(one in shown for one in asked)
    if n:
        warnings.warn(
            f"{name}: {n} of {len(asked)} queries are among the demonstrations, and their answers before "
            "them; take others",
            UserWarning,
            stacklevel=3,
        )
