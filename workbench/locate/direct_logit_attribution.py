"""Direct logit attribution: the share of every part of the model in the logit difference.

    resid = embed + sum_l (attn_l + mlp_l),   y = s gamma * (resid - m mean(resid)) + beta
    logit(answer) - logit(foil) = u . resid + c,   share(part) = u . part

with the final norm's scale s frozen at the value it has (m is 1 for a layer norm, 0 for RMS). The shares
and the constant c, which final norm and unembedding add by themselves, sum to the logit difference
exactly. Without foils the mean logit is subtracted instead.

Shapes: parts `[case, d]` at the last position, shares `[case, part]`.
Units: logits.
Source: Elhage et al. (2021), A Mathematical Framework for Transformer Circuits,
    https://transformer-circuits.pub/2021/framework/index.html; with the scale frozen as in Wang et al.
    (2022), Interpretability in the Wild, https://arxiv.org/abs/2211.00593.
Differs from the paper: the constant is a part of its own ("bias"), so that nothing is left over. A
    share is what a part adds directly; what it does through later blocks is not in it, but is in what
    its edit changes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from workbench.errors import WorkbenchError
from workbench.locate.base import Axis, Cases, Localiser, Need, Reads, Scores, head_axis, layer_axis
from workbench.registry import Citation, register
from workbench.scopes import Scope
from workbench.shapes import Float, Tensor
from workbench.tensors import Intervention

BIAS = "bias"
"""What final norm and unembedding add by themselves."""
HALVES = ("attn_out", "mlp_out")
LAST = "[pos=-1]"


@register(
    "locate",
    Citation(
        "Elhage et al.",
        "A Mathematical Framework for Transformer Circuits",
        2021,
        "https://transformer-circuits.pub/2021/framework/index.html",
    ),
)
@dataclass(frozen=True)
class DirectLogitAttribution(Localiser):
    """What each part of the model adds directly to the logit difference; the shares sum to it.

    A place's edit takes away what that part writes at the last position of the prompt; for "embed"
    this is all that enters the first block there.

    Attributes:
        heads: attention in heads ("L2.h5") and the bias of its output ("L2.attn_bias").
    """

    needs: ClassVar[tuple[Need, ...]] = ("run", "head", "dims")
    reads: ClassVar[tuple[Reads, ...]] = ("answer",)
    heads: bool = False

    def find(self, cases: Cases, *, run: Callable[..., Any], head: Any, dims: Any) -> Scores:
        """Shares of all parts, the constant as the last.

        Raises:
            WorkbenchError: logits are not linear in the normed stream (a soft cap), heads do not add
                up to attention (a norm behind them), or blocks add more than their two halves.
        """
        n = dims.n_layers
        trace = run(cases.clean, record=self._read(n))
        resid = trace[f"L{n - 1}.resid_post{LAST}"]
        direction, constant = head.readout(resid, cases.answer, cases.foil)
        share = lambda part: (part.double() * direction.double()).sum(-1).float().cpu()  # noqa: E731
        shares = {name: share(part) for name, part in self._parts(trace, head, n)}
        shares[BIAS] = constant.cpu()
        total = share(resid) + shares[BIAS]
        table = torch.stack(list(shares.values()), -1)
        _check_sum(table.sum(-1), total, table.abs().sum(-1), resid.dtype)
        caption = f"Direct share in the {_of(cases)}: mean over {len(cases)} prompts."
        biases = {f"L{i}.attn_bias": head.write_bias(i) for i in range(n) if self.heads}
        return Scores(
            {"logit_difference": table},
            (Axis("part", tuple(shares)),),
            {"logit_difference": "logits"},
            figure="lines",
            caption=caption,
            reference={"logit difference": total},
            edit=lambda part: _removed(part, dims, biases),
            also=_maps(shares, dims, self.heads, caption),
        )

    def _read(self, n: int) -> list[str]:
        parts = (*HALVES, "z") if self.heads else HALVES
        ends = [f"L0.resid_pre{LAST}", f"L{n - 1}.resid_post{LAST}"]
        return ends + [f"L*.{part}{LAST}" for part in parts]

    def _parts(
        self, trace: Any, head: Any, n: int
    ) -> Iterator[tuple[str, Float[Tensor, "case d"]]]:
        """Every part at the last position, in forward order; a block's heads at a time."""
        yield "embed", trace[f"L0.resid_pre{LAST}"]
        for layer in range(n):
            attention, mlp = (trace[f"L{layer}.{half}{LAST}"] for half in HALVES)
            if self.heads:
                writes = head.writes(layer, trace[f"L{layer}.z{LAST}"], attention)
                for i, write in enumerate(writes.unbind(-2)):
                    yield f"L{layer}.h{i}", write
                yield f"L{layer}.attn_bias", head.write_bias(layer).expand_as(attention)
            else:
                yield f"L{layer}.attn_out", attention
            yield f"L{layer}.mlp_out", mlp


