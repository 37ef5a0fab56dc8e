"""What a localiser is: options, and `find` from cases to scores over places of the model.

A localiser knows no model. What it needs it names in `needs`, and is handed by keyword:

    dims         sizes of the model: n_layers, d_model, n_heads, n_kv_heads, d_head, ...
    run          `run(prompts, record=(), edits=(), completions=None, logits="none", grad=False)`, a
                 forward pass as a Trace
    patched      `patched(tokens, variants, read)`: the batch run once per variant (a list of `Patch`),
                 from the lowest patched layer on; `read(logits of the last position)`, stacked
    gradients    `gradients(tokens, sites, loss)`: values, gradients and losses, `loss(logits)` per case
    head         the way from the residual stream to the logits: `unembed`, `readout`, `writes`, see
                 `workbench.patching.head`
    edges        `edges`: runs in which single edges between components are patched, see
                 `workbench.patching.edges`
    generate     `generate(prompts, edits=(), **options)`, continuations
    decode       `decode(id)`, the text of one token
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import torch

from workbench.errors import WorkbenchError, unknown
from workbench.shapes import Float, Int, Tensor
from workbench.tensors import Intervention, Tokens

Need = Literal["dims", "run", "patched", "gradients", "head", "edges", "generate", "decode"]
Reads = Literal["answer", "foil", "corrupted"]


@dataclass(frozen=True, repr=False)
class Cases:
    """What is asked of the model: a row per case, as one left-padded batch.

    Attributes:
        clean: the prompts.
        corrupted: the same number of prompts that differ in what matters; None where a method needs
            none.
        answer: id of the right next token of each clean prompt, None where there is none.
        foil: id of the token that the corrupted prompt asks for.
        columns: `[case, pos]`, the column of the corrupted batch that each column of the clean one is
            compared with; -1 on padding and where there is none. None without `corrupted`.
    """

    clean: Tokens
    corrupted: Tokens | None = None
    answer: Int[Tensor, " case"] | None = None
    foil: Int[Tensor, " case"] | None = None
    columns: Int[Tensor, "case pos"] | None = None

    def __len__(self) -> int:
        return len(self.clean)

    def __repr__(self) -> str:
        have = [name for name in ("answer", "foil", "corrupted") if getattr(self, name) is not None]
        return f"Cases({len(self)}, with {', '.join(have) or 'prompts alone'})"

    @property
    def swapped(self) -> Cases:
        """Clean and corrupted exchanged, answers with their foils too.

        Raises:
            WorkbenchError: there is no corrupted side.
        """
        if self.corrupted is None or self.columns is None:
            raise WorkbenchError(
                "Cases.swapped",
                "there is no corrupted side",
                expected="clean and corrupted prompts",
                got=f"{len(self)} clean ones",
                do="make them with wb.prompts.counterfactuals(clean=, corrupted=, answers=)",
            )
        back = self.columns.new_full(self.corrupted.ids.shape, -1)
        rows, columns = (self.columns >= 0).nonzero(as_tuple=True)
        back[rows, self.columns[rows, columns]] = columns
        return replace(
            self,
            clean=self.corrupted,
            corrupted=self.clean,
            answer=self.foil,
            foil=self.answer,
            columns=back,
        )

    def aligned(self, values: Tensor) -> Tensor:
        """Values of the corrupted batch `[case, pos, ...]` on the columns of the clean one.

        Where a column has no counterpart the value is 0: use `columns >= 0` to leave it out.
        """
        assert self.columns is not None
        rows = torch.arange(len(self), device=values.device)[:, None]
        columns = self.columns.to(values.device)
        found = values[rows, columns.clamp(min=0)]
        missing = (columns < 0).reshape(*columns.shape, *[1] * (found.dim() - 2))
        return found.masked_fill(missing, 0)

    def metric(self, logits: Float[Tensor, "case vocab"], kind: str) -> Float[Tensor, " case"]:
        """What the logits of the last position say of the answer, in float32.

        Args:
            logits: of the last position; rows may repeat all cases several times, case fastest.
            kind: "logit_difference" (answer minus foil; without foils: minus the mean logit),
                "logprob" of the answer in nats, or "probability".

        Raises:
            UnknownName: no such kind.
        """
        if kind not in METRICS:
            raise unknown("metric", "metric", kind, METRICS)
        assert self.answer is not None
        logits = logits.float()
        copies = logits.shape[0] // len(self)
        pick = lambda ids: logits.gather(-1, ids.to(logits.device).repeat(copies)[:, None])[:, 0]  # noqa: E731
        if kind == "logit_difference":
            other = logits.mean(-1) if self.foil is None else pick(self.foil)
            return pick(self.answer) - other
        logprob = pick(self.answer) - logits.logsumexp(-1)
        return logprob if kind == "logprob" else logprob.exp()


METRICS = {"logit_difference": "logits", "logprob": "nats", "probability": "fraction"}
"""What is read off the last position, and its unit."""


@dataclass(frozen=True)
class Patch:
    """A value put into a run at one place.

    Attributes:
        site: such as "L3.resid_pre" or "L2.z", without selectors.
        values: `[case, *the site's axes]`, of which the place is taken.
        column: the column of the padded batch; None for all.
        head: which head; None for all.
        rows: `[case]`, False where this case stays as it is; None for all cases.
    """

    site: str
    values: Tensor
    column: int | None = None
    head: int | None = None
    rows: Tensor | None = None


@dataclass(frozen=True)
class Axis:
    """One axis of scores: its name ("layer", "pos", "head", "part", ...) and a label per index.

    Attributes:
        labels: numbers or texts, each once.
        shown: what a figure writes instead, e.g. the tokens at positions; `labels` where empty.
    """

    name: str
    labels: tuple[int | str, ...]
    shown: tuple[str, ...] = ()


@dataclass(frozen=True)
class Scores:
    """What a localiser found: measures over places, one value per case.

    Attributes:
        values: per measure `[case, *axes]`; NaN where a case has no such place. The first is the main
            one.
        axes: names and labels of the axes behind `case`.
        units: the unit of each measure.
        figure: name of a file in `workbench/figures` that draws it.
        caption: one sentence under the figure; says what is drawn and over how many cases.
        reference: numbers that frame the values, e.g. the metric of the clean and the corrupted run,
            `[case]` each.
        edit: makes an intervention of a place, given its labels by axis name: "make it an edit".
        also: other scores that belong to it, e.g. a control, or the exact patch of the top cells.
    """

    values: Mapping[str, Tensor]
    axes: tuple[Axis, ...]
    units: Mapping[str, str]
    figure: str = "heat"
    caption: str = ""
    reference: Mapping[str, Float[Tensor, " case"]] = field(default_factory=dict)
    edit: Callable[..., Intervention] | None = None
    also: Mapping[str, Scores] = field(default_factory=dict)

    def __post_init__(self) -> None:
        sizes = tuple(len(axis.labels) for axis in self.axes)
        wrong = {k: tuple(v.shape[1:]) for k, v in self.values.items() if v.shape[1:] != sizes}
        if not self.values or wrong or set(self.units) != set(self.values):
            raise WorkbenchError(
                "Scores",
                "values, axes and units do not fit each other",
                expected=f"per measure [case, {sizes}] and a unit",
                got=wrong or f"values {list(self.values)}, units {list(self.units)}",
                do="correct the localiser",
            )


@dataclass(frozen=True)
class Localiser(ABC):
    """Options of a method. `find` is deterministic and leaves its data as it was.

    Attributes:
        needs: what it must be handed, by keyword; a property where options decide it.
        reads: what its cases must have beside prompts.
    """

    needs: ClassVar[tuple[Need, ...]] = ("run", "dims")
    reads: ClassVar[tuple[Reads, ...]] = ()

    @abstractmethod
    def find(self, cases: Cases, *args: Any, **handed: Any) -> Scores:
        """Scores over places of the model."""


def pos_axis(cases: Cases, decode: Callable[[int], str] | None = None) -> Axis:
    """The columns of the clean batch as an axis.

    Labels are absolute positions where all cases are equally long, else positions from the end
    (-1 is the last). Shown are the tokens where all cases share them.
    """
    tokens = cases.clean
    width = tokens.ids.shape[1]
    labels = range(width) if bool(tokens.mask.all()) else range(-width, 0)
    if decode is None:
        return Axis("pos", tuple(labels))
    shown = []
    for column, label in enumerate(labels):
        found = set(tokens.ids[tokens.mask[:, column], column].tolist())
        shown.append(f"{label} {decode(found.pop())!r}" if len(found) == 1 else str(label))
    return Axis("pos", tuple(labels), tuple(shown))


def layer_axis(n_layers: int) -> Axis:
    """Blocks from 0."""
    return Axis("layer", tuple(range(n_layers)))


def head_axis(n_heads: int) -> Axis:
    """Heads of a block from 0."""
    return Axis("head", tuple(range(n_heads)))
