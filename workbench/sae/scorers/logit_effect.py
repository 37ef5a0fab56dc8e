"""Logit effect: what a unit of each feature writes straight into the logits.

    score_j = mean over cases of  d_j . u_i,   u_i . h + c = logit(token) - logit(other)

u_i is the unembedding's row seen through the final norm, whose scale is frozen where case i ends. Without
another token the mean logit is taken off. Layers in between are left out: near the end of the model this
is most of the effect, early in it little; `attribution` has the rest.

Shapes: `values` `[case, feature]`.
Units: logits per unit of activation.
Source: nostalgebraist (2020), Interpreting GPT: the Logit Lens,
    https://www.lesswrong.com/posts/AcKRB8wDpdaN6v6ru; Bricken et al. (2023), Towards Monosemanticity,
    https://transformer-circuits.pub/2023/monosemantic-features, for logit weights of features.
Differs from the paper: the final norm's scale is that of each prompt and not left out. Chance is a
    dictionary of as many random directions of the same lengths.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch

from workbench.registry import Citation, register
from workbench.sae.scorers.base import FeatureScores, Need, Reads, Scorer
from workbench.seeds import derive
from workbench.shapes import Float, Tensor


@register(
    "scorers",
    Citation(
        "Bricken, Templeton, Batson, Chen, Jermyn, et al.",
        "Towards Monosemanticity: Decomposing Language Models With Dictionary Learning",
        2023,
        "https://transformer-circuits.pub/2023/monosemantic-features",
    ),
)
@dataclass(frozen=True)
class LogitEffect(Scorer):
    """Features that write a token straight into the logits.

    Attributes:
        token: a text that is one token, or its id; by default each prompt's own answer, less its foil.
    """

    needs: ClassVar[tuple[Need, ...]] = ("toward", "decoder")
    token: str | int | None = None

    @property
    def reads(self) -> tuple[Reads, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Answers, where no token is named."""
        return ("answer",) if self.token is None else ()

    def score(
        self,
        *,
        toward: Callable[..., Float[Tensor, "case d"]],
        decoder: Float[Tensor, "feature d"],
    ) -> FeatureScores:
        """Logits per unit of activation of every feature."""
        writes = decoder.float().cpu()
        own = toward(self.token, "asked").float().cpu()
        other = toward(self.token, "random").float().cpu()
        asked = "the answer" if self.token is None else repr(self.token)
        return FeatureScores(
            own @ writes.mT,
            (other.mean(0) @ writes.mT).double(),
            _random_dictionary(own.mean(0), writes.norm(dim=1), self.draws, self.seed),
            f"logit effect on {asked}",
            "logits per unit of activation",
            "the same for two tokens drawn at random",
            caption=f"What a unit of each feature writes into the logit of {asked}, "
            f"mean over {len(own)} prompts.",
        )


def _random_dictionary(
    direction: Float[Tensor, " d"], lengths: Float[Tensor, " feature"], draws: int, seed: int
) -> Float[Tensor, " draw"]:
    """`[draw]`: the largest product with `direction` of as many random directions of these lengths.

    The cosine of a random direction in d dimensions is g / sqrt(g^2 + c), g normal and c chi-squared with
    d - 1 degrees of freedom, so that no direction has to be made.
    """
    import numpy as np

    random = np.random.default_rng(derive(seed, "directions"))
    found = torch.zeros(draws, dtype=torch.float64)
    for i in range(draws):
        g = random.standard_normal(len(lengths))
        rest = random.chisquare(max(1, len(direction) - 1), len(lengths))
        cosine = torch.from_numpy(np.abs(g) / np.sqrt(g**2 + rest))
        found[i] = (cosine * lengths.double()).max()
    return found * direction.double().norm()
