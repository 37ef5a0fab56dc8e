"""How good a dictionary is: what it leaves unexplained, how sparse it is, what the model still does with it.

    table = sae.evaluate(dictionary, model, prompts)
    table                        # beside a random dictionary, the identity, and two ablations
    table.figure(); table.densities("L3.resid_post-512")

    FVU           = sum |h - h'|^2 / sum |h - mean h|^2                    over all tokens
    L0, L1        = active features, and the sum of their activations, of a token
    dead          = features that are active nowhere
    CE            = cross-entropy of the next token when the model goes on from h' in place of h
    CE recovered  = (CE ablated - CE with h') / (CE ablated - CE)          ablated: zeros, or the mean
    KL            = KL(model || model that goes on from h')

Units: CE and KL in nats per token; `mse` is the squared length of the error of a token.
Source: Karvonen et al. (2025), SAEBench, https://arxiv.org/abs/2503.09532, for the measures; they are
    computed as SAELens does in `sae_lens.evals`: its FVU is 1 - `explained_variance`, its `ce_loss_score`
    is CE recovered against zeros.
Differs from SAELens: a token that is left out (special ones) keeps its activation in every run but the
    ablation to zero, which SAELens and this module do at all positions; a transcoder is judged on what it
    writes; CE recovered is NaN where the ablation does not raise the loss.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from workbench.comparison.layout import interval
from workbench.comparison.provenance import versions
from workbench.comparison.stats import Interval
from workbench.comparison.table import Figure, Table
from workbench.errors import WorkbenchError, unknown
from workbench.linalg import kl_divergence
from workbench.probing.measures import Bootstrap
from workbench.sae.controls import ROWS, RandomDictionary, random_like
from workbench.sae.dictionary import CODE_BYTES, Dictionary
from workbench.sae.fitting import check_fits
from workbench.sae.putting import (
    Batches,
    batches_of,
    filled,
    kept,
    losses,
    per_prompt,
    put,
    rows_at,
)
from workbench.shapes import Float, Int, Mask, Rows, Tensor
from workbench.tensors import Tokens, Trace

MODEL, OWN, RANDOM, IDENTITY = "model", "dictionary", "random dictionary", "identity"
MEAN, ZERO = "mean ablation", "zero ablation"
UNITS = {
    "fvu": "fraction of variance unexplained",
    "mse": "squared length",
    "cosine": "cosine",
    "l0": "features per token",
    "l1": "activation per token",
    "dead": "features",
    "dead_share": "fraction of features",
    "ce": "nats",
    "kl": "nats",
    "ce_recovered": "fraction, against zero ablation",
    "ce_recovered_mean": "fraction, against mean ablation",
    "kl_recovered": "fraction, against zero ablation",
}
SHOWN = ("fvu", "l0", "dead_share", "ce", "ce_recovered", "kl")


def evaluate(
    dictionary: Dictionary | Sequence[Dictionary],
    model: Any,
    prompts: Any,
    *,
    completions: Sequence[Sequence[int]] | None = None,
    controls: bool = True,
    special: bool = False,
    force: bool = False,
    seed: int = 0,
    progress: bool = True,
) -> QualityTable:
    """Quality of one dictionary or several on the same corpus, beside what they have to beat.

    Args:
        dictionary, model: whose features of what.
        prompts: text, prompts, or a list of either.
        completions: ids read after each prompt.
        controls: also judge a random dictionary of the same width and sparsity, and the identity, whose
            FVU is 0 and CE recovered 1. The two ablations are always there.
        special: count tokens such as the first one of a text, and put their reconstruction in too.
        force: judge it on another model than it was trained on.
        seed: of the random dictionary and the bootstrap.
        progress: show a bar over prompts.

    Returns:
        A QualityTable: a row per dictionary, what was judged, and measure; 95 % intervals are a bootstrap
        over prompts, in which every token counts alike. Counts of dead features have none: fewer prompts
        can only leave more features dead.

    Raises:
        WorkbenchError: a dictionary that does not fit, two of one name, or no token that counts.
        PromptError: a prompt that is empty or longer than the context.
    """
    many = _named(dictionary)
    for one in many.values():
        check_fits(one, model, "sae.evaluate", force=force)
    corpus = batches_of(model, prompts, completions, "sae.evaluate")
    rows: list[tuple[Any, ...]] = []
    densities: dict[str, dict[str, np.ndarray]] = {}
    with tqdm(total=2 * len(many) * len(corpus), desc="quality", disable=not progress) as bar:
        for name, one in many.items():
            sums = _judge(one, model, corpus, special, controls, seed, bar)
            rows += [(name, one.site, one.n_features, *row) for row in _measured(sums, seed)]
            densities[name] = sums.densities
    columns = ("dictionary", "site", "width", "by", "measure", "mean", "low", "high", "n", "unit")
    about = {
        "model": model.name,
        "prompts": len(corpus),
        "tokens": int(sums.tokens.sum()),
        "seed": seed,
        "versions": versions(),
    }
    table = dict(zip(columns, map(list, zip(*rows, strict=True)), strict=True))
    return QualityTable(table, UNITS, about, density=densities)


@dataclass(frozen=True, repr=False)
class QualityTable(Table):
    """A Table with a row per dictionary, what was judged (`by`) and measure.

    Attributes:
        density: per dictionary and per "dictionary" or "random dictionary", the share of tokens on which
            each feature is active, `[feature]`. A table that was loaded has none.
    """

    density: Mapping[str, Mapping[str, np.ndarray]] = field(default_factory=dict)

    def value(self, measure: str, by: str = OWN, dictionary: str | None = None) -> Interval:
        """One number with its interval.

        Raises:
            UnknownName: no such measure, dictionary, or thing that was judged.
        """
        frame = self.frame()
        name = dictionary or self.columns["dictionary"][0]
        for kind, value in (("dictionary", name), ("by", by), ("measure", measure)):
            if value not in set(frame[kind]):
                raise unknown("QualityTable.value", kind, value, dict.fromkeys(frame[kind]))
            frame = frame[frame[kind] == value]
        row = frame.iloc[0]
        return Interval(float(row["mean"]), float(row["low"]), float(row["high"]), int(row["n"]))

    def figure(
        self, metrics: Sequence[str] = ("fvu", "ce_recovered", "l0", "dead_share")
    ) -> Figure:
        """Measures side by side: a point per dictionary and control."""
        for metric in metrics:
            if metric not in self.units:
                raise unknown("QualityTable.figure", "measure", metric, self.units)
        known = [metric for metric in metrics if metric in set(self._shown["metric"])]
        n = self.provenance.get("prompts")
        caption = (
            f"Dictionaries of {self.provenance.get('model')}; 95 % intervals over {n} prompts."
        )
        return Figure(self, {"kind": "means", "metrics": known}, caption)

    def densities(self, dictionary: str | None = None, bins: int = 40) -> Figure:
        """How many features are active on what share of the tokens, on a logarithmic scale.

        Features that are never active are the first bar.

        Raises:
            UnknownName: no such dictionary, or a table without densities.
        """
        name = dictionary or self.columns["dictionary"][0]
        if name not in self.density:
            raise unknown("QualityTable.densities", "dictionary", name, self.density)
        found = self.density[name]
        table = _Histogram(
            _histogram(found, self.provenance["tokens"], bins), {"share": "fraction"}
        )
        caption = f"Features of {name} by the share of tokens on which they are active."
        return Figure(table, {"kind": "density"}, caption)

    @property
    def _shown(self) -> Any:  # as `figures.means` reads it
        frame = self.frame().dropna(subset=["mean"])
        several = frame["dictionary"].nunique() > 1
        frame["arm"] = frame["dictionary"] + ": " + frame["by"] if several else frame["by"]
        frame["against"] = frame["arm"].iloc[0].removesuffix(OWN) + IDENTITY
        return frame.rename(columns={"measure": "metric"})

    def _head(self) -> Any:
        frame = self.frame()
        frame = frame[frame["measure"].isin(SHOWN)]
        ends = zip(frame["mean"], frame["low"], frame["high"], frame["n"], strict=True)
        frame = frame.assign(cell=[_cell(*row) for row in ends])
        wide = frame.pivot(index=["dictionary", "by"], columns="measure", values="cell")
        order = frame[["dictionary", "by"]].drop_duplicates()
        return wide.loc[list(map(tuple, order.to_numpy())), list(SHOWN)].fillna("").reset_index()

    def __repr__(self) -> str:
        about = self.provenance
        title = (
            f"QualityTable({about.get('model')}: {about.get('tokens')} tokens of "
            f"{about.get('prompts')} prompts; mean [95 % interval over prompts])"
        )
        return title + "\n" + self._head().to_string(index=False)

    def _repr_html_(self) -> str:
        from html import escape

        title = escape(repr(self).split("\n")[0])
        return f"<div><code>{title}</code>{self._head().to_html(index=False)}</div>"


@dataclass(frozen=True, repr=False)
class _Histogram(Table):
    """Rows of a histogram."""

    @property
    def _shown(self) -> Any:
        return self.frame()


class _Sums:
    """Sums per prompt, in float64: all that the measures are made of."""

    def __init__(self, n: int, width: int):
        self.tokens, self.losses = np.zeros(n), np.zeros(n)
        self.squares, self.total = np.zeros(n), np.zeros((n, width))
        self.of: dict[str, dict[str, np.ndarray]] = {}
        self.active: dict[str, np.ndarray] = {}

    def add(self, by: str, name: str, start: int, values: Tensor, owners: Tensor) -> None:
        """Add numbers of rows to the prompts that own them."""
        found = self.of.setdefault(by, {}).setdefault(name, np.zeros(len(self.tokens)))
        self.into(found, start, values, owners)

    def add_rows(self, start: int, targets: Rows, owners: Tensor) -> None:
        """Add activations, which all ways of replacing them share."""
        self.into(self.tokens, start, torch.ones(len(targets)), owners)
        self.into(self.squares, start, targets.pow(2).sum(1), owners)
        self.into(self.total, start, targets, owners)

    def add_active(self, by: str, counts: Tensor) -> None:
        """Add on how many tokens each feature is active."""
        found = counts.double().cpu().numpy()
        self.active[by] = self.active[by] + found if by in self.active else found

    @property
    def densities(self) -> dict[str, np.ndarray]:
        """Share of tokens `[feature]` of those ways that have features."""
        return {by: counts / self.tokens.sum() for by, counts in self.active.items()}

    def into(self, found: np.ndarray, start: int, values: Tensor, owners: Tensor) -> None:
        """Add rows to `found` `[prompt, ...]`."""
        n = int(owners.max()) + 1 if len(owners) else 0
        found[start : start + n] += per_prompt(values, owners, n).numpy()


Coder = Dictionary | RandomDictionary


def _judge(
    dictionary: Dictionary,
    model: Any,
    corpus: Batches,
    special: bool,
    controls: bool,
    seed: int,
    bar: Any,
) -> _Sums:
    """Everything that is summed of one dictionary: its means and sample first, then all runs."""
    mean, control = _prepared(dictionary, model, corpus, special, controls, seed, bar)
    coders: dict[str, Coder] = {OWN: dictionary} | ({RANDOM: control} if control else {})
    sums = _Sums(len(corpus), len(mean))
    for start, tokens in corpus.tokens(model):
        keep = kept(model, tokens, special)
        trace = model.run(tokens, record=[dictionary.site, dictionary.target])
        batch = _Batch(dictionary, model, tokens, keep, trace, start, sums)
        batch.base()
        for by, coder in coders.items():
            batch.replaced(by, batch.coded(by, coder))
        if controls:
            batch.replaced(IDENTITY, batch.targets)
        batch.replaced(MEAN, mean.to(batch.targets).expand_as(batch.targets))
        batch.zeroed()
        bar.update(len(tokens))
    return sums


def _prepared(
    dictionary: Dictionary,
    model: Any,
    corpus: Batches,
    special: bool,
    controls: bool,
    seed: int,
    bar: Any,
) -> tuple[Float[Tensor, " out"], RandomDictionary | None]:
    """The mean of what is reconstructed, in float64, and a random dictionary matched on some tokens."""
    total, n = torch.zeros(()), 0
    sample: list[tuple[Rows, Rows]] = []
    for _, tokens in corpus.tokens(model):
        keep = kept(model, tokens, special)
        values = model.run(
            tokens, record=[dictionary.site, dictionary.target], logits="none"
        ).values
        reads, writes = (rows_at(values[s], keep) for s in (dictionary.site, dictionary.target))
        if sum(len(rows) for rows, _ in sample) < ROWS:
            sample.append((reads.clone(), writes.clone()))
        total = total + writes.double().cpu().sum(0)
        n += len(writes)
        bar.update(len(tokens))
    if not n:
        raise WorkbenchError(
            "sae.evaluate",
            "no token counts",
            expected="prompts with other than special tokens",
            got=f"{len(corpus)} prompts",
            do="add text, or say special=True",
        )
    if not controls:
        return total / n, None
    reads, writes = (torch.cat(parts) for parts in zip(*sample, strict=True))
    return total / n, random_like(dictionary, reads, writes, seed)


@dataclass(frozen=True)
class _Batch:
    """One batch: what stands at the site, and the sums that its runs go into."""

    dictionary: Dictionary
    model: Any
    tokens: Tokens
    keep: Mask
    trace: Trace
    start: int
    sums: _Sums

    @property
    def values(self) -> Tensor:
        return self.trace[self.dictionary.target]

    @property
    def targets(self) -> Rows:
        return rows_at(self.values, self.keep).float()

    @property
    def owners(self) -> Int[Tensor, " row"]:
        return self.keep.nonzero()[:, 0]

    def base(self) -> None:
        """The run itself."""
        self.sums.add_rows(self.start, self.targets, self.owners)
        self._losses(MODEL, self.trace.logits, self.sums.losses)

    def coded(self, by: str, coder: Coder) -> Rows:
        """Reconstructions; their codes are counted a part at a time and not kept."""
        rows = rows_at(self.trace[self.dictionary.site], self.keep)
        size = max(1, CODE_BYTES // (4 * self.dictionary.n_features))
        found = []
        for part, owners in zip(rows.split(size), self.owners.split(size), strict=True):
            codes = coder.encode(part)
            self.sums.add(by, "l0", self.start, (codes != 0).sum(1), owners)
            self.sums.add(by, "l1", self.start, codes.abs().sum(1), owners)
            self.sums.add_active(by, (codes != 0).sum(0))
            found.append(coder.reconstruct(part))
        return torch.cat(found) if found else self.targets

    def replaced(self, by: str, rows: Rows) -> None:
        """The run that goes on from `rows`, and how far they are from what was there."""
        targets = self.targets
        rows = rows.to(targets)
        self.sums.add(by, "error", self.start, (targets - rows).pow(2).sum(1), self.owners)
        alike = torch.nn.functional.cosine_similarity(targets, rows, dim=1)
        self.sums.add(by, "cosine", self.start, alike, self.owners)
        self._run(by, filled(self.values, self.keep, rows))

    def zeroed(self) -> None:
        """The run that goes on from zeros at all positions, as in SAELens."""
        self.sums.add(ZERO, "error", self.start, self.targets.pow(2).sum(1), self.owners)
        self._run(ZERO, torch.zeros_like(self.values))

    def _run(self, by: str, values: Tensor) -> None:
        logits = put(self.model, self.tokens, self.dictionary.target, values)
        self._losses(by, logits)
        base, other = (one.float().log_softmax(-1) for one in (self.trace.logits, logits))
        kl = kl_divergence(base, other)[self.keep]
        self.sums.add(by, "kl", self.start, kl, self.owners)

    def _losses(self, by: str, logits: Tensor, count: np.ndarray | None = None) -> None:
        keep = self.keep[:, :-1]
        owners = keep.nonzero()[:, 0]
        found = losses(logits, self.tokens)[keep]
        self.sums.add(by, "ce", self.start, found, owners)
        if count is not None:
            self.sums.into(count, self.start, torch.ones(len(found)), owners)


def _measured(sums: _Sums, seed: int) -> list[tuple[Any, ...]]:
    """Rows (by, measure, mean, low, high, n, unit)."""
    boot = Bootstrap(np.arange(len(sums.tokens)), seed)
    found: list[tuple[Any, ...]] = []
    for by, own in sums.of.items():
        for measure, estimate in _estimates(sums, by, own).items():
            held = boot.interval(estimate)
            found.append((by, measure, held.mean, held.low, held.high, held.n, UNITS[measure]))
        if by in sums.active:
            counts = sums.active[by]
            dead = int((counts == 0).sum())
            for measure, value in (("dead", float(dead)), ("dead_share", dead / len(counts))):
                ends = (float("nan"), float("nan"), boot.n)
                found.append((by, measure, value, *ends, UNITS[measure]))
    return found


def _estimates(sums: _Sums, by: str, own: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Per measure, a function of weights `[draw, prompt]`."""
    per_token = {n: k for n, k in (("l0", "l0"), ("l1", "l1"), ("mse", "error")) if k in own}
    per_token |= {name: name for name in ("cosine", "kl") if name in own}
    found = {m: _ratio(own[name], sums.tokens) for m, name in per_token.items()}
    if by == MEAN:
        found["fvu"] = lambda w: np.ones(len(w))  # of its own mean in every draw
    elif "error" in own:
        found["fvu"] = _unexplained(own["error"], sums)
    found["ce"] = _ratio(own["ce"], sums.losses)
    if by in (MODEL, ZERO):
        return found
    zero, mean = sums.of[ZERO], sums.of[MEAN]
    base = sums.of[MODEL]["ce"]
    found["ce_recovered"] = _recovered(zero["ce"], own["ce"], base)
    if by != MEAN:
        found["ce_recovered_mean"] = _recovered(mean["ce"], own["ce"], base)
    found["kl_recovered"] = _recovered(zero["kl"], own["kl"], np.zeros_like(base))
    return found


