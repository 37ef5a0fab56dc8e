"""How active features are on a domain's queries, and how far a change moves them, per query.

    active^p_j(i) = mean_t h_j(i, t)^p          moved^p_j(i) = mean_t |h'_j(i, t) - h_j(i, t)|^p     p = 1, 2

h are codes of the query's tokens t as they stand alone, h' the same tokens behind demonstrations, or in
another model. Kept sparse, a row per query: nothing here is as large as a corpus times a dictionary.

Shapes: codes `[row, feature]`; statistics `[prompt, feature]`, sparse, on the CPU.
Units: the codes' own, to the power p.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from workbench.errors import WorkbenchError, unknown
from workbench.model.tokens import as_prompts
from workbench.sae.dictionary import Dictionary
from workbench.sae.reading import Part, stream
from workbench.sae.transfer.demonstrations import (
    COUNTED,
    JOINS,
    Domain,
    Sequences,
    refuse_one,
    sequences,
    shuffled,
)
from workbench.shapes import Codes, Float, Int

ALIGNS = ("query_tokens", "row", "pooled")
NULLS = ("base", "shuffled")
Stat = Mapping[int, Tensor]
"""Power -> sparse `[prompt, feature]`."""


@dataclass(frozen=True)
class Setting:
    """How queries are read with and without demonstrations.

    Attributes:
        align: "query_tokens" compares each token of a query with itself; "pooled" the mean over a query's
            tokens with itself; "row" row r of everything that is read without demonstrations with row r
            of everything that is read with them, as the release does: other tokens.
        null: what shifts without any information: "base", two base runs (0 for all but "row", where it is
            the first half of the queries against the second); "shuffled", demonstrations of the
            same tokens in random order.
        counted: which tokens of a query: "prompt", its gold "completion", or "both".
        separator, join: see `workbench.sae.transfer.demonstrations`.
        seed: of the shuffle.
    """

    align: str = "query_tokens"
    null: str = "base"
    counted: str = "prompt"
    separator: str = "\n"
    join: str = "text"
    seed: int = 0

    def __post_init__(self) -> None:
        for name, known in (
            ("align", ALIGNS),
            ("null", NULLS),
            ("counted", COUNTED),
            ("join", JOINS),
        ):
            if getattr(self, name) not in known:
                raise unknown(f"sae transfer ({name}=...)", "choice", getattr(self, name), known)
        if self.align == "row" and self.counted == "completion":
            raise WorkbenchError(
                "sae transfer",
                "rows of whole texts cannot be completions only",
                expected="counted='prompt' or 'both' with align='row'",
                got="counted='completion'",
                do="choose another of both",
            )


@dataclass(frozen=True)
class Effects:
    """What a domain's queries do to features.

    Attributes:
        active: by power, mean activation per query.
        moved: by power, mean movement per query; None where no demonstrations were given.
        null: mean squared movement without information, `[feature]`; None where nothing moved.
        tokens: how many of each query count.
        weights: of each query in a mean over queries.
    """

    active: Stat
    moved: Stat | None
    null: Float[Tensor, " feature"] | None
    tokens: Int[Tensor, " prompt"]
    weights: Float[Tensor, " prompt"]

    @property
    def delta(self) -> Float[Tensor, " feature"]:
        """Mean squared movement over queries."""
        return self.mean("moved", 2)

    def shares(self, values: Float[Tensor, " prompt"]) -> np.ndarray:
        """Values per query whose plain mean is their weighted one."""
        weights = self.weights.double()
        return (values.double() * weights / weights.mean()).numpy()

    def mean(self, what: str, power: int) -> Float[Tensor, " feature"]:
        """Mean over queries, weighted."""
        return weighted(self.stat(what)[power], self.weights)

    def stat(self, what: str) -> Stat:
        """Values per query.

        Raises:
            WorkbenchError: movement of a domain without demonstrations.
        """
        found = self.active if what == "active" else self.moved
        if found is None:
            raise WorkbenchError(
                "sae transfer",
                "this domain has no demonstrations",
                expected="Domain(queries, demonstrations)",
                got="demonstrations=None",
                do="give some, or pass its shift dimensions",
            )
        return found


def weighted(stat: Tensor, weights: Float[Tensor, " prompt"]) -> Float[Tensor, " feature"]:
    """Mean of the rows of a sparse `[prompt, feature]`."""
    share = (weights / weights.sum()).to(stat.dtype)
    return torch.sparse.mm(stat.t(), share[:, None])[:, 0]


def effects_of(
    dictionary: Dictionary,
    model: Any,
    domain: Domain,
    setting: Setting,
    *,
    where: str,
    force: bool = False,
    progress: bool = True,
) -> Effects:
    """Activity of a domain's queries and, where it has demonstrations, what these move.

    Raises:
        WorkbenchError: a domain of one prompt; a dictionary that does not fit; NaN activations.
        PromptError: no room for the demonstrations, or a tokenizer that merges across the border.
    """
    queries = domain.queries
    refuse_one(where, queries)
    layout = {
        "counted": setting.counted,
        "separator": setting.separator,
        "join": setting.join,
    }

    def read(sequences: Sequences) -> Iterator[Part]:
        last = None if setting.align == "row" else sequences.last
        return stream(
            dictionary,
            model,
            sequences.prompts,
            completions=sequences.completions,
            last=last,
            force=force,
            progress=progress,
        )

    alone = sequences(model, queries, **layout)
    if domain.demonstrations is None:
        return _finished(
            _activity(read(alone), len(queries), dictionary.n_features), None, None, setting
        )
    behind = sequences(model, queries, domain.demonstrations, **layout)
    sums = _movement(read(alone), read(behind), len(queries), dictionary.n_features, setting)
    null = None
    if setting.align == "row" and setting.null == "base":
        halves = (read(alone.half(second)) for second in (False, True))
        null = _movement(*halves, len(queries), dictionary.n_features, setting)
    elif setting.null == "shuffled":
        noise = shuffled(model, domain.demonstrations, setting.seed)
        aside = read(sequences(model, queries, noise, **layout))
        null = _movement(read(alone), aside, len(queries), dictionary.n_features, setting)
    return _finished(sums, sums, null, setting)


def between(
    dictionary: Dictionary,
    models: tuple[Any, Any],
    queries: Any,
    setting: Setting,
    *,
    where: str,
    force: bool = False,
    progress: bool = True,
) -> Effects:
    """Activity of queries in the first of two models, and how far the second moves it."""
    many = as_prompts(queries)
    refuse_one(where, many)
    read = sequences(models[0], many, counted=setting.counted)
    before, after = (
        stream(
            dictionary,
            model,
            read.prompts,
            completions=read.completions,
            last=None if setting.align == "row" else read.last,
            force=force or model is models[1],
            progress=progress,
        )
        for model in models
    )
    sums = _movement(before, after, len(many), dictionary.n_features, setting)
    return _finished(sums, sums, None, setting)


class _Sums:
    """Sums over the rows of each prompt, sparse."""

    def __init__(self, prompts: int, features: int):
        self.shape, self.indices, self.values = (prompts, features), [], []

    def add(self, owners: Int[Tensor, " row"], rows: Codes) -> None:
        who, local = owners.unique(return_inverse=True)
        sums = rows.new_zeros(len(who), rows.shape[1]).float()
        found = sums.index_add_(0, local.to(rows.device), rows.float()).cpu().to_sparse()
        at = found.indices()
        self.indices.append(torch.stack([who[at[0]], at[1]]))
        self.values.append(found.values())

    def mean(self, counts: Int[Tensor, " prompt"]) -> Tensor:
        """Sparse `[prompt, feature]`."""
        indices = torch.cat([torch.zeros(2, 0, dtype=torch.long), *self.indices], 1)
        values = torch.cat([torch.zeros(0), *self.values])
        total = torch.sparse_coo_tensor(indices, values, self.shape, check_invariants=True)
        total = total.coalesce()
        return _map(total, total.values() / counts[total.indices()[0]])


def _map(stat: Tensor, values: Tensor) -> Tensor:
    made = torch.sparse_coo_tensor(stat.indices(), values, stat.shape, check_invariants=True)
    return made.coalesce()


@dataclass(frozen=True)
class _Totals:
    """Sums of codes and of differences; `signed` differences only where they are pooled."""

    active: dict[int, _Sums]
    moved: dict[int, _Sums]
    counts: Int[Tensor, " prompt"]


def _activity(parts: Iterator[Part], n: int, n_features: int) -> _Totals:
    sums = {power: _Sums(n, n_features) for power in (1, 2)}
    counts = torch.zeros(n, dtype=torch.long)
    for part in parts:
        counts += torch.bincount(part.prompts, minlength=n)
        for power, total in sums.items():
            total.add(part.prompts, part.codes**power)
    return _Totals(sums, {}, counts)


def _movement(
    left: Iterator[Part], right: Iterator[Part], n: int, n_features: int, setting: Setting
) -> _Totals:
    """Sums over the queries of `left`, and over how far `right` is from them."""
    active, moved = ({power: _Sums(n, n_features) for power in (1, 2)} for _ in range(2))
    counts = torch.zeros(n, dtype=torch.long)
    for owners, codes, others in matched(left, right):
        counts += torch.bincount(owners, minlength=n)
        shift = others - codes
        for power in (1, 2):
            active[power].add(owners, codes**power)
            if setting.align != "pooled":
                moved[power].add(owners, shift.abs() ** power)
        if setting.align == "pooled":
            moved[1].add(owners, shift)
    return _Totals(active, moved, counts)


def matched(
    left: Iterator[Part], right: Iterator[Part]
) -> Iterator[tuple[Int[Tensor, " row"], Codes, Codes]]:
    """Owners and codes of `left` with the codes of `right` in the same rows, as many as both have."""
    ahead: Codes | None = None
    for part in left:
        owners, codes = part.prompts, part.codes
        while len(codes):
            if ahead is None or not len(ahead):
                more = next(right, None)
                if more is None:
                    return
                ahead = more.codes
                continue
            n = min(len(codes), len(ahead))
            yield owners[:n], codes[:n], ahead[:n]
            owners, codes, ahead = owners[n:], codes[n:], ahead[n:]


def _finished(
    base: _Totals, change: _Totals | None, null: _Totals | None, setting: Setting
) -> Effects:
    if setting.align != "row":
        _refuse_empty(base.counts)
    active = {power: sums.mean(base.counts) for power, sums in base.active.items()}
    moved = _moved(change, setting) if change else None
    weights = base.counts.float() if setting.align == "row" else torch.ones(len(base.counts))
    nothing = torch.zeros(next(iter(active.values())).shape[1]) if change else None
    if null is not None:
        share = null.counts.float() if setting.align == "row" else weights
        nothing = weighted(_moved(null, setting)[2], share)
    return Effects(active, moved, nothing, base.counts, weights)


def _refuse_empty(counts: Int[Tensor, " prompt"]) -> None:
    empty = (counts == 0).nonzero()[:, 0].tolist()
    if empty:
        raise WorkbenchError(
            "sae transfer",
            "some queries have no token that counts",
            expected="at least one token of each query, special ones aside",
            got=f"none of query {empty[0]}" + (f" and {len(empty) - 1} more" if empty[1:] else ""),
            do="leave those out, or count other tokens",
        )


def _moved(totals: _Totals, setting: Setting) -> Stat:
    counts = totals.counts.clamp(min=1)
    if setting.align != "pooled":
        return {power: sums.mean(counts) for power, sums in totals.moved.items()}
    mean = totals.moved[1].mean(counts)
    return {power: _map(mean, mean.values().abs() ** power) for power in (1, 2)}


def scores_of(stat: Tensor, dims: Sequence[int], reduce: str) -> Float[Tensor, " prompt"]:
    """Sum or mean over some features, per query."""
    chosen = torch.zeros(stat.shape[1])
    chosen[list(dims)] = 1.0 if reduce == "sum" else 1 / len(dims)
    return torch.sparse.mm(stat, chosen[:, None])[:, 0]
