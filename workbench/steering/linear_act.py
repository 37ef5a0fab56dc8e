"""Linear activation transport: move each coordinate's distribution onto the wanted class's.

Coordinate by coordinate, with both classes sorted, s the source (negative) and t the target:

    omega = sum(s~ t~) / sum(s~^2)       s~ = s - mean(s), t~ = t - mean(t)
    beta = mean(t) - omega mean(s)       h' = (1 - a) h + a (omega h + beta)

Sorting pairs the classes as optimal transport in one dimension does; omega >= 0.

Shapes: rows `[row, d]` per class and site; `scale` = omega - 1, `shift` = beta and `centre` =
    mean(s), which the random control alone reads, all `[d]`.
Units: strength is a, the fraction of the transport: a = 1 moves the negative class's means onto the
    positive class's.
Source: Rodriguez, Blaas, Klein, Zappella, Apostoloff, Cuturi and Suau (2024), Controlling Language and
    Diffusion Models by Transporting Activations, https://arxiv.org/abs/2410.23054.
Differs from the paper: the paper fits layer by layer, each on activations that the lower layers'
    edits have moved; that is `sequential=True`, and the default fits every site on unsteered rows.
    It averages over tokens and acts on norm outputs; here sites and pool are the caller's. Classes of
    two sizes are matched at the smaller one's quantiles. A coordinate without spread in the source
    keeps omega = 1 (our reading). `mean_only=True` is Mean-AcT, which at default options is
    `mean_difference`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from workbench.errors import WorkbenchError
from workbench.registry import Citation, register
from workbench.shapes import Float, Rows, Tensor
from workbench.sites import depth_of
from workbench.steering.base import Need, SteeringMethod, check_read_again, sites_of
from workbench.tensors import Contrast, Intervention

Read = Callable[..., Mapping[str, Tensor]]


@register(
    "steering",
    Citation(
        "Rodriguez, Blaas, Klein, Zappella, Apostoloff, Cuturi, Suau",
        "Controlling Language and Diffusion Models by Transporting Activations",
        2024,
        "https://arxiv.org/abs/2410.23054",
    ),
)
@dataclass(frozen=True)
class LinearAct(SteeringMethod):
    """Transport each coordinate onto the wanted class by a fitted line.

    Attributes:
        mean_only: keep the slope at 1 and move the mean alone (Mean-AcT).
        sequential: fit site by site in forward order, each with the lower edits applied.
    """

    mean_only: bool = False
    sequential: bool = False

    @property
    def needs(self) -> tuple[Need, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """`rows` where sites are fitted one after another, nothing else."""
        return ("rows",) if self.sequential else ()

    def fit(self, contrast: Contrast, *, rows: Read | None = None) -> Intervention:
        """The transport at every recorded site.

        Raises:
            WorkbenchError: `sequential` without `rows` or prompts, or with rows that were pooled in
                another way than `rows` pools.
        """
        found = {s: self._line(p, n) for s, p, n in sites_of(contrast, "LinearAct")}
        if self.sequential:
            found = self._in_order(contrast, rows)
        return self._edit(contrast, found)

    def _edit(self, contrast: Contrast, tensors: dict[str, dict[str, Tensor]]) -> Intervention:
        return Intervention(
            "linear_act",
            "affine",
            tensors,
            unit="fraction of the transport",
            params={
                "mean_only": self.mean_only,
                "sequential": self.sequential,
                "max_strength": 1.0,
            },
            model=contrast.model,
        )

    def _in_order(self, contrast: Contrast, rows: Read | None) -> dict[str, dict[str, Tensor]]:
        if rows is None or contrast.prompts is None:
            raise WorkbenchError(
                "LinearAct(sequential=True).fit",
                "must run the model again",
                expected="rows=..., and a contrast that knows its prompts",
                got="no rows" if rows is None else "no prompts",
                do="use workbench.steering.fit",
            )
        sources = contrast.prompts[1]
        order = sorted(contrast.positive, key=depth_of)
        found: dict[str, dict[str, Tensor]] = {}
        for site in order:
            lower = [self._edit(contrast, dict(found))] if found else []
            moved = rows(sources, [site], edits=lower, pool=self.pool)[site]
            if not found:
                where = f"LinearAct(sequential=True).fit at {site}"
                check_read_again(where, moved, contrast.negative[site])
            found[site] = self._line(contrast.positive[site], moved)
        return found

    def _line(self, target: Rows, source: Float[Tensor, "other d"]) -> dict[str, Tensor]:
        """`scale` and `shift` from source to target."""
        shift = target.double().mean(0) - source.double().mean(0)
        if self.mean_only:
            return {"shift": shift.float()}
        n = min(len(target), len(source))
        s, t = _quantiles(source, n), _quantiles(target, n)
        s, t = s - s.mean(0), t - t.mean(0)
        spread = s.square().sum(0)
        fixed = spread <= 1e-18 * (n + source.double().square().sum(0))
        omega = torch.where(fixed, 1.0, (s * t).sum(0) / spread.where(~fixed, torch.ones(())))
        centre = source.double().mean(0)
        beta = target.double().mean(0) - omega * centre
        return {"scale": (omega - 1).float(), "shift": beta.float(), "centre": centre.float()}


def _quantiles(rows: Rows, n: int) -> Float[Tensor, "n d"]:
    """`n` evenly spaced quantiles of each coordinate, ascending; the sorted rows where n is theirs."""
    ordered = rows.double().sort(0).values
    at = ((torch.arange(n, dtype=torch.float64) + 0.5) * len(rows) / n - 0.5).clamp(
        0, len(rows) - 1
    )
    low, high = at.floor().long(), at.ceil().long()
    return torch.lerp(ordered[low], ordered[high], (at - low)[:, None])
