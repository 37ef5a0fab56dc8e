"""Scale how much chosen heads attend to the first token, which is where attention rests unused.

    a'_0 = gamma a_0 / D,   a'_i = a_i / D,   D = (gamma - 1) a_0 + 1        (each query row a)
    which is softmax(scores + log gamma on key 0); strength s makes it gamma^s

gamma > 1 takes attention from all other tokens alike and flattens what is left; gamma < 1 gives it
back. The first query row sees one key alone and stays as it is.

Shapes: `bias` `[head]` per layer: log gamma of a chosen head, 0 of the others.
Units: strength s is a multiple of the fitted log gamma, which is in nats.
Source: Han, Yu, Tang and Ungar (2025), ZeroTuning: Unlocking the Initial Token's Power to Enhance
    Large Language Models Without Training, https://arxiv.org/abs/2505.11739.
Differs from the paper: the released function works on attention weights after the softmax and on
    column 0, which with left padding is a pad; here the score of absolute position 0 is moved, the
    same numbers. Our reading: a head is up-effective where scaling it alone with gamma = `probe`
    gives the better score than with 1 / `probe`; the larger group is tuned, its heads in the order
    of that gain, at most `fraction` of all heads scanned; scanned are the lower two thirds of the
    layers (the paper's shallow and middle ones); gamma is the best of a short grid on the prompts it
    is fitted on, so a number reported must come from others. Unsupervised, the score is minus the
    mean entropy of the next token.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from workbench.errors import WorkbenchError, unknown
from workbench.records import Prompt
from workbench.registry import Citation, register
from workbench.shapes import Float, Tensor
from workbench.steering.base import SteeringMethod
from workbench.tensors import Contrast, Intervention, finite

KEYS = "span(0, 1)"
Head = tuple[int, int]
Score = Callable[[Sequence[Intervention]], float]


@register(
    "steering",
    Citation(
        "Han, Yu, Tang, Ungar",
        "ZeroTuning: Unlocking the Initial Token's Power to Enhance LLMs Without Training",
        2025,
        "https://arxiv.org/abs/2505.11739",
    ),
)
@dataclass(frozen=True)
class ZeroTuning(SteeringMethod):
    """Scale the attention that chosen heads pay to the first token.

    Attributes:
        select: what heads and gamma are chosen by. "entropy": the lowest mean entropy of the next
            token, without labels. "answer": the highest log-probability of the completions of the
            positive class (all of it, where no prompt has one it is an error).
        layers: which layers are scanned; None is the lower two thirds.
        fraction: at most this part of the scanned heads is tuned; the paper finds 0.4 to 0.7 best.
        probe: gamma, and its inverse, with which each head is tried alone; above 1.
        gammas: sizes above 1 that are tried on the chosen heads, inverted for down-effective ones.
        gamma: this one instead of a search; below 1 scales down.
        max_prompts: so many prompts, taken evenly, are looked at.
    """

    select: Literal["entropy", "answer"] = "entropy"
    layers: tuple[int, ...] | None = None
    fraction: float | int = 0.5
    probe: float | int = 2.0
    gammas: tuple[float | int, ...] = (1.5, 2.0, 3.0, 4.0, 6.0)
    gamma: float | int | None = None
    max_prompts: int = 32

    needs = ("dims", "run", "encode")
    sites = ""

    def fit(
        self,
        contrast: Contrast,
        *,
        dims: Any,
        run: Callable[..., Any],
        encode: Callable[[str], list[int]],
    ) -> Intervention:
        """The bias on position 0 in the chosen heads.

        Raises:
            WorkbenchError: options out of range, a layer the model lacks, or no prompts (with
                completions, for "answer").
        """
        self._check(dims)
        layers = self._layers(dims.n_layers)
        score = self._score(contrast, run, encode)
        gains = {
            head: self._gain(head, dims.n_heads, score)
            for head in [(layer, h) for layer in layers for h in range(dims.n_heads)]
        }
        chosen, up = self._group(gains)
        tried = {g: score([_edit(chosen, g, dims.n_heads)]) for g in self._tried(up)}
        gamma = max(tried, key=lambda g: tried[g])
        params = {
            "gamma": gamma,
            "group": "up" if up else "down",
            "heads": [f"L{layer}.{h}" for layer, h in chosen],
            "score": tried[gamma],
            "score_before": score([]),
            "select": self.select,
        }
        return _edit(chosen, gamma, dims.n_heads, contrast, params)

    def _check(self, dims: Any) -> None:
        if self.select not in ("entropy", "answer"):
            raise unknown("ZeroTuning(select)", "choice", self.select, ("entropy", "answer"))
        sizes = {"probe": (self.probe,), "gammas": self.gammas}
        wrong = {k: v for k, v in sizes.items() if not v or min(v) <= 1}
        if not 0 < self.fraction <= 1:
            wrong["fraction"] = (self.fraction,)
        if self.gamma is not None and (self.gamma <= 0 or self.gamma == 1):
            wrong["gamma"] = (self.gamma,)
        if self.max_prompts < 1:
            wrong["max_prompts"] = (self.max_prompts,)
        for name, values in [*sizes.items(), ("gamma", (self.gamma or 2.0,))]:
            for value in values:
                finite(f"ZeroTuning({name})", float(value))
        if wrong:
            raise _refused(
                f"ZeroTuning({', '.join(wrong)})",
                "is out of range",
                "probe and gammas above 1, gamma above 0 and not 1, 0 < fraction <= 1",
                wrong,
            )
        if self.layers is not None and any(not 0 <= n < dims.n_layers for n in self.layers):
            raise _refused(
                "ZeroTuning(layers)",
                "names a layer the model lacks",
                f"layers 0 to {dims.n_layers - 1}",
                self.layers,
            )

    def _layers(self, n_layers: int) -> tuple[int, ...]:
        if self.layers is not None:
            return self.layers
        return tuple(range(math.ceil(2 * n_layers / 3)))

    def _tried(self, up: bool) -> list[float]:
        if self.gamma is not None:
            return [float(self.gamma)]
        return [float(g) if up else 1 / float(g) for g in self.gammas]

    def _gain(self, head: Head, n_heads: int, score: Score) -> float:
        """How much better scaling this head up is than scaling it down."""
        up, down = (score([_edit([head], g, n_heads)]) for g in (self.probe, 1 / self.probe))
        return up - down

    def _group(self, gains: dict[Head, float]) -> tuple[list[Head], bool]:
        """The heads to tune, best first, and whether they are the up-effective ones."""
        ups = [head for head, gain in gains.items() if gain > 0]
        up = 2 * len(ups) >= len(gains) if self.gamma is None else self.gamma > 1
        group = ups if up else [head for head, gain in gains.items() if gain <= 0]
        ranked = sorted(group or list(gains), key=lambda head: -abs(gains[head]))
        return ranked[: max(1, round(self.fraction * len(gains)))], up

    def _score(
        self, contrast: Contrast, run: Callable[..., Any], encode: Callable[[str], list[int]]
    ) -> Score:
        """What is to be as high as can be, as a function of the edits."""
        prompts = self._prompts(contrast)
        if self.select == "entropy":
            return lambda edits: -_entropy(run(prompts, edits=edits, logits="last").logits[:, -1])
        answers = [encode(str(prompt.meta["completion"])) for prompt in prompts]

        def logprob(edits: Sequence[Intervention]) -> float:
            logits = run(prompts, edits=edits, completions=answers, logits="all").logits
            rows = [
                _chosen(logits[i, -len(ids) - 1 : -1], ids) for i, ids in enumerate(answers) if ids
            ]
            return float(torch.stack(rows).mean())

        return logprob

    def _prompts(self, contrast: Contrast) -> list[Prompt]:
        positive, negative = contrast.prompts or ((), ())
        if self.select == "answer":
            known = [p for p in positive if p.meta.get("completion")]
        else:
            known = [*positive, *negative]
        if not known:
            raise _refused(
                "ZeroTuning.fit",
                "has nothing to choose heads by",
                "prompts" + (" with completions" if self.select == "answer" else ""),
                f"{len(positive) + len(negative)} prompts without them",
            )
        step = max(1, math.ceil(len(known) / self.max_prompts))
        return known[::step]


def _edit(
    heads: Sequence[Head],
    gamma: float | int,
    n_heads: int,
    contrast: Contrast | None = None,
    params: dict[str, Any] | None = None,
) -> Intervention:
    tensors: dict[str, dict[str, Tensor]] = {}
    for layer, head in sorted(heads):
        site = tensors.setdefault(f"L{layer}.attn_scores", {"bias": torch.zeros(n_heads)})
        site["bias"][head] = math.log(gamma)
    return Intervention(
        "zero_tuning",
        "score_bias",
        tensors,
        unit=f"times log gamma = {math.log(gamma):+.3f} nats on the score of the first token",
        params={"keys": KEYS, **(params or {})},
        model=contrast.model if contrast else None,
    )


def _entropy(logits: Float[Tensor, "batch vocab"]) -> float:
    """Mean entropy in nats."""
    logs = logits.double().log_softmax(-1)
    return float(-(logs.exp() * logs).sum(-1).mean())


def _chosen(logits: Float[Tensor, "pos vocab"], ids: list[int]) -> Tensor:
    """Mean log-probability in nats of the ids."""
    logs = logits.double().log_softmax(-1)
    return logs.gather(1, torch.tensor(ids, device=logs.device)[:, None]).mean()


def _refused(where: str, wrong: str, expected: object, got: object) -> WorkbenchError:
    return WorkbenchError(where, wrong, expected=expected, got=got, do="correct it")
