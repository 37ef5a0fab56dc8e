"""One block more at the bottom, trained on wanted completions, mixed in at the logits (InRa).

    l' = (1 - s) l + s l_block

l_block are the logits of the model with a copy of block 0 before block 0. The copy's writing
projections start at 0, so that it starts as the identity; it alone is trained, on the cross-entropy of
the positive completions.

Shapes: tensors `block.<parameter>` and `writer.<parameter>` as in block 0; writers are the projections
    into the residual stream with their biases.
Units: strength is the share of the model with the block: 0 is the model itself, 1 the one with the
    block; more and less than that extrapolate.
Source: Zhu, Xie, Zhang and Wang (2025), Flexible Realignment of Language Models,
    https://arxiv.org/abs/2506.12704.
Differs from the paper: it trains three epochs at a rate of 2e-5 on a large corpus; here steps and rate
    are options, with defaults for dozens of prompts. The second stream keeps no cache: each step of a
    generation reads its whole prefix again. Other edits of the same call act on the first stream alone.
    Our reading: every parameter of the copy is trained, its norms too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch

from workbench.errors import WorkbenchError
from workbench.records import Prompt
from workbench.registry import Citation, register
from workbench.shapes import Tensor
from workbench.steering.base import Need, SteeringMethod
from workbench.steering.training import completions_of, train
from workbench.tensors import Contrast, Intervention

SITE = "logits"
WRITERS = ("o_proj", "out_proj", "c_proj", "down_proj", "dense", "dense_4h_to_h", "w2", "fc2")
"""Names under which architectures keep what writes into the residual stream."""


@register(
    "steering",
    Citation(
        "Zhu, Xie, Zhang, Wang",
        "Flexible Realignment of Language Models",
        2025,
        "https://arxiv.org/abs/2506.12704",
    ),
)
@dataclass(frozen=True)
class InRa(SteeringMethod):
    """Train one block more before the first, and mix its logits in.

    Reads no rows; only the positive prompts, with their completions.

    Attributes:
        steps, lr, batch, weight_decay: of AdamW; lr per step, batch in prompts.
        seed: of the order of the prompts.
        progress: show a bar.
    """

    needs: ClassVar[tuple[Need, ...]] = ("run", "encode", "parameters", "dims")
    sites: ClassVar[str] = ""

    steps: int = 60
    lr: float | int = 1e-3
    batch: int = 8
    weight_decay: float | int = 0.0
    seed: int = 0
    progress: bool = True

    def fit(
        self,
        contrast: Contrast,
        *,
        run: Callable[..., Any],
        encode: Callable[[str], list[int]],
        parameters: Mapping[str, Tensor],
        dims: Any,
    ) -> Intervention:
        """The trained block, as an edit of the logits.

        Raises:
            WorkbenchError: a prompt without a completion, options out of range, a loss that is not
                finite, or an architecture whose block is no identity without its writers.
        """
        positive = list(contrast.prompts[0]) if contrast.prompts else []
        examples = completions_of(positive, encode, "InRa.fit")
        start = inserted(parameters, dims.n_layers)

        def build(tensors: Mapping[str, Tensor]) -> Intervention:
            return _edit(tensors, contrast)

        _prove_identity(run, build(start), [positive[0]])
        trained = train(
            build,
            start,
            examples,
            run,
            steps=self.steps,
            lr=self.lr,
            batch=self.batch,
            seed=self.seed,
            weight_decay=self.weight_decay,
            progress=self.progress,
            name="InRa",
        )
        return build(trained.tensors)


def inserted(parameters: Mapping[str, Tensor], n_layers: int) -> dict[str, Tensor]:
    """Tensors of a copy of block 0 whose writers are 0; the names are those of the edit.

    Raises:
        WorkbenchError: no block list, or no writers of a known name.
    """
    prefixes = [m[1] for m in (re.match(r"(.*?\.)0\.", name) for name in parameters) if m]
    blocks = [p for p in prefixes if any(n.startswith(f"{p}{n_layers - 1}.") for n in parameters)]
    start = f"{blocks[0]}0." if blocks else "-"
    own = {n.removeprefix(start): p for n, p in parameters.items() if n.startswith(start)}
    writes = {name: bool(_writes(name)) for name in own}
    if not any(writes.values()):
        raise _refused(sorted(own)[:3] or "no block 0 among the parameters")
    return {
        f"writer.{n}" if writes[n] else f"block.{n}": torch.zeros(p.shape)
        if writes[n]
        else p.detach().to("cpu", torch.float32, copy=True)
        for n, p in own.items()
    }


def _writes(name: str) -> bool:
    """Whether a parameter, or the module it belongs to, is a writer."""
    return any(part.removesuffix("_bias") in WRITERS for part in name.split(".")[-2:])


def _edit(tensors: Mapping[str, Tensor], contrast: Contrast) -> Intervention:
    return Intervention(
        "in_ra",
        "adaptive",
        {SITE: dict(tensors)},
        unit="share of the model with the inserted block",
        params={"rule": "inserted_block"},
        model=contrast.model,
    )


def _prove_identity(run: Callable[..., Any], edit: Intervention, prompts: list[Prompt]) -> None:
    """With writers of 0 the logits must be the model's own."""
    with_block = run(prompts, edits=[replace(edit, conditional=True)], logits="all").logits
    own = run(prompts, logits="all").logits
    # in bfloat16 64 roundings would be half of the logits themselves
    share = min(64 * torch.finfo(own.dtype).eps, 0.02)
    limit = share * max(1.0, float(own.abs().max()))
    off = float((with_block - own).abs().max())
    if not off <= limit:
        raise _refused(f"logits off by {off:.2g} before any training")


def _refused(got: object) -> WorkbenchError:
    return WorkbenchError(
        "InRa.fit",
        "this architecture's block is no identity once its writers are 0",
        expected=f"blocks that write through {', '.join(WRITERS)} alone",
        got=got,
        do="use LoReft or TrRa, which do not insert a block",
    )
