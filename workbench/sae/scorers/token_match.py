"""Token match: features that are on where the text matches a pattern, and off elsewhere.

    F1_j = 2 TP / (active + matching),   TP = tokens that match and on which f_j > threshold

A token matches where it overlaps a match of the pattern in the text. Values per case are the ratio's
linearisation, F1 + (2 TP_i - F1 D_i) n / D with D_i = active_i + matching_i: their mean is F1.

Shapes: `values` `[case, feature]`; precision and recall `[feature]`.
Units: fraction.
Source: Gurnee et al. (2023), Finding Neurons in a Haystack, https://arxiv.org/abs/2305.01610, for
    neurons as detectors of text; Huang et al. (2023), Rigorously Assessing Natural Language Explanations
    of Neurons, https://arxiv.org/abs/2309.10312, for precision and recall of what a unit is said to mark.
    Linearised ratios: Cochran (1977), Sampling Techniques, third edition, chapter 6.
Differs from the paper: the pattern is given, not written by a model; a match is told from the text alone.
    Chance moves the matches of each text along it by a random number of tokens, round its end, so that
    their number and their runs stay.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import ClassVar

import torch

from workbench.errors import WorkbenchError
from workbench.registry import Citation, register
from workbench.sae.scorers.base import Block, FeatureScores, Need, Scorer, Spelled
from workbench.sae.scorers.cases import nothing_to_read
from workbench.seeds import derive
from workbench.shapes import Bool, Float, Tensor


@register(
    "scorers",
    Citation(
        "Gurnee, Nanda, Pauly, Harvey, Troitskii, Bertsimas",
        "Finding Neurons in a Haystack: Case Studies with Sparse Probing",
        2023,
        "https://arxiv.org/abs/2305.01610",
    ),
)
@dataclass(frozen=True)
class TokenMatch(Scorer):
    """Features that are on where the text matches a pattern.

    Attributes:
        pattern: a regular expression; a plain text where `regex` is False. Without one it is digits.
        regex: whether `pattern` is a regular expression.
        threshold: the activation above which a feature is on.
    """

    needs: ClassVar[tuple[Need, ...]] = ("n_cases", "codes", "spelled")
    pattern: str = r"\d"
    regex: bool = True
    threshold: float | int = 0.0
    draws: int = field(default=100, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        try:
            empty = re.compile(self._source).match("") is not None
        except re.error as error:
            raise self._wrong("is no regular expression", str(error)) from None
        if empty:
            raise self._wrong("matches the empty text", "a match of no token")

    def score(
        self,
        *,
        n_cases: int,
        codes: Callable[[], Iterable[Block]],
        spelled: tuple[Spelled, ...],
    ) -> FeatureScores:
        """F1 of every feature, with its precision and recall."""
        flags = [self._matched(one) for one in spelled]
        if not any(bool(one.any()) for one in flags):
            raise self._wrong("matches no token", f"0 of {sum(map(len, flags))} tokens")
        moved = _moved(flags, self.draws, self.seed)
        counts = _Counts.of(codes(), n_cases, flags, moved, self.threshold)
        counts.check(self)
        hits, active, matching = counts.hits, counts.active, counts.matching[:, None]
        sizes = active + matching
        size = sizes.sum(0).clamp(min=1)
        f1 = 2 * hits.sum(0) / size
        chance = 2 * counts.chance / (active.sum(0) + counts.moved[:, None]).clamp(min=1)
        return FeatureScores(
            f1 + (2 * hits - f1 * sizes) * n_cases / size,
            chance.mean(0),
            chance.amax(1).double(),
            f"F1 of {self.pattern!r}",
            "fraction",
            "F1 with the matches of each text moved along it, mean over draws",
            also={
                "precision": hits.sum(0) / active.sum(0).clamp(min=1),
                "recall": hits.sum(0) / matching.sum().clamp(min=1),
            },
            caption=f"How well a feature tells tokens that match {self.pattern!r} from others.",
        )

    @property
    def _source(self) -> str:
        return self.pattern if self.regex else re.escape(self.pattern)

    def _matched(self, case: Spelled) -> Bool[Tensor, " pos"]:
        found = [match.span() for match in re.finditer(self._source, case.text)]
        on = [any(a < stop and start < b for a, b in found) for start, stop in case.spans]
        return torch.tensor(on, dtype=torch.bool)

    def _wrong(self, wrong: str, got: str) -> WorkbenchError:
        return WorkbenchError(
            f"TokenMatch({self.pattern!r})",
            wrong,
            expected="a pattern that some tokens match and others do not",
            got=got,
            do="choose another pattern; regex=False reads it as plain text",
        )


@dataclass
class _Counts:
    """Tokens counted per case and feature; `chance` and `moved` with the matches moved, per draw."""

    hits: Float[Tensor, "case feature"]
    active: Float[Tensor, "case feature"]
    matching: Float[Tensor, " case"]
    chance: Float[Tensor, "draw feature"]
    moved: Float[Tensor, " draw"]
    rows: int

    @classmethod
    def of(
        cls,
        blocks: Iterable[Block],
        n_cases: int,
        flags: list[Tensor],
        moved: list[Tensor],
        threshold: float | int,
    ) -> _Counts:
        found = None
        for block in blocks:
            on = (block.codes > threshold).float().cpu()
            cases, where = block.cases.cpu(), block.positions.cpu()
            if found is None:
                n = on.shape[1]
                sizes = [(n_cases, n), (n_cases, n), (n_cases,), (len(moved[0]), n)]
                found = cls(*map(torch.zeros, sizes), torch.zeros(len(moved[0])), 0)
            rows = list(zip(cases.tolist(), where.tolist(), strict=True))
            own = torch.stack([flags[case][at] for case, at in rows]).float()
            drawn = torch.stack([moved[case][:, at] for case, at in rows], 1).float()
            found.hits.index_add_(0, cases, on * own[:, None])
            found.active.index_add_(0, cases, on)
            found.matching.index_add_(0, cases, own)
            found.chance += drawn @ on
            found.moved += drawn.sum(1)
            found.rows += len(rows)
        if found is None:
            raise nothing_to_read("TokenMatch")
        return found

    def check(self, scorer: TokenMatch) -> None:
        """Refuse a pattern that none or all of the counted tokens match."""
        n = int(self.matching.sum())
        if n in (0, self.rows):
            raise scorer._wrong(
                f"matches {'no' if n == 0 else 'every'} token at the chosen positions",
                f"{n} of {self.rows} tokens",
            )


def _moved(flags: list[Tensor], draws: int, seed: int) -> list[Tensor]:
    """Per case `[draw, pos]`, its matches moved round by a random number of tokens."""
    generator = torch.Generator().manual_seed(derive(seed, "moved"))
    found = []
    for one in flags:
        by = torch.randint(0, max(1, len(one)), (draws, 1), generator=generator)
        found.append(one[(torch.arange(len(one)) + by) % max(1, len(one))])
    return found
