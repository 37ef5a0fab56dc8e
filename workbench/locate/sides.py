"""Two runs of the same cases, what is exchanged between them, and what the exchange did.

The *base* run is the one that is changed, the *source* run is where values come from. "denoising" puts
the clean run's values into the corrupted run (what suffices to restore the answer), "noising" the other
way round (what is needed for it).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch

from workbench.errors import WorkbenchError, unknown
from workbench.locate.base import METRICS, Axis, Cases, Patch, Scores
from workbench.seeds import derive
from workbench.shapes import Float, Int, Tensor
from workbench.tensors import Intervention, Tokens

Direction = Literal["denoising", "noising"]
Per = Literal["mean", "case"]
DRAWS = 10


@dataclass(frozen=True)
class Sides:
    """The base and the source run of cases.

    Attributes:
        cases: as given; its clean columns are the positions of every score.
        base, source: the two batches.
        columns: `[case, pos]`, the base column of each clean column; -1 where there is none.
        sources: `[case, base pos]`, the source column of each base column; -1 where there is none.
    """

    cases: Cases
    base: Tokens
    source: Tokens
    columns: Int[Tensor, "case pos"]
    sources: Int[Tensor, "case base"]

    @classmethod
    def of(cls, cases: Cases, direction: str) -> Sides:
        """Base and source of clean and corrupted.

        Raises:
            WorkbenchError: nobody said which columns of the two stand against each other.
        """
        columns = cases.columns
        if cases.corrupted is None or columns is None:
            raise WorkbenchError(
                "locate.find",
                "the cases do not say which positions of clean and corrupted belong together",
                expected="Cases with corrupted and columns",
                got=f"corrupted {cases.corrupted is not None}, columns {columns is not None}",
                do="make them with workbench.patching.cases.cases_of, or give columns=",
            )
        if direction == "denoising":
            sources = cases.swapped.columns
            assert sources is not None
            return cls(cases, cases.corrupted, cases.clean, columns, sources)
        own = torch.arange(columns.shape[1], device=columns.device).expand_as(columns)
        own = own.masked_fill(columns < 0, -1)
        return cls(cases, cases.clean, cases.corrupted, own, columns)

    def put(self, base: Tensor, source: Tensor) -> Tensor:
        """`[case, base pos, ...]`: the source's values on the base's columns, its own elsewhere."""
        rows = torch.arange(len(self.cases), device=source.device)[:, None]
        columns = self.sources.to(source.device)
        known = (columns >= 0).reshape(*columns.shape, *[1] * (source.dim() - 2))
        return torch.where(known, source[rows, columns.clamp(min=0)], base)

    def patches(
        self, site: str, values: Tensor, column: int | None = None, head: int | None = None
    ) -> list[Patch]:
        """`values` put in at a clean column (None: all), at each case's own base column."""
        if column is None:
            return [Patch(site, values, None, head)]
        at = self.columns[:, column]
        found = [int(c) for c in at.unique() if c >= 0]
        return [
            Patch(site, values, c, head, None if bool((at == c).all()) else at == c) for c in found
        ]


def fraction(
    metric: Float[Tensor, "*places case"],
    base: Float[Tensor, " case"],
    source: Float[Tensor, " case"],
    per: str,
) -> Float[Tensor, "*places case"]:
    """How far from the base run (0) to the source run (1).

    Args:
        per: "mean" divides by the mean over cases of what lies between the runs, so that the mean
            over cases is a ratio of means; "case" by each case's own, NaN where that is 0.

    Raises:
        WorkbenchError: on average the runs do not differ.
    """
    gap = source - base
    if per == "case":
        return (metric - base) / torch.where(gap == 0, float("nan"), gap)
    if float(gap.mean().abs()) <= 1e-6 * float(torch.stack([base, source]).abs().mean()):
        raise WorkbenchError(
            "locate.find",
            "clean and corrupted runs have the same metric on average",
            expected="cases that the model tells apart",
            got=f"a mean difference of {float(gap.mean()):.3g}",
            do="choose other cases or another metric",
        )
    return (metric - base) / gap.mean()


def chosen(name: str, value: object, known: Any) -> None:
    """Refuse an option that is none of `known`, a Literal or some names.

    Raises:
        UnknownName: it is none of them.
    """
    options = get_args(known) or tuple(known)
    if value not in options:
        raise unknown(name, "option", value, map(str, options))


def at_least_one(name: str, value: int) -> None:
    """Refuse a number of things that is not 1 or more.

    Raises:
        WorkbenchError: it is smaller.
    """
    if value < 1:
        raise WorkbenchError(
            name, "takes nothing", expected="1 or more", got=value, do="take at least one"
        )


def known_metric(name: str, metric: str) -> None:
    """Refuse a metric that nobody knows, before anything runs."""
    chosen(f"{name}(metric=...)", metric, tuple(METRICS))


