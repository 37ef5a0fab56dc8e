"""From rows to cases, and what chance does to the largest of many features."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch

from workbench.errors import WorkbenchError
from workbench.sae.scorers.base import Block, Labels
from workbench.seeds import derive
from workbench.shapes import Float, Int, Tensor

DRAWS = 256
"""Draws that the size of a chunk allows for."""
CHUNK = 2**24
"""Numbers made at once: 128 MB in float64."""


def pooled(blocks: Iterable[Block], n_cases: int, how: str) -> Float[Tensor, "case feature"]:
    """Mean ("mean") or largest ("max") activation of each case; NaN where a case has no row."""
    total, rows = None, torch.zeros(n_cases)
    for block in blocks:
        codes, cases = block.codes.float().cpu(), block.cases.cpu()
        if total is None:
            total = torch.full((n_cases, codes.shape[1]), 0.0 if how == "mean" else -torch.inf)
        if how == "mean":
            total.index_add_(0, cases, codes)
        else:
            at = cases[:, None].expand_as(codes)
            total = total.scatter_reduce(0, at, codes, "amax")
        rows += torch.bincount(cases, minlength=n_cases)
    if total is None:
        raise nothing_to_read("pooled")
    if how == "mean":
        total /= rows.clamp(min=1)[:, None]
    return total.masked_fill_(rows[:, None] == 0, float("nan"))


def totals(parts: Iterable[tuple[Tensor, Tensor]], n_cases: int) -> Float[Tensor, "case feature"]:
    """Sums over the rows of each case, of `(values [row, feature], cases [row])`; 0 without rows."""
    total = None
    for values, cases in parts:
        if total is None:
            total = torch.zeros(n_cases, values.shape[1])
        total.index_add_(0, cases.cpu(), values.float().cpu())
    if total is None:
        raise nothing_to_read("totals")
    return total


def known(
    values: Float[Tensor, "case feature"], labels: Labels, where: str
) -> tuple[Float[Tensor, "kept feature"], Labels]:
    """Cases that have a class and a row, with pairs counted anew.

    Raises:
        WorkbenchError: fewer than two cases of a class are left.
    """
    keep = ~values[:, 0].isnan() & ~labels.classes.isnan()
    new = torch.cumsum(keep, 0) - 1
    pairs = labels.pairs
    if pairs is not None:
        pairs = new[pairs[:, keep[pairs].all(0)]]
        pairs = pairs if pairs.shape[1] > 1 else None  # too few to compare with each other
    left = Labels(labels.classes[keep], pairs)
    counts = [int((left.classes == c).sum()) for c in (1, 0)]
    if min(counts) < 2:
        raise WorkbenchError(
            where,
            "needs two classes",
            expected="at least two cases of each class",
            got=f"{counts[0]} positive and {counts[1]} negative ones",
            do="label the prompts, or say which labels positive= and negative= are",
        )
    return values[keep], left


def signs(n: int, draws: int, seed: int) -> Float[Tensor, "draw case"]:
    """Random signs, 1 or -1."""
    generator = torch.Generator().manual_seed(derive(seed, "signs", n))
    return torch.randint(0, 2, (draws, n), generator=generator).double() * 2 - 1


def shuffled(classes: Float[Tensor, " case"], draws: int, seed: int) -> Float[Tensor, "draw case"]:
    """The classes in random orders."""
    generator = torch.Generator().manual_seed(derive(seed, "shuffles", len(classes)))
    orders = [torch.randperm(len(classes), generator=generator) for _ in range(draws)]
    return classes.double()[torch.stack(orders)]


def columns(n_rows: int, n_features: int) -> Iterator[slice]:
    """Slices of features whose `[row, feature]` numbers are not many at once."""
    step = max(1, CHUNK // max(1, n_rows))
    for start in range(0, n_features, step):
        yield slice(start, min(n_features, start + step))


def flipped(
    values: Float[Tensor, "case f"], draws: int, seed: int
) -> tuple[Float[Tensor, " f"], Float[Tensor, " draw"], Float[Tensor, " f"]]:
    """Means over cases with random signs: those of the first draw, the largest of each draw, and the
    root mean square of each feature, in units of which they are compared.

    Where a feature's values scatter about 0 their signs are chance. Random signs leave the root mean
    square as it is, so that the mean in its units is a t statistic in another scale.
    """
    weights = signs(len(values), draws, seed) / max(1, len(values))
    size = values.double().square().mean(0).sqrt()
    first, largest = over(_in_units(values, size), lambda part: weights @ part)
    return first * size, largest, size


def compared(
    values: Float[Tensor, "case f"], weights: Float[Tensor, "draw case"]
) -> tuple[Float[Tensor, " f"], Float[Tensor, " draw"], Float[Tensor, " f"]]:
    """Weighted sums over cases, as `flipped`; in units of each feature's standard deviation."""
    size = values.double().std(0)
    first, largest = over(_in_units(values, size), lambda part: weights @ part)
    return first * size, largest, size


def _in_units(values: Float[Tensor, "case f"], size: Float[Tensor, " f"]) -> Tensor:
    return torch.where(size > 0, values / size, 0.0).float()


def over(
    values: Float[Tensor, "case f"],
    scores: Callable[[Tensor], Tensor],
    neutral: float = 0.0,
) -> tuple[Float[Tensor, " f"], Float[Tensor, " draw"]]:
    """Scores under chance, `scores(values)` being `[draw, f]`: of the first draw, and the largest."""
    first, largest = [], None
    for some in columns(max(len(values), DRAWS), values.shape[1]):
        drawn = scores(values[:, some].nan_to_num().double())
        first.append(drawn[0])
        most = (drawn - neutral).abs().amax(1)
        largest = most if largest is None else torch.maximum(largest, most)
    assert largest is not None
    return torch.cat(first), largest


def nothing_to_read(where: str) -> WorkbenchError:
    """The error for positions that no case has."""
    return WorkbenchError(
        f"sae.search ({where})",
        "no token is at the chosen positions",
        expected="at least one token",
        got="0",
        do="choose other positions=, or special=True to count special tokens too",
    )


def strongest(values: Float[Tensor, " f"], n: int) -> Int[Tensor, " n"]:
    """The `n` features of the largest absolute value, the largest first; ties go to the lower number."""
    order = torch.sort(values.abs().nan_to_num(-1), descending=True, stable=True).indices
    return order[:n]
