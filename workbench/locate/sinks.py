"""Attention sinks and compression: how much the first token outweighs the rest, layer by layer.

    H(X) = - sum p_j log p_j,   p_j = sigma_j^2 / ||X||_F^2,   sigma the singular values of X [T, d]
    sink rate = share of heads whose mean attention to token 0, over queries i >= 1, exceeds tau
    massive   = number of |a| > 100 that are also >= 1000 times the median |a| of that hidden state

with M = ||x_0||^2, R the sum of the other squared norms, a = sum_{i>0} ||x_i||^2 cos^2(x_i, x_0) / R,
c = M / R and p = (c + a) / (c + 1), bounds that hold for every X:

    sigma_1^2 >= M + a R        sigma_1^2 / sum_{j>1} sigma_j^2 >= (c + a) / (1 - a)        p_1 >= p
    H <= - p log p - (1 - p) log(1 - p) + (1 - p) log(min(T, d) - 1)

The first three say the same: divided by ||X||_F^2, each is p_1 >= p.

Shapes: `[case, layer]`, X the stream that leaves the block and the attention inside it.
Units: nats for entropy; the stream's own for norms. The map `also["bounds"]` holds, in shares and nats,
    by how much each bound holds: never below 0.
Source: Attention Sinks and Compression Valleys in LLMs are Two Sides of the Same Coin (ICLR 2026),
    known from its abstract and notes alone, https://arxiv.org/abs/2510.06477; massive activations after
    Sun et al. (2024), https://arxiv.org/abs/2402.17762; tau = 0.3 after Gu et al. (2024),
    https://arxiv.org/abs/2410.10781.
Differs from the paper: its tau was not found. "Make it an edit" drops what the layer's MLP writes to
    token 0; which layer that is for a model, its massive activation shows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from workbench.errors import PromptError, WorkbenchError
from workbench.locate.attending import part_of, pieces
from workbench.locate.base import Cases, Localiser, Need, Scores, layer_axis
from workbench.registry import Citation, register
from workbench.shapes import Float, Tensor
from workbench.tensors import Intervention, Tokens

LARGE, TIMES = 100.0, 1000.0
UNITS = {
    "entropy": "nats",
    "entropy share": "share of log min(T, d)",
    "first norm": "norm",
    "norm ratio": "times the median norm",
    "sink rate": "share of heads",
    "massive": "activations",
}
BOUNDS = {
    "first share": "share of all variance above the bound",
    "entropy": "nats below the bound",
}


@register(
    "locate",
    Citation(
        "Authors of 2510.06477",
        "Attention Sinks and Compression Valleys in LLMs are Two Sides of the Same Coin",
        2026,
        "https://arxiv.org/abs/2510.06477",
    ),
)
@dataclass(frozen=True)
class Sinks(Localiser):
    """How far the first token outweighs all others: entropy, norms, sink rate, massive activations.

    Attributes:
        tau: mean attention to the first token from which a head counts as a sink.
    """

    needs: ClassVar[tuple[Need, ...]] = ("run", "dims")
    tau: float | int = 0.3

    def __post_init__(self) -> None:
        if not 0 < self.tau < 1:
            raise WorkbenchError(
                "Sinks(tau=)",
                "is no share of attention",
                expected="a number between 0 and 1",
                got=self.tau,
                do="the usual one is 0.3",
            )

    def find(self, cases: Cases, *, run: Callable[..., Any], dims: Any) -> Scores:
        """All measures at every layer, and the bounds.

        Raises:
            PromptError: a prompt is a single token.
        """
        _check(cases.clean)
        rows = []
        width = cases.clean.ids.shape[1]
        each = dims.n_layers * width * (dims.n_heads * width + dims.d_model)
        for some in pieces(len(cases), each):
            batch = part_of(cases.clean, some)
            trace = run(batch, record=["L*.resid_post", "L*.pattern"])
            streams = trace.stack("resid_post").transpose(0, 1)
            rates = _rates(trace.stack("pattern").float().transpose(0, 1), batch, self.tau)
            rows += [
                _measures(stream[:, -length:], rate)
                for stream, rate, length in zip(streams, rates, batch.lengths, strict=True)
            ]
        values = {name: torch.stack([row[name] for row in rows]) for name in UNITS}
        slack = {name: torch.stack([row[f"bound {name}"] for row in rows]) for name in BOUNDS}
        axes = (layer_axis(dims.n_layers),)
        about = f"{len(cases)} prompts, sink rate at tau = {self.tau:g}."
        bounds = Scores(slack, axes, BOUNDS, "lines", f"How far the bounds hold, {about}")
        return Scores(
            values,
            axes,
            UNITS,
            "lines",
            f"The first token against the rest, {about}",
            edit=lambda layer: without_write(layer, dims.d_model),
            also={"bounds": bounds},
        )


def without_write(layer: int, d_model: int) -> Intervention:
    """The edit that drops what the layer's MLP writes to the first token."""
    return Intervention(
        "sinks",
        "affine",
        {f"L{layer}.mlp_out[pos=0]": {"scale": -torch.ones(d_model)}},
        unit="of the way to no write",
        name=f"no MLP write to token 0 at layer {layer}",
    )


