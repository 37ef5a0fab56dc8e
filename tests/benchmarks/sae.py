"""Sparse autoencoders: dashboards beside a plain loop over features, bounded memory, forecasts' tokens.

    dashboard_speedup   a loop's time over ours, for 2,048 features on 100k tokens of the reasoner. Cases:
          all, from text            `sae.dashboard` itself, labels too, against a loop that reads the same
                                    text the same way and makes all the rest, feature by feature
          counts, from codes        both begin with the dense codes of every part: density, mean and largest
                                    code, histogram, 8 strongest examples
          counts, from turned codes the same, but the loop turns the codes first and reads them in order
        Not judged, as these are no plain loop, or mostly the reading, which is the same on both sides:
          one product, from text    the loop is handed all correlations by one dense product
          counts, from text         no correlations, effects and neighbours on either side
    codes_held          dense codes alive at a time while a dashboard is made, over the budget of a part
    sts_forwards        see `tests.benchmarks.sae_transfer`

The dictionary has random weights with a threshold at which a dozen features are active on a token, as those
of trained ones are; codes of the corpus are held dense for the loop only. The loop runs over every 8th
feature (32nd where it makes everything), and the time that it spends per feature is scaled up; what it
prepares once counts once. `--quick` takes 20k tokens. Both sides' numbers are compared, and nothing is
reported where they differ.
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
from workbench import sae, tasks
from workbench.sae import reading
from workbench.sae.dashboards import corpus, counting
from workbench.sae.dashboards.board import SCALE_PROMPTS, SCALE_ROWS
from workbench.sae.dictionary import Dictionary
from workbench.sae.library import sae_lens

SITE, ACTIVE = "L3.resid_post", 12
TOKENS, FEATURES = 100_000, 2048
EXAMPLES, BINS, RELATIVES, PROMOTED = 8, 20, 5, 8

MOST, FEW = 8, 32
"""The loop runs over every so-manieth feature: for counts alone, and for everything."""


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
    module = lens.StandardSAE(lens.StandardSAEConfig(d_in=model.d_model, d_sae=width))
    with torch.no_grad():
        module.W_enc.copy_(weight.T)
        module.W_dec.copy_(weight)
        module.b_dec.copy_(rows.mean(0))
        module.b_enc.copy_(-scores.quantile(1 - ACTIVE / width, dim=0))
    return Dictionary(module.eval(), SITE, SITE, model.fingerprint, "random")


def counts(codes: Any, prompts: np.ndarray) -> dict[str, np.ndarray]:
    """From sparse codes, with what `sae.dashboard` counts with."""
    found = counting.activity(codes)
    _, values = counting.top(codes, prompts, EXAMPLES, diverse=False)
    made = {"density": found.density, "mean": found.mean, "largest": found.largest}
    histogram = counting.histogram(codes, found.largest, BINS)
    return made | {"histogram": histogram, "example_values": values}


One = dict[str, torch.Tensor]


def loop(features: range, one: Callable[[int], One]) -> dict[str, np.ndarray]:
    """One feature after another."""
    found = [one(feature) for feature in features]
    return {name: torch.stack([row[name] for row in found]).numpy() for name in found[0]}


def counted(column: torch.Tensor) -> One:
    """What `counts` makes, of one feature's code on every token."""
    on = column[column > 0]
    best = column.topk(EXAMPLES).values
    return {
        "density": torch.tensor(len(on) / len(column)),
        "mean": on.sum() / max(len(on), 1),
        "largest": best[0],
        "histogram": torch.histc(on, BINS, 0, max(float(best[0]), 1e-12)),
        "example_values": best,
    }