def _ratio(above: np.ndarray, below: np.ndarray) -> Any:
    return lambda w: _divided(w @ above, w @ below)


def _recovered(ablated: np.ndarray, own: np.ndarray, base: np.ndarray) -> Any:
    return lambda w: _divided(w @ (ablated - own), w @ (ablated - base))


def _unexplained(error: np.ndarray, sums: _Sums) -> Any:
    def measured(w: np.ndarray) -> np.ndarray:
        n = w @ sums.tokens
        mean = (w @ sums.total) / np.maximum(n, 1)[:, None]
        return _divided(w @ error, w @ sums.squares - n * (mean**2).sum(1))

    return measured


def _divided(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    return np.divide(above, below, out=np.full(len(above), np.nan), where=below > 1e-10)


def _named(given: Dictionary | Sequence[Dictionary]) -> dict[str, Dictionary]:
    many = [given] if isinstance(given, Dictionary) else list(given)
    named = {one.name or f"{one.site}-{one.n_features}": one for one in many}
    if not many or len(named) < len(many):
        raise WorkbenchError(
            "sae.evaluate",
            "the dictionaries have no names of their own" if many else "there is no dictionary",
            expected="one dictionary, or several of different names",
            got=[one.name for one in many],
            do="rename one with dataclasses.replace(dictionary, name=...)",
        )
    return named


def _histogram(densities: Mapping[str, np.ndarray], tokens: int, bins: int) -> dict[str, list[Any]]:
    """A row per series and bin; "low" and "high" are its ends, 0 and 0 for features never active."""
    edges = np.geomspace(1 / max(tokens, 2), 1, bins + 1)
    columns: dict[str, list[Any]] = {k: [] for k in ("by", "low", "high", "features", "share")}
    for by, values in densities.items():
        inside = np.clip(np.searchsorted(edges, values, side="right") - 1, 0, bins - 1)
        counts = np.bincount(inside[values > 0], minlength=bins)
        ends = [(0.0, 0.0), *zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True)]
        for (low, high), n in zip(ends, [int((values == 0).sum()), *counts.tolist()], strict=True):
            for name, value in zip(columns, (by, low, high, n, n / len(values)), strict=True):
                columns[name].append(value)
    return columns


def _cell(mean: float, low: float, high: float, n: int) -> str:
    if np.isnan(mean):
        return ""
    return f"{mean:.3g}" if np.isnan(low) else f"{mean:.3g} {interval(low, high, n)}"