def entropy(variances: Float[Tensor, "*layer j"]) -> Float[Tensor, "*layer"]:
    """H in nats of shares of variance, squared singular values over their sum."""
    return -torch.special.xlogy(variances, variances).sum(-1)


def spectrum(stream: Float[Tensor, "*layer pos d"]) -> Float[Tensor, "*layer j"]:
    """Squared singular values over their sum, largest first, min(pos, d) of them, in float64."""
    x = stream.double()
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-300)
    gram = x @ x.mT if x.shape[-2] <= x.shape[-1] else x.mT @ x
    found = torch.linalg.eigvalsh(gram).clamp(min=0).flip(-1)
    return found / found.sum(-1, keepdim=True)


def bounds(stream: Float[Tensor, "*layer pos d"]) -> dict[str, Float[Tensor, "*layer"]]:
    """By how much p_1 >= p and the bound on H hold; neither is ever below 0."""
    x = stream.double()
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-300)
    first, others = x[..., :1, :], x[..., 1:, :]
    unit = first / first.norm(dim=-1, keepdim=True).clamp(min=1e-300)
    along = (others * unit).sum(-1).square().sum(-1)
    shares = spectrum(stream)
    # ||X|| is 1, so M + a R is (c + a) / (c + 1)
    p = (first.square().sum((-2, -1)) + along).clamp(max=1)
    rank = shares.shape[-1]
    most = entropy(torch.stack([p, 1 - p], -1))
    most = most + torch.special.xlogy(1 - p, torch.tensor(float(max(rank - 1, 1))).to(p))
    return {
        "first share": shares[..., 0] - p,
        "entropy": most - entropy(shares),
    }


def massive(stream: Float[Tensor, "*layer pos d"]) -> Float[Tensor, "*layer"]:
    """How many activations are above 100 and at least 1000 times the median of the hidden state."""
    sizes = stream.float().abs().flatten(-2)
    median = sizes.median(-1, keepdim=True).values
    return ((sizes > LARGE) & (sizes >= TIMES * median)).sum(-1).float()


def _measures(
    stream: Float[Tensor, "layer pos d"], rate: Float[Tensor, " layer"]
) -> dict[str, Float[Tensor, " layer"]]:
    """Everything of one prompt."""
    h = entropy(spectrum(stream))
    most = torch.tensor(float(min(stream.shape[-2:]))).log().to(h)
    norms = stream.float().norm(dim=-1)
    found = {
        "entropy": h,
        "entropy share": h / most if float(most) > 0 else torch.full_like(h, torch.nan),
        "first norm": norms[:, 0],
        "norm ratio": norms[:, 0] / norms.quantile(0.5, -1),
        "sink rate": rate,
        "massive": massive(stream),
    }
    found |= {f"bound {name}": value for name, value in bounds(stream).items()}
    return {name: value.float().cpu() for name, value in found.items()}


def _rates(
    found: Float[Tensor, "case layer head q k"], tokens: Tokens, tau: float | int
) -> Float[Tensor, "case layer"]:
    """Share of heads above tau."""
    rows = torch.arange(len(tokens), device=found.device)
    first = (tokens.positions == 0).int().argmax(1).to(found.device)
    column = found[rows, ..., first]
    later = (tokens.positions > 0).to(found.device)[:, None, None]
    means = column.where(later, 0.0).sum(-1) / later.sum(-1)
    return (means > tau).float().mean(-1)


def _check(tokens: Tokens) -> None:
    for prompt, length in zip(tokens.prompts, tokens.lengths, strict=True):
        if length < 2:
            raise PromptError(
                f"prompt {(prompt.text or '')[:40]!r}",
                "is a single token, so nothing stands against the first",
                expected="at least 2 tokens",
                got=length,
                do="use a longer prompt",
            )
