"""Sparse autoencoders: dashboards beside a plain loop over features, bounded memory, forecasts' tokens.

    dashboard_speedup   a loop's time over ours, for 2,048 features on 100k tokens of the reasoner: density,
                        mean and largest code, histogram, and the 8 strongest examples (`counts`), with
                        the 5 most correlated features as well (`correlated`). The loop
                        takes one feature after another: its codes gathered from the dense codes of
                        every part, and, for correlations, one product with the dense codes of all. The
                        value is the smaller of
                          from codes, counts        both begin with the dense codes of every part
                          from text, correlated     both read the text with the model and encode it
                        `from text, counts` is a case as well: there both sides spend most of the time
                        on reading, which is the same. `from text, one product` hands the loop the
                        correlations of all features by one dense product instead.
    codes_held          dense codes alive at a time while a dashboard is made, over the budget of a part
    sts_forwards        see `tests.benchmarks.sae_transfer`

The dictionary has random weights with a threshold at which a dozen features are active on a token, as those
of trained ones are; codes of the corpus are held dense for the loop only. The loop runs over every 8th
feature (32nd with correlations), and its time is scaled up. `--quick` takes 20k tokens and 512 features.
Both sides' numbers are compared, and nothing is reported where they differ.
"""

from __future__ import annotations

import random
import sys
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

import workbench as wb
from tests.benchmarks import measure, models
from tests.benchmarks.measure import Figure
from workbench import tasks
from workbench.sae import reading
from workbench.sae.dashboards import corpus, counting
from workbench.sae.dictionary import Dictionary
from workbench.sae.library import sae_lens

SITE, ACTIVE = "L3.resid_post", 12
TOKENS, FEATURES, EXAMPLES, BINS, RELATIVES = 100_000, 2048, 8, 20, 5

MOST, FEW = 8, 32
"""The loop runs over every so-manieth feature: without correlations, and with them."""


def texts(tokens: int) -> list[wb.Prompt]:
    """Worked examples of every task, about so many tokens."""
    draw, found, held = random.Random(0), [], 0
    while held < tokens:
        for name in tasks.names():
            text = tasks.get(name).example(draw).text
            found.append(wb.Prompt(text=text, task=name))
            held += len(text)
    return found


def dictionary(model: wb.Model, prompts: list[wb.Prompt], width: int) -> Dictionary:
    """Random features of unit length, each with a threshold that `ACTIVE / width` of the tokens pass."""
    rows = model.record(prompts[:60], SITE, pool="all", progress=False)[SITE]
    weight = torch.randn(width, model.d_model, generator=torch.Generator().manual_seed(0))
    weight = weight / weight.norm(dim=1, keepdim=True)
    scores = (rows - rows.mean(0)) @ weight.T
    lens = sae_lens()
    sae = lens.StandardSAE(lens.StandardSAEConfig(d_in=model.d_model, d_sae=width))
    with torch.no_grad():
        sae.W_enc.copy_(weight.T)
        sae.W_dec.copy_(weight)
        sae.b_dec.copy_(rows.mean(0))
        sae.b_enc.copy_(-scores.quantile(1 - ACTIVE / width, dim=0))
    return Dictionary(sae.eval(), SITE, SITE, model.fingerprint, "random")


def ours(codes: Any, prompts: np.ndarray, correlated: bool) -> dict[str, np.ndarray]:
    """From sparse codes, with what `sae.dashboard` counts with."""
    found = counting.activity(codes)
    rows, values = counting.top(codes, prompts, EXAMPLES, diverse=False)
    made = {"density": found.density, "mean": found.mean, "largest": found.largest}
    made |= {"histogram": counting.histogram(codes, found.largest, BINS)}
    made |= {"examples": values, "rows": rows}
    if correlated:
        every = np.arange(codes.shape[1])
        made["correlated"] = counting.correlated(codes, every, RELATIVES)[1]
    return made


def loop(dense: list[torch.Tensor], features: range, correlated: bool) -> dict[str, np.ndarray]:
    """One feature after another, from the dense codes of every part."""
    n = sum(map(len, dense))
    mean = torch.stack([part.sum(0) for part in dense]).sum(0) / n
    square = torch.stack([(part * part).sum(0) for part in dense]).sum(0) / n
    spread = (square - mean**2).clamp(min=1e-12).sqrt()
    found = []
    for feature in features:
        one = _counted(torch.cat([part[:, feature] for part in dense]))
        if correlated:
            both = torch.stack([part.T @ part[:, feature] for part in dense]).sum(0) / n
            r = (both - mean * mean[feature]) / (spread * spread[feature])
            r[feature] = -2
            one["correlated"] = r.topk(RELATIVES).values
        found.append(one)
    return {name: torch.stack([one[name] for one in found]).numpy() for name in found[0]}


def _counted(column: torch.Tensor) -> dict[str, torch.Tensor]:
    on = column[column > 0]
    best = column.topk(EXAMPLES)
    return {
        "density": torch.tensor(len(on) / len(column)),
        "mean": on.sum() / max(len(on), 1),
        "largest": best.values[0],
        "histogram": torch.histc(on, BINS, 0, max(float(best.values[0]), 1e-12)),
        "examples": best.values,
        "rows": best.indices,
    }


