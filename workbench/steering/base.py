"""What a steering method is: options, and `fit` from two classes of rows to an intervention.

Most methods need rows alone. What a method needs beside them it names in `needs`, and is handed by
keyword when it is fitted through `workbench.steering.fit`:

    dims         sizes of the model: n_layers, d_model, n_heads, d_head, n_experts, ...
    run          `run(prompts, record=(), edits=(), completions=None, logits="none", grad=False)`, a
                 forward pass as a Trace
    rows         `rows(prompts, sites, edits=(), pool="last")`, batched activations by site
    generate     `generate(prompts, edits=(), **options)`, continuations
    encode       `encode(text)`, token ids without special tokens
    parameters   the model's parameters by name, to read, never to write
    gradient     `gradient(groups, loss, site)`, the mean gradient of a loss on completions by parameter
    dictionary   a sparse autoencoder: `encode(rows)`, `encoder_row(feature)`, see `sae_feature`
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch

from workbench.errors import WorkbenchError
from workbench.linalg import mean_difference
from workbench.shapes import Float, Rows, Tensor
from workbench.tensors import Contrast, Intervention

Need = Literal["dims", "run", "rows", "generate", "encode", "parameters", "gradient", "dictionary"]


@dataclass(frozen=True)
class SteeringMethod(ABC):
    """Options of a method. `fit` is deterministic and leaves its data as it was.

    Attributes:
        needs: what it must be handed beside rows, by keyword; empty for methods that need rows
            alone. A property where options decide it.
        sites: where its paper reads and acts, the default of `workbench.steering.fit`; "" for a
            method that reads no rows.
        pool: which positions become rows there.
    """

    needs: ClassVar[tuple[Need, ...]] = ()
    sites: ClassVar[str] = "L*.resid_post"
    pool: ClassVar[Literal["last", "first", "mean", "all"]] = "last"

    @abstractmethod
    def fit(self, contrast: Contrast, *args: Any, **handed: Any) -> Intervention:
        """The intervention that moves activations from the negative to the positive class."""


def sites_of(
    contrast: Contrast, method: str, paired: bool = False
) -> Iterator[tuple[str, Rows, Rows]]:
    """Every site with its positive and negative rows, on the CPU, after checking that they can be fitted.

    Raises:
        WorkbenchError: no site, an empty class, a NaN or infinite value, rows that are not paired
            where `paired` asks for it, or two classes with one and the same mean.
    """
    where = f"{method}.fit"
    if not contrast.positive or set(contrast.positive) != set(contrast.negative):
        raise WorkbenchError(
            where,
            "the classes do not share their sites",
            expected="the same sites in both",
            got=f"{list(contrast.positive)} and {list(contrast.negative)}",
            do="record both classes at the same sites",
        )
    if paired and not contrast.paired:
        raise WorkbenchError(
            where,
            "needs pairs",
            expected="as many positive as negative prompts, matched one to one",
            got="unpaired rows",
            do="make the prompts with workbench.prompts.pairs, or use a method without pairs",
        )
    for site, positive in contrast.positive.items():
        rows = positive.detach().cpu(), contrast.negative[site].detach().cpu()
        _check_rows(f"{where} at {site}", *rows)
        yield site, *rows


def check_read_again(where: str, read: Tensor, recorded: Rows) -> None:
    """Refuse rows, read anew without any edit, that are not those of the contrast.

    Another pool gives other rows. Other batches give other rounding, in half precision up to a few
    hundredths of the rows' spread.
    """
    same = read.shape == recorded.shape
    if same and float((read.double() - recorded.double()).square().mean().sqrt()) <= 0.1 * float(
        recorded.double().std(correction=0)
    ):
        return
    raise WorkbenchError(
        where,
        "rows read again are not the rows of the contrast",
        expected="rows of the last position, recorded without edits",
        got="other values" if same else f"{tuple(read.shape)}, not {tuple(recorded.shape)}",
        do="leave pool at its default; sequential=False takes rows of any pool",
    )


def _check_rows(where: str, positive: Rows, negative: Float[Tensor, "other d"]) -> None:
    for name, rows in (("positive", positive), ("negative", negative)):
        if not len(rows):
            raise WorkbenchError(
                where,
                f"the {name} class is empty",
                expected="at least one row of each class",
                got="0 rows",
                do="add prompts of that class",
            )
        if not bool(torch.isfinite(rows).all()):
            raise WorkbenchError(
                where,
                f"the {name} class holds NaN or infinite values",
                expected="finite activations",
                got=f"{int((~torch.isfinite(rows)).any(-1).sum())} such rows of {len(rows)}",
                do="record again in float32 or bfloat16; float16 overflows in some models",
            )
    # Equal means leave rounding noise, not exactly 0; a direction of noise would steer at random.
    size = max(
        float(positive.double().norm(dim=-1).mean()), float(negative.double().norm(dim=-1).mean())
    )
    if float(mean_difference(positive, negative).norm()) <= 1e-9 * size:
        raise WorkbenchError(
            where,
            "both classes have the same mean, so there is no direction",
            expected="classes whose activations differ",
            got="a difference of 0",
            do="check the labels, or record at a position and layer that tell the classes apart",
        )