def shifts(
    site: str,
    change: Tensor,
    tokens: Tokens,
    at: Int[Tensor, " case"] | None = None,
    *,
    head: int | None = None,
    **about: Any,
) -> Intervention:
    """The mean over cases of a change as an addition, each position on its own.

    Args:
        site: without selectors.
        change: `[case, pos, ..., d]` on the columns of `tokens`; `[case, pos, head, d]` with `head`.
        at: the column of each case; None for every position that all cases have.
        about: fields of the Intervention.

    Raises:
        WorkbenchError: the place is not the same position in all cases, or nothing changes.
    """
    change = change if head is None else change[:, :, head]
    rows = torch.arange(len(tokens), device=change.device)
    where = [at] if at is not None else _shared(tokens)
    tensors = {}
    for columns in where:
        shift = change[rows, columns.to(change.device)].float().mean(0).cpu()
        if bool(shift.any()):
            tensors[_at(site, position(tokens, columns), head)] = {"shift": shift}
    if not tensors:
        raise WorkbenchError(
            f"edit at {site}",
            "changes nothing",
            expected="a place where clean and corrupted differ",
            got="a mean difference of 0",
            do="choose a later position or another place",
        )
    return Intervention(
        operation="affine", tensors=tensors, unit="multiples of the mean change", **about
    )


def _shared(tokens: Tokens) -> list[Tensor]:
    """The columns of each position that every case has, counted from the end."""
    width, shortest = tokens.ids.shape[1], min(tokens.lengths)
    return [torch.full((len(tokens),), c) for c in range(width - shortest, width)]


def _at(site: str, pos: int, head: int | None) -> str:
    return f"{site}[pos={pos}]" if head is None else f"{site}[head={head}, pos={pos}]"


def position(tokens: Tokens, columns: Int[Tensor, " case"]) -> int:
    """The position that a column of each case is: absolute, or negative and counted from the end.

    Raises:
        WorkbenchError: it is another one in every case.
    """
    rows = torch.arange(len(tokens), device=tokens.ids.device)
    columns = columns.to(tokens.ids.device)
    absolute = tokens.positions[rows, columns]
    ending = columns - tokens.ids.shape[1]
    for found in (absolute, ending):
        if len(found.unique()) == 1 and bool((columns >= 0).all()):
            return int(found[0])
    raise WorkbenchError(
        "Map.edit",
        "the place is another position in every case",
        expected="one position, counted from the start or from the end",
        got=sorted(set(absolute.tolist())),
        do="locate it on cases of one length",
    )


def randomised(base: Tensor, change: Tensor, seed: int) -> Tensor:
    """`base` plus a random change of the same norm at every position and head: `[case, pos, ..., d]`.

    Cases share directions, counted from the end, so that their order does not matter.
    """
    draw = torch.Generator().manual_seed(seed)
    # drawn one by one from the last position on: padding in front changes nothing
    drawn = [torch.randn(change.shape[2:], generator=draw) for _ in range(change.shape[1])]
    noise = torch.stack(drawn[::-1]).to(change.device)
    noise = noise / noise.norm(dim=-1, keepdim=True)
    return base + (noise * change.float().norm(dim=-1, keepdim=True)).to(base)


def control(
    places: Sequence[tuple[str, Callable[[Tensor], list[Patch]], list[Tensor], Tensor]],
    measured: Callable[[list[list[Patch]]], Tensor],
    seed: int,
    unit: str,
) -> Scores:
    """Places of a map beside random changes of the same size there.

    Args:
        places: per place its label, patches from values, the values put in (as many everywhere), and
            the base's values.
        measured: what variants measure, `[variant, case]`.
        seed: of the random changes.
        unit: of what variants measure.

    Returns:
        Per place the patch itself (mean over its values), the mean over `DRAWS` random changes, and
        the mean of their absolute values: what a change of that size does in any direction.
    """
    rows = []
    for label, patches, values, base in places:  # each on its own: whole layers are drawn
        changes = [values[i % len(values)] - base for i in range(DRAWS)]
        drawn = [randomised(base, c, derive(seed, label, i)) for i, c in enumerate(changes)]
        rows.append(measured([patches(one) for one in [*values, *drawn]]))
    found = torch.stack(rows).permute(2, 0, 1)
    patch, random = found[..., :-DRAWS], found[..., -DRAWS:]
    values = {
        "patch": patch.mean(-1),
        "random": random.mean(-1),
        "random, size": random.abs().mean(-1),
    }
    return Scores(
        values,
        (Axis("place", tuple(place[0] for place in places)),),
        dict.fromkeys(values, unit),
        caption=f"The strongest places beside {DRAWS} random changes of the same norm there.",
    )


def strongest(values: Tensor, n: int) -> Iterable[tuple[int, ...]]:
    """Indices of the `n` places with the largest absolute mean over cases, `values` `[case, *axes]`.

    Places that no case has are none of them.
    """
    mean = torch.nanmean(values.double(), 0).abs().nan_to_num(-1.0)
    known = int((mean >= 0).sum())
    order = mean.flatten().sort(descending=True, stable=True).indices[: min(n, known)]
    return [tuple(int(i) for i in torch.unravel_index(o, mean.shape)) for o in order]