def _check_sum(found: Tensor, wanted: Tensor, size: Tensor, dtype: torch.dtype) -> None:
    off = float(((found - wanted).abs() / (1 + size)).max())
    if not off <= 1e-4 + 4 * torch.finfo(dtype).eps:
        raise WorkbenchError(
            "direct_logit_attribution",
            "the parts do not sum to the logit difference: blocks add more than their two halves",
            expected="resid_post = resid_pre + attn_out + mlp_out",
            got=f"a relative deviation of {off:.3g}",
            do="use activation_patching on this architecture",
        )


def _of(cases: Cases) -> str:
    return "logit of the answer less the mean logit" if cases.foil is None else "logit difference"


def _maps(shares: Mapping[str, Tensor], dims: Any, heads: bool, caption: str) -> dict[str, Scores]:
    """The same shares laid out over layers: halves of blocks, and heads where they were split."""
    layers = range(dims.n_layers)
    grid = lambda rows: torch.stack([torch.stack(row, -1) for row in rows], 1)  # noqa: E731
    mlp = [shares[f"L{i}.mlp_out"] for i in layers]
    if heads:
        by_head = [[shares[f"L{i}.h{h}"] for h in range(dims.n_heads)] for i in layers]
        whole = [sum(row, shares[f"L{i}.attn_bias"]) for i, row in enumerate(by_head)]
    else:
        by_head, whole = [], [shares[f"L{i}.attn_out"] for i in layers]
    made = {"layers": (grid(list(zip(whole, mlp, strict=True))), Axis("part", HALVES))}
    if by_head:
        made["heads"] = (grid(by_head), head_axis(dims.n_heads))
    return {
        name: Scores(
            {"logit_difference": values},
            (layer_axis(dims.n_layers), axis),
            {"logit_difference": "logits"},
            caption=caption,
            edit=lambda layer, part=None, head=None: _removed(
                f"L{layer}.{part if head is None else f'h{head}'}", dims, {}
            ),
        )
        for name, (values, axis) in made.items()
    }


def _removed(part: str, dims: Any, biases: Mapping[str, Tensor]) -> Intervention:
    """Takes away what the part writes at the last position of the prompt."""
    layer, _, name = part.partition(".")
    if part == BIAS:
        raise WorkbenchError(
            "direct_logit_attribution",
            "the constant of final norm and unembedding is written by no part, so it is no edit",
            expected="a part that writes to the residual stream",
            got=part,
            do="choose another part",
        )
    if part == "embed":
        site, tensors = "L0.resid_pre", {"scale": -torch.ones(dims.d_model)}
    elif name in HALVES:
        site, tensors = part, {"scale": -torch.ones(dims.d_model)}
    elif part in biases:
        site, tensors = f"{layer}.attn_out", {"shift": -biases[part].float().cpu()}
    else:
        site, tensors = f"{layer}.z[head={name[1:]}]", {"scale": -torch.ones(dims.d_head)}
    return Intervention(
        "direct_logit_attribution",
        "affine",
        {site: tensors},
        unit="fraction of the write taken away",
        scope=Scope.parse("last_prompt"),
        name=f"without {part}",
    )