def at_once(dense: list[torch.Tensor]) -> torch.Tensor:
    """The largest correlations of all features by one dense product, for a loop that leaves them out."""
    n = sum(map(len, dense))
    mean = torch.stack([part.sum(0) for part in dense]).sum(0) / n
    both = torch.stack([part.T @ part for part in dense]).sum(0) / n - mean[:, None] * mean
    spread = both.diagonal().clamp(min=1e-12).sqrt()
    r = (both / (spread[:, None] * spread)).fill_diagonal_(-2)
    return r.topk(RELATIVES, dim=1).values


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray], some: slice) -> str:
    """How far two sides' numbers are apart, after a check that they are the same numbers."""
    worst = 0.0
    for name in b:
        if name == "rows":
            continue  # equal codes have no order; their values are compared
        one, other = a[name][some].astype(float), b[name].astype(float)
        if name == "histogram":  # a code on an edge may fall to either side of it
            off = float(np.abs(one - other).sum() / one.sum())
        else:
            off = float(np.abs(one - other).max() / max(np.abs(one).max(), 1e-12))
        assert off < 1e-3, f"{name} of the two sides are {off:.1e} apart"
        worst = max(worst, off)
    return f"{worst:.1e}"


def seconds(function: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds of a call, and what it gives."""
    start = time.process_time()
    found = function()
    return time.process_time() - start, found


@dataclass(frozen=True)
class Round:
    """One comparison: seconds of ours and of the loop by case, and how far their numbers are apart."""

    sides: dict[str, tuple[float, float]]
    apart: str
    tokens: int
    active: float


def once(made: Dictionary, model: wb.Model, prompts: list[wb.Prompt]) -> Round:
    """Every step of both sides, each timed alone."""
    width = made.n_features
    most, few = range(0, width, MOST), range(0, width, FEW)
    read, parts = seconds(lambda: list(reading.stream(made, model, prompts, progress=False)))
    dense = [part.codes for part in parts]
    owners = torch.cat([part.prompts for part in parts]).numpy()
    sparse, codes = seconds(lambda: corpus.stacked([corpus.active(part) for part in parts]))
    counts, _ = seconds(lambda: ours(codes, owners, False))
    whole, found = seconds(lambda: ours(codes, owners, True))
    plain, by_loop = seconds(lambda: loop(dense, most, False))
    slow, with_relatives = seconds(lambda: loop(dense, few, True))
    product, relatives = seconds(lambda: at_once(dense))
    plain, slow = plain * width / len(most), slow * width / len(few)
    same(found, by_loop, slice(None, None, MOST))
    same(found, {"correlated": relatives.numpy()}, slice(None))
    counts, whole = sparse + counts, sparse + whole
    sides = {
        "from codes, counts": (counts, plain),
        "from text, correlated": (read + whole, read + slow),
        "from text, counts": (read + counts, read + plain),
        "from text, one product": (read + whole, read + plain + product),
    }
    apart = same(found, with_relatives, slice(None, None, FEW))
    return Round(sides, apart, len(owners), codes.nnz / len(owners))


def dashboards(quick: bool) -> Figure:
    """Medians over rounds."""
    tokens, width, rounds = (20_000, 512, 2) if quick else (TOKENS, FEATURES, 3)
    model, prompts = models.reasoner(), texts(tokens)
    made = dictionary(model, prompts, width)
    found = []
    for _ in range(rounds):
        measure.to_stderr("sae: dashboards beside a loop over features")
        found.append(once(made, model, prompts))
    last = found[-1]
    ratios = {
        name: round(measure.middle([one.sides[name][1] / one.sides[name][0] for one in found]), 2)
        for name in last.sides
    }
    detail: dict[str, Any] = {"tokens": last.tokens, "features": width}
    detail |= {"active": round(last.active, 1), "max_rel_diff": last.apart}
    value = min(ratios["from codes, counts"], ratios["from text, correlated"])
    return Figure(value, 3.0, "higher", "ratio", ratios | detail)


def held(quick: bool) -> Figure:
    """Dense codes that are alive while the corpus is read, over one part's budget."""
    model = models.reasoner()
    prompts = texts(20_000 if quick else TOKENS)
    made, encode = dictionary(model, prompts, FEATURES), Dictionary.encode
    alive: list[weakref.ref[torch.Tensor]] = []
    most = total = 0

    def watched(self: Dictionary, rows: torch.Tensor) -> torch.Tensor:
        nonlocal most, total
        codes = encode(self, rows)
        alive.append(weakref.ref(codes))
        most = max(most, sum(c.nbytes for c in (ref() for ref in alive) if c is not None))
        total += codes.nbytes
        return codes

    Dictionary.encode = watched  # pyright: ignore[reportAttributeAccessIssue]
    try:
        _, codes = corpus.read(made, model, prompts, progress=False)
    finally:
        Dictionary.encode = encode
    mib = 2**20
    detail = {
        "parts": len(alive),
        "most_mib": round(most / mib, 1),
        "dense_mib": round(total / mib, 1),
    }
    detail["kept_mib"] = round((codes.data.nbytes + codes.indices.nbytes) / mib, 1)
    return Figure(round(most / reading.PART_BYTES, 4), 1.0, "lower", "parts", detail)


def measured(quick: bool) -> dict[str, Figure]:
    """Every figure."""
    from tests.benchmarks.sae_transfer import sts_forwards

    return {
        "dashboard_speedup": dashboards(quick),
        "codes_held": held(quick),
        "sts_forwards": sts_forwards(quick),
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    quick, _ = measure.asked()
    sys.exit(not measure.report("sae", measured(quick)))