class Plain:
    """What a loop needs for everything, prepared once; `one(feature)` makes the rest of its dashboard."""

    def __init__(self, dense: list[torch.Tensor], made: Dictionary, model: wb.Model, prompts: Any):
        self.dense, self.n = dense, sum(map(len, dense))
        self.mean = torch.stack([part.sum(0) for part in dense]).sum(0) / self.n
        square = torch.stack([part.square().sum(0) for part in dense]).sum(0) / self.n
        self.spread = (square - self.mean**2).clamp(min=1e-12).sqrt()
        self.decoder = made.decoder
        self.unit = made.decoder / made.decoder.norm(dim=1, keepdim=True)
        site = f"L{model.n_layers - 1}.resid_post"
        streams = model.record(prompts[:SCALE_PROMPTS], site, pool="all", progress=False)[site]
        streams = streams[:: -(-len(streams) // SCALE_ROWS)]
        norm: Any = model.hf.get_submodule("model.norm")
        size = (streams.square().mean(1) + norm.variance_epsilon).rsqrt().median()
        self.weight = model.hf.get_output_embeddings().weight.detach() * norm.weight.detach() * size

    def column(self, feature: int) -> torch.Tensor:
        """A feature's code on every token."""
        return torch.cat([part[:, feature] for part in self.dense])

    def one(self, feature: int) -> One:
        """Counts, correlated features, neighbours, and the tokens that it raises and lowers."""
        both = torch.stack([part.T @ part[:, feature] for part in self.dense]).sum(0) / self.n
        r = (both - self.mean * self.mean[feature]) / (self.spread * self.spread[feature])
        near = self.unit @ self.unit[feature]
        r[feature] = near[feature] = -2
        logits = self.weight @ self.decoder[feature]
        logits = logits - logits.mean()
        return counted(self.column(feature)) | {
            "correlated_values": r.topk(RELATIVES).values,
            "neighbour_values": near.topk(RELATIVES).values,
            "promoted_values": logits.topk(PROMOTED).values,
            "suppressed_values": -(-logits).topk(PROMOTED).values,
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

    judged: dict[str, tuple[float, float]]
    others: dict[str, tuple[float, float]]
    apart: str
    tokens: int
    active: float


def once(made: Dictionary, model: wb.Model, prompts: list[wb.Prompt]) -> Round:
    """Every step of both sides, each timed alone."""
    width = made.n_features
    most, few = range(0, width, MOST), range(0, width, FEW)
    options: dict[str, Any] = {"examples": EXAMPLES, "bins": BINS, "promoted": PROMOTED}
    options |= {"correlated": RELATIVES, "neighbours": RELATIVES, "diverse": False}
    whole, board = seconds(lambda: sae.dashboard(made, model, prompts, progress=False, **options))
    read, parts = seconds(lambda: list(reading.stream(made, model, prompts, progress=False)))
    dense = [part.codes for part in parts]
    owners = torch.cat([part.prompts for part in parts]).numpy()
    sparse, codes = seconds(lambda: corpus.stacked([corpus.active(part) for part in parts]))
    ours, found = seconds(lambda: counts(codes, owners))
    prepared, plain = seconds(lambda: Plain(dense, made, model, prompts))
    slow, everything = seconds(lambda: loop(few, plain.one))
    counting_, by_loop = seconds(lambda: loop(most, lambda j: counted(plain.column(j))))
    turning, turned = seconds(lambda: torch.cat(dense).T.contiguous())
    in_order, _ = seconds(lambda: loop(most, lambda j: counted(turned[j])))
    product, relatives = seconds(lambda: at_once(dense))
    slow, counting_, in_order = slow * FEW, counting_ * MOST, in_order * MOST
    made_here = {name: getattr(board, name) for name in everything}
    same(found, by_loop, slice(None, None, MOST))
    same(made_here, {"correlated_values": relatives.numpy()}, slice(None))
    ours = sparse + ours
    judged = {
        "all, from text": (whole, read + prepared + slow),
        "counts, from codes": (ours, counting_),
        "counts, from turned codes": (ours, turning + in_order),
    }
    others = {
        "one product, from text": (whole, read + counting_ + product),
        "counts, from text": (read + ours, read + counting_),
    }
    apart = same(made_here, everything, slice(None, None, FEW))
    return Round(judged, others, apart, len(owners), codes.nnz / len(owners))


def dashboards(quick: bool) -> Figure:
    """Medians over rounds."""
    tokens, rounds = (20_000, 2) if quick else (TOKENS, 3)
    model, prompts = models.reasoner(), texts(tokens)
    made = dictionary(model, prompts, FEATURES)
    found = []
    for _ in range(rounds):
        measure.to_stderr("sae: dashboards beside a loop over features")
        found.append(once(made, model, prompts))
    last = found[-1]
    judged, others = (
        {case: measure.middle([t[case][1] / t[case][0] for t in sides]) for case in sides[0]}
        for sides in ([one.judged for one in found], [one.others for one in found])
    )
    return measure.worst(
        judged,
        3.0,
        "higher",
        not_judged={case: round(ratio, 2) for case, ratio in others.items()},
        tokens=last.tokens,
        features=FEATURES,
        active=round(last.active, 1),
        max_rel_diff=last.apart,
    )


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
