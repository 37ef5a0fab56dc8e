"""Keep sub-tasks of one prompt apart: attention between spans that exclude each other is lowered.

    reading the prompt:  score(q, k) - alpha  for q and k in spans that exclude each other
    each later token:    score(t, k) - alpha  for k in spans that exclude the active one
                         (`workbench.stepwise.ata` says which span is active)

Shapes: `bias` `[head]` per layer: -alpha in the chosen heads, 0 in the others.
Units: strength s scales alpha, in nats: unnormalised weights become e^(-s alpha) of what they were.
Source: Lv, Qin, Hong, Liang, Wu, Li, Sun and Zhang (2026), Attend to the Active: Structure-Aware
    Dynamic Attention in LLMs for Compositional Instruction Following, known here from a note alone,
    https://openreview.net/forum?id=wwA0X3UfAn.
Differs from the paper: a language model parses the prompt there; here the user gives spans and their
    structure. Our reading, no code being released: in a "chain" neighbours depend on each other, so that
    only spans further apart exclude each other; in "branch" and "parallel" all do; `exclusive` says
    otherwise. The paper edits 20 heads (50 for branches) that the note does not name; the default is all.
    The score's index ranges are uncertain; see the controller.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal

import torch

from workbench.errors import WorkbenchError, unknown
from workbench.registry import Citation, register
from workbench.shapes import Tensor
from workbench.steering.base import SteeringMethod
from workbench.tensors import Contrast, Intervention, finite

STRUCTURES = ("chain", "branch", "parallel")


@register(
    "steering",
    Citation(
        "Lv, Qin, Hong, Liang, Wu, Li, Sun, Zhang",
        "Attend to the Active: Structure-Aware Dynamic Attention in LLMs for Compositional "
        "Instruction Following",
        2026,
        "https://openreview.net/forum?id=wwA0X3UfAn",
    ),
)
@dataclass(frozen=True)
class Ata(SteeringMethod):
    """Lower attention between sub-tasks of a prompt, and to those not being worked on.

    Attributes:
        spans: absolute positions `(first, stop)` of every sub-task, the beginning-of-sequence token
            being 0; in order and apart. They hold for every prompt it is used on.
        structure: "chain" (each needs the one before), "branch" (one of them is taken) or "parallel".
        exclusive: pairs of spans, by number, that exclude each other; None is by structure.
        alpha: nats taken from a score; log 100.
        gamma: a span is taken for active below this part of the largest entropy.
        heads: pairs (layer, head); None is all.
    """

    spans: tuple[tuple[int, int], ...] = ()
    structure: Literal["chain", "branch", "parallel"] = "parallel"
    exclusive: tuple[tuple[int, int], ...] | None = None
    alpha: float | int = math.log(100)
    gamma: float | int = 0.5
    heads: tuple[tuple[int, int], ...] | None = None

    needs = ("dims",)
    sites = ""

    def fit(self, contrast: Contrast, *, dims: Any) -> Intervention:
        """The edit in the chosen heads; it needs no data.

        Raises:
            WorkbenchError: no two spans, spans that overlap or hold nothing, nothing that excludes
                anything, heads the model lacks, or an option out of range.
        """
        pairs = self._checked()
        heads = self.heads
        if heads is None:
            heads = [(n, h) for n in range(dims.n_layers) for h in range(dims.n_heads)]
        return Intervention(
            "ata",
            "adaptive",
            _tensors(heads, float(self.alpha), dims),
            unit=f"times {self.alpha:.3f} nats off the scores between exclusive spans",
            params={
                "rule": "exclusive_spans",
                "stepwise": "ata",
                "spans": [list(span) for span in self.spans],
                "exclusive": [list(pair) for pair in pairs],
                "structure": self.structure,
                "gamma": float(self.gamma),
            },
            model=contrast.model,
            conditional=True,
        )

    def _checked(self) -> list[tuple[int, int]]:
        """Pairs that exclude each other."""
        finite("Ata(alpha)", float(self.alpha))
        if self.structure not in STRUCTURES:
            raise unknown("Ata(structure)", "structure", self.structure, STRUCTURES)
        if not 0 <= self.gamma <= 1:
            raise _refused("Ata(gamma)", "is no part of an entropy", "0 to 1", self.gamma)
        ends = [0, *(end for span in self.spans for end in span)]
        apart = all(a < b for a, b in self.spans) and ends == sorted(ends)
        if len(self.spans) < 2 or not apart:
            raise _refused(
                "Ata(spans)",
                "are not sub-tasks of one prompt",
                "two or more spans (first, stop), in order, none empty, none overlapping",
                self.spans or "none",
            )
        pairs = list(combinations(range(len(self.spans)), 2))
        if self.exclusive is not None:
            wrong = [p for p in self.exclusive if tuple(sorted(p)) not in pairs]
            pairs = [] if wrong else [(min(p), max(p)) for p in self.exclusive]
        elif self.structure == "chain":
            pairs = [(i, j) for i, j in pairs if j - i > 1]
        if not pairs:
            raise _refused(
                "Ata(exclusive)",
                "names no two spans that exclude each other",
                f"pairs of 0 to {len(self.spans) - 1}; a chain of two spans has none by itself",
                self.exclusive or self.structure,
            )
        return pairs


def _tensors(
    heads: Sequence[tuple[int, int]], alpha: float, dims: Any
) -> dict[str, dict[str, Tensor]]:
    found: dict[str, dict[str, Tensor]] = {}
    for layer, head in sorted(heads):
        if not (0 <= layer < dims.n_layers and 0 <= head < dims.n_heads):
            raise _refused(
                "Ata(heads)",
                "names a head the model lacks",
                f"{dims.n_layers} layers of {dims.n_heads} heads",
                (layer, head),
            )
        site = found.setdefault(f"L{layer}.attn_scores", {"bias": torch.zeros(dims.n_heads)})
        site["bias"][head] = -alpha
    if not found:
        raise _refused("Ata(heads)", "is empty", "pairs (layer, head), or None for all", "none")
    return found


def _refused(where: str, wrong: str, expected: object, got: object) -> WorkbenchError:
    return WorkbenchError(where, wrong, expected=expected, got=got, do="correct it")
